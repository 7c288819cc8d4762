"""Pictures as people have them: without classes, in folders of any name, with a table of labels."""

from __future__ import annotations

import io
import logging
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.contrastive_views import ContrastiveViews
from datamodules.image_tree import ImageTree
from datamodules.images import Digits
from datamodules.labelled_pairs import LabelledPairs
from datamodules.parts.image_files import part_called
from datamodules.parts.image_sets import ImageBatch, divided, rearrange
from lit_models.linear_probe import LinearProbe
from tests.datamodules.test_images import FLAT, WRITERS, error_of, ids, png, write_folder, write_zip

Found = tuple[list[str], dict[str, list[str]], dict[str, int]]


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LIT_DATA", str(tmp_path / "data"))


def made(tree: ImageTree) -> Found:
    """Class names, the names of each part, and the label of each picture by its name."""
    tree.setup()
    names = {part: list(tree.sample_names(part)["file"]) for part in tree.parts}
    labels = {
        name: int(label) for part in tree.parts for name, label in zip(names[part], tree.part(part).labels, strict=True)
    }
    return tree.class_names, names, labels


PICTURES = {f"{i:02}.png": png(i) for i in range(30)}
NESTED = {f"{'abc'[i % 3]}/{'xy'[i % 2]}/{i:02}.png": png(i) for i in range(30)}
UNLABELED: dict[str, tuple[dict[str, bytes], str | None]] = {
    "flat": (PICTURES, None),
    "one folder": ({f"pictures/{name}": content for name, content in PICTURES.items()}, None),
    "deep": ({f"a/b/{name}": content for name, content in PICTURES.items()}, None),
    "nested": (NESTED, "none"),
    "anywhere": (NESTED | {"31.png": png(31), "32.png": png(32)}, "none"),
    "parts": ({f"{part}/{name}": png(7) for part in ("train", "test") for name in PICTURES}, None),
    "parts of classes": ({f"{part}/{name}": png(7) for part in ("Training", "valid") for name in NESTED}, "none"),
}


@pytest.mark.parametrize("where", list(WRITERS))
@pytest.mark.parametrize("form", list(UNLABELED))
def test_pictures_without_classes_are_all_there_and_have_none(form: str, where: str, tmp_path: Path) -> None:
    files, labels = UNLABELED[form]
    path = WRITERS[where](tmp_path / where, files | {"notes.txt": b"x", ".DS_Store": b"x", "more.heic": b"x"})
    tree = ImageTree(str(path), labels=labels)
    classes, names, found = made(tree)
    assert (classes, tree.num_classes, set(found.values())) == ([], 0, {-1})
    assert sorted(name for part in names.values() for name in part) == sorted(files)
    assert tree.found().startswith(f"{len(files)} pictures, no classes; ")
    assert tree.found().endswith("; 2 files skipped that are no pictures (.heic, .txt)")
    for part in tree.parts:
        for name, image in zip(names[part], tree.part(part).images, strict=True):  # type: ignore[attr-defined]
            expected = np.asarray(Image.open(io.BytesIO(files[name]))).transpose(2, 0, 1)
            assert np.array_equal(image.numpy(), expected), name
    assert "no training image has a label" in error_of(lambda: tree.labeled_subset(0.5))


def test_one_line_says_what_was_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def said(files: dict[str, bytes], **options: Any) -> str:
        path = write_zip(tmp_path / "tree.zip", files)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            tree = ImageTree(str(path), **options)
            tree.prepare_data()
            tree.setup()
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"{path}: ")
        return line.removeprefix(f"{path}: ")

    assert said(PICTURES) == "30 pictures, no classes; 24 train, 3 val, 3 test"
    assert said(FLAT | {"a.txt": b""}, num_workers=1, size=8, val_fraction=0.2) == (
        "24 pictures of 3 classes (ape, bee, cat); 18 train, 4 val, 2 test; 1 file skipped that is no picture (.txt)"
    )
    assert said(PICTURES, test_fraction=0.0) == ("30 pictures, no classes; 27 train, 3 val, no test: test_fraction=0")
    assert said({f"train/{name}": content for name, content in FLAT.items()}) == (
        "24 pictures of 3 classes (ape, bee, cat); 22 train, 2 val, no test: it has none"
    )


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (FLAT | {"0.png": png(0)}, {}, "0.png: no class folder, expected <class>/0.png; or labels=none to take all 25"),
        (PICTURES, {"labels": "folders"}, "no class folder, expected <class>/00.png; or labels=none"),
        ({f"a/{name}": png(0) for name in PICTURES}, {"labels": "folders"}, "only one class, 'a'; expected a folder"),
        (
            FLAT,
            {"labels": "folder"},
            "labels='folder': expected 'folders', 'none' or a CSV file; did you mean 'folders'?",
        ),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_the_way_out(
    files: dict[str, bytes], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in error_of(lambda: ImageTree(str(write_folder(tmp_path / "tree", files)), **options))


def test_what_needs_classes_says_what_the_folder_should_look_like(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", PICTURES)
    expected = "expected a folder for each class, or a labels.csv"
    pairs = error_of(lambda: LabelledPairs(ImageTree(str(path))))
    assert pairs.startswith("source: its pictures have no classes; ")
    assert expected in pairs
    views = ContrastiveViews(ImageTree(str(path)), views=1)
    facts = {name: getattr(views, name) for name in ("image_shape", "num_classes", "class_names", "preprocessing")}
    assert expected in error_of(lambda: LinearProbe(checkpoint="of no interest", **facts))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", PICTURES | {"ü😀.png": PICTURES["00.png"]})
    assert "ü😀.png" in ImageTree(str(path)).tree.names
    (path / os.fsdecode(b"\xff.png")).write_bytes(PICTURES["00.png"])
    assert "the name '\\udcff.png' is not UTF-8" in error_of(lambda: ImageTree(str(path)))


# Parts by other names.


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", "training_set", "train-set", "trainset")),
        *((name, "val") for name in ("val", "valid", "Validation", "dev", "Dev Set", "val_set", "validation_data")),
        *((name, "test") for name in ("test", "Test", "testing", "test_set", "Testing Set")),
        *((name, name.split("_")[0]) for name in ("train_images", "val_images", "test_images")),
        *((f"{part}2017", part) for part in ("train", "val", "test")),
        *((name, None) for name in ("trains", "valley", "tests", "extra", "device", "train2", "invalid", "set", "")),
    ],
)
def test_people_call_parts_so(name: str, part: str | None) -> None:
    assert part_called(name) == part


@pytest.mark.parametrize("wrapper", ["", "set/"])
@pytest.mark.parametrize(
    "parts",
    [
        {"train": "train", "val": "valid", "test": "test"},
        {"train": "train", "val": "validation"},
        {"train": "Training_Set", "test": "Test_Set"},
        {"train": "TRAIN", "val": "dev"},
    ],
)
def test_parts_of_other_names_are_parts_and_no_classes(parts: dict[str, str], wrapper: str, tmp_path: Path) -> None:
    files = {f"{wrapper}{folder}/{name}": content for folder in parts.values() for name, content in FLAT.items()}
    classes, names, labels = made(ImageTree(str(write_zip(tmp_path / "tree.zip", files))))
    assert classes == ["ape", "bee", "cat"]
    for part, folder in parts.items():
        own = {name for name in files if f"{folder}/" in name}
        assert set(names[part]) <= own
        assert len(own) == len(names[part]) + (len(names["val"]) if part == "train" and "val" not in parts else 0)
    assert all(labels[name] == ["ape", "bee", "cat"].index(name.split("/")[-2]) for name in labels)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["train", "val", "extra"],
            "train, val beside extra; expected train, val and test alone, or labels=folders if",
        ),
        (["training", "boxes"], "training beside boxes; expected train, val and test alone"),
        (["val", "test", "a", "b", "c", "d"], "test, val beside a, b, c and others; expected"),
        (["Train", "train_set"], "Train, train_set: expected one folder for each part"),
        (["valid", "test"], "found test and valid but no folder 'train'"),
    ],
)
def test_parts_never_become_classes_unasked(folders: list[str], message: str, tmp_path: Path) -> None:
    files = {f"{folder}/{name}": content for folder in folders for name, content in FLAT.items()}
    assert message in error_of(lambda: ImageTree(str(write_zip(tmp_path / "tree.zip", files))))
    files = {f"{folder}/{i}.png": png(i) for folder in folders for i in range(8)}
    assert message in error_of(lambda: ImageTree(str(write_zip(tmp_path / "tree.zip", files))))


def test_classes_may_have_such_names(tmp_path: Path) -> None:
    def classes(*folders: str, **options: Any) -> list[str]:
        files = {f"{folder}/{i}.png": png(i) for folder in folders for i in range(8)}
        return ImageTree(str(write_zip(tmp_path / "tree.zip", files)), **options).class_names

    assert classes("invalid", "valid") == ["invalid", "valid"]
    assert classes("bus", "plane", "train", labels="folders") == ["bus", "plane", "train"]


# A table of labels.

TABLE = "file,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(PICTURES))


@pytest.mark.parametrize("where", ["tree", "tree.zip"])
@pytest.mark.parametrize("wrapper", ["", "set/"])
def test_a_table_beside_the_pictures_says_what_they_are(where: str, wrapper: str, tmp_path: Path) -> None:
    files = {f"{wrapper}{name}": content for name, content in PICTURES.items()}
    path = WRITERS[where](tmp_path / where, files | {f"{wrapper}Labels.csv": TABLE.encode()})
    classes, _, labels = made(tree := ImageTree(str(path)))
    assert classes == ["a", "b"]
    assert labels == {name: i % 2 for i, name in enumerate(sorted(files))}
    assert tree.found() == "30 pictures of 2 classes (a, b); 24 train, 3 val, 3 test"
    assert made(ImageTree(str(path), labels="none"))[0] == []


def test_a_table_by_its_path_splits_too_and_may_leave_out_labels_and_pictures(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", NESTED | {"labels.csv": TABLE.encode()})
    parts = ["Train", "valid", "testing"]
    lines = [f"{name},{parts[i % 3]},{'' if i % 9 == 0 else 'xy'[i % 2]}" for i, name in enumerate(NESTED) if i < 27]
    table = tmp_path / "mine.csv"
    table.write_text("\ufefffile, split ,label\n" + "\n\n".join(lines), encoding="utf-8")  # as spreadsheets write it
    classes, names, labels = made(tree := ImageTree(str(path), labels=str(table)))
    assert classes == ["x", "y"]
    assert labels == {name: -1 if i % 9 == 0 else i % 2 for i, name in enumerate(NESTED) if i < 27}
    for place, part in enumerate(("train", "val", "test")):
        assert sorted(names[part]) == sorted(name for i, name in enumerate(NESTED) if i < 27 and i % 3 == place)
    assert tree.found() == (
        "27 pictures of 2 classes (x, y), 3 of them without a label; 9 train, 9 val, 9 test; 3 pictures left out that "
        "the table of labels does not list; 1 file skipped that is no picture (.csv)"
    )


def test_folders_may_be_the_parts_of_a_table(tmp_path: Path) -> None:
    files = {f"{part}/{name}": content for part in ("train", "dev") for name, content in PICTURES.items()}
    lines = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(files)]
    path = write_folder(tmp_path / "tree", files | {"labels.csv": ("file,label\n" + "\n".join(lines)).encode()})
    _, names, labels = made(ImageTree(str(path)))
    assert set(names["val"]) == {name for name in files if name.startswith("dev/")}
    assert labels == {name: i % 2 for i, name in enumerate(files)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "id,breed\n",
            "labels.csv: starts with 'id,breed', expected the columns file, label, and perhaps split; with labels=",
        ),
        ("file;label\n", "labels.csv: lists no picture"),
        ("", "starts with ''"),
        ("file,label\n", "labels.csv: lists no picture"),
        ("file,label\n00.png,a\n99.png,b\n", "labels.csv:3: no picture '99.png' in "),
        ("file,label\n00.pn,a\n", "labels.csv:2: no picture '00.pn' in {tree}; did you mean '00.png'?"),
        ("file,label\nlabels.csv,a\n", "labels.csv:2: no picture 'labels.csv'"),
        ("file,label\n00.png,a\n\n./00.png,b\n", "labels.csv:4: './00.png' is listed in line 2 too"),
        (
            'file,label\n00.png,a\n01.png,"b\n02.png,a\n03.png,b\n',
            "labels.csv: expected a CSV file in UTF-8: unexpected end",
        ),
        ("file,label\n00.png\n", "labels.csv:2: 1 values, expected 2: file,label"),
        ("file,label,split\n00.png,a,train\n01.png,b,extra\n", "labels.csv:3: split 'extra', expected train, val or"),
        ("file,label\n00.png,a\n01.png,a\n", "only one class, 'a'; expected several, or labels=none"),
        (
            "file,label,split\n00.png,a,train\n01.png,b,train\n02.png,c,test\n",
            "02.png: no class 'c' in training, but a, b",
        ),
        ("file,label,split\n00.png,a,val\n01.png,b,val\n", "no picture in the part train"),
    ],
)
def test_mistakes_in_a_table_are_named_with_their_line(content: str, message: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", PICTURES | {"labels.csv": content.encode()})
    assert message.format(tree=path) in error_of(lambda: ImageTree(str(path)))


def test_a_table_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", PICTURES | {"labels.csv": b"\xff\xfe\x00f"})
    assert "labels.csv: expected a CSV file in UTF-8: " in error_of(lambda: ImageTree(str(path)))


def test_other_labels_are_other_data(tmp_path: Path) -> None:
    found = []
    for workers in (0, 1):
        for table in (TABLE, TABLE.replace("03.png,b", "03.png,a")):
            path = tmp_path / f"{workers}{len(found)}.zip"
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in (PICTURES | {"labels.csv": table.encode()}).items():
                    archive.writestr(name, content)
            tree = ImageTree(str(path), size=8, num_workers=workers, split_seed=1)
            tree.setup()
            assert "03.png" in list(tree.sample_names("train")["file"])
            found += [tree.train_dataloader().fingerprint(), tree.tree.fingerprint()]
    assert len(set(found)) == 6, "the trees', of either way to read them, and the parts'"


# The order of evaluation.


def test_what_is_stored_by_class_is_evaluated_in_mixed_batches_and_predicted_in_order(tmp_path: Path) -> None:
    files = {f"{part}/{i // 20}/{i}.png": png(i) for part in ("train", "val", "test") for i in range(80)}
    path = write_folder(tmp_path / "tree", files)
    for workers in (0, 1):
        tree = ImageTree(str(path), size=8, num_workers=workers, batch_size=16, check=False)
        views = ContrastiveViews(tree, batch_size=16)
        for loader in (tree.val_dataloader(), views.val_dataloader(), tree.test_dataloader(), views.test_dataloader()):
            batches = list(loader)
            assert [batch.labels.bincount(minlength=4).tolist() for batch in batches] == [[4] * 4] * 5
            seen = torch.cat([batch.images for batch in batches])
            assert len(seen.flatten(1).unique(dim=0)) == 80
        predicted = torch.cat([batch.labels for batch in views.predict_dataloader()])  # type: ignore[union-attr]
        assert predicted.tolist() == [i // 20 for i in range(80)]
        expected = sorted((name for name in files if "test" in name), key=lambda n: n.split("/"))
        assert list(tree.sample_names("test")["file"]) == expected


def test_the_order_of_evaluation_is_a_function_of_the_split_seed(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", {f"{part}/{name}": FLAT[name] for part in ("train", "val") for name in FLAT})

    def order(seed: int) -> list[int]:
        torch.manual_seed(torch.initial_seed() + 1)
        loader = ImageTree(str(path), split_seed=seed, batch_size=24).val_dataloader()
        assert torch.equal(next(iter(loader)).images, next(iter(loader)).images)
        return ids(next(iter(loader)).images)

    assert order(0) == order(0) != order(1)
    unlabeled = ImageTree(str(path), labels="none", batch_size=24).val_dataloader()
    found = [int(image.sum()) for image in next(iter(unlabeled)).images]
    assert found != [int(np.asarray(Image.open(path / name)).sum()) for name in sorted(f"val/{name}" for name in FLAT)]
    digits = Digits(batch_size=500)
    assert torch.equal(next(iter(digits.val_dataloader())).labels, digits.part("val").labels), "not stored by class"


# Memory.


def test_parts_of_a_tree_share_the_memory_that_was_decoded_into(tmp_path: Path) -> None:
    tree = ImageTree(str(write_folder(tmp_path / "tree", FLAT)))
    tree.setup()
    parts: Any = tree.parts
    assert len({part.images.untyped_storage().data_ptr() for part in parts.values()}) == 1
    few = ImageTree(str(tmp_path / "tree"), limit=3)
    assert few.part("train").images.untyped_storage().nbytes() == 3 * 360  # type: ignore[attr-defined]


def test_rows_are_rearranged_where_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 50):
        order = torch.randperm(count, generator=generator)
        rows = np.arange(3 * count).reshape(count, 3)
        expected = rows[order.numpy()]
        rearrange(rows, order.tolist())
        assert np.array_equal(rows, expected)
    images, labels = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1), torch.arange(20)
    for groups in ([[3, 1, 19], [0, 4, 5, 6, 7, 8, 9, 10]], [[4], [2, 3]], [list(range(20))], [[], list(range(12))]):
        rows = [torch.tensor(group, dtype=torch.long) for group in groups]
        for in_place in (True, False):
            whole = ImageBatch(images.clone(), labels.clone())
            found: list[Any] = divided(whole, rows, in_place)
            for group, batch in zip(groups, found, strict=True):
                assert batch.labels.tolist() == batch.images.flatten().tolist() == group
            assert in_place or torch.equal(whole.images, images)
