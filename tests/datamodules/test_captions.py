"""Captions: batches against naive loops, parts and what is held out, and the official files, whole and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import nn

from common.vocabulary import build_vocab, encode
from datamodules import easy_vqa
from datamodules.caption_files import CocoCaptions, KarpathyCaptions, cache_features, read_coco, read_karpathy
from datamodules.captions import CaptionBatch, Captions, CaptionTable, EasyVQACaptions, Scenes, choose_captions
from datamodules.parts.loader import TensorLoader
from datamodules.parts.scene_grammar import plural, words_for
from datamodules.parts.scenes import ATTRIBUTES, COLORS, check, render, stated_attributes
from experiments.facts import attributes_of

# Batches.

TEXTS = [["a red circle", "a circle"], ["a blue square , small"], ["a green triangle", "a cat", "two circles"]]
VOCAB = ["<pad>", "<unk>", ",", "a", "blue", "circle", "circles", "green", "red", "small", "square", "triangle", "two"]


def table() -> CaptionTable:
    one = torch.full((3, 2, 6), -1)
    one[0, 0] = torch.tensor([0, 0, 1, 0, 10, 10])
    one[1, 1] = torch.tensor([1, 2, 0, 1, 10, 50])
    one[2] = torch.tensor([[2, 1, 0, 4, 30, 30], [0, 1, 0, 3, 50, 50]])
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 4).contiguous()
    return CaptionTable(images, TEXTS, VOCAB, ATTRIBUTES, one, torch.tensor([False, True, False]))


def words(batch: CaptionBatch, vocab: list[str]) -> list[str]:
    rows = zip(batch.captions.tolist(), batch.lengths.tolist(), strict=True)
    return [" ".join(vocab[i] for i in row[:length]) for row, length in rows]


def test_a_batch_has_all_captions_of_its_images_in_their_order() -> None:
    batch = table()[torch.tensor([2, 0])]
    assert batch.images[:, 0, 0, 0].tolist() == [2, 0]
    assert batch.image_ids.tolist() == [2, 0]
    assert words(batch, VOCAB) == ["a green triangle", "a <unk>", "two circles", "a red circle", "a circle"]
    assert batch.image_index.tolist() == [0, 0, 0, 1, 1]
    assert batch.lengths.tolist() == [3, 2, 2, 3, 2]
    assert batch.captions.shape == (5, 3)  # no longer than its longest
    assert (batch.captions[torch.arange(3) >= batch.lengths[:, None]] == 0).all()
    assert batch.objects[:, :, 0].tolist() == [[2, 0], [0, -1]]
    assert batch.unseen.tolist() == [False, False]
    assert table()[torch.tensor([1])].unseen.tolist() == [True]


def test_stated_is_what_captions_say_of_single_objects() -> None:
    batch = table()[torch.arange(3)]
    none = [-1, -1, -1, -1]
    assert batch.stated.tolist() == [[0, 0, -1, -1], [0, -1, -1, -1], [1, 2, 0, -1], none, none, none]


def test_no_ground_truth_is_no_objects() -> None:
    batch = CaptionTable(torch.zeros(3, 3, 4, 4), TEXTS, VOCAB)[torch.tensor([1, 2])]
    assert batch.objects.shape == (2, 0, 2)
    assert batch.stated.shape == (4, 0)
    assert not batch.unseen.any()


@pytest.mark.parametrize(("texts", "message"), [([["a"], [], ["a"]], "image 1"), ([["a"], ["a", " "], ["a"]], "' '")])
def test_an_image_without_caption_and_a_caption_without_word(texts: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionTable(torch.zeros(3, 3, 4, 4), texts, VOCAB)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_those_captions_are_chosen_that_have_the_lowest_draws(count: int) -> None:
    batch = table()[torch.tensor([2, 1, 0])]
    draws = torch.tensor([[0.5, 0.1, 0.3, 0.0], [0.9, 0.0, 0.0, 0.0], [0.6, 0.2, 0.1, 0.0]])
    chosen = choose_captions(batch, draws, count)
    expected = []
    for image, row in enumerate([2, 1, 0]):
        texts = [text.replace("cat", "<unk>") for text in TEXTS[row]]
        kept = sorted(sorted(range(len(texts)), key=lambda i: draws[image, i])[:count])
        expected += [(image, texts[i]) for i in kept]
    assert list(zip(chosen.image_index.tolist(), words(chosen, VOCAB), strict=True)) == expected
    assert chosen.captions.shape[1] == int(chosen.lengths.max())
    assert len(chosen.stated) == len(expected)
    assert torch.equal(chosen.images, batch.images)
    said = dict(zip(words(batch, VOCAB), batch.stated.tolist(), strict=True))
    assert [said[text] for text in words(chosen, VOCAB)] == chosen.stated.tolist()


# Training batches.


def attached(data: Captions, epoch: int = 0, batch: int = 0, training: bool = True) -> Captions:
    """The data module as a trainer sees it at one batch."""
    module = SimpleNamespace(dtype=torch.float32)
    loop = SimpleNamespace(batch_idx=batch - 1)
    trainer = SimpleNamespace(training=training, current_epoch=epoch, fit_loop=loop, lightning_module=module)
    data.trainer = trainer  # type: ignore[assignment]
    return data


def small(**options: Any) -> Scenes:
    data = Scenes(**{"num_train": 60, "num_val": 20, "num_test": 30, "batch_size": 4, **options})
    data.setup()
    return data


def test_training_draws_captions_anew_each_epoch_and_repeats_them_when_resumed() -> None:
    data = small(captions_per_image=2)
    batch = data.tables["train"][torch.arange(8)]

    def drawn(**where: Any) -> list[str]:
        found = attached(data, **where).on_before_batch_transfer(batch, 0)
        assert torch.bincount(found.image_index).tolist() == [2] * 8
        return words(found, data.vocab)

    first = drawn(epoch=0)
    assert first == drawn(epoch=0)
    assert first != drawn(epoch=1)
    assert first != drawn(epoch=0, batch=1)
    assert set(drawn(epoch=1)) <= set(words(batch, data.vocab))
    times = [text for epoch in range(60) for text in drawn(epoch=epoch)[:2]]
    counts = [times.count(text) for text in words(batch, data.vocab)[:5]]
    assert sum(counts) == 120
    assert min(counts) > 12  # of 24


class Recorder(LightningModule):
    """Keeps the captions that a trainer hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, CaptionBatch]] = []

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> torch.Tensor:
        assert batch.images.dtype == torch.float32
        self.seen.append((self.current_epoch, batch_idx, batch))
        return self.weight * 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_trainer_draws_by_epoch_and_batch(tmp_path: Path) -> None:
    data, module = small(captions_per_image=2, num_train=12), Recorder()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, limit_val_batches=0, **options)
    trainer.fit(module, datamodule=data)
    assert [(epoch, place) for epoch, place, _ in module.seen] == [(e, b) for e in (0, 1) for b in (0, 1, 2)]
    for epoch, place, batch in module.seen:
        whole = data.tables["train"][batch.image_ids]
        again = attached(data, epoch, place).on_before_batch_transfer(whole, 0)
        assert torch.equal(again.captions, batch.captions)


def test_evaluation_and_null_have_all_captions() -> None:
    data = small(captions_per_image=2)
    batch = data.tables["val"][torch.arange(8)]
    assert attached(data, training=False).on_before_batch_transfer(batch, 0) is batch
    data = small()
    assert attached(data).on_before_batch_transfer(batch, 0) is batch
    data.trainer = None
    assert data.on_before_batch_transfer(batch, 0) is batch


def test_two_ranks_see_the_captions_that_one_would(be_rank: Callable[[int, int], None]) -> None:
    data = attached(small(captions_per_image=2), epoch=3)
    source = data.tables["train"]

    def captions(rank: int, ranks: int, size: int) -> dict[int, list[str]]:
        be_rank(rank, ranks)
        loader = TensorLoader(source, size, shuffle=True, seed=1)
        batch = data.on_before_batch_transfer(next(iter(loader)), 0)
        found: dict[int, list[str]] = {}
        for text, image in zip(words(batch, data.vocab), batch.image_index.tolist(), strict=True):
            found.setdefault(int(batch.image_ids[image]), []).append(text)
        return found

    whole = captions(0, 1, 8)
    halves = [captions(rank, 2, 4) for rank in (0, 1)]
    assert halves[0] | halves[1] == whole
    assert not set(halves[0]) & set(halves[1])


def test_images_reach_the_model_as_float() -> None:
    data = attached(small())
    batch = data.tables["train"][torch.arange(3)]
    seen = data.on_after_batch_transfer(batch, 0).images
    torch.testing.assert_close(seen, batch.images.float() / 255)
    features = batch._replace(images=torch.randn(3, 5, 2, 2))
    assert data.on_after_batch_transfer(features, 0) is features


# Scenes.


def test_a_part_depends_on_the_data_seed_alone() -> None:
    first = small()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    second = small(num_train=20, num_test=3)

    def same(a: Scenes, b: Scenes, part: str) -> bool:
        batches = [data.tables[part][torch.arange(len(data.tables[part]))] for data in (a, b)]
        texts = [words(batch, data.vocab) for batch, data in zip(batches, (a, b), strict=True)]
        return torch.equal(batches[0].images, batches[1].images) and texts[0] == texts[1]

    assert torch.equal(first.tables["val"][torch.arange(20)].images, second.tables["val"][torch.arange(20)].images)
    assert same(first, small(num_val=3), "train")
    assert same(first, small(num_val=3), "test")
    other = small(data_seed=1)
    for part in ("train", "val", "test"):
        assert not same(first, other, part)


@pytest.mark.slow
def test_no_scene_is_in_two_parts() -> None:
    data = small(num_train=2000, num_val=1000, num_test=1000, max_objects=1)
    tables: Any = data.tables
    shown = {part: {image.numpy().tobytes() for image in table.images} for part, table in tables.items()}
    assert not shown["train"] & (shown["val"] | shown["test"])
    assert not shown["val"] & shown["test"]
    for part in tables:  # none of which lacks anything
        objects = tables[part].objects[:, 0]
        assert [len(set(objects[:, column].tolist())) for column in range(4)] == [3, 6, 2, 5]
        for column in (4, 5):
            assert len(set(objects[:, column].tolist())) > 40


def test_captions_are_true_of_their_images() -> None:
    data = small()
    for part in ("train", "val", "test"):
        batch = data.tables[part][torch.tensor([3, 1, 7])]
        assert torch.equal(render(batch.objects.numpy()), batch.images)
        assert len(batch.captions) == 15
        for text, image in zip(words(batch, data.vocab), batch.image_index.tolist(), strict=True):
            if "<unk>" not in text:
                assert check(batch.objects[image], text, data.attributes).truthful


def test_facts_are_plain_and_there_before_setup() -> None:
    data = Scenes(num_train=300)
    assert data.tables == {}
    texts = [text for five in data._train[1] for text in five]
    assert data.vocab[:2] == ["<pad>", "<unk>"]
    assert set(data.vocab[2:]) == set(" ".join(texts).replace(",", " ,").replace(":", " :").split())
    assert data.longest == max(len(t.replace(",", " ,").replace(":", " :").split()) for t in texts)
    assert data.image_shape == [3, 64, 64]
    assert data.attributes == ATTRIBUTES
    assert data.attributes is not ATTRIBUTES
    for fact in (data.vocab, data.image_shape, data.attributes["shape"]):
        assert type(fact) is list
    assert {"vocab", "longest", "image_shape", "attributes"} <= attributes_of(Scenes)


def test_words_of_the_test_do_not_build_the_vocabulary() -> None:
    data = small(num_train=2, num_test=200)
    test = data.tables["test"][torch.arange(200)]
    assert (test.captions == 1).any()
    assert not (data.tables["train"][torch.arange(2)].captions == 1).any()


@pytest.mark.slow
def test_painted_and_scattered_scenes_teach_one_concept_without_the_other() -> None:
    plain, data = small(num_train=300), small(num_train=300, paint=0.3, scatter=0.3)
    assert data.vocab == plain.vocab
    named = {tuple(color) for color in COLORS.values()} | {(255, 255, 255)}
    colors = {word for value in ATTRIBUTES["color"] for word in words_for(value)}
    shapes = {form for value in ATTRIBUTES["shape"] for word in words_for(value) for form in (word, plural(word))}
    painted = scattered = 0
    for i in range(300):
        before, after = (each.tables["train"][torch.tensor([i])] for each in (plain, data))
        seen = {tuple(pixel) for pixel in after.images[0].flatten(1).T.tolist()}
        said = [set(sentence.split()) for sentence in words(after, data.vocab)]
        if seen - named:
            painted += 1
            assert not any(sentence & colors for sentence in said)
            assert torch.equal((before.images != 255).any(1), (after.images != 255).any(1)), "the shapes stay"
        elif not torch.equal(before.images, after.images):
            scattered += 1
            assert not any(sentence & shapes for sentence in said)
            assert not any(sentence & {"two", "three", "both", "all"} for sentence in said)
        else:
            assert words(before, plain.vocab) == words(after, data.vocab)
        assert torch.equal(before.objects, after.objects)
    assert 60 < painted < 120
    assert 40 < scattered < 120
    for part in ("val", "test"):
        both = [each.tables[part][torch.arange(len(each.tables[part]))] for each in (plain, data)]
        assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_a_word_may_be_left_open() -> None:
    assert build_vocab(["a <unk> circle"]) == ["<pad>", "<unk>", "a", "circle"]
    ids, lengths = encode(["a <unk> circle"], ["<pad>", "<unk>", "a", "circle"])
    assert ids.tolist() == [[2, 1, 3]]
    assert lengths.tolist() == [3]


def test_number_of_objects() -> None:
    data = small(min_objects=2, max_objects=3)
    objects = data.tables["train"][torch.arange(60)].objects
    assert objects.shape == (60, 3, 6)
    assert set((objects[:, :, 0] >= 0).sum(1).tolist()) == {2, 3}
    single = small(max_objects=1).tables["train"][torch.arange(60)]
    assert single.objects.shape == (60, 1, 6)
    named = (single.stated[:, :2] >= 0).all(1).view(60, 5).sum(1)
    assert (named >= 3).all()
    right = single.stated == single.objects[single.image_index, 0, :4]
    assert (right | (single.stated == -1)).all()


def test_holdout() -> None:
    held = ["square-red", "circle-blue"]
    data = small(holdout=held, num_train=300, num_test=300)
    square, circle = (ATTRIBUTES["shape"].index(shape) for shape in ("square", "circle"))
    red, blue = (ATTRIBUTES["color"].index(color) for color in ("red", "blue"))

    def shown(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        batch = data.tables[part][torch.arange(len(data.tables[part]))]
        objects = batch.objects
        hit = (objects[:, :, 0] == square) & (objects[:, :, 1] == red)
        hit |= (objects[:, :, 0] == circle) & (objects[:, :, 1] == blue)
        return hit.any(1), batch.unseen

    for part in ("train", "val"):
        hit, unseen = shown(part)
        assert not hit.any()
        assert not unseen.any()
    hit, unseen = shown("test")
    assert torch.equal(hit, unseen)
    assert 0.1 < float(hit.double().mean()) < 0.4
    train = data.tables["train"][torch.arange(300)].objects
    assert set(train[train[:, :, 0] >= 0][:, 0].tolist()) == {0, 1, 2}
    assert set(train[train[:, :, 0] >= 0][:, 1].tolist()) == set(range(6))
    free = small(num_train=300, num_test=300).tables["test"][torch.arange(300)]
    assert torch.equal(data.tables["test"][torch.arange(300)].images, free.images)


ALL_RED = [f"{shape}-red" for shape in ATTRIBUTES["shape"]]
ALL_CIRCLES = [f"circle-{color}" for color in ATTRIBUTES["color"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train=0"),
        ({"num_val": -1}, "num_val=-1"),
        ({"num_test": 0}, "num_test=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"captions_per_image": 0}, "captions_per_image=0"),
        ({"min_objects": 0}, "min_objects=0"),
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3: expected 1 to max_objects=2"),
        ({"max_objects": 9}, "max_objects=9"),
        ({"paint": 1.5}, r"paint=1\.5: expected a number in \[0, 1\]"),
        ({"paint": 0.7, "scatter": 0.4}, r"paint=0\.7 and scatter=0\.4: expected at most 1 together"),
        ({"holdout": ["red-square"]}, "holdout='red-square': expected .*'square-red'"),
        ({"holdout": ALL_RED}, "no red object"),
        ({"holdout": ALL_CIRCLES}, "no circle object"),
    ],
)
def test_mistakes_name_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(**options)


# EasyVQA.


@pytest.fixture(scope="module")
def easy() -> EasyVQACaptions:
    data = EasyVQACaptions(holdout=easy_vqa.HOLDOUT)
    data.setup()
    return data


@pytest.mark.slow
def test_easy_vqa_captions_are_true_and_their_ground_truth_is_the_questions(easy: EasyVQACaptions) -> None:
    batch = easy.tables["test"][torch.arange(1000)]
    assert batch.objects.shape == (1000, 1, 5)
    answers: dict[int, set[str]] = {}
    for question in easy_vqa._read_questions("test"):
        if question.kind in ("shape", "color"):
            answers.setdefault(question.image, set()).add(question.answer)
    shapes, colors, places = easy.attributes.values()
    for image, known in answers.items():
        shape, color, place, row, column = batch.objects[image, 0].tolist()
        assert known <= {shapes[shape], colors[color]}
        if places[place] != "middle":
            assert ("top" in places[place], "left" in places[place]) == (row < 32, column < 32)
    for text, image in zip(words(batch, easy.vocab), batch.image_index.tolist(), strict=True):
        judgment = check(batch.objects[image], text, easy.attributes)
        assert judgment.truthful
        assert judgment.coverable == 3
        said = stated_attributes(text, easy.attributes)
        assert "size" not in said


def test_easy_vqa_parts_and_holdout(easy: EasyVQACaptions) -> None:
    sizes = {part: len(table) for part, table in easy.tables.items()}
    assert sizes["test"] == 1000
    assert 2600 < sizes["train"] < 2800
    assert easy.tables["train"][torch.arange(50)].unseen.sum() == 0
    unseen = easy.tables["test"][torch.arange(1000)].unseen
    assert int(unseen.sum()) == 273
    shapes, colors, _ = easy.attributes.values()
    batch = easy.tables["train"][torch.arange(sizes["train"])]
    pairs = {f"{shapes[shape]}-{colors[color]}" for shape, color in batch.objects[:, 0, :2].tolist()}
    assert len(pairs) == 24 - 6
    assert not pairs & set(easy_vqa.HOLDOUT)
    seen = {image.numpy().tobytes() for image in batch.images}
    assert not seen & {image.numpy().tobytes() for image in easy.tables["val"][torch.arange(sizes["val"])].images}
    assert easy.longest == int(batch.lengths.max())
    with pytest.raises(ValueError, match=r"val_fraction=1\.5"):
        EasyVQACaptions(val_fraction=1.5)


# The official files.

SPLITS = ["train"] * 5 + ["restval"] + ["val"] * 2 + ["test"] * 3
Edit = Callable[[Callable[[Any], Any]], None]


def write_image(path: Path, value: int) -> None:
    """Of one gray, so that a batch tells which images it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if value % 2 else "RGB", (20, 12), value if value % 2 else (value,) * 3).save(path, quality=100)


def write_karpathy(folder: Path, name: str = "flickr8k") -> None:
    """A small data set in the form of Karpathy's files: five captions of each of eleven images."""
    records = []
    for number, split in enumerate(SPLITS):
        tokens = [["a", "dog", "runs"], ["the", "dog", "'s", "ball", f"n{number}"], ["dog"], ["a", split], ["a", "dog"]]
        record: dict[str, Any] = {"imgid": number, "split": split, "filename": f"{number:03d}_ab.jpg"}
        if name == "coco":
            record |= {"filepath": "train2014" if split == "train" else "val2014", "cocoid": 100 + number}
        record["sentences"] = [
            {"tokens": words, "raw": " ".join(words).capitalize() + " .", "imgid": number, "sentid": 5 * number + i}
            for i, words in enumerate(tokens)
        ]
        records.append(record)
        write_image(folder / record.get("filepath", "images") / record["filename"], 10 * number)
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": records, "dataset": name}))


def write_coco(folder: Path) -> None:
    """A small data set in the form of COCO's files."""
    (folder / "annotations").mkdir(parents=True)
    for part, numbers in (("train2014", range(1, 9)), ("val2014", range(20, 23))):
        images, annotations = [], []
        for number in numbers:
            name = f"COCO_{part}_{number:012d}.jpg"
            images.append({"license": 1, "file_name": name, "height": 12, "width": 20, "id": number})
            write_image(folder / part / name, 10 * number)
            for i in (1, 0):
                text = ("A dog runs.", f"The dog's ball, n{number}!")[i]
                annotations.append({"image_id": number, "id": 10 * number + i, "caption": text})
        content = {"info": {}, "images": images, "licenses": [], "annotations": annotations}
        (folder / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_karpathy(tmp_path / "flickr8k")
    write_karpathy(tmp_path / "coco", "coco")
    write_coco(tmp_path / "coco")
    return tmp_path


OPTIONS: dict[str, Any] = {"image_size": 8, "num_workers": 0, "batch_size": 2, "min_count": 1}


def karpathy(root: Path, **options: Any) -> KarpathyCaptions:
    data = KarpathyCaptions(str(root), **{**OPTIONS, **options})
    data.setup()
    return data


def coco(root: Path, **options: Any) -> CocoCaptions:
    data = CocoCaptions(str(root), **{"val_fraction": 0.25, **OPTIONS, **options})
    data.setup()
    return data


def grays(batch: CaptionBatch) -> list[int]:
    return batch.images[:, 0, 0, 0].tolist()


def test_karpathy_parts(root: Path) -> None:
    data = karpathy(root)
    assert {part: len(table) for part, table in data.tables.items()} == {"train": 6, "val": 2, "test": 3}
    train = data.tables["train"][torch.tensor([5, 0])]
    assert train.images.shape == (2, 3, 8, 8)
    assert train.images.dtype == torch.uint8
    assert grays(train) == [50, 0]
    assert words(train, data.vocab)[:5] == ["a dog runs", "the dog 's ball n5", "dog", "a restval", "a dog"]
    assert grays(data.tables["test"][torch.arange(3)]) == [80, 90, 100]
    assert train.objects.shape == (2, 0, 2)
    assert (data.attributes, data.image_shape, data.longest) == ({}, [3, 8, 8], 5)
    assert set(data.vocab[2:]) == {
        "a",
        "dog",
        "runs",
        "the",
        "'s",
        "ball",
        "train",
        "restval",
        *(f"n{i}" for i in range(6)),
    }
    assert len(list(data.train_dataloader())) == 3


def test_facts_are_there_before_setup(root: Path) -> None:
    data = KarpathyCaptions(str(root), **OPTIONS)
    assert data.tables == {}
    assert data.vocab[:2] == ["<pad>", "<unk>"]


def test_rare_words_are_unknown_and_those_of_the_test_too(root: Path) -> None:
    data = karpathy(root, min_count=2)
    assert set(data.vocab[2:]) == {"a", "dog", "runs", "the", "'s", "ball", "train"}
    test = words(data.tables["test"][torch.tensor([0])], data.vocab)
    assert test == ["a dog runs", "the dog 's ball <unk>", "dog", "a <unk>", "a dog"]


def test_karpathys_coco_has_its_images_in_two_folders(root: Path) -> None:
    data = karpathy(root, name="coco")
    assert [p.number for p in data.photographs["val"]] == [106, 107]
    assert [p.file for p in data.photographs["train"]][4:] == ["train2014/004_ab.jpg", "val2014/005_ab.jpg"]
    assert grays(data.tables["train"][torch.arange(6)]) == [0, 10, 20, 30, 40, 50]
    assert grays(data.tables["test"][torch.tensor([2])]) == [100]


def test_coco_trains_on_one_file_and_tests_on_the_other(root: Path) -> None:
    data = coco(root)
    parts = {part: {p.number for p in photographs} for part, photographs in data.photographs.items()}
    assert parts["test"] == {20, 21, 22}
    assert len(parts["val"]) == 2
    assert parts["train"] | parts["val"] == set(range(1, 9))
    assert not parts["train"] & parts["val"]
    batch = data.tables["test"][torch.tensor([1])]
    assert grays(batch) == [210]
    assert words(batch, data.vocab) == ["a dog runs", "the dog's ball <unk>"]  # by the annotations' ids
    assert not {f"n{number}" for number in parts["val"] | parts["test"]} & set(data.vocab)
    assert coco(root, split_seed=1).photographs["val"] != data.photographs["val"]


def test_workers_form_the_same_batches(root: Path) -> None:
    for batch, other in zip(
        karpathy(root).val_dataloader(), karpathy(root, num_workers=1).val_dataloader(), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_cached_features(root: Path) -> None:
    data = karpathy(root)
    cache_features(nn.AvgPool2d(4), data, root / "flickr8k" / "pooled", batch_size=4)
    cached = karpathy(root, features="pooled")
    assert cached.image_shape == [3, 2, 2]
    for part in ("train", "val", "test"):
        images = data.tables[part][torch.tensor([1])].images
        features = cached.tables[part][torch.tensor([1])].images
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, (images.float() / 255)[:, :, ::4, ::4].half().float())
    assert type(cached.val_dataloader()) is TensorLoader
    with pytest.raises(FileNotFoundError, match=r"other\.npy"):
        karpathy(root, features="other")


# Broken files.


@pytest.fixture
def edit(root: Path) -> Callable[[str, Callable[[Any], Any]], Path]:
    """Changes a file in place and gives its path."""

    def change(name: str, how: Callable[[Any], Any]) -> Path:
        path = root / name
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))
        return path

    return change


K = "flickr8k/dataset_flickr8k.json"
C = "coco/annotations/captions_train2014.json"


def put(key: str, number: int, **values: Any) -> Callable[[Any], None]:
    return lambda content: content[key][number].update(values)


KARPATHY_FAULTS: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda c: c.pop("images"), ["'images'"]),
    (lambda c: c["images"].__setitem__(3, "x"), ["record 3"]),
    (lambda c: c["images"][3].pop("imgid"), ["record 3", "imgid"]),
    (put("images", 3, imgid=True), ["record 3", "imgid"]),
    (put("images", 3, imgid=2), ["image 2", "only once"]),
    (put("images", 3, filename="002_ab.jpg"), ["image 3", "002_ab.jpg"]),
    (lambda c: c["images"][3].pop("filename"), ["image 3", "filename"]),
    (put("images", 3, filename="../003.jpg"), ["image 3", "within", "../003.jpg"]),
    (put("images", 3, filename="/etc/passwd"), ["image 3", "within"]),
    (put("images", 3, filename="..\\003.jpg"), ["image 3", "within"]),
    (put("images", 3, filepath="../images"), ["image 3", "filepath", "within"]),
    (put("images", 3, split="extra"), ["image 3", "split", "extra"]),
    (put("images", 3, sentences="A dog."), ["image 3", "sentences"]),
    (put("images", 3, sentences=[{"raw": 3}]), ["image 3", "sentence 0", "tokens"]),
    (put("images", 3, sentences=[{"tokens": "dog"}]), ["image 3", "sentence 0", "tokens"]),
    (put("images", 3, sentences=[{"tokens": ["a", 3]}]), ["image 3", "sentence 0", "tokens"]),
    (lambda c: [image.update(split="train") for image in c["images"][6:8]], ["val"]),
]


@pytest.mark.filterwarnings("ignore:.*without a word")
@pytest.mark.parametrize(("how", "named"), KARPATHY_FAULTS)
def test_malformed_karpathy_file(root: Path, edit: Any, how: Callable[[Any], Any], named: list[str]) -> None:
    path = edit(K, how)
    with pytest.raises(ValueError, match="expected") as failure:
        KarpathyCaptions(str(root), **OPTIONS)
    assert all(word in str(failure.value) for word in [str(path), *named]), failure.value
    assert "\n" not in str(failure.value)


COCO_FAULTS: list[tuple[Callable[[Any], Any], list[str]]] = [
    (lambda c: c.pop("annotations"), ["captions"]),
    (lambda c: c.update(annotations={}), ["'annotations'"]),
    (lambda c: c["images"].append([]), ["record 8 of 'images'"]),
    (lambda c: c["images"][2].pop("id"), ["record 2 of 'images'", "'id'"]),
    (put("images", 2, id=2), ["image 2", "only once"]),
    (put("images", 2, file_name="a/../../b.jpg"), ["image 3", "within"]),
    (put("images", 2, file_name=5), ["image 3", "file_name"]),
    (lambda c: c["annotations"][4].pop("id"), ["record 4 of 'annotations'", "'id'"]),
    (put("annotations", 4, id=11), ["annotation 11", "only once"]),
    (put("annotations", 4, image_id=99), ["annotation 31", "image_id", "99"]),
    (put("annotations", 4, image_id="3"), ["annotation 31", "image_id", "'3'"]),
    (put("annotations", 4, caption=None), ["annotation 31", "caption"]),
]


@pytest.mark.parametrize(("how", "named"), COCO_FAULTS)
def test_malformed_coco_file(root: Path, edit: Any, how: Callable[[Any], Any], named: list[str]) -> None:
    path = edit(C, how)
    with pytest.raises(ValueError, match="expected") as failure:
        CocoCaptions(str(root), **OPTIONS)
    assert all(word in str(failure.value) for word in [str(path), *named]), failure.value


def test_an_image_in_both_coco_files(root: Path, edit: Any) -> None:
    path = edit("coco/annotations/captions_val2014.json", put("images", 0, id=3))
    edit("coco/annotations/captions_val2014.json", lambda c: [a.update(image_id=3) for a in c["annotations"][:2]])
    with pytest.raises(ValueError, match="image 3") as failure:
        CocoCaptions(str(root), **OPTIONS)
    assert str(path) in str(failure.value)


def test_photographs_without_a_caption_are_left_out_or_only_described(
    root: Path, edit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: Any) -> None:
        content["images"][3]["sentences"] = []
        content["images"][2]["sentences"] = [{"raw": "A Dog, asleep."}]
        content["images"][6]["split"] = "dev"

    edit(K, change)
    data = KarpathyCaptions(str(root), **OPTIONS)
    assert "left out 1 of 11 photographs: without a caption" in caplog.text
    assert [photograph.number for photograph in data.photographs["train"]] == [0, 1, 2, 4, 5]
    assert data.photographs["train"][2].captions == ["a dog asleep"]

    edit("coco/annotations/captions_val2014.json", lambda content: content.pop("annotations"))
    coco = CocoCaptions(str(root), **OPTIONS | {"val_fraction": 0.25})
    coco.setup()
    assert coco.test_dataloader() == [], "there is nothing to compare with"
    assert sum(len(batch.images) for batch in coco.predict_dataloader()) == 3
    rows = [{"image_id": number, "caption": "a dog"} for number in coco.sample_names("test")["image_id"]]
    assert coco.official_results(rows) == [{"image_id": number, "caption": "a dog"} for number in (20, 21, 22)]


@pytest.mark.parametrize(
    ("read", "name", "how", "first"),
    [
        (read_karpathy, K, lambda c: c["images"][3]["sentences"][1].update(tokens=["."]), "image 3, sentence 1"),
        (read_coco, C, put("annotations", 4, caption=" . "), "annotation 31"),
    ],
)
def test_a_caption_without_a_word_is_left_out_and_named(edit: Any, read: Any, name: str, how: Any, first: str) -> None:
    path = edit(name, how)
    with pytest.warns(UserWarning, match=first) as warned:
        found = read(path)
    assert str(path) in str(warned[0].message)
    photographs = found["train"] if isinstance(found, dict) else found
    captions = {photograph.number: len(photograph.captions) for photograph in photographs}
    most = max(captions.values())
    assert captions == {number: most - (number == 3) for number in captions}


@pytest.mark.parametrize("name", [K, C])
def test_broken_json_and_missing_files(root: Path, name: str) -> None:
    path = root / name
    make = KarpathyCaptions if name == K else CocoCaptions
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match="not valid JSON") as failure:
        make(str(root), **OPTIONS)
    assert str(path) in str(failure.value)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        make(str(root), **OPTIONS)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="https://") as missing:
        make(str(root), **OPTIONS)
    assert str(path) in str(missing.value)


def test_the_test_file_is_missed_at_once(root: Path) -> None:
    (root / "coco/annotations/captions_val2014.json").unlink()
    with pytest.raises(FileNotFoundError, match="captions_val2014"):
        CocoCaptions(str(root), **OPTIONS)


def test_missing_and_broken_images_are_named_with_their_record(root: Path) -> None:
    path = root / "flickr8k/images/009_ab.jpg"
    data = karpathy(root)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="image 9") as broken:
        list(data.test_dataloader())
    assert str(path) in str(broken.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="image 9") as missing:
        karpathy(root)
    assert str(path) in str(missing.value)
    (root / "coco" / "train2014").rename(root / "coco" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="train2014"):
        coco(root)


@pytest.mark.parametrize("name", ["batch_size", "captions_per_image", "image_size", "num_workers", "min_count"])
def test_argument_out_of_range(root: Path, name: str) -> None:
    for make in (KarpathyCaptions, CocoCaptions):
        with pytest.raises(ValueError, match=f"{name}=-1"):
            make(str(root), **{**OPTIONS, name: -1})
    with pytest.raises(ValueError, match="name='flickr9k'"):
        KarpathyCaptions(str(root), name="flickr9k")


def test_given_tokens_are_taken_as_they_are_given(tmp_path: Path) -> None:
    write_karpathy(tmp_path / "flickr8k")
    file = tmp_path / "flickr8k" / "dataset_flickr8k.json"
    content = json.loads(file.read_text())
    content["images"][0]["sentences"] = [{"tokens": ["A", "T-shirt", "for", "3.5", "u.s.", "dollars", "."]}]
    file.write_text(json.dumps(content))
    part = read_karpathy(file)["train"][0]
    assert part.captions == ["a t-shirt for 3.5 u.s. dollars"]
    data = karpathy(tmp_path, min_count=1)
    assert {"t-shirt", "3.5", "u.s."} <= set(data.vocab)


def test_photographs_are_looked_at_before_the_first_step(root: Path) -> None:
    """Also those of the test, which would otherwise end the run after all its training."""
    file = next(iter((root / "flickr8k" / "images").glob("*")))
    for photograph in read_karpathy(root / "flickr8k" / "dataset_flickr8k.json")["test"][:1]:
        file = root / "flickr8k" / "images" / photograph.file
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(
        ValueError, match=rf"{file.name}: image \d+ cannot be decoded: .*; 1 in all, which broken='skip'"
    ):
        KarpathyCaptions(str(root), **OPTIONS).prepare_data()
    data = KarpathyCaptions(str(root), **OPTIONS, broken="skip")
    with pytest.warns(UserWarning, match="left out 1 photographs that cannot be decoded, the first: "):
        data.setup()
    assert {part: len(table) for part, table in data.tables.items()} == {"train": 6, "val": 2, "test": 2}
    assert len(data.sample_names("test")["file"]) == 2
    KarpathyCaptions(str(root), **OPTIONS, check=False).prepare_data()
