"""Sketches: what files may hold, stroke-5 batches, their order and their augmentation, and where they come from."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from datamodules.parts import stroke_files
from datamodules.parts.glyph_outlines import FONTS, glyph_sketches
from datamodules.parts.loader import TensorLoader
from datamodules.parts.sketch_batches import (
    SketchBatch,
    SketchTable,
    drop_points,
    scale_factor_of,
    scale_randomly,
    to_stroke_5,
)
from datamodules.parts.stroke_files import QUICKDRAW_CATEGORIES, read_stroke_file
from datamodules.sketches import BucketedLoader, Glyphs, QuickDraw, Sketches, SketchNPZ
from experiments.cli import CLI, build
from tests.conftest import DATA, QUIET
from tests.contracts.test_resume import Kill, Killed

Ranks = Callable[[int, int], None]
END = [0, 0, 0, 0, 1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def draw(lengths: list[int], seed: int = 0, dtype: Any = np.int16) -> list[np.ndarray]:
    """Sketches of so many points, with strokes of different lengths."""
    rng = np.random.default_rng(seed)
    drawn = []
    for n in lengths:
        points = np.column_stack([rng.integers(-50, 50, (n, 2)), rng.random(n) < 0.15])
        points[-1, 2] = 1
        drawn.append(points.astype(dtype))
    return drawn


def objects(items: list[Any]) -> np.ndarray:
    """A one-dimensional array of them, whatever they are."""
    array = np.empty(len(items), object)
    array[:] = items
    return array


def write(file: Path, **parts: Any) -> Path:
    """A file as sketch-rnn has them, with ``parts`` in place of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {"train": draw([5, 9, 2], 1), "valid": draw([4], 2), "test": draw([3, 12], 3)} | parts
    arrays = {name: objects(part) if isinstance(part, list) else part for name, part in whole.items()}
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return file


def write_pickle(file: Path, content: bytes, count: int = 1) -> Path:
    """A file whose training part is a pickle of one's own."""
    write(file, train=None)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (count,)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("train.npy", header.getvalue() + content)
    return file


class Held(Sketches):
    """Sketches of given lengths, all of them in training."""

    def __init__(self, lengths: list[int], **options: Any) -> None:
        super().__init__(**options)
        parts = {"train": draw(lengths), "val": draw([7, 3, 5], 8), "test": draw([4, 30], 9)}
        self.hold({name: SketchTable(part, torch.arange(len(part))) for name, part in parts.items()})


def held(lengths: list[int], seed: int = 0, **options: Any) -> Held:
    torch.manual_seed(seed)
    return Held(lengths, **options)


def at(data: Sketches, epoch: int, batch: int, training: bool = True) -> None:
    """Puts the data in a trainer that prepares that batch."""
    trainer: Any = SimpleNamespace(
        training=training,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(batch_idx=batch - 1),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.trainer = trainer


def positions(batch: SketchBatch, row: int) -> np.ndarray:
    return batch.strokes[row, : batch.lengths[row], :2].double().cumsum(0).numpy()


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "int8", "int64", ">f4", "float64", "float16"])
def test_files_are_read_in_any_numeric_type(dtype: str, tmp_path: Path) -> None:
    expected = draw([5, 1, 2, 30], dtype=dtype)
    expected[0] = np.asfortranarray(expected[0])
    found = read_stroke_file(write(tmp_path / "a.npz", train=expected))
    assert found.keys() == {"train", "val", "test"}
    assert [len(part) for part in found.values()] == [4, 1, 2]
    for a, b in zip(found["train"], expected, strict=True):
        assert np.array_equal(a, b)
        assert a.dtype == b.dtype.newbyteorder("=")


def test_files_of_python_2_are_read(tmp_path: Path) -> None:
    numbers = np.array([[1, -2, 0], [300, 4, 1]], "<i2")

    def array(shape: str, kind: str, order: str, data: str) -> str:
        dtype = f"cnumpy\ndtype\n(S'{kind}'\nI0\nI1\ntR(I3\nS'{order}'\nNNNI-1\nI-1\nI0\ntb"
        blank = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        return f"{blank}(I1\n({shape}t{dtype}I00\n{data}tb"

    content = "".join(f"\\x{byte:02x}" for byte in numbers.tobytes())
    sketch = array("I2\nI3\n", "i2", "<", f"S'{content}'\n")
    file = write_pickle(tmp_path / "a.npz", (array("I1\n", "O8", "|", f"(l{sketch}a") + ".").encode())
    assert np.array_equal(read_stroke_file(file)["train"][0], numbers)


class Malicious:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("depth", ["whole", "part", "sketch"])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, f"{os.name}.system"), (eval, "builtins.eval"), (Path, r"pathlib\S*\.Path")]
)
def test_code_in_a_file_is_refused_by_name_and_not_run(function: Any, name: str, depth: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    arguments = {os.system: f"touch {proof}", eval: f"open({str(proof)!r}, 'w').close()"}
    malicious = Malicious(function, arguments.get(function, "x"))
    file = tmp_path / "a.npz"
    if depth == "whole":
        write_pickle(file, pickle.dumps(malicious))
    else:
        write(file, train=[*draw([4]), malicious] if depth == "part" else [objects([malicious])])
    with pytest.raises(ValueError, match=rf"a.npz: train.npy: .* asks for {name}, which was refused and not run"):
        read_stroke_file(file)
    assert not proof.exists()
    if function is os.system:
        with contextlib.suppress(Exception), np.load(file, allow_pickle=True) as archive:
            archive["train"]
        assert proof.exists(), "NumPy's own unpickler runs it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cnumpy\nndarray.tofile\n.", "numpy.ndarray.tofile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        # a dtype of raw pointers that NumPy itself would take at its word
        (b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.", "arrays of 'V8', expected numbers"),
        (
            b"cnumpy\ndtype\n(S'i8'\nI0\nI1\ntR(I3\nS'|'\nN(S'f'\nt(dS'f'\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRI0\ntsI8\nI1\nI0\ntb.",
            "structured arrays, expected numbers",
        ),
        (pickle.dumps([1, 2]), "expected a one-dimensional array of sketches"),
        (b"garbage", ""),
        (b"", ""),
    ],
)
def test_nothing_but_plain_arrays_is_unpickled(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"a.npz: train.npy: cannot be read: .*{message}"):
        read_stroke_file(write_pickle(tmp_path / "a.npz", content))


NAN = [[1.0, 2.0, 0.0], [np.nan, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"train": None},
            r"it has valid.npy, test.npy; expected sketches as one array, or as train.npy, valid.npy and",
        ),
        ({"val": draw([3])}, r"it has train.npy, valid.npy, test.npy, val.npy; expected sketches as one array, or as"),
        ({"test": []}, "test.npy: empty, expected at least one sketch"),
        (
            {"train": np.zeros((4, 5))},
            r"train.npy: cannot be read: an array of float64 of shape \(4, 5\), expected",
        ),
        ({"train": np.zeros((4, 5, 2), object)}, r"sketch 0: int64 of shape \(5, 2\), expected numbers of shape \(poi"),
        ({"train": np.zeros((4, 5), object)}, r"expected a one-dimensional array .* of shape \(4, 5\)"),
        ({"train": [*draw([3]), np.array(NAN)]}, r"train.npy: sketch 1: a point is \[nan, 1.0, 1.0\], expected finite"),
        ({"train": [*draw([3, 4]), np.array([[1, 1, 2]])]}, r"sketch 2: a point is \[1, 1, 2\], expected 0 or 1 in"),
        ({"train": [np.array([[1, 1, -1]])]}, r"sketch 0: a point is \[1, 1, -1\], expected 0 or 1 in"),
        (
            {"train": [np.zeros((3, 2), np.int16)]},
            r"sketch 0: int16 of shape \(3, 2\), expected numbers of shape \(poi",
        ),
        ({"train": [*draw([3]), np.array([[1e31, 1, 1]])]}, "sketch 1: a point is .* finite numbers, below 1e.30"),
        ({"train": [np.zeros(3, np.int16)]}, r"sketch 0: int16 of shape \(3,\), expected"),
        ({"train": [*draw([2]), np.zeros((0, 3), np.int16)]}, r"sketch 1: int16 of shape \(0, 3\), expected"),
        ({"train": [*draw([2]), np.zeros((4, 3), "U1")]}, "arrays of 'U1', expected numbers"),
        ({"train": [*draw([2]), "text"]}, "sketch 1 is not an array of numbers"),
        ({"train": [*draw([2]), objects([1])]}, "sketch 1 is not an array of numbers"),
    ],
)
def test_broken_sketches_are_named(parts: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz", **parts)
    with pytest.raises(ValueError, match=message) as error:
        SketchNPZ(str(file))
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 100, 0.5, -10])
def test_what_is_no_whole_archive_is_refused(kept: float, tmp_path: Path) -> None:
    content = write(tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: int(len(content) * kept) if kept == 0.5 else int(kept)])
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.npz: no complete .npz file, expected sketches as"):
        SketchNPZ(str(tmp_path / "a.npz"))


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.npz")
    content = bytearray(file.read_bytes())
    content[350] ^= 1  # in the first part's pickle
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.npz: train.npy: cannot be read: Bad CRC-32"):
        read_stroke_file(file)


def test_a_part_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stroke_files, "MEMBER_LIMIT", 100)
    with pytest.raises(ValueError, match=r"a.npz: train.npy: \d+ bytes, expected at most 100"):
        read_stroke_file(write(tmp_path / "a.npz"))


# ---- batches -----------------------------------------------------------------------------------------------------


def test_stroke_5() -> None:
    offsets = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 9.0], [9.0, 9.0]]])
    lifted = torch.tensor([[False, True, True], [True, True, False]])
    rows = to_stroke_5(offsets, lifted, torch.tensor([2, 1]))
    assert rows.tolist() == [[[1, 2, 1, 0, 0], [3, 4, 0, 1, 0], END], [[7, 8, 0, 1, 0], END, END]]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_batches_are_trimmed_scaled_and_padded_with_ends(dtype: Any) -> None:
    drawn = draw([4, 9, 2, 1, 6], dtype=dtype)
    if dtype == np.float32:
        for sketch in drawn:
            sketch[:, :2] += 0.25
    table = SketchTable(drawn, torch.tensor([3, 1, 4, 1, 5]))
    table.scale_factor = 4.0
    assert table.offsets.dtype == (torch.int16 if dtype == np.int16 else torch.float32)
    for rows in ([0, 1, 2], [2, 3], [4], [3], [4, 4, 0, 2, 1, 3]):
        batch = table[torch.tensor(rows)]
        longest = max(len(drawn[row]) for row in rows)
        assert batch.strokes.shape == (len(rows), longest + 1, 5)
        assert batch.strokes.dtype == torch.float32
        assert batch.lengths.dtype == batch.labels.dtype == torch.int64
        assert batch.lengths.tolist() == [len(drawn[row]) for row in rows]
        assert batch.labels.tolist() == [[3, 1, 4, 1, 5][row] for row in rows]
        for found, row in zip(batch.strokes.tolist(), rows, strict=True):
            expected = [[x / 4, y / 4, 1 - pen, pen, 0] for x, y, pen in drawn[row].tolist()]
            assert found == expected + [END] * (longest + 1 - len(expected))


def test_the_scale_factor_is_of_training_offsets_of_both_axes(tmp_path: Path) -> None:
    train = [np.array([[3, 0, 0], [5000, -5000, 1]], np.int32), np.array([[-1, 2, 1]], np.int32)]
    file = write(tmp_path / "a.npz", train=train, valid=draw([40]), test=[np.array([[-7000, 2, 1]])])
    data = SketchNPZ(str(file))
    assert data.scale_factor == pytest.approx(np.std([3, 0, 5000, -5000, -1, 2]), rel=1e-12)
    assert data.longest == 40, "of all parts"
    batch = next(iter(data.test_dataloader()))
    assert batch.strokes[0, 0].tolist() == pytest.approx([-7000 / data.scale_factor, 2 / data.scale_factor, 0, 1, 0])
    assert batch.labels.tolist() == [-1]
    assert (data.class_names, data.num_classes) == ([], 0)
    with pytest.raises(ValueError, match="all training offsets are 2: expected real drawings"):
        scale_factor_of(torch.full((4, 2), 2))


@pytest.mark.parametrize(
    ("name", "factor", "sizes", "longest", "shortest"),
    [
        ("aaron_sheep", 18.519827, [7400, 300, 300], 250, 20),
        ("omniglot", 53.437, [30000, 1000, 1000], 157, 2),
    ],
)
def test_sketch_rnns_own_data(name: str, factor: float, sizes: list[int], longest: int, shortest: int) -> None:
    if not (DATA / "sketch_rnn" / f"{name}.npz").is_file():
        pytest.skip(f"no {name}.npz in LIT_DATA")
    data = SketchNPZ(name, root=str(DATA))
    assert data.scale_factor == pytest.approx(factor, abs=5e-6 if name == "aaron_sheep" else 5e-4)
    assert [len(table) for table in data.parts.values()] == sizes
    lengths = torch.cat([table.lengths for table in data.parts.values()])
    assert data.longest == lengths.max() == longest
    assert lengths.min() == shortest
    if name == "aaron_sheep":
        assert float(lengths.double().mean()) == pytest.approx(125.35, abs=0.005)
    batch = next(iter(data.val_dataloader()))
    raw = np.load(DATA / "sketch_rnn" / f"{name}.npz", allow_pickle=True, encoding="latin1")["valid"][0]
    rows = batch.strokes[0, : len(raw)]
    assert np.allclose(rows[:, :2] * data.scale_factor, raw[:, :2], atol=1e-4)
    assert np.array_equal(rows[:, 3], raw[:, 2])


def test_evaluation_sees_each_sketch_once_and_as_it_is() -> None:
    data = held([5, 5, 5], batch_size=2)
    for loader, part in (
        (data.val_dataloader(), "val"),
        (data.test_dataloader(), "test"),
        (data.predict_dataloader(), "test"),
    ):
        batches = list(loader)
        assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(len(data.parts[part])))
        for batch in batches:
            at(data, 0, 0, training=False)
            assert data.on_after_batch_transfer(batch, 0) is batch


def test_classes_that_are_stored_one_after_the_other_are_mixed_for_evaluation_only() -> None:
    data = held([5] * 3, batch_size=4)
    for labels, expected in (([0] * 40 + [1] * 40, [2, 2]), ([0, 1] * 40, None), ([-1] * 80, None)):
        data.parts["val"] = data.parts["test"] = SketchTable(draw([6] * 80), torch.tensor(labels))
        loaders = data.val_dataloader(), data.test_dataloader()
        for loader in loaders:
            first = next(iter(loader)).labels
            assert first.bincount().tolist() == expected if expected else first.tolist() == labels[:4]
        assert torch.cat([batch.labels for batch in data.predict_dataloader()]).tolist() == labels, "as they are named"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": -1}, "batch_size=-1: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"random_scale": -0.1}, r"random_scale=-0.1: expected a number in \[0, 1\)"),
        ({"point_drop": 1.0}, r"point_drop=1.0: expected a number in \[0, 1\)"),
        ({"characters": ""}, "characters='': expected at least one, each once"),
        ({"characters": "aba"}, "characters='aba': expected at least one, each once"),
        ({"characters": "aж"}, "characters='aж': 'ж' is not in cmr10.ttf, expected letters or digits"),
        ({"characters": "a "}, "characters='a ': ' ' has no outline, expected letters or digits"),
        ({"epsilon": 0.0}, "epsilon=0.0: expected more than 0"),
        ({"epsilon": float("nan")}, "epsilon=nan: expected more than 0"),
        ({"variants": -1}, "variants=-1: expected at least 0"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Glyphs(**options)


# ---- the order of batches ----------------------------------------------------------------------------------------

LENGTHS = np.random.default_rng(0).integers(2, 60, 500).tolist()


def in_epoch(loader: TensorLoader, epoch: int) -> list[SketchBatch]:
    loader.set_epoch(epoch)
    return list(loader)


def bucketed(batch_size: int = 10, drop_last: bool = False, seed: int = 0) -> BucketedLoader:
    table = SketchTable(draw(LENGTHS), torch.arange(len(LENGTHS)))
    return BucketedLoader(table, batch_size, drop_last=drop_last, seed=seed)


@pytest.mark.parametrize(("batch_size", "left_over"), [(10, 0), (7, 3), (300, 200), (1000, 500)])
def test_an_epoch_has_each_sketch_once(batch_size: int, left_over: int) -> None:
    batches = in_epoch(bucketed(batch_size), 0)
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.sort().values.tolist() == list(range(500))
    assert [len(batch.labels) for batch in batches] == [batch_size] * (500 // batch_size) + [left_over] * bool(
        left_over
    )
    if batch_size < 500:
        kept = torch.cat([batch.labels for batch in in_epoch(bucketed(batch_size, drop_last=True), 0)])
        assert kept.tolist() == labels[: 500 - left_over].tolist()


def test_batches_are_of_similar_length_and_come_in_random_order() -> None:
    batches = in_epoch(bucketed(), 0)
    padding = 1 - sum(LENGTHS) / sum(10 * (batch.strokes.shape[1] - 1) for batch in batches)
    shuffled = torch.tensor(LENGTHS)[torch.randperm(500)].view(50, 10)
    assert padding < 0.1 < 0.35 < 1 - sum(LENGTHS) / (10 * shuffled.max(1).values.sum())
    means = [float(batch.lengths.double().mean()) for batch in batches]
    rises = sum(a < b for a, b in pairwise(means))
    assert 15 < rises < 34, "neither sorted up nor down, nor chunk by chunk"


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = [
        torch.cat([batch.labels for batch in in_epoch(bucketed(seed=seed), epoch)]).tolist()
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    # A batch's sketches meet others in the next epoch.
    first = {frozenset(orders[0][i : i + 10]) for i in range(0, 500, 10)}
    assert not first & {frozenset(orders[2][i : i + 10]) for i in range(0, 500, 10)}


def test_training_is_bucketed_and_its_order_is_of_the_runs_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        loader = held(LENGTHS, seed, batch_size=30).train_dataloader()
        batches = in_epoch(loader, 0)
        assert [len(batch.labels) for batch in batches] == [30] * 16, "an incomplete one is dropped"
        assert sum(batch.strokes.shape[1] - 1 for batch in batches) * 30 < 1.15 * sum(LENGTHS)
        orders.append(torch.cat([batch.labels for batch in batches]).tolist())
    assert orders[0] == orders[1] != orders[2]


def test_what_is_dropped_changes_and_is_of_any_length() -> None:
    dropped = []
    for epoch in range(40):
        kept = torch.cat([batch.labels for batch in in_epoch(bucketed(35, drop_last=True), epoch)])
        dropped.append(sorted(set(range(500)) - set(kept.tolist())))
        assert len(dropped[-1]) == 10
    lengths = [LENGTHS[i] for each in dropped for i in each]
    assert len({i for each in dropped for i in each}) > 200
    assert abs(np.mean(lengths) - np.mean(LENGTHS)) < 4 * np.std(LENGTHS) / np.sqrt(len(lengths))


def test_two_ranks_share_the_global_batches_of_one(be_rank: Ranks) -> None:
    whole = in_epoch(bucketed(14), 3)
    by_rank = []
    for rank in (0, 1):
        be_rank(rank, 2)
        by_rank.append(in_epoch(bucketed(7), 3))
    assert len(whole) == len(by_rank[0]) == len(by_rank[1])
    for one, first, second in zip(whole, *by_rank, strict=True):
        assert torch.equal(one.labels[0::2], first.labels)
        assert torch.equal(one.labels[1::2], second.labels)


def test_an_interrupted_epoch_goes_on_where_it_was() -> None:
    expected = [batch.labels.tolist() for batch in in_epoch(bucketed(), 2)]
    loader = bucketed()
    loader.set_epoch(2)
    iterator = iter(loader)
    for _ in range(17):
        next(iterator)
    resumed = bucketed()
    resumed.load_state_dict(loader.state_dict())
    assert [batch.labels.tolist() for batch in in_epoch(resumed, 2)] == expected[17:]


def test_the_fingerprint_is_of_points_pens_lengths_and_labels() -> None:
    drawn, labels = draw([4, 6, 3]), torch.zeros(3, dtype=torch.int64)
    found = [BucketedLoader(SketchTable(drawn, labels), 2).fingerprint() for _ in range(2)]
    assert found[0] == found[1]
    for change in ("offset", "pen", "border", "label"):
        other = [sketch.copy() for sketch in drawn]
        if change == "offset":
            other[1][2, 0] += 1
        elif change == "pen":
            other[1][2, 2] ^= 1
        elif change == "border":
            other[:2] = np.split(np.concatenate(other[:2]), [5])
        table = SketchTable(other, labels + (change == "label"))
        assert BucketedLoader(table, 2).fingerprint() != found[0], change


# ---- augmentation ------------------------------------------------------------------------------------------------


def table_batch(lengths: list[int], seed: int = 0) -> SketchBatch:
    table = SketchTable(draw(lengths, seed), torch.arange(len(lengths)))
    return table[torch.arange(len(lengths))]


def test_each_sketch_is_stretched_along_each_axis_on_its_own() -> None:
    batch = table_batch([20] * 2000)
    draws = torch.rand(2000, 2)
    scaled = scale_randomly(batch.strokes, draws, 0.15)
    assert torch.equal(scaled[:, :, 2:], batch.strokes[:, :, 2:])
    factors = scaled[:, :20, :2].abs().sum(1) / batch.strokes[:, :20, :2].abs().sum(1)
    assert torch.allclose(scaled[:, :, :2], batch.strokes[:, :, :2] * factors[:, None], atol=1e-4)
    assert factors.min() >= 0.85 - 1e-5
    assert factors.max() <= 1.15 + 1e-5
    assert factors.min() < 0.852
    assert factors.max() > 1.148
    assert (factors.mean(0) - 1).abs().max() < 0.01
    assert abs(float(torch.corrcoef(factors.T)[0, 1])) < 0.1


def dropped_by_sketch_rnn(points: np.ndarray, draws: np.ndarray, probability: float) -> np.ndarray:
    """Point after point, as sketch-rnn goes about it: what is left out joins the point *before*, that moves to it.

    So a point takes the number that in :func:`drop_points` is of the place which the one before gives up.
    """
    kept: list[np.ndarray] = []
    place = 0  # in its stroke
    for i, point in enumerate(points):
        if point[2] == 0 and place > 2 and draws[i - 1] < probability:
            kept[-1][:2] += point[:2]
        else:
            kept.append(point.copy())
        place = 0 if point[2] else place + 1
    return np.array(kept)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_points_are_dropped_as_sketch_rnn_does(probability: float) -> None:
    lengths = [1, 2, 3, 4, 5, 6, 7, 40, 41, 60, 60, 60]
    drawn = draw(lengths, 4, np.float64)
    drawn[5][:, 2] = 0  # a drawing that never lifts the pen
    for row in (4, 6):
        drawn[row][:-1, 2] = 0  # of one stroke
    batch = SketchTable(drawn, torch.zeros(12))[torch.arange(12)]
    draws = torch.rand(12, 70)
    found = drop_points(batch, draws, probability)
    assert found.strokes.shape == batch.strokes.shape
    num_dropped = 0
    for row, sketch in enumerate(drawn):
        expected = dropped_by_sketch_rnn(sketch, draws[row].numpy(), probability)
        num_dropped += len(sketch) - len(expected)
        rows = [[x, y, 1 - pen, pen, 0] for x, y, pen in expected.tolist()]
        assert found.lengths[row] == len(expected)
        assert found.strokes[row].tolist() == rows + [END] * (61 - len(rows))
    assert (num_dropped > 0) == (probability > 0)


def test_points_that_are_left_stay_where_they_were_and_so_do_the_ends_of_strokes() -> None:
    batch = table_batch([50] * 300, 5)
    found = drop_points(batch, torch.rand(300, 50), 0.5)
    assert (found.lengths < 50).float().mean() > 0.99
    for row in range(300):
        before = {tuple(p) for p in positions(batch, row)}
        assert {tuple(p) for p in positions(found, row)} <= before
        pens, left = (b.strokes[row, : b.lengths[row], 3] for b in (batch, found))
        assert pens.sum() == left.sum(), "no stroke is lost"
        assert np.array_equal(positions(batch, row)[pens == 1], positions(found, row)[left == 1])


def test_a_tenth_of_the_points_that_may_be_dropped_are() -> None:
    drawn = draw([100] * 500, 6)
    for sketch in drawn:
        sketch[:-1, 2] = 0
    batch = SketchTable(drawn, torch.zeros(500))[torch.arange(500)]
    found = drop_points(batch, torch.rand(500, 100), 0.1)
    share = 1 - float(found.lengths.double().mean() - 4) / 96
    assert share == pytest.approx(0.1, abs=0.006)


def test_draws_are_a_function_of_seed_epoch_and_batch() -> None:
    made = {}
    for seed in (0, 1):
        data = held([30] * 20, seed)
        batch = data.parts["train"][torch.arange(8)]
        for epoch in (0, 1):
            for step in (0, 1):
                at(data, epoch, step)
                torch.rand(seed + step)
                state = torch.get_rng_state()
                made[seed, epoch, step] = data.on_after_batch_transfer(batch, 0).strokes
                assert torch.equal(torch.get_rng_state(), state)
                assert torch.equal(data.on_after_batch_transfer(batch, 0).strokes, made[seed, epoch, step])
    assert len({float(strokes.sum()) for strokes in made.values()}) == 8


def test_equal_sketches_of_a_batch_become_different() -> None:
    data = held([30] * 3)
    at(data, 0, 0)
    found = data.on_after_batch_transfer(data.parts["train"][torch.zeros(50, dtype=torch.int64)], 0)
    assert len(found.strokes.flatten(1).unique(dim=0)) == 50
    assert len(found.strokes[:, 0, :2].unique(dim=0)) == 50, "of the scale"
    assert len(found.lengths.unique()) > 1, "of the points that are dropped"


def test_augmentation_can_be_left_out() -> None:
    batch_of = {}
    for name, options in {
        "none": {"random_scale": 0.0, "point_drop": 0.0},
        "scale": {"point_drop": 0.0},
        "drop": {"random_scale": 0.0},
    }.items():
        data = held([30] * 20, **options)
        at(data, 0, 0)
        before = data.parts["train"][torch.arange(20)]
        batch_of[name] = before, data.on_after_batch_transfer(before, 0)
    assert torch.equal(batch_of["none"][0].strokes, batch_of["none"][1].strokes)
    assert torch.equal(batch_of["scale"][0].lengths, batch_of["scale"][1].lengths)
    assert not torch.equal(batch_of["scale"][0].strokes, batch_of["scale"][1].strokes)
    assert (batch_of["drop"][0].lengths > batch_of["drop"][1].lengths).any()
    assert torch.equal(batch_of["drop"][0].strokes[:, 0], batch_of["drop"][1].strokes[:, 0])


def test_two_ranks_augment_as_one_however_long_the_others_are(be_rank: Ranks) -> None:
    data = held(LENGTHS[:40])
    rows = torch.arange(8)
    at(data, 1, 5)
    whole = data.on_after_batch_transfer(data.parts["train"][rows], 0)
    widths = set()
    for rank in (0, 1):
        be_rank(rank, 2)
        part = data.on_after_batch_transfer(data.parts["train"][rows[rank::2]], 0)
        widths.add(part.strokes.shape[1])
        assert torch.equal(part.lengths, whole.lengths[rank::2])
        assert torch.equal(part.strokes, whole.strokes[rank::2, : part.strokes.shape[1]])
    assert len(widths) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_augmentation_keeps_the_precision_that_it_is_given(dtype: torch.dtype) -> None:
    data = held([30] * 20)
    at(data, 0, 0)
    batch = data.parts["train"][torch.arange(8)]
    found = data.on_after_batch_transfer(batch._replace(strokes=batch.strokes.to(dtype)), 0)
    assert found.strokes.dtype == dtype
    assert torch.equal(found.strokes[:, :, 2:].sum(2), torch.ones(8, 31, dtype=dtype))


# ---- glyphs ------------------------------------------------------------------------------------------------------


def lines_of(sketch: np.ndarray) -> list[np.ndarray]:
    """Each stroke's positions."""
    return np.split(sketch[:, :2].astype(np.float64).cumsum(0), np.flatnonzero(sketch[:, 2])[:-1] + 1)


def box(sketch: np.ndarray) -> np.ndarray:
    """Width and height."""
    points = np.concatenate(lines_of(sketch))
    return points.max(0) - points.min(0)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_glyphs_are_closed_outlines_in_one_order_and_unit(part: str) -> None:
    characters = "HBioTx8L"
    made, labels = glyph_sketches(part, characters, 1.0)
    assert labels.tolist() == list(range(8)) * len(FONTS[part])
    by_name = [dict(zip(characters, made[i : i + 8], strict=True)) for i in range(0, len(made), 8)]
    for font, glyphs in zip(FONTS[part], by_name, strict=True):
        for character, sketch in glyphs.items():
            lines = lines_of(sketch)
            assert sketch[0, :2].tolist() == [0, 0]
            areas = []
            for line in lines:
                assert np.allclose(line[0], line[-1], atol=1e-3), (font, character)
                assert line.sum(1).argmin() in (0, len(line) - 1), "from the upper left, y downward"
                areas.append(float((line[:-1, 0] * line[1:, 1] - line[1:, 0] * line[:-1, 1]).sum() / 2))
            assert areas[0] > 0
            assert areas[0] == max(map(abs, areas))
            if character in "Bo8":
                assert all(area < 0 for area in areas[1:]), "holes run the other way"
        assert box(glyphs["H"])[1] == pytest.approx(100, abs=1), "to within epsilon"
        assert 50 < box(glyphs["x"])[1] < 85
        assert {c: len(lines_of(s)) for c, s in glyphs.items()} == {
            **dict.fromkeys("HTxL", 1),
            **dict.fromkeys("io", 2),
            **dict.fromkeys("B8", 3),
        }
        stem, dot = lines_of(glyphs["i"])
        assert dot.mean(0)[1] < stem[:, 1].min(), "the dot is above the stem"
        t = lines_of(glyphs["T"])[0]
        assert np.ptp(t[t[:, 1] < 20, 0]) > 1.2 * np.ptp(t[t[:, 1] > 80, 0]), "the bar is above"
        left = lines_of(glyphs["L"])[0]
        assert np.ptp(left[left[:, 1] > 90, 0]) > np.ptp(left[left[:, 1] < 40, 0]), "it is not mirrored"


def test_variants_lean_and_stretch_and_are_always_the_same() -> None:
    plain, _ = glyph_sketches("train", "HiO", 2.0)
    made, labels = glyph_sketches("train", "HiO", 2.0, variants=2)
    again, _ = glyph_sketches("train", "HiO", 2.0, variants=2)
    assert len(made) == 3 * len(plain)
    assert labels.tolist() == [0, 1, 2] * 3 * len(FONTS["train"])
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    slants, widths = [], []
    for font in range(len(FONTS["train"])):
        versions = [made[9 * font + 3 * v : 9 * font + 3 * v + 3] for v in range(3)]
        assert all(np.array_equal(a, b) for a, b in zip(versions[0], plain[3 * font :], strict=False)), "itself first"
        for version in versions[1:]:
            for before, after in zip(versions[0], version, strict=True):
                assert np.array_equal(before[:, 1:], after[:, 1:]), "as high, and the pen the same"
                basis = before[:, :2].astype(np.float64)
                (width, slant), residual, *_ = np.linalg.lstsq(basis, after[:, 0].astype(np.float64), rcond=None)
                assert float(residual[0]) < 1e-6
            slants.append(-slant)
            widths.append(width)
    assert -0.25 <= min(slants) < 0 < max(slants) <= 0.25
    assert 0.8 <= min(widths) < 1 < max(widths) <= 1.25
    assert len(set(np.round(slants, 6))) == len(slants)


def test_the_data_module_of_glyphs() -> None:
    data = Glyphs(variants=1)
    assert "".join(data.class_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    assert data.num_classes == 62
    assert {name: len(table) for name, table in data.parts.items()} == {"train": 1860, "val": 124, "test": 248}
    assert data.longest <= 60
    families = {part: {name.split("-")[0] for name in names} for part, names in FONTS.items()}
    assert not families["train"] & (families["val"] | families["test"])
    assert not families["val"] & families["test"]
    for table in data.parts.values():
        assert torch.bincount(table.labels).unique().numel() == 1, "each as often as the others"
    batch = next(iter(data.train_dataloader()))
    assert batch.strokes[:, :, :2][batch.strokes[:, :, 4] == 0].std() < 2
    assert (data.parts["train"].offsets / data.scale_factor).std() == pytest.approx(1, abs=1e-3)
    few = Glyphs("xo", epsilon=4.0, variants=0)
    assert (few.class_names, few.num_classes) == (["x", "o"], 2)
    assert few.longest < data.longest


# ---- where files are looked for ----------------------------------------------------------------------------------


def test_a_source_is_a_name_in_the_data_folder_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "sketch_rnn" / "mine.npz")
    write(tmp_path / "other" / "sketch_rnn" / "mine.npz", train=draw([3] * 7))
    monkeypatch.setenv("LIT_DATA", str(tmp_path / "data"))
    assert len(SketchNPZ("mine").parts["train"]) == 3
    assert len(SketchNPZ("mine", root=str(tmp_path / "other")).parts["train"]) == 7
    assert len(SketchNPZ(str(tmp_path / "other" / "sketch_rnn" / "mine.npz")).parts["train"]) == 7
    missing = tmp_path / "data" / "sketch_rnn" / "mime.npz"
    message = rf"^{missing}: not found; expected aaron_sheep or omniglot, .* did you mean 'mine'"
    with pytest.raises(FileNotFoundError, match=message):
        SketchNPZ("mime")
    with pytest.raises(FileNotFoundError, match=r"^none.npz: not found; expected an .npz file as https://github.com"):
        SketchNPZ("none.npz")
    (tmp_path / "d.npz").mkdir()
    with pytest.raises(ValueError, match=rf"^{tmp_path}/d.npz: a folder, expected an .npz file$"):
        SketchNPZ(str(tmp_path / "d.npz"))
    for other in (tmp_path / "cat.ndjson", tmp_path):
        with pytest.raises(ValueError, match=r"expected an .npz file; .ndjson files and folders are read by"):
            SketchNPZ(str(other))


def test_sketch_rnns_own_files_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    file = tmp_path / "sketch_rnn" / "aaron_sheep.npz"
    with pytest.raises(
        FileNotFoundError, match=rf"^{file}: not found; download it from https://\S*aaron_sheep.npz to this path "
    ):
        SketchNPZ(root=str(tmp_path))
    write(file)
    with pytest.raises(ValueError, match=rf"^{file}: its SHA-256 is \w+..., expected 65f8e51e43587661"):
        SketchNPZ(root=str(tmp_path))


def unreachable(*args: Any, **options: Any) -> Any:
    raise OSError("no network")


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves ``files`` by their last name; "short" ends before its announced length."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - of each test its own

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if name not in self.files:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.files[name]) + 10 * name.startswith("bat")))
        self.end_headers()
        self.wfile.write(self.files[name])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What QuickDraw's address has."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    files: dict[str, bytes] = {}
    monkeypatch.setattr(Answers, "files", files)
    monkeypatch.setattr(stroke_files, "QUICKDRAW", f"http://127.0.0.1:{server.server_port}/sketchrnn")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield files
    server.shutdown()
    server.server_close()


def test_categories_are_downloaded_once_and_labeled(served: dict[str, bytes], tmp_path: Path) -> None:
    served["cat.npz"] = write(tmp_path / "a.npz", train=draw([5, 6, 7])).read_bytes()
    served["The%20Eiffel%20Tower.npz"] = write(tmp_path / "b.npz", train=draw([8, 99])).read_bytes()
    data = QuickDraw(["The Eiffel Tower", "cat"], root=str(tmp_path))
    assert data.class_names == ["The Eiffel Tower", "cat"]
    assert data.parts["train"].labels.tolist() == [0, 0, 1, 1, 1]
    assert data.parts["train"].lengths.tolist() == [8, 99, 5, 6, 7]
    assert data.parts["test"].labels.tolist() == [0, 0, 1, 1]
    folder = tmp_path / "sketch_rnn" / "quickdraw"
    assert sorted(file.name for file in folder.iterdir()) == ["The Eiffel Tower.npz", "cat.npz"]
    served.clear()
    assert QuickDraw(["cat"], root=str(tmp_path)).parts["train"].lengths.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("category", "content", "error", "message"),
    [
        ("cat", None, FileNotFoundError, r"{file}: not found; download it from {address} to this path \(Not Found\)"),
        ("bat", "whole", FileNotFoundError, r"{file}: not found; download it from {address} to this path \(Incomplete"),
        ("dog", "cut", ValueError, "{address}: for {file}: no complete .npz file"),
        ("dog", b"<html>", ValueError, "{address}: for {file}: no complete .npz file"),
        ("dog", "two parts", ValueError, "{address}: for {file}: it has train, test, expected train, val, test"),
    ],
)
def test_half_a_download_is_never_kept(
    category: str, content: Any, error: Any, message: str, served: dict[str, bytes], tmp_path: Path
) -> None:
    whole = write(tmp_path / "a.npz").read_bytes()
    known = {"whole": whole, "cut": whole[:-50], "two parts": write(tmp_path / "b.npz", valid=None).read_bytes()}
    if content is not None:
        served[f"{category}.npz"] = known.get(content, content)
    file = tmp_path / "sketch_rnn" / "quickdraw" / f"{category}.npz"
    expected = message.format(file=file, address=f"{stroke_files.QUICKDRAW}/{category}.npz")
    with pytest.raises(error, match=f"^{expected}"):
        QuickDraw([category], root=str(tmp_path))
    assert not file.parent.exists() or not list(file.parent.iterdir())


def test_a_length_that_differs_from_the_announced_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path / "a.npz").read_bytes()

    class Answer(io.BytesIO):
        headers = {"Content-Length": str(len(whole) - 1)}  # noqa: RUF012 - as urllib's answers have it

    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **options: Answer(whole))
    with pytest.raises(ValueError, match=rf"cat.npz: received {len(whole)} bytes, expected {len(whole) - 1}"):
        QuickDraw(["cat"], root=str(tmp_path))


def test_offline_the_error_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    address = "https://storage.googleapis.com/quickdraw_dataset/sketchrnn/The%20Mona%20Lisa.npz"
    file = tmp_path / "sketch_rnn" / "quickdraw" / "The Mona Lisa.npz"
    message = rf"^{file}: not found; download it from {address} to this path \(no net"
    with pytest.raises(FileNotFoundError, match=message):
        QuickDraw(["The Mona Lisa"], root=str(tmp_path))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["elefant"], "categories='elefant': expected a category of QuickDraw; did you mean 'elephant'"),
        (["cat", "qqqq"], "categories='qqqq': expected a category of QuickDraw$"),
        (["cat", "cat"], r"categories=\['cat', 'cat'\]: expected a list of names, each once"),
        ([], r"categories=\[\]: expected a list of names, each once"),
        ("cat", "categories='cat': expected a list of names, each once"),
    ],
)
def test_unknown_categories_are_refused_before_anything_is_downloaded(
    categories: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(ValueError, match=message):
        QuickDraw(categories, root=str(tmp_path))


def test_quickdraw_has_345_categories_and_takes_files_of_other_names(tmp_path: Path) -> None:
    assert len(QUICKDRAW_CATEGORIES) == len(set(QUICKDRAW_CATEGORIES)) == 345
    write(tmp_path / "sketch_rnn" / "quickdraw" / "my own.npz")
    assert QuickDraw(["my own"], root=str(tmp_path)).class_names == ["my own"]


# ---- with Lightning ----------------------------------------------------------------------------------------------


class Watcher(LightningModule):
    """Keeps what it is given."""

    def __init__(self, scale_factor: float, longest: int, num_classes: int, class_names: list[str], lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(5, 1)
        self.seen: dict[str, list[SketchBatch]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: SketchBatch, batch_idx: int) -> Tensor:
        self.seen["train"].append(batch)
        return self.layer(batch.strokes).square().mean()

    def validation_step(self, batch: SketchBatch, batch_idx: int) -> None:
        self.seen["val"].append(batch)
        self.log("val/loss", self.layer(batch.strokes).square().mean())

    def test_step(self, batch: SketchBatch, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


def run(*options: str, kill_after: int | None = None) -> CLI:
    model = [
        "--model",
        f"{__name__}.Watcher",
        "--model.lr",
        "0.01",
        "--data",
        "datamodules.sketches.Glyphs",
    ]
    few = ["--data.characters", "xyz", "--data.batch_size", "8", "--trainer.max_epochs", "2"]
    cli = build(["fit", *model, *few, *QUIET, *options])
    if kill_after is None:
        cli.execute()
    else:
        cli.trainer.callbacks.insert(0, Kill(kill_after))
        with pytest.raises(Killed):
            cli.execute()
    return cli


def test_a_run_augments_training_only_and_keeps_the_facts_in_the_checkpoint() -> None:
    cli = run()
    data, seen = cli.datamodule, cli.model.seen
    content = torch.load(cli.folder.recovery_checkpoints()[0], weights_only=True)["hyper_parameters"]
    assert content["scale_factor"] == data.scale_factor == cli.model.hparams.scale_factor
    assert content["longest"] == data.longest
    assert content["class_names"] == ["x", "y", "z"]
    assert content["num_classes"] == 3
    stored = data.parts["train"]
    originals = {tuple(row) for row in (stored.offsets / stored.scale_factor).tolist()}
    shown = torch.cat([b.strokes[b.strokes[:, :, 4] == 0][:, :2] for b in seen["train"]])
    unchanged = sum(tuple(row) in originals for row in shown[shown.abs().sum(1) > 0].tolist())
    assert unchanged < 0.02 * len(shown)
    table = data.parts["val"]
    for batch in seen["val"]:
        rows = torch.arange(len(batch.labels))
        assert torch.equal(batch.strokes, table[rows].strokes)
    assert len(seen["train"]) == 2 * (len(stored) // 8)
    assert not torch.equal(seen["train"][0].labels, seen["train"][len(stored) // 8].labels)


@pytest.mark.slow
def test_a_resumed_run_sees_the_batches_that_it_would_have_seen() -> None:
    whole = run("--run.id", "whole").model.seen["train"]
    half = ["--run.id", "half", "--ckpt_path", "last", "--checkpoint.every_n_train_steps", "5"]
    first = run(*half, kill_after=30).model.seen["train"]
    rest = run(*half).model.seen["train"]
    assert len(first) == 30 > len(whole) / 2, "in the second epoch"
    for found, expected in zip([*first, *rest], whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_mistake_is_one_line(mistake: Callable[..., str], tmp_path: Path) -> None:
    model = ["fit", "--model", f"{__name__}.Watcher", "--model.lr", "0.01", *QUIET]
    line = mistake(*model, "--data", "datamodules.sketches.SketchNPZ", "--data.source", str(tmp_path / "none.npz"))
    assert line.startswith(f"{tmp_path}/none.npz: not found; expected an .npz file")
    file = write(tmp_path / "a.npz", train=[Malicious(os.system, "true")])
    line = mistake(*model, "--data", "datamodules.sketches.SketchNPZ", "--data.source", str(file))
    reason = f"its pickle asks for {os.name}.system, which was refused"
    assert line.startswith(f"{file}: train.npy: cannot be read: {reason}")
    line = mistake(*model, "--data", "datamodules.sketches.QuickDraw", "--data.categories", "['kat']")
    assert line.startswith("categories='kat': expected a category of QuickDraw; did you mean ")
