"""EasyVQA against the raw data set: what it says of the images, how it splits, thins out and moves them."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import easy_vqa
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import easy_vqa as module
from datamodules.easy_vqa import (
    COLORS,
    HOLDOUT,
    SHAPES,
    EasyVQA,
    attributes,
    mirror_and_move,
    repaint,
    scatter_color,
)
from datamodules.parts.loader import draws_per_sample
from datamodules.parts.visual_questions import Question, QuestionTable, VQABatch

Raw = dict[int, list[tuple[str, str]]]
PARTS = ("train", "val", "test")


def raw_questions(part: str) -> Raw:
    """Each image's questions and answers, as the package has them."""
    texts, answers, images = getattr(easy_vqa, f"get_{part}_questions")()
    questions: Raw = {}
    for text, answer, image in zip(texts, answers, images, strict=True):
        questions.setdefault(image, []).append((text, answer))
    return questions


def true_answer(text: str, pair: str) -> str:
    """The answer to a question about an image that shows ``pair``."""
    words = re.findall(r"\w+", text)
    shape, color = pair.split("-")
    if words[0] == "what":
        asks_color = "color" in words[:4] or words == ["what", "color", "is", "the", words[-1]]
        return color if asks_color else shape
    asked = [word for word in words if word in COLORS or word in SHAPES]
    assert len(asked) == 1, text
    there = asked[0] in (shape, color)
    negated = "no" in words or "not" in words
    return "yes" if there != negated else "no"


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    """All images of the official parts (N, 3, 64, 64) by number."""
    loaded = {}
    for part in ("train", "test"):
        paths = getattr(easy_vqa, f"get_{part}_image_paths")()
        arrays = [np.asarray(Image.open(paths[i]).convert("RGB")) for i in range(len(paths))]
        loaded[part] = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return loaded


def codes(images: Tensor) -> Tensor:
    """(N, H, W): each pixel's color as one number."""
    red, green, blue = images.long().unbind(1)
    return (red * 256 + green) * 256 + blue


def look(images: Tensor) -> list[str]:
    """The ``shape-color`` of each image, in another way than :func:`attributes` does: by symmetry and corners."""
    palette = [(red * 256 + green) * 256 + blue for red, green, blue in COLORS.values()]
    pixels = codes(images)
    counts = torch.stack([(pixels == code).sum((1, 2)) for code in palette], 1)
    pairs = []
    for image, color in zip(pixels, counts.argmax(1).tolist(), strict=True):
        core = image == palette[color]
        rows, columns = core.any(1).nonzero(), core.any(0).nonzero()
        box = core[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        lopsided = max(float((box != box.flip(axis)).double().mean()) for axis in (0, 1))
        shape = "triangle" if lopsided > 0.3 else "rectangle" if box[0, 0] and box[-1, -1] else "circle"
        pairs.append(f"{shape}-{list(COLORS)[color]}")
    return pairs


@pytest.fixture(scope="module")
def shown(images: dict[str, Tensor]) -> dict[str, list[str]]:
    """The shape and color that each image shows."""
    return {part: look(images[part]) for part in images}


@pytest.fixture(scope="module")
def read(images: dict[str, Tensor]) -> dict[str, list[str]]:
    """The shape and color that :func:`attributes` sees."""
    return {part: attributes(images[part]) for part in images}


@pytest.fixture(scope="module", autouse=True)
def _read_once(images: dict[str, Tensor], read: dict[str, list[str]]) -> Iterator[None]:
    """Images are decoded and looked at once for all tests."""
    original = module.read_images
    assert torch.equal(original("test"), images["test"])
    known = {id(images[part]): read[part] for part in images}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_images", lambda part: images[part])
        patch.setattr(module, "attributes", lambda tensor: known[id(tensor)])
        yield


@pytest.fixture(scope="module")
def plain() -> EasyVQA:
    return made()


def made(**options: Any) -> EasyVQA:
    data = EasyVQA(**options)
    data.setup()
    return data


def whole(data: EasyVQA, part: str) -> VQABatch:
    table = data.tables[part]
    return table[torch.arange(len(table))]


def fingerprints(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def words_of(data: EasyVQA, batch: VQABatch) -> list[str]:
    """The words of each pair's question."""
    rows = batch.questions[batch.question_index].tolist()
    return [" ".join(data.vocab[i] for i in row if i) for row in rows]


# What the images show.


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "test"])
def test_attributes_agree_with_every_question(
    part: str, read: dict[str, list[str]], shown: dict[str, list[str]]
) -> None:
    questions = raw_questions(part)
    for pairs in (read[part], shown[part]):
        assert sorted(questions) == list(range(len(pairs)))
        wrong = [
            (image, text, answer, pairs[image])
            for image, asked in questions.items()
            for text, answer in asked
            if true_answer(text, pairs[image]) != answer
        ]
        assert wrong == []


@pytest.mark.parametrize("part", ["train", "test"])
def test_attributes_are_right_also_where_no_question_tells(
    part: str, read: dict[str, list[str]], shown: dict[str, list[str]]
) -> None:
    assert {i: pair for i, pair in enumerate(read[part]) if pair != shown[part][i]} == {}


def test_all_cells_occur_in_both_parts(shown: dict[str, list[str]]) -> None:
    cells = {f"{shape}-{color}" for shape in SHAPES for color in COLORS}
    for part in ("train", "test"):
        assert set(shown[part]) == cells
    counts = Counter(shown["train"])
    assert (min(counts.values()), max(counts.values())) == (133, 198)


# Parts and facts.


def test_validation_is_carved_from_training_and_the_test_is_the_official_one(
    plain: EasyVQA, images: dict[str, Tensor]
) -> None:
    parts = {part: whole(plain, part).images for part in PARTS}
    assert {part: len(batch) for part, batch in parts.items()} == {"train": 3600, "val": 400, "test": 1000}
    assert torch.equal(parts["test"], images["test"])
    expected = Counter(fingerprints(images["train"]))
    assert Counter(fingerprints(parts["train"])) + Counter(fingerprints(parts["val"])) == expected
    # No picture is in two parts (no two of the data set are alike).
    keys = {part: set(fingerprints(batch)) for part, batch in parts.items()}
    assert not keys["train"] & keys["val"]
    assert not (keys["train"] | keys["val"]) & keys["test"]


def test_split_depends_on_the_split_seed_alone(plain: EasyVQA) -> None:
    torch.manual_seed(123)
    assert EasyVQA()._val_images == plain._val_images
    assert EasyVQA(split_seed=1)._val_images != plain._val_images


def test_every_pair_is_one_of_the_raw_data_set(plain: EasyVQA, images: dict[str, Tensor]) -> None:
    number = {key: i for i, key in enumerate(fingerprints(images["train"]))}
    texts: dict[int, str] = {}
    for part in PARTS:
        questions = raw_questions("test" if part == "test" else "train")
        table = plain.tables[part]
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(1))
        for indices in (*order[:80].split(4), *order[80:].split(500)):
            batch = table[indices]
            keys = fingerprints(batch.images)
            rows = indices.tolist() if part == "test" else [number[key] for key in keys]
            expected: Counter[tuple[int, str, str]] = Counter()
            for row in rows:
                expected.update((row, re.sub(r"[^\w ]", "", text), answer) for text, answer in questions[row])
            found: Counter[tuple[int, str, str]] = Counter()
            words = words_of(plain, batch)
            for i, text in enumerate(words):
                found[rows[int(batch.image_index[i])], text, plain.answers[int(batch.answers[i])]] += 1
            assert found == expected
            # Each image and question is held once; padding is 0 and lengths are those of the words.
            assert len({tuple(row) for row in batch.questions.tolist()}) == len(batch.questions)
            assert batch.image_index.unique().tolist() == list(range(len(indices)))
            assert batch.question_index.unique().tolist() == list(range(len(batch.questions)))
            assert (batch.questions != 0).sum(1).tolist() == batch.lengths.tolist()
            assert int(batch.lengths.max()) == batch.questions.shape[1]
            if part == "train":
                for text, question_id in zip(words, batch.question_ids.tolist(), strict=True):
                    assert texts.setdefault(question_id, text) == text  # equal ids: equal words, in any batch
    assert len(set(texts.values())) == len(texts)


def test_question_types_are_right(plain: EasyVQA) -> None:
    assert plain.question_types == ["color", "shape", "yes_no_color", "yes_no_shape"]
    batch = whole(plain, "test")
    for text, answer, kind in zip(
        words_of(plain, batch), batch.answers.tolist(), batch.question_types.tolist(), strict=True
    ):
        if text.startswith("what"):
            assert plain.question_types[kind] == ("color" if plain.answers[answer] in COLORS else "shape")
        else:
            named = "yes_no_color" if any(word in COLORS for word in text.split()) else "yes_no_shape"
            assert plain.question_types[kind] == named
    counts = torch.bincount(batch.question_types).tolist()
    assert dict(zip(plain.question_types, counts, strict=True)) == {
        "color": 1280,
        "shape": 1257,
        "yes_no_color": 5201,
        "yes_no_shape": 1935,
    }


def test_facts_are_plain_lists(plain: EasyVQA) -> None:
    data = EasyVQA()  # before any set-up
    for name in ("vocab", "answers", "question_types"):
        fact = getattr(data, name)
        assert type(fact) is list
        assert {type(item) for item in fact} == {str}
        assert fact == getattr(plain, name)
    assert data.image_shape == [3, 64, 64]
    assert data.vocab[:2] == ["<pad>", "<unk>"]
    assert sorted(data.answers) == sorted([*SHAPES, *COLORS, "yes", "no"])


def test_facts_come_from_training_questions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._read_questions
    validating = set(EasyVQA()._val_images)

    def marked(part: str) -> list[Question]:
        questions = copy.deepcopy(original(part))
        for question in questions:
            if part == "test" or question.image in validating:
                question.text += " leaked"
                if question.kind == "color":
                    question.answer = question.kind = "leaked"
        return questions

    monkeypatch.setattr(module, "_read_questions", marked)
    data = EasyVQA()
    assert "leaked" not in data.vocab
    assert "leaked" not in data.answers
    assert "leaked" not in data.question_types
    assert "red" in data.answers


def test_prior_comes_from_training_questions_only(plain: EasyVQA) -> None:
    train = whole(plain, "train")
    counts: dict[str, Counter[int]] = {}
    for text, answer in zip(words_of(plain, train), train.answers.tolist(), strict=True):
        counts.setdefault(text, Counter())[answer] += 1
    for part in PARTS:
        batch = whole(plain, part)
        for text, prior in zip(words_of(plain, batch), batch.prior_answers.tolist(), strict=True):
            assert counts[text][prior] == max(counts[text].values())
    # The training questions decide: another split has other priors somewhere, the same split the same.
    assert torch.equal(whole(made(), "test").prior_answers, whole(plain, "test").prior_answers)


@pytest.mark.parametrize("val_fraction", [0.1, 0.00025])
def test_language_prior_reaches_the_known_floors(val_fraction: float, plain: EasyVQA) -> None:
    data = plain if val_fraction == 0.1 else made(val_fraction=val_fraction)
    batch = whole(data, "test")
    right = (batch.prior_answers == batch.answers).double()
    assert len(right) == 9673
    assert float(right.mean()) == pytest.approx(0.67, abs=0.02 if val_fraction == 0.1 else 0.002)
    floors = {"shape": 0.3477, "color": 0.1203, "yes_no_shape": 0.6760, "yes_no_color": 0.8810}
    for kind, floor in floors.items():
        members = batch.question_types == data.question_types.index(kind)
        assert float(right[members].mean()) == pytest.approx(floor, abs=0.02), kind


# Holding out and shifting.


@pytest.fixture(scope="module")
def held_out() -> EasyVQA:
    return made(holdout=HOLDOUT)


def test_holdout_takes_exactly_its_pairs_from_train_and_val(
    held_out: EasyVQA, plain: EasyVQA, images: dict[str, Tensor], shown: dict[str, list[str]]
) -> None:
    pair_of = dict(zip(fingerprints(images["train"]), shown["train"], strict=True))
    removed = 0
    for part in ("train", "val"):
        before, after = whole(plain, part), whole(held_out, part)
        expected = [key for key in fingerprints(before.images) if pair_of[key] not in HOLDOUT]
        assert fingerprints(after.images) == expected
        assert not after.unseen.any()
        removed += len(before.images) - len(after.images)
    assert removed == sum(pair in HOLDOUT for pair in shown["train"]) == 991
    left = {pair_of[key] for key in fingerprints(whole(held_out, "train").images)}
    assert len(left) == 24 - len(HOLDOUT)
    assert {pair.split("-")[0] for pair in left} == set(SHAPES)
    assert {pair.split("-")[1] for pair in left} == set(COLORS)


def test_holdout_marks_its_pairs_in_the_test(held_out: EasyVQA, plain: EasyVQA, shown: dict[str, list[str]]) -> None:
    batch = whole(held_out, "test")
    assert len(batch.images) == 1000
    assert batch.unseen.tolist() == [shown["test"][i] in HOLDOUT for i in batch.image_index.tolist()]
    assert len(batch.image_index[batch.unseen].unique()) == 273
    assert torch.equal(batch.answers, whole(plain, "test").answers)
    assert not whole(plain, "test").unseen.any()


def share_present(data: EasyVQA, part: str, known: dict[bytes, str]) -> dict[str, tuple[int, int]]:
    """Of each color, the questions whether it is there, and those of them in whose image it is."""
    batch = whole(data, part)
    pairs = [known[key] for key in fingerprints(batch.images)]
    counts = {color: (0, 0) for color in COLORS}
    for text, image in zip(words_of(data, batch), batch.image_index.tolist(), strict=True):
        asked = [word for word in text.split() if word in COLORS]
        if asked and not text.startswith("what"):
            total, present = counts[asked[0]]
            counts[asked[0]] = total + 1, present + pairs[image].endswith(asked[0])
    return counts


@pytest.fixture(scope="module")
def known(images: dict[str, Tensor], shown: dict[str, list[str]]) -> dict[bytes, str]:
    return {key: pair for part in images for key, pair in zip(fingerprints(images[part]), shown[part], strict=True)}


def check_shares(data: EasyVQA, shift: float, known: dict[bytes, str]) -> None:
    train, val, test = (share_present(data, part, known) for part in PARTS)
    for rank, color in enumerate(COLORS):
        often = color in ("black", "blue", "brown", "gray")
        assert often == (rank < 4)
        share = shift if often else 1 - shift
        total, present = train[color][0] + val[color][0], train[color][1] + val[color][1]
        assert abs(present - share * total) <= 1, color
        assert train[color][1] / train[color][0] == pytest.approx(share, abs=0.05)
        total, present = test[color]
        assert abs(present - (1 - share) * total) <= 1, color
        assert total > 20


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.8, 0.3])
def test_prior_shift_makes_the_share_in_train_and_its_inverse_in_the_test(
    shift: float, known: dict[bytes, str], plain: EasyVQA
) -> None:
    data = made(prior_shift=shift)
    check_shares(data, shift, known)
    for part in PARTS:  # no other kind of question is left out
        before, after = whole(plain, part), whole(data, part)
        for kind in (0, 1, 3):
            assert int((after.question_types == kind).sum()) == int((before.question_types == kind).sum())
        assert set(fingerprints(after.images)) <= set(fingerprints(before.images))
    torch.manual_seed(99)
    again = made(prior_shift=shift)
    assert torch.equal(whole(again, "train").question_ids, whole(data, "train").question_ids)
    if shift == 0.8:  # what training's language suggests about a color is now wrong in most cases
        batch = whole(data, "test")
        colors = batch.question_types == 2
        assert float((batch.prior_answers == batch.answers)[colors].double().mean()) == pytest.approx(0.2, abs=0.02)


def test_prior_shift_holds_beside_a_holdout(known: dict[bytes, str]) -> None:
    check_shares(made(prior_shift=0.8, holdout=HOLDOUT), 0.8, known)


# Moving.


def boxes(images: Tensor) -> Tensor:
    """(N, 4): first and last row, first and last column of what differs from the ground."""
    pixels = codes(images)
    different = pixels != pixels.flatten(1).mode(1).values[:, None, None]
    found = []
    for image in different:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        found.append([int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])])
    return torch.tensor(found)


def moved_by_hand(images: Tensor, draws: Tensor) -> Tensor:
    """Each image rolled and mirrored, one after the other."""
    moved = []
    for image, (down, across, mirror), (top, bottom, left, right) in zip(
        images, draws.double().tolist(), boxes(images).tolist(), strict=True
    ):
        row = int(down * (64 - (bottom - top)))
        column = int(across * (64 - (right - left)))
        rolled = image.roll((row - top, column - left), (1, 2))
        moved.append(rolled if mirror < 0.5 else rolled.flip(2))
    return torch.stack(moved)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_moved_images_equal_a_naive_loop(images: dict[str, Tensor]) -> None:
    chosen, draws = images["train"][:400], uniform(400, 3)
    assert torch.equal(mirror_and_move(chosen, draws), moved_by_hand(chosen, draws))
    floats = chosen.float() / 255
    assert torch.equal(mirror_and_move(floats, draws), moved_by_hand(chosen, draws).float() / 255)


def test_moved_shapes_stay_whole_and_keep_their_pixels_and_ground(images: dict[str, Tensor]) -> None:
    chosen = images["train"][400:800]
    before = boxes(chosen)
    for extreme in (0.0, None, 1 - 2**-24):  # each corner, too
        draws = uniform(400, 3) if extreme is None else torch.full((400, 3), extreme)
        moved = mirror_and_move(chosen, draws)
        after = boxes(moved)
        for first, last in ((0, 1), (2, 3)):
            assert torch.equal(after[:, last] - after[:, first], before[:, last] - before[:, first])
        assert torch.equal(moved.flatten(2).sort(2).values, chosen.flatten(2).sort(2).values)
        if extreme == 0:
            assert not after[:, [0, 2]].any()
        elif extreme is not None:  # mirrored, as the third draw is as high
            assert (after[:, 1] == 63).all()
            assert (after[:, 2] == 0).all()


def test_moved_images_keep_their_answers(images: dict[str, Tensor], shown: dict[str, list[str]]) -> None:
    moved = mirror_and_move(images["train"][:500], uniform(500, 3, seed=1))
    assert attributes(moved) == shown["train"][:500]


def test_place_is_uniform_over_all_places(images: dict[str, Tensor]) -> None:
    (top, bottom, left, right) = boxes(images["train"][:1])[0].tolist()
    for axis, first, last in ((0, top, bottom), (1, left, right)):
        places = 64 - (last - first)
        draws = torch.full((places * 10, 3), 0.25)
        draws[:, axis] = (torch.arange(places * 10) + 0.5) / (places * 10)
        moved = mirror_and_move(images["train"][:1].expand(len(draws), -1, -1, -1), draws)
        counts = torch.bincount(boxes(moved)[:, 2 * axis], minlength=places)
        assert counts.tolist() == [10] * places


def test_half_of_the_images_are_mirrored(images: dict[str, Tensor]) -> None:
    triangle = torch.full((1, 3, 64, 64), 240, dtype=torch.uint8)
    triangle[0, 0, 10, 20:30] = 0  # a hook, which its mirror image is not
    triangle[0, 0, 10:20, 20] = 0
    draws = uniform(1000, 3)
    moved = mirror_and_move(triangle.expand(1000, -1, -1, -1), draws)
    hooks = (moved[:, 0] == 0).float()
    is_mirrored = hooks.sum(1).argmax(1) > (hooks.sum(1) > 0).int().argmax(1)  # its long side is the right one
    assert torch.equal(is_mirrored, draws[:, 2] >= 0.5)
    assert float(is_mirrored.float().mean()) == pytest.approx(0.5, abs=0.05)


def test_each_sample_goes_by_its_own_draws(images: dict[str, Tensor]) -> None:
    chosen, draws = images["train"][:6], uniform(6, 3)
    moved = mirror_and_move(chosen, draws)
    for i in range(6):
        assert torch.equal(mirror_and_move(chosen[i : i + 1], draws[i : i + 1])[0], moved[i])
    assert (mirror_and_move(chosen, uniform(6, 3, seed=9)) != moved).flatten(1).any(1).all()


def test_only_training_images_are_moved_each_by_the_draws_of_its_place(plain: EasyVQA) -> None:
    batch = plain.tables["train"][torch.arange(8)]
    trainer: Any = SimpleNamespace(
        training=True,
        current_epoch=1,
        fit_loop=SimpleNamespace(batch_idx=4),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        lightning_module=SimpleNamespace(dtype=torch.float),
    )
    still = batch.images.float() / 255
    for augment, training in ((True, True), (True, False), (False, True)):
        data = EasyVQA(augment=augment)
        trainer.training = training
        data.trainer = trainer
        after = data.on_after_batch_transfer(batch, 0)
        draws = draws_per_sample(trainer, 8, 3, data.order_seed)
        expected = moved_by_hand(batch.images, draws).float() / 255 if augment and training else still
        assert torch.equal(after.images, expected)
        for name in set(batch._fields) - {"images"}:
            assert torch.equal(getattr(after, name), getattr(batch, name))
    assert torch.equal(EasyVQA().on_after_batch_transfer(batch, 0).images, still)  # without a trainer


# Painting.


def test_painted_shapes_keep_their_form_and_ground_and_take_the_color(images: dict[str, Tensor]) -> None:
    chosen, colors = images["train"][:200], uniform(200, 3)
    colors[0] = torch.tensor([1.0, 1.0, 1.0])
    painted = repaint(chosen, colors)
    for before, after, color in zip(chosen, painted, (255 * colors).round().to(torch.uint8), strict=True):
        palette = Counter(map(tuple, before.flatten(1).T.tolist()))
        ground = torch.tensor(palette.most_common(1)[0][0], dtype=torch.uint8)[:, None, None]
        core = torch.tensor(max((c for c in palette if c in COLORS.values()), key=lambda c: palette[c]))
        is_core = (before == core[:, None, None]).all(0)
        is_ground = (before == ground).all(0)
        assert (after[:, is_core] == color[:, None]).all()
        assert (after[:, is_ground] == ground[:, :, 0]).all()


def test_repainting_in_the_own_color_changes_nothing_but_by_rounding(
    images: dict[str, Tensor], shown: dict[str, list[str]]
) -> None:
    own = torch.tensor([COLORS[pair.split("-")[1]] for pair in shown["train"][:100]]) / 255
    difference = (repaint(images["train"][:100], own).int() - images["train"][:100].int()).abs()
    assert difference.max() <= 2


def test_of_painted_images_no_question_with_a_color_is_asked(plain: EasyVQA) -> None:
    batch = plain.tables["train"][torch.arange(200)]
    for paint in (0.3, 1.0):
        data = EasyVQA(paint=paint)
        draws = uniform(200, data.draws)
        after = data.augment(batch, draws)
        moved = mirror_and_move(batch.images, draws[:, :3])
        painted = draws[:, 3] < paint
        assert torch.equal(after.images[painted], repaint(moved[painted], draws[painted, 4:7]))
        assert torch.equal(after.images[~painted], moved[~painted])
        colored = [any(word == "color" or word in COLORS for word in text.split()) for text in words_of(data, batch)]
        kept = ~(painted[batch.image_index] & torch.tensor(colored))
        assert 0 < int(kept.sum()) < len(kept)
        for name in ("image_index", "question_index", "answers", "question_types", "question_ids", "prior_answers"):
            assert torch.equal(getattr(after, name), getattr(batch, name)[kept])
        assert len(after.unseen) == int(kept.sum())
        assert words_of(data, after) == [
            text for text, k in zip(words_of(data, batch), kept.tolist(), strict=True) if k
        ]


# Mistakes.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"holdout": ["rectangle-pink"]}, "holdout='rectangle-pink'"),
        ({"holdout": ["red-rectangle"]}, "holdout='red-rectangle'"),
        ({"prior_shift": 0.0}, "prior_shift=0.0"),
        ({"prior_shift": 1.0}, "prior_shift=1.0"),
        ({"paint": 1.5}, "paint=1.5"),
        ({"paint": -0.5}, "paint=-0.5"),
        ({"scatter": 1.5}, "scatter=1.5"),
        ({"paint": 0.7, "scatter": 0.5}, "paint=0.7"),
        ({"paint": 0.5, "augment": False}, "paint=0.5"),
        ({"val_fraction": 0.0}, "val_fraction=0.0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"val_fraction": -0.5}, "val_fraction=-0.5"),
    ],
)
def test_mistakes_name_the_argument(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        EasyVQA(**options)


def table(questions: Sequence[Question], images: int = 2) -> QuestionTable:
    return QuestionTable(
        torch.zeros(images, 3, 2, 2, dtype=torch.uint8),
        questions,
        prior=({}, {}),
        vocab=["<pad>", "<unk>", "why"],
        answers=["so"],
        question_types=["why"],
    )


def test_a_table_refuses_what_its_lists_do_not_have() -> None:
    fine = [Question(0, "why?", "so", "why"), Question(1, "why?", "so", "why")]
    assert len(table(fine)) == 2
    with pytest.raises(ValueError, match="'thus'"):
        table([*fine, Question(0, "why?", "thus", "why")])
    with pytest.raises(ValueError, match="'how'"):
        table([*fine, Question(0, "why?", "so", "how")])
    with pytest.raises(ValueError, match="image 1"):
        table(fine[:1])
    with pytest.raises(ValueError, match="at least one word"):
        table([*fine, Question(0, "?", "so", "why")])


def test_a_prior_falls_back_on_the_questions_type_and_unknown_words_are_marked() -> None:
    made = QuestionTable(
        torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
        [Question(0, "why now?", "a", "k"), Question(0, "why?", "a", "k")],
        prior=({"why?": "b"}, {"k": "c"}),
        vocab=["<pad>", "<unk>", "why"],
        answers=["a", "b", "c"],
        question_types=["k"],
    )
    batch = made[torch.tensor([0])]
    assert batch.prior_answers.tolist() == [2, 1]
    assert batch.questions[batch.question_index].tolist() == [[2, 1], [2, 0]]


def test_scattered_blocks_have_the_color_and_no_shape(images: dict[str, Tensor]) -> None:
    chosen = images["train"][:100]
    draws = torch.rand(100, 64, generator=torch.Generator().manual_seed(0))
    scattered = scatter_color(chosen, draws)
    for before, after, draw in zip(chosen, scattered, draws, strict=True):
        blocks = after.unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)  # (3, 8, 8, 64)
        assert (blocks == blocks[..., :1]).all(), "a block is of one color"
        is_ground = (blocks[..., 0] == before[:, 0, 0, None, None]).all(0).flatten()
        if draw.min() < 0.12:
            assert torch.equal(~is_ground, draw < 0.12) or (before[:, 0, 0] != before[:, -1, -1]).any()
        color = attributes(before[None])[0].rpartition("-")[2]
        shown = blocks[..., 0].flatten(1)[:, int(draw.argmin())]
        assert torch.equal(shown, torch.tensor(COLORS[color], dtype=torch.uint8))


def test_of_scattered_images_no_question_with_a_shape_is_asked(plain: EasyVQA) -> None:
    data = EasyVQA(scatter=1.0)
    data.tables = plain.tables
    batch = plain.tables["train"][torch.arange(16)]
    after = data.augment(batch, torch.rand(16, data.draws, generator=torch.Generator().manual_seed(1)))
    asked = [data.vocab[i] for i in after.questions[after.question_index].flatten().unique().tolist()]
    assert set(asked).isdisjoint(SHAPES)
    assert data.question_types.index("shape") not in after.question_types
    assert 0 < len(after.answers) < len(batch.answers)
