"""Sort-of-CLEVR: every answer against the rendered pixels, its scenes, its parts, and how far language alone gets."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.parts.visual_questions import Question, VQABatch
from datamodules.sort_of_clevr import (
    COLORS,
    SENTENCES,
    SHAPES,
    Scenes,
    SortOfCLEVR,
    ask,
    draw_scenes,
    render,
    squared_distances,
)

Objects = dict[str, tuple[str, float, float]]
"""by color: shape, row and column of the center"""


def read(image: Tensor) -> Objects:
    """The six objects of one image (3, 75, 75), from its pixels."""
    pixels = image.permute(1, 2, 0).numpy()
    objects: Objects = {}
    covered = np.zeros((75, 75), bool)
    for color, rgb in COLORS.items():
        mask = (pixels == np.array(rgb)).all(-1)
        rows, columns = mask.nonzero()
        assert rows.max() - rows.min() == columns.max() - columns.min() == 10, color
        is_square = mask.sum() == 121
        assert is_square or mask.sum() == 81  # the disk of radius 5
        objects[color] = "square" if is_square else "circle", (rows.min() + rows.max()) / 2, columns.mean()
        covered |= mask
    assert (pixels[~covered] == 255).all()
    return objects


def answer(text: str, objects: Objects) -> str:
    """The answer to a question, worked out from its words."""
    (color,) = (word for word in re.findall(r"\w+", text) if word in COLORS)
    shape, row, column = objects[color]
    if "closest" in text or "nearest" in text or "furthest" in text or "farthest" in text:
        others = {
            other: (objects[other][1] - row) ** 2 + (objects[other][2] - column) ** 2
            for other in COLORS
            if other != color
        }
        assert len(set(others.values())) == 5, "a tie"
        pick = min if "closest" in text or "nearest" in text else max
        return objects[pick(others, key=lambda other: others[other])][0]
    if "how many" in text or "number" in text:
        return str(sum(other[0] == shape for other in objects.values()))  # itself too
    if "left" in text:
        return "yes" if column < 37.5 else "no"
    if "top" in text or "upper" in text:
        return "yes" if row < 37.5 else "no"
    return shape


@pytest.fixture(scope="module")
def data() -> SortOfCLEVR:
    return made(num_train=2000, num_val=50, num_test=400)


def made(**options: Any) -> SortOfCLEVR:
    sizes = {"num_train": 40, "num_val": 30, "num_test": 20}
    made = SortOfCLEVR(**{**sizes, **options})
    made.setup()
    return made


def whole(data: SortOfCLEVR, part: str) -> VQABatch:
    table = data.tables[part]
    return table[torch.arange(len(table))]


def words_of(data: SortOfCLEVR, batch: VQABatch) -> list[str]:
    return [" ".join(data.vocab[i] for i in row if i) for row in batch.questions[batch.question_index].tolist()]


# Answers.


def test_every_answer_is_what_the_pixels_say(data: SortOfCLEVR) -> None:
    for part in ("train", "val", "test"):
        batch = whole(data, part)
        few = batch.images[:300]
        objects = [read(image) for image in few]
        asked = zip(words_of(data, batch), batch.image_index.tolist(), batch.answers.tolist(), strict=True)
        checked: Counter[str] = Counter()
        for text, image, given in asked:
            if image < len(few):
                assert data.answers[given] == answer(text, objects[image]), (text, objects[image])
                checked[data.answers[given]] += 1
        assert sum(checked.values()) == 20 * len(few)
        assert {"yes", "no", "circle", "square", "2", "3"} <= set(checked)


def scene(objects: Objects) -> Scenes:
    places = [objects[color] for color in COLORS]
    centers = np.array([[[row, column] for _, row, column in places]], int)
    return Scenes(centers, np.array([[SHAPES.index(shape) for shape, *_ in places]]))


def answers_of(scenes: Scenes, kind: str, color: str) -> set[str]:
    questions = ask(scenes, 400, np.random.default_rng(0))
    found = {question.answer for question in questions if question.kind == kind and f" {color} " in question.text}
    assert found
    return found


def test_an_object_is_never_the_closest_to_itself_however_far_the_others_are() -> None:
    # All others are more than √999 away: who takes 999 for the object's own *squared* distance finds itself.
    objects: Objects = {
        "red": ("circle", 6, 6),
        "green": ("square", 6, 40),
        "blue": ("square", 42, 8),
        "orange": ("square", 50, 40),
        "gray": ("square", 30, 66),
        "yellow": ("square", 67, 60),
    }
    scenes = scene(objects)
    assert np.sort(squared_distances(scenes.centers)[0, 0])[1] > 999
    assert read(render(scenes)[0]) == objects
    assert answers_of(scenes, "relational/closest", "red") == {"square"}
    assert answers_of(scenes, "relational/count", "red") == {"1"}
    assert answers_of(scenes, "relational/count", "green") == {"5"}
    assert answers_of(scenes, "nonrelational/shape", "red") == {"circle"}


def test_closest_and_furthest_are_by_euclidean_distance() -> None:
    # From red, green is nearest (18.4), though not by the larger (15) or the sum (26) of its offsets; blue furthest.
    objects: Objects = {
        "red": ("square", 30, 30),
        "green": ("circle", 43, 43),
        "blue": ("circle", 68, 66),
        "orange": ("square", 30, 49),
        "gray": ("square", 6, 30),
        "yellow": ("square", 68, 30),
    }
    assert answers_of(scene(objects), "relational/closest", "red") == {"circle"}
    assert answers_of(scene(objects), "relational/furthest", "red") == {"circle"}


@pytest.mark.parametrize(("place", "given"), [(37, "yes"), (38, "no")])
def test_the_middle_of_the_image_parts_its_halves(place: int, given: str) -> None:
    objects: Objects = {
        "red": ("square", 60, place),
        "green": ("circle", place, 60),
        "blue": ("circle", 6, 6),
        "orange": ("square", 6, 25),
        "gray": ("square", 6, 47),
        "yellow": ("square", 24, 6),
    }
    scenes = scene(objects)
    assert answers_of(scenes, "nonrelational/left", "red") == {given}
    assert answers_of(scenes, "nonrelational/top", "red") == {"no"}
    assert answers_of(scenes, "nonrelational/top", "green") == {given}
    assert answers_of(scenes, "nonrelational/left", "green") == {"no"}


def test_each_image_has_as_many_questions_of_either_group_and_all_kinds_occur_evenly(data: SortOfCLEVR) -> None:
    batch = whole(data, "train")
    relational = torch.tensor([kind.startswith("relational/") for kind in data.question_types])
    of_image = torch.zeros(2000, dtype=torch.long)
    of_image.index_add_(0, batch.image_index, relational[batch.question_types].long())
    assert (of_image == 10).all()
    assert (torch.bincount(batch.image_index) == 20).all()
    counts = torch.bincount(batch.question_types, minlength=6).double()
    assert len(counts) == 6
    assert (counts / counts.sum() - 1 / 6).abs().max() < 0.01
    texts = Counter(words_of(data, batch))
    assert len(texts) == sum(map(len, SENTENCES.values())) * len(COLORS) == 108
    assert min(texts.values()) > 0.7 * 40000 / 108
    for text, kind in zip(words_of(data, batch)[:2000], batch.question_types[:2000].tolist(), strict=True):
        name = data.question_types[kind]
        template = re.sub("|".join(COLORS), "{color}", text) + "?"
        assert template in SENTENCES[name]


# Scenes.


def test_objects_lie_whole_and_apart_and_no_distances_tie() -> None:
    scenes = draw_scenes(1000, np.random.default_rng(5))
    images = render(scenes)
    assert images.shape == (1000, 3, 75, 75)
    assert images.dtype == torch.uint8
    for centers, shapes, image in zip(scenes.centers, scenes.shapes, images[:200], strict=False):
        expected = {
            color: (SHAPES[shape], *map(float, center))
            for color, shape, center in zip(COLORS, shapes, centers, strict=True)
        }
        assert read(image) == expected  # so that every pixel of each is there
    for centers in scenes.centers.tolist():
        for i, (row, column) in enumerate(centers):
            distances = []
            for j, (other_row, other_column) in enumerate(centers):
                if i != j:
                    assert max(abs(row - other_row), abs(column - other_column)) >= 12  # a free pixel between
                    distances.append((row - other_row) ** 2 + (column - other_column) ** 2)
            assert len(set(distances)) == 5
    assert (scenes.centers.min(), scenes.centers.max()) == (6, 68)
    assert float(scenes.shapes.mean()) == pytest.approx(0.5, abs=0.03)
    assert scenes.centers.mean((0, 1)) == pytest.approx(37, abs=1)


# Parts and facts.


def test_a_part_depends_on_the_data_seed_alone() -> None:
    first = made()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    second = made(num_train=7, num_val=30, num_test=3)
    third = made(num_train=40, num_val=2, num_test=20)

    def same(part: str, other: SortOfCLEVR) -> bool:
        fields = ("images", "questions", "image_index", "question_index", "answers", "question_types", "question_ids")
        a, b = whole(first, part), whole(other, part)
        return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)

    assert same("val", second)
    assert same("train", third)
    assert same("test", third)
    fourth = made(data_seed=1)
    for part in ("train", "val", "test"):
        assert not torch.equal(whole(first, part).images, whole(fourth, part).images)


def test_no_scene_is_in_two_parts(data: SortOfCLEVR) -> None:
    seen = [image.numpy().tobytes() for part in ("train", "val", "test") for image in whole(data, part).images]
    assert len(set(seen)) == len(seen) == 2450
    neighbor = made(data_seed=1)
    for part in ("train", "val", "test"):  # of a neighboring seed, neither
        assert not {image.numpy().tobytes() for image in whole(neighbor, part).images} & set(seen)


def test_language_alone_gets_half_of_what_has_two_answers(data: SortOfCLEVR) -> None:
    batch = whole(data, "test")
    right = (batch.prior_answers == batch.answers).double()
    for i, kind in enumerate(data.question_types):
        floor = float(right[batch.question_types == i].mean())
        assert floor == pytest.approx(0.31 if kind == "relational/count" else 0.5, abs=0.05), kind
    # As each of 6 objects is of either shape: a count of 1 + Binomial(5, ½) is 3 or 4 in 10 of 32 cases.
    counts = whole(data, "train")
    counts = counts.answers[counts.question_types == data.question_types.index("relational/count")]
    for n in range(6):
        share = float((counts == data.answers.index(str(n + 1))).double().mean())
        assert share == pytest.approx([1, 5, 10, 10, 5, 1][n] / 32, abs=0.03)


def test_prior_comes_from_the_training_questions(data: SortOfCLEVR) -> None:
    train = whole(data, "train")
    counts: dict[str, Counter[int]] = {}
    for text, given in zip(words_of(data, train), train.answers.tolist(), strict=True):
        counts.setdefault(text, Counter())[given] += 1
    test = whole(data, "test")
    for text, prior in zip(words_of(data, test), test.prior_answers.tolist(), strict=True):
        assert counts[text][prior] == max(counts[text].values())


def test_facts_are_plain_and_there_before_the_data_is_made() -> None:
    data = SortOfCLEVR()
    assert data.tables == {}
    assert data.answers == ["yes", "no", "circle", "square", "1", "2", "3", "4", "5", "6"]
    assert data.question_types == list(SENTENCES)
    assert data.image_shape == [3, 75, 75]
    assert data.vocab[:2] == ["<pad>", "<unk>"]
    assert set(COLORS) <= set(data.vocab)
    for fact in (data.vocab, data.answers, data.question_types, data.image_shape):
        assert type(fact) is list
        assert {type(item) for item in fact} <= {str, int}


def test_no_word_is_unknown_even_where_training_is_tiny() -> None:
    data = made(num_train=1, num_test=200)
    assert not (whole(data, "test").questions == 1).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_train": 0}, "num_train=0"),
        ({"num_val": 0}, "num_val=0"),
        ({"num_test": -1}, "num_test=-1"),
        ({"questions_per_image": 3}, "questions_per_image=3"),
        ({"questions_per_image": 0}, "questions_per_image=0"),
        ({"questions_per_image": -2}, "questions_per_image=-2"),
    ],
)
def test_mistakes_name_the_argument(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SortOfCLEVR(**options)


def test_questions_are_of_the_scene_that_they_name() -> None:
    questions = ask(draw_scenes(5, np.random.default_rng(0)), 3, np.random.default_rng(1))
    assert all(isinstance(question, Question) for question in questions)
    assert Counter(question.image for question in questions) == dict.fromkeys(range(5), 6)
