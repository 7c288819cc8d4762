"""Forms of .npz in which people have sketches, of this NumPy and of older ones."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.parts.stroke_files import read_stroke_file
from datamodules.sketches import SketchNPZ

DRAWN = [np.array([[0, 0, 0], [3, -4, 0], [7, n, 1]]) for n in range(12)]


def objects(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def write_member(file: Path, member: str, shape: tuple[int, ...], content: bytes) -> Path:
    """An .npz whose only array has the given pickle."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, header.getvalue() + content)
    return file


@pytest.mark.parametrize("protocol", range(6))
def test_files_of_any_pickle_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(objects(DRAWN), protocol)
    assert (b"_codecs" in content) == (protocol < 3), "as Python 3 writes bytes in the old ones"
    found = read_stroke_file(write_member(tmp_path / "a.npz", "train.npy", (12,), content))["all"]
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found, DRAWN, strict=True))


@pytest.mark.parametrize("protocol", range(6))
def test_lists_of_numpys_numbers_are_read(protocol: int, tmp_path: Path) -> None:
    points = [[np.float64(0.5), np.int16(-3), np.uint8(0)], [np.float32(2), 7, np.int64(1)]]
    file = write_member(tmp_path / "a.npz", "train.npy", (1,), pickle.dumps(objects([points]), protocol))
    (found,) = read_stroke_file(file)["all"]
    assert found.tolist() == [[0.5, -3, 0], [2, 7, 1]]


@pytest.mark.parametrize(
    ("maker", "arguments", "message"),
    [
        ("_core.multiarray\nscalar", "cnumpy\ndtype\n(S'O8'\ntRS'12345678'\n", "objects in place of numbers"),
        ("core.multiarray\nscalar", "cnumpy\ndtype\n(S'f8'\ntRS'1234'\n", "buffer size"),
        ("core.multiarray\nscalar", "S'f8'\nS'12345678'\n", "objects in place of numbers"),
        ("_core.numeric\n_frombuffer", "S'1234'\ncnumpy\ndtype\n(S'O'\ntR(I1\ntS'C'\n", "objects in place of numbers"),
        ("_core.numeric\n_frombuffer", "S'1234'\ncnumpy\ndtype\n(S'f4'\ntR(I1\ntS'K'\n", "in the order 'K'"),
    ],
)
def test_what_makes_numbers_makes_nothing_else(maker: str, arguments: str, message: str, tmp_path: Path) -> None:
    content = f"cnumpy.{maker}\n({arguments}tR.".encode()
    with pytest.raises(ValueError, match=f"a.npz: a.npy: cannot be read: .*{message}"):
        read_stroke_file(write_member(tmp_path / "a.npz", "a.npy", (1,), content))


@pytest.mark.parametrize("encoding", ["utf-8", "rot13", "idna"])
def test_bytes_come_in_latin1_and_in_no_other_encoding(encoding: str, tmp_path: Path) -> None:
    content = f"c_codecs\nencode\n(Vab\nV{encoding}\ntR.".encode()
    with pytest.raises(ValueError, match=f"bytes in '{encoding}', expected latin1"):
        read_stroke_file(write_member(tmp_path / "a.npz", "train.npy", (1,), content))
    for name in ("decode", "lookup", "register"):
        with pytest.raises(ValueError, match=f"asks for _codecs.{name}, which was refused and not run"):
            read_stroke_file(write_member(tmp_path / "a.npz", "a.npy", (1,), f"c_codecs\n{name}\n(Vab\ntR.".encode()))


LISTS = [sketch.tolist() for sketch in DRAWN]


@pytest.mark.parametrize(
    "array",
    [
        objects(LISTS),
        objects([tuple(map(tuple, sketch)) for sketch in LISTS]),
        np.array(DRAWN),
        np.array(DRAWN, np.float32),
        np.array(LISTS, dtype=object),
        objects([np.abs(sketch).astype(np.uint8) for sketch in DRAWN]),
    ],
    ids=["lists", "tuples", "of equal lengths", "floats", "numbers as objects", "uint8"],
)
def test_sketches_may_be_arrays_lists_or_one_array(array: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", array)
    data = SketchNPZ(str(tmp_path / "a.npz"))
    expected = np.abs(DRAWN) if isinstance(array[0], np.ndarray) and array[0].dtype == np.uint8 else np.array(DRAWN)
    seen = []
    for table in data.parts.values():
        batch = table[torch.arange(len(table))]
        for row, number in zip(batch.strokes, table.rows.tolist(), strict=True):
            assert np.allclose(row[:3, :2] * data.scale_factor, expected[number][:, :2], atol=1e-5)
        seen += table.rows.tolist()
    assert sorted(seen) == list(range(12)), "each in one part"


def test_parts_have_the_names_that_people_give_them_and_missing_ones_are_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = objects(DRAWN[:4])
    for names, sizes in (
        (("train", "val", "test"), [4, 4, 4]),
        (("train", "validation", "testing"), [4, 4, 4]),
        (("train", "valid"), [3, 4, 1]),
        (("train", "test"), [3, 1, 4]),
        (("train",), [2, 1, 1]),
        (("drawings",), [2, 1, 1]),
    ):
        np.savez(tmp_path / "a.npz", **dict.fromkeys(names, some))
        with caplog.at_level("INFO"):
            data = SketchNPZ(str(tmp_path / "a.npz"))
        assert [len(data.parts[part]) for part in ("train", "val", "test")] == sizes
        again = SketchNPZ(str(tmp_path / "a.npz"))
        assert all(data.parts[part].rows.tolist() == again.parts[part].rows.tolist() for part in data.parts)
    assert "a.npz: 4 drawings, no classes; 2 train, 1 val, 1 test (test and val cut from the rest)" in caplog.text
    np.savez(tmp_path / "a.npz", objects(DRAWN[:2]))
    with pytest.raises(ValueError, match=r"a.npz: 1 drawing, expected at least one for each part"):
        SketchNPZ(str(tmp_path / "a.npz"))


def test_what_is_no_npy_is_told_in_words(tmp_path: Path) -> None:
    for content, message in (
        (bytes(1000), "no .npy file: "),
        (b"\x93NUMPY\x09\x00" + bytes(90), r"an .npy file of version 9.0, expected 1.0 or 2.0"),
    ):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("train.npy", content)
        with pytest.raises(ValueError, match=f"a.npz: train.npy: cannot be read: {message}"):
            SketchNPZ(str(tmp_path / "a.npz"))
