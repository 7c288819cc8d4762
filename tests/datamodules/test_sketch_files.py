"""SketchFiles: drawings as people have them, from every form to the same pen moves."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.drawings import to_lines
from datamodules.sketch_files import SketchFiles
from datamodules.sketches import Sketches, SketchNPZ
from lit_models.parts.sketch import Sketch

Lines = list[list[list[int]]]


def drawn(count: int, seed: int = 0) -> list[Lines]:
    """Drawings as Quick, Draw! has them: for each stroke its x and its y."""
    rng = np.random.default_rng(seed)
    return [[rng.integers(0, 256, (2, n)).tolist() for n in rng.integers(1, 7, 3)] for _ in range(count)]


def write_ndjson(file: Path, drawings: list[Any], **entries: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"key_id": "1", "drawing": each, **entries}) + "\n" for each in drawings))
    return file


def write_svg(file: Path, inside: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>')


def moves(data: Sketches) -> dict[tuple[Any, ...], np.ndarray]:
    """Pen moves (n, 3) in the data's unit by the name of each drawing."""
    found = {}
    for part, table in data.parts.items():
        batch = table[torch.arange(len(table))]
        for i, name in enumerate(zip(*data.sample_names(part).values(), strict=True)):
            rows = batch.strokes[i, : batch.lengths[i]]
            found[name] = torch.cat([rows[:, :2] * data.scale_factor, rows[:, 3:4]], 1).numpy()
    return found


def test_an_ndjson_file_and_an_npz_file_of_the_same_drawings_are_the_same(tmp_path: Path) -> None:
    drawings = drawn(40)
    array = np.empty(40, object)
    for i, strokes in enumerate(drawings):
        points = [(x, y, i == len(xs)) for xs, ys in strokes for i, (x, y) in enumerate(zip(xs, ys, strict=True), 1)]
        absolute = np.array(points)
        array[i] = np.column_stack([np.diff(absolute[:, :2], axis=0, prepend=absolute[:1, :2]), absolute[:, 2]])
    np.savez(tmp_path / "a.npz", array)
    one = SketchFiles(str(write_ndjson(tmp_path / "a.ndjson", drawings)))
    others = SketchFiles(str(tmp_path / "a.npz")), SketchNPZ(str(tmp_path / "a.npz"))
    for other in others:
        assert one.scale_factor == other.scale_factor
        assert (one.longest, len(one.parts["train"])) == (other.longest, len(other.parts["train"]))
        for part, table in one.parts.items():
            assert torch.equal(table.offsets, other.parts[part].offsets)
            assert torch.equal(table.lifted, other.parts[part].lifted)


def test_words_are_classes_and_drawings_are_named_by_file_and_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_ndjson(tmp_path / "q" / "full_cat.ndjson", drawn(30), word="cat", recognized=True)
    write_ndjson(tmp_path / "q" / "house.ndjson", [*drawn(29, 1), []])
    (tmp_path / "q" / "notes.txt").write_text("mine")
    with caplog.at_level("INFO"):
        data = SketchFiles(str(tmp_path / "q"))
    assert data.class_names == ["cat", "house"]
    assert {name: len(table) for name, table in data.parts.items()} == {"train": 48, "val": 5, "test": 6}
    found = moves(data)
    assert len(found) == 59
    x, _ = drawn(29, 1)[3][0]
    assert found["house.ndjson", 3, "house"][: len(x), 0].tolist() == pytest.approx(np.diff(x, prepend=x[0]), abs=1e-4)
    assert next(iter(data.val_dataloader())).labels.unique().tolist() == [0, 1]
    assert (
        "q: 59 drawings of 2 classes (cat, house); 48 train, 5 val, 6 test (test and val cut from the rest); "
        "1 file of other kinds left out (.txt); 1 drawing without a line left out" in caplog.text
    )


def test_drawings_with_times_are_scaled_and_simplified(tmp_path: Path) -> None:
    t = np.linspace(0, 1, 200)
    dense = [[[*(1000 * t), 1000.0], [*(3 * np.sin(40 * t)), 500.0], [*range(201)]]]
    file = str(write_ndjson(tmp_path / "a.ndjson", [dense] * 5))
    (first, *_) = moves(SketchFiles(file)).values()
    assert first.tolist() == pytest.approx(np.array([[0, 0, 0], [255, 0, 0], [0, 127.5, 1]]), abs=1)
    assert len(first) == 3
    kept = next(iter(moves(SketchFiles(file, size=None, epsilon=10.0)).values()))
    assert kept[:, 0].sum() == pytest.approx(1000)
    assert len(next(iter(moves(SketchFiles(file, prepare="none")).values()))) == 201
    np.savez(tmp_path / "a.npz", np.stack([Sketch(np.column_stack([np.gradient(t), t * 0, t == 1])).points] * 9))
    assert SketchFiles(str(tmp_path / "a.npz")).longest == 200, "pen moves are as they are"
    assert SketchFiles(str(tmp_path / "a.npz"), prepare="all").longest == 2


def test_a_drawing_that_the_project_wrote_as_svg_reads_back_as_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, unit in enumerate((1.0, 1e4, 1e-3, 37.0)):
        points = np.column_stack([rng.normal(size=(12, 2)) * unit, rng.random(12) < 0.4])
        points[0, :2] = 1e3 * unit  # far from the origin
        points[2, 2] = points[3, 2] = 1  # a dot
        sketch, folder = Sketch(points), tmp_path / str(i)
        folder.mkdir()
        for copy in range(3):
            sketch.to_svg(folder / f"{copy}.svg")
        expected = sketch.points.copy()
        expected[0, :2], expected[-1, 2] = 0, 1  # it starts where the drawing does; at its end the pen is lifted
        for found in moves(SketchFiles(str(folder), prepare="none")).values():
            assert np.allclose(found, expected, atol=2e-4 * unit)


def test_folders_of_svg_are_classes_and_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, count in (("train", 5), ("valid", 2)):
        for name, path in (("box", '<rect width="40" height="20"/>'), ("dash", '<path d="M0 0h9"/><text>a</text>')):
            for i in range(count):
                write_svg(tmp_path / "s" / part / name / f"{i}.svg", path)
    with caplog.at_level("INFO"):
        data = SketchFiles(str(tmp_path / "s"))
    assert data.class_names == ["box", "dash"]
    assert {name: len(table) for name, table in data.parts.items()} == {"train": 9, "val": 4, "test": 1}
    assert "; <text> is not strokes: 7 elements left out" in caplog.text
    expected = [[0, 0, 0], [255, 0, 0], [0, 127.5, 0], [-255, 0, 0], [0, -127.5, 1]]
    assert np.allclose(moves(data)["valid/box/1.svg", 0, "box"], expected, atol=1e-3)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in (tmp_path / "s").rglob("*.svg"):
            archive.write(file, file.relative_to(tmp_path))
    zipped = SketchFiles(str(tmp_path / "s.zip"))
    assert {k: len(v) for k, v in zipped.parts.items()} == {k: len(v) for k, v in data.parts.items()}
    assert SketchFiles("s", root=str(tmp_path), test_fraction=0).test_dataloader() == []


def test_large_units_come_through_as_they_are(tmp_path: Path) -> None:
    triangle = np.array([[0, 0, 0], [5000, 0, 0], [-2500, 300, 0], [-2500, -300, 1]])
    square = np.array([[0, 0, 0], [5000, 0, 0], [0, 5000, 0], [-5000, 0, 0], [0, -5000, 1]])
    array = np.empty(8, object)
    array[:] = [triangle, square] * 4
    np.savez(tmp_path / "a.npz", array)
    data = SketchNPZ(str(tmp_path / "a.npz"))
    for part, table in data.parts.items():
        for row, name in enumerate(data.sample_names(part)["row"]):
            strokes = table[torch.tensor([row])].strokes[0]
            assert torch.allclose(strokes, Sketch(array[name]).to_rows(data.scale_factor)), "in training as in use"


def test_one_long_drawing_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    array = np.empty(30, object)
    array[:] = [np.ones((10 if i else 1500, 3)) * [1, i, 1] for i in range(30)]
    np.savez(tmp_path / "a.npz", array)
    with caplog.at_level("INFO"):
        assert SketchFiles(str(tmp_path / "a.npz")).longest == 10
    assert "1 drawing of more than 250 points left out" in caplog.text
    names = [
        row
        for part in ("train", "val", "test")
        for row in SketchNPZ(str(tmp_path / "a.npz"), max_points=250).sample_names(part)["row"]
    ]
    assert sorted(names) == list(range(1, 30)), "the others keep their numbers"
    assert SketchFiles(str(tmp_path / "a.npz"), max_points=None).longest == 1500
    with pytest.raises(ValueError, match="max_points=5: leaves no drawing in all, expected more"):
        SketchFiles(str(tmp_path / "a.npz"), max_points=5)


def test_an_offset_in_another_unit_is_told(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(30000, 3)) * [1, 1, 0]
    points[7] = 1e4, 0, 0
    np.savez(tmp_path / "a.npz", np.stack(np.split(points, 300)))
    with pytest.warns(UserWarning, match="1 training offset of more than 100 standard deviations will rule the loss"):
        SketchFiles(str(tmp_path / "a.npz"), split_seed=1)


def test_a_checkpoints_preparation_wins(tmp_path: Path) -> None:
    for i in range(9):
        write_svg(tmp_path / "s" / f"{i}.svg", '<path d="M0 0h9v5"/>')
    data = SketchFiles(str(tmp_path / "s"))
    facts = {"preparation": {"size": 90.0, "epsilon": 0.0}, "scale_factor": 7.0}
    assert data.adopt(facts) >= facts.keys()
    assert data.scale_factor == 7
    assert next(iter(moves(data).values())).tolist() == [[0, 0, 0], [90, 0, 0], [0, 50, 1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.ndjson:2: "),
        ("[1]", r"a.ndjson:2: expected an object with a 'drawing', a list of strokes"),
        ('{"drawing": [[[1, 2], [3]]]}', r"a.ndjson:2: stroke 0: expected \[\[x, …\], \[y, …\]\]"),
        ('{"drawing": [[[1], [3]], [1]]}', r"a.ndjson:2: stroke 1: expected"),
        ('{"drawing": [[[1, NaN], [3, 1]]]}', r"a.ndjson:2: sketch 0: a point is .* expected finite numbers"),
    ],
)
def test_a_broken_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    write_ndjson(tmp_path / "a.ndjson", drawn(1))
    (tmp_path / "a.ndjson").open("a").write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        SketchFiles(str(tmp_path / "a.ndjson"))


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    write_svg(tmp_path / "s" / "a.svg", '<path d="M1 1 L"/>')
    write_svg(tmp_path / "t" / "train" / "a.svg", "")
    write_svg(tmp_path / "t" / "test" / "a.svg", "")
    write_svg(tmp_path / "t" / "a.svg", "")
    (tmp_path / "u").mkdir()
    for path, error, message in (
        ("s", ValueError, r"s/a.svg: a path is broken: "),
        ("t", ValueError, r"t: test, train, a.svg; expected one folder for each of train, val, test"),
        ("u", ValueError, r"u: no drawing in it, expected files that end in .npz, .ndjson, .svg"),
        ("s.ndjson", FileNotFoundError, r"s.ndjson: no such file or folder; did you mean"),
    ):
        with pytest.raises(error, match=message):
            SketchFiles(str(tmp_path / path))
    assert to_lines(np.zeros((0, 3))) == []
