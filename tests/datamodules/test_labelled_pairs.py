"""Examples of what is alike: classes in a batch, drawn and written pairs, unseen classes, over ranks and epochs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.pictures import Preprocessing
from datamodules.image_tree import ImageTree
from datamodules.images import Digits
from datamodules.labelled_pairs import ClassBalancedLoader, ExampleBatch, LabelledPairs, draw_groups, read_groups
from datamodules.parts.augment import Augmentation
from datamodules.parts.image_sets import ImageBatch
from tests.datamodules.test_images import FLAT, ids, png, write_folder

Ranks = Callable[[int, int], None]


@pytest.fixture
def without_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the digits that are trained on have no class."""
    read = Digits.read

    def without(self: Digits) -> Any:
        parts = read(self)
        parts["train"].labels[::3] = -1
        return parts

    monkeypatch.setattr(Digits, "read", without)


def digits(**options: Any) -> LabelledPairs:
    torch.manual_seed(0)
    return LabelledPairs(Digits(), **{"batch_size": 20} | options)


def balanced(counts: list[int], batch_size: int, samples_per_class: int, seed: int = 0) -> ClassBalancedLoader:
    """A loader whose samples are their numbers, with so many of each class, mixed."""
    labels = torch.cat([torch.full((count,), 3 * i) for i, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    source = (torch.arange(len(labels)), labels)
    return ClassBalancedLoader(source, batch_size, labels=labels, samples_per_class=samples_per_class, seed=seed)


# Batches of classes.


@pytest.mark.parametrize(
    ("counts", "batch_size", "samples", "batches"),
    [([20, 20, 20, 20], 8, 4, 10), ([100, 8, 8], 8, 4, 4), ([9, 9, 9, 3], 8, 4, 3), ([12, 4, 4, 4], 12, 4, 1)],
)
def test_a_batch_has_so_many_samples_of_so_many_classes(
    counts: list[int], batch_size: int, samples: int, batches: int
) -> None:
    loader = balanced(counts, batch_size, samples)
    assert len(loader) == batches
    for epoch in range(3):
        loader.set_epoch(epoch)
        found = list(loader)
        assert len(found) == batches
        for _, labels in found:
            assert labels.unique(return_counts=True)[1].tolist() == [samples] * (batch_size // samples)
        numbers = torch.cat([numbers for numbers, _ in found])
        assert len(numbers.unique()) == len(numbers), "no sample twice in an epoch"


def test_each_epoch_and_each_seed_has_other_batches() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        loader = balanced([20] * 4, 8, 4, seed)
        loader.set_epoch(epoch)
        orders.append(torch.cat([numbers for numbers, _ in loader]).tolist())
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == list(range(80)), "equal classes leave nothing out"


def test_what_a_large_class_leaves_out_differs_between_epochs() -> None:
    loader, seen = balanced([100, 8, 8], 8, 4), set()
    for epoch in range(40):
        loader.set_epoch(epoch)
        seen |= {int(number) for numbers, _ in loader for number in numbers}
    assert len(seen) == 116


def test_large_classes_fill_no_run_of_batches() -> None:
    loader = balanced([200] * 4 + [40] * 12, 8, 2)  # 80 batches of the four alone, and 80 of others
    assert len(loader) == 160
    for epoch in range(3):
        loader.set_epoch(epoch)
        of_others = [int((labels >= 12).sum()) for _, labels in loader]
        first, second = sum(of_others[:80]), sum(of_others[80:])
        assert 0.5 < first / second < 2, "both halves of an epoch have about as many images of the small classes"


def test_ranks_share_the_batches_of_one(be_rank: Ranks) -> None:
    counts = [40, 20, 20, 20, 12]
    whole = [numbers for numbers, _ in balanced(counts, 16, 4)]
    parts = []
    for rank in (0, 1):
        be_rank(rank, 2)
        parts.append([numbers for numbers, _ in balanced(counts, 8, 4)])
    assert len(whole) == len(parts[0]) == len(parts[1]) == 6
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.stack([first, second], 1).flatten(), batch)


def test_a_resumed_epoch_goes_on_with_the_same_batches() -> None:
    loader = balanced([20] * 4, 8, 4)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    other = balanced([20] * 4, 8, 4)
    other.load_state_dict(loader.state_dict())
    assert [b.tolist() for b, _ in other] == [b.tolist() for b, _ in iterator]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 10, "samples_per_class": 4},
            "samples_per_class=4: expected a divisor of the global batch of 10",
        ),
        ({"batch_size": 4, "samples_per_class": 4}, "expected a divisor .* that leaves at least two classes"),
        (
            {"batch_size": 40, "samples_per_class": 2},
            "a global batch of 40 images needs 20 classes, but only 10 have enough images",
        ),
    ],
)
def test_impossible_batches_are_named(options: dict[str, Any], message: str) -> None:
    data = digits(**options)
    data.setup()
    with pytest.raises(ValueError, match=message):
        len(data.train_dataloader())


# Explicit groups.


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_drawn_groups_are_what_they_say(kind: Any) -> None:
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(0))
    labels[0] = 7  # alone in its class
    rows, same = draw_groups(labels, kind, 0)
    assert rows.shape == ((398, 2) if kind == "pairs" else (199, 3))
    assert torch.equal(labels[rows[:, :1]] == labels[rows[:, 1:]], same)
    assert bool((rows[:, :1] != rows[:, 1:]).all()), "no image with itself"
    assert 0 not in rows[:, 0]
    assert 0 in draw_groups(labels, kind, 1)[0], "but a negative of others"
    assert same.double().mean() == 0.5
    again, other = draw_groups(labels, kind, 0)[0], draw_groups(labels, kind, 1)[0]
    assert torch.equal(rows, again)
    assert not torch.equal(rows, other)


def test_partners_are_drawn_uniformly() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 2, 1, 2])
    drawn = torch.stack([draw_groups(labels, "triplets", i)[0] for i in range(4000)])
    for row, anchor in enumerate(drawn[0, :, 0].tolist()):
        for column, alike in ((1, True), (2, False)):
            possible = [i for i in range(8) if (labels[i] == labels[anchor]) == alike and i != anchor]
            shares = torch.bincount(drawn[:, row, column], minlength=8) / 4000
            for i in range(8):
                expected = 1 / len(possible) if i in possible else 0
                assert float(shares[i]) == pytest.approx(expected, abs=0.03), (anchor, column, i)


@pytest.mark.parametrize("groups", ["pairs", "triplets"])
def test_batches_of_groups(groups: str) -> None:
    data = digits(groups=groups)
    data.setup()
    loader = data.train_dataloader()
    batch = data.on_after_batch_transfer(next(iter(loader)), 0)
    size = 2 if groups == "pairs" else 3
    assert batch.images.shape == (20, size, 1, 8, 8)
    assert batch.images.dtype == torch.float32
    assert 0.5 < float(batch.images.max()) <= 1
    assert torch.equal(batch.labels[:, :1] == batch.labels[:, 1:], batch.same)
    part = data.part("train")
    assert isinstance(part, ImageBatch)
    rows = loader.source.rows  # type: ignore[union-attr]
    assert len(loader) == len(rows) // 20
    one = loader.source[torch.tensor([5])]  # type: ignore[index]
    assert torch.equal(one.images[0], part.images[rows[5]])


def number_below(count: int) -> Callable[[str], int]:
    data = Digits()
    data.setup()
    data.training_rows = torch.empty(count)
    return data.number_of


def test_groups_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("anchor,other,same\n0,3,1\n1,2,0\n")
    rows, same, lines = read_groups(file, number_below(4))
    assert rows.tolist() == [[0, 3], [1, 2]]
    assert same.tolist() == [[True], [False]]
    assert lines == [2, 3]
    assert digits(groups=str(file)).group_size == 2
    file.write_text("anchor, positive, negative\n0,3,1\n\n2,1,0\n", encoding="utf-8-sig")  # as Excel does
    rows, same, lines = read_groups(file, number_below(4))
    assert rows.tolist() == [[0, 3, 1], [2, 1, 0]]
    assert same.tolist() == [[True, False]] * 2
    assert lines == [2, 4]
    assert digits(groups=str(file)).group_size == 3
    assert (digits().group_size, digits(groups="pairs").group_size, digits(groups="triplets").group_size) == (1, 2, 3)


@pytest.mark.parametrize("content", ["anchor,other,same\n0,3,1\n".encode("utf-16"), b'anchor,other,same\n0,3,"1\n'])
def test_groups_from_a_file_that_is_no_table(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"pairs\.csv: expected a CSV file in UTF-8: "):
        read_groups(file, number_below(4))


def test_a_resumed_run_would_notice_other_groups(tmp_path: Path) -> None:
    source = Digits()
    source.setup()
    first, second, third = (source.training_rows >= 0).nonzero()[:3, 0].tolist()
    found = []
    for same in (0, 1):
        file = tmp_path / f"{same}.csv"
        file.write_text(f"anchor,other,same\n{first},{second},0\n{second},{third},{same}\n")
        data = digits(batch_size=2, groups=str(file))
        found.append(data.train_dataloader().fingerprint())
        assert data.train_dataloader().fingerprint() == found[-1] is not None
    assert found[0] != found[1]


def stored_and_trained_on(source: Digits) -> tuple[ImageBatch, list[int]]:
    """The training images as they are stored, and the numbers of those that are trained on, by comparing the images."""
    source.setup()
    stored: Any = source.read()["train"]
    trained = {image.numpy().tobytes() for image in source.part("train").images}  # type: ignore[attr-defined]
    return stored, [i for i, image in enumerate(stored.images) if image.numpy().tobytes() in trained]


def test_numbers_in_a_file_are_those_of_the_stored_images(tmp_path: Path, without_some: None) -> None:
    stored, trained = stored_and_trained_on(Digits())
    seen = [i for i in trained if stored.labels[i] not in (3, 4)]
    assert seen != list(range(len(seen)))
    chosen = seen[7::30]
    unlabeled = next(i for i in chosen if stored.labels[i] == -1)
    file = tmp_path / "pairs.csv"
    file.write_text("anchor,other,same\n" + "".join(f"{a},{unlabeled},{a % 2}\n" for a in chosen))
    data = digits(groups=str(file), unseen_classes=[3, 4], batch_size=len(chosen))
    data.setup()
    batch = next(iter(data.train_dataloader()))
    found = []
    for pair, labels, same in zip(*batch, strict=True):
        anchor = next(a for a in chosen if torch.equal(stored.images[a], pair[0]))
        assert torch.equal(pair[1], stored.images[unlabeled])
        assert labels.tolist() == [int(stored.labels[anchor]), -1]
        assert bool(same) == bool(anchor % 2)
        found.append(anchor)
    assert sorted(found) == chosen


def test_images_that_are_not_trained_on_are_refused_with_their_line(tmp_path: Path) -> None:
    stored, trained = stored_and_trained_on(Digits())
    file = tmp_path / "pairs.csv"
    seen, other = (next(i for i in trained if stored.labels[i] == label) for label in (0, 5))
    validating = next(i for i in range(len(stored.labels)) if i not in trained)

    def message(number: int, **options: Any) -> str:
        file.write_text(f"anchor,other,same\n{seen},{seen},1\n\n{seen},{number},0\n")
        data = digits(groups=str(file), batch_size=2, unseen_classes=[5, 6])
        data.source.limit = options.get("limit")
        data.setup()
        with pytest.raises(ValueError, match="expected") as error:
            data.train_dataloader()
        return str(error.value)

    count = len(stored.labels)
    assert message(validating) == f"{file}:4: image {validating} validates; expected a training image"
    assert message(other) == f"{file}:4: image {other} is of an unseen class; expected a training image"
    assert message(count) == (
        f"{file}:4: '{seen},{count},0': no image '{count}', expected a number from 0 to {count - 1}"
    )
    assert "validates, or limit leaves it out; expected" in message(other, limit=100)


def test_files_in_a_folder_go_by_their_names(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", {f"wrapped/{name}": content for name, content in FLAT.items()})
    data = LabelledPairs(ImageTree(str(path), split_seed=2), batch_size=2)
    data.setup()
    train, val, test = (list(data.source.sample_names(part)["file"]) for part in ("train", "val", "test"))
    assert train != sorted(FLAT)[: len(train)], "their places are others than in the folder"
    file = tmp_path / "pairs.csv"
    short = [name.removeprefix("wrapped/") for name in train]
    lines = [f"{train[1]},./{short[7]},1", f"{short[19]}, {train[2]} ,0"]
    file.write_text("\n".join(["anchor,other,same", *lines]))
    groups = LabelledPairs(ImageTree(str(path), split_seed=2), batch_size=2, groups=str(file))._groups_of(file)
    shown = [[ids(image[None])[0] for image in images] for images in groups[torch.arange(2)].images]
    pixels = {
        name: ids(torch.from_numpy(np.array(Image.open(path / name))).permute(2, 0, 1)[None])[0] for name in train
    }
    assert shown == [[pixels[train[1]], pixels[train[7]]], [pixels[train[19]], pixels[train[2]]]]
    assert groups.same.tolist() == [[True], [False]]

    (path / "judged.csv").write_text(file.read_text())  # a table may lie among the pictures
    beside = LabelledPairs(ImageTree(str(path), split_seed=2), batch_size=2, groups="judged.csv")
    assert beside.group_size == 2
    assert beside.train_dataloader().num_samples == 2
    (path / "judged.csv").unlink()

    def message(name: str, **options: Any) -> str:
        file.write_text(f"anchor,positive,negative\n{train[0]},{train[1]},{name}\n")
        wrong = LabelledPairs(ImageTree(str(path), split_seed=2, **options), batch_size=2, groups=str(file))
        start = f"{file}:2: "
        with pytest.raises(ValueError, match=re.escape(start)) as error:
            wrong.train_dataloader()
        assert str(error.value).startswith(start)
        return str(error.value).removeprefix(start).removeprefix(f"'{train[0]},{train[1]},{name}': ")

    assert message(val[0]) == f"image {val[0]} validates; expected a training image"
    assert message(test[0]) == f"'{test[0]}' is in the part test; expected a training image"
    assert message(f"{short[3]}x") == f"no picture '{short[3]}x' in {path}; did you mean '{short[3]}'?"
    assert message("7") == f"image 7: expected the name of a file, such as '{short[0]}'"
    table = "file,label\n" + "".join(f"{name},{name[0]}\n" for name in FLAT if name != "bee/4.png")
    (path / "wrapped" / "labels.csv").write_text(table)
    assert message("bee/4.png") == "'bee/4.png' is not in the table of labels"
    (path / "wrapped" / "labels.csv").unlink()
    (path / train[5]).write_bytes(b"")
    assert message(train[5], broken="skip", size=8) == f"'{train[5]}' is broken; expected a training image"


@pytest.mark.parametrize("augmented", [True, False])
def test_images_that_are_not_square_have_one_shape_in_training_and_evaluation(augmented: bool, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", {name: png(i, 32, 48) for i, name in enumerate(FLAT)})
    still = Augmentation(scale=(1, 1), ratio=(1, 1), flip=0.0, jitter_probability=0.0, grayscale=0.0)
    data = LabelledPairs(ImageTree(str(path)), batch_size=4, augmentation=still if augmented else None)
    data.trainer = trainer_that_trains(training=True)
    data.setup()
    shape = [3, 32, 32] if augmented else [3, 32, 48]
    assert data.image_shape == shape
    evaluating = LabelledPairs(data.source, batch_size=4, augmentation=data.augmentation)
    preprocess = Preprocessing(data.image_shape, **data.preprocessing)
    for part in ("train", "val", "test"):
        for batch in data.plain_loader(part):  # type: ignore[arg-type]
            trained = data.on_after_batch_transfer(batch, 0).images[:, 0]
            evaluated = evaluating.on_after_batch_transfer(batch, 0).images[:, 0]
            assert list(trained.shape[1:]) == list(evaluated.shape[1:]) == shape
            asked = preprocess(batch.images)
            assert torch.allclose(evaluated, asked, atol=1e-6)
            if augmented:
                middle = batch.images[..., 8:40] / 255
                assert torch.allclose(evaluated, middle, atol=1e-6), "in its own proportions"
    smaller = LabelledPairs(data.source, augmentation=Augmentation(size=8))
    assert smaller.image_shape == [3, 8, 8]
    assert smaller.on_after_batch_transfer(batch, 0).images.shape[2:] == (3, 8, 8)


def trainer_that_trains(training: bool) -> Any:
    loop = SimpleNamespace(batch_idx=0)
    module = SimpleNamespace(dtype=torch.float32)
    return SimpleNamespace(training=training, fit_loop=loop, current_epoch=0, lightning_module=module, num_devices=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,c\n", "starts with 'a,b,c', expected 'anchor,other,same or anchor,positive,negative'"),
        ("", "starts with ''"),
        ("anchor,other,same\n", "holds no pair"),
        ("anchor,other,same\n0,1,1\n0,4,1\n", "pairs.csv:3: '0,4,1': no image '4', expected a number from 0 to 3"),
        ("anchor,other,same\n0,1,2\n", "pairs.csv:2: '0,1,2': same='2': expected '0' or '1'"),
        ("anchor,other,same\n0,1\n", "pairs.csv:2: '0,1': 2 values, expected 3"),
        ("anchor,positive,negative\n0,1,x\n", r"pairs.csv:2: '0,1,x'"),
        ("anchor,positive,negative\n0,1,-2\n", r"pairs.csv:2: '0,1,-2'"),
        ("anchor,positive,negative\n\n\n0,1,2\n\n0,1,4\n", r"pairs.csv:6: '0,1,4'"),
    ],
)
def test_broken_group_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_groups(file, number_below(4))


# Parts.


def classes_of(batches: Any) -> set[int]:
    return {int(label) for batch in batches for label in batch.labels.flatten()}


def test_unseen_classes_are_tested_and_nowhere_else() -> None:
    data = digits(unseen_classes=[7, "9"], samples_per_class=5)
    data.setup()
    assert classes_of(data.train_dataloader()) == {0, 1, 2, 3, 4, 5, 6, 8}
    assert classes_of(data.val_dataloader()) == {0, 1, 2, 3, 4, 5, 6, 8}
    assert classes_of(data.test_dataloader()) == {7, 9}
    test = digits().part("test").labels
    assert len(data.part("test").labels) == int(((test == 7) | (test == 9)).sum())
    with pytest.raises(ValueError, match="unseen_classes"):
        data.labeled_subset(1.0)  # so that nothing is probed


def test_without_unseen_classes_the_parts_are_the_sources() -> None:
    data, source = digits(), Digits()
    data.setup()
    for name in ("train", "val", "test"):
        assert torch.equal(data.part(name).labels, source.part(name).labels)
        assert sum(len(batch.labels) for batch in data.plain_loader(name)) == len(source.part(name).labels)  # type: ignore[arg-type]
    assert len(data.train_dataloader()) == len(source.part("train").labels) // 20
    assert torch.equal(data.labeled_subset(0.1), source.labeled_subset(0.1))


def test_images_without_a_class_are_left_out(without_some: None) -> None:
    data, source = digits(), Digits()
    data.setup()
    assert int((source.part("train").labels == -1).sum()) > 0
    assert classes_of(data.train_dataloader()) == classes_of(data.plain_loader("train")) == set(range(10))
    for fraction in (1.0, 0.1):
        rows, theirs = data.labeled_subset(fraction), source.labeled_subset(fraction)
        loader: Any = data.plain_loader("train")
        part, whole = loader.source.take(rows), source.part("train").take(theirs)
        assert torch.equal(part.labels, whole.labels)
        assert torch.equal(part.images, whole.images)  # type: ignore[attr-defined]


def test_what_is_evaluated_is_of_two_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Digits.read

    def of_nine_alone(self: Digits) -> Any:
        parts = read(self)
        return parts | {"test": parts["test"].take((parts["test"].labels == 9).nonzero()[:, 0])}

    monkeypatch.setattr(Digits, "read", of_nine_alone)
    with pytest.raises(ValueError, match=r"part 'test': has images of too few classes \(9\); expected at least two"):
        digits().setup()
    with pytest.raises(ValueError, match=r"part 'test': has images of too few classes \(none\)"):
        digits(unseen_classes=[3, 4]).setup()


def trained_on(data: LabelledPairs, epoch: int, batch: int, training: bool = True) -> None:
    trainer: Any = SimpleNamespace(
        training=training,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(batch_idx=batch - 1),
        lightning_module=SimpleNamespace(dtype=torch.float32),
    )
    data.trainer = trainer


def test_augmentation_is_of_training_images_and_of_each_by_itself() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(6, 1, 1, 1) * 3
    batch = ImageBatch(images, torch.arange(6))
    data = digits(augmentation=Augmentation(scale=(0.3, 0.9), flip=0.5))

    def at(*moment: Any) -> Tensor:
        trained_on(data, *moment)
        return data.on_after_batch_transfer(batch, 0).images

    views = at(0, 0)
    assert views.shape == (6, 1, 1, 8, 8)
    assert all(not torch.equal(views[i], views[j]) for i in range(6) for j in range(i))
    assert torch.equal(views, at(0, 0))
    assert not torch.equal(views, at(0, 1))
    assert not torch.equal(views, at(1, 0))
    assert torch.equal(at(0, 0, False)[:, 0], images / 255)
    triplets = ExampleBatch(images.view(2, 3, 1, 8, 8), torch.zeros(2, 3), torch.tensor([[True, False]] * 2))
    trained_on(data, 0, 0)
    flat = data.on_after_batch_transfer(triplets, 0).images.flatten(0, 1)
    assert all(not torch.equal(flat[i], flat[j]) for i in range(6) for j in range(i))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size=1: expected at least 2"),
        ({"samples_per_class": 1}, "samples_per_class=1: expected at least 2, or null for any number"),
        ({"samples_per_class": 2, "groups": "pairs"}, "samples_per_class=2 with groups='pairs': expected null"),
        ({"unseen_classes": ["ten"]}, "unseen_classes='ten': expected one of 0, 1, 2"),
        ({"unseen_classes": list(range(9))}, "expected to leave at least two classes"),
        ({"unseen_classes": ["9"]}, r"unseen_classes=\['9'\]: expected at least two"),
        ({"unseen_classes": ["9", 9]}, "expected at least two for the test to tell apart, or none"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits(**options)


def test_a_missing_group_file_is_named() -> None:
    data = digits(groups="pair")
    data.setup()
    message = "groups=pair: no such file; expected 'pairs', 'triplets' or a CSV file; did you mean 'pairs'"
    with pytest.raises(FileNotFoundError, match=message):
        data.train_dataloader()
