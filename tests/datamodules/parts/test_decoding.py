"""Decoding and checking all pictures: by any number of threads the same, kept on disk as far as there is room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.files import make_room
from datamodules.image_tree import ImageTree
from datamodules.parts import decoding, image_files
from datamodules.parts.decoding import check_all, decode_all
from datamodules.parts.image_files import Tree
from tests.datamodules.test_images import FLAT, WRITERS, error_of, ids, png, warnings_of, write_folder

MANY = {f"{'abc'[i % 3]}/{i:03}.png": png(i) for i in range(150)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIT_CACHE_GB", raising=False)
    return tmp_path / "cache" / "lit-baselines"


@pytest.mark.parametrize("where", list(WRITERS))
@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing(where: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(threads)))
    tree = Tree(WRITERS[where](tmp_path / where, MANY | {"b/broken.png": b"", "c/broken.png": b"x"}))
    images, whole = decode_all(tree, 3, "skip")
    assert np.array_equal(whole, check_all(tree, "skip"))
    assert [tree.names[row] for row in np.flatnonzero(~whole)] == ["b/broken.png", "c/broken.png"]
    for row in np.flatnonzero(whole):
        assert np.array_equal(images[row], tree.decode(row, 3))
    first = "b/broken.png" if where == "tree.zip" else "/broken.png"  # in a folder, as the system lists it
    for work in (lambda: decode_all(tree, 3), lambda: check_all(tree)):
        assert f"{first}: cannot be decoded" in error_of(work)


def test_a_tar_that_is_compressed_as_a_whole_is_read_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(WRITERS["tree.tar.gz"](tmp_path / "tree.tar.gz", dict(reversed(MANY.items()))))
    read: list[str] = []
    content = tree.files.read

    def watched(name: str) -> bytes:
        read.append(name)
        return content(name)

    monkeypatch.setattr(tree.files, "read", watched)
    decode_all(tree, 3)
    assert read == list(reversed(MANY))


# With workers, before the first step.


@pytest.mark.parametrize("where", ["tree", "tree.zip"])
def test_workers_skip_what_is_broken_as_memory_does(where: str, tmp_path: Path) -> None:
    path = WRITERS[where](tmp_path / where, FLAT | {"bee/broken.png": b"", "cat/broken.jpg": b"x"})
    options: dict[str, Any] = {"size": 8, "broken": "skip", "batch_size": 4}
    workers, memory = ImageTree(str(path), num_workers=1, **options), ImageTree(str(path), **options)
    (line,) = [line for line in warnings_of(workers.setup) if "left out" in line]
    assert line.startswith(f"{path}: left out 2 broken images, the first: ")
    memory.setup()
    for part in ("train", "val", "test"):
        assert list(workers.sample_names(part)["file"]) == list(memory.sample_names(part)["file"])
        for one, other in zip(workers.plain_loader(part), memory.plain_loader(part), strict=True):  # type: ignore[arg-type]
            assert torch.equal(one.images, other.images)
    gone = ImageTree(
        str(write_folder(tmp_path / "gone", FLAT | {f"ape/{i}.png": b"" for i in range(8)})), 8, num_workers=1
    )
    gone.broken = "skip"
    assert "every training image of ape is broken" in error_of(gone.setup)
    nothing = write_folder(tmp_path / "nothing", dict.fromkeys(FLAT, b""))
    assert "all 24 images are broken" in error_of(lambda: ImageTree(str(nothing), num_workers=1, **options))


def test_what_was_checked_is_not_checked_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(decoding, "CACHE_SECONDS", -1)
    path = write_folder(tmp_path / "tree", FLAT | {"bee/broken.png": b""})
    seen: list[int] = []
    decode = image_files.decode

    def counting(content: bytes) -> Any:
        seen.append(1)
        return decode(content)

    monkeypatch.setattr(image_files, "decode", counting)
    for expected in (25, 0):
        seen.clear()
        assert check_all(Tree(path), "skip").sum() == 24
        assert len(seen) == expected
    check_all(Tree(path), "skip", cache=False)
    assert len(seen) == 25
    (path / "bee" / "broken.png").write_bytes(png(5))
    assert check_all(Tree(path), "skip").all()
    assert [file.suffix for file in cache.iterdir()] == [".json"] * 2


# What is kept on disk.


def test_nothing_is_kept_where_that_is_not_wanted_or_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(decoding, "CACHE_SECONDS", -1)
    path = write_folder(tmp_path / "tree", FLAT)
    ImageTree(str(path), cache=False).setup()
    assert not cache.exists()
    (tmp_path / "cache").write_text("a file in its place")
    for workers in (0, 1):
        tree = ImageTree(str(path), size=8, num_workers=workers)
        (line,) = [line for line in warnings_of(tree.setup) if "not kept" in line]
        assert line.startswith(f"{path}: what was decoded is not kept and will be decoded again next time ({cache}: ")
        assert len(list(tree.sample_names("train")["file"])) == 20
    (tmp_path / "cache").unlink()
    monkeypatch.setenv("LIT_CACHE_GB", "0.000001")
    (line,) = [line for line in warnings_of(ImageTree(str(path)).setup) if "not kept" in line]
    assert "it would take more than its share of the cache, see LIT_CACHE_GB" in line
    assert not cache.exists()


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(decoding, "CACHE_SECONDS", -1)
    monkeypatch.setenv("LIT_CACHE_GB", str(2.5 * 24 * 360 / 2**30))
    paths = [
        write_folder(tmp_path / f"{number}", {n: png(number + i) for i, n in enumerate(FLAT)}) for number in range(3)
    ]
    kept: list[Path] = []
    for age, path in zip((300, 200), paths, strict=False):
        ImageTree(str(path)).setup()
        (new,) = set(cache.glob("*.npy")) - set(kept)
        os.utime(new, (new.stat().st_mtime - age,) * 2)
        kept.append(new)
    before = ids(ImageTree(str(paths[0])).part("train").images)  # type: ignore[attr-defined]
    assert kept[0].stat().st_mtime > kept[1].stat().st_mtime, "used just now"
    ImageTree(str(paths[2])).setup()
    assert kept[0].exists()
    assert not kept[1].exists()
    assert not kept[1].with_suffix(".json").exists()
    assert len(list(cache.glob("*.npy"))) == 2
    assert ids(ImageTree(str(paths[0])).part("train").images) == before  # type: ignore[attr-defined]


def test_what_is_rearranged_in_memory_does_not_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(decoding, "CACHE_SECONDS", -1)
    path = write_folder(tmp_path / "tree", FLAT)
    ImageTree(str(path)).setup()
    (file,) = cache.glob("*.npy")
    before = file.read_bytes()
    first, second = ImageTree(str(path), split_seed=3), ImageTree(str(path), split_seed=3, cache=False)
    assert torch.equal(first.part("train").images, second.part("train").images)  # type: ignore[attr-defined]
    assert file.read_bytes() == before


def test_a_share_of_the_cache_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_CACHE_GB", "much")
    with pytest.raises(ValueError, match="LIT_CACHE_GB=much: expected a number of gigabytes"):
        make_room(tmp_path, 1)
