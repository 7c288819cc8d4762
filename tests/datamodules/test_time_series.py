"""TimeSeries: the forms in which people have numbers, the parts, the scaling, and what it says about broken files."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.scaling import Scaling
from datamodules.time_series import TimeSeries
from experiments.adopting import adopt
from experiments.mistakes import Mistake


def own(data: TimeSeries, part: str) -> list[np.ndarray]:
    """The series of a part in their own units, in the order of the source."""
    scaling, found = Scaling(**data.scaling), []
    for values, lengths, _ in data.plain_loader(part):
        found += [scaling.undo(row[:length].numpy()) for row, length in zip(values, lengths.tolist(), strict=True)]
    return [np.round(series, 3) for series in found]


def everything(data: TimeSeries) -> list[list[Any]]:
    """All series, sorted, as lists of numbers."""
    return sorted(series.tolist() for part in data.part_names for series in own(data, part))


def ragged(count: int = 12, dim: int = 2) -> list[np.ndarray]:
    """Series of different lengths, whose numbers are all different."""
    return [1000.0 * i + np.arange(dim * (3 + i % 4)).reshape(-1, dim) for i in range(count)]


def as_objects(series: list[np.ndarray]) -> np.ndarray:
    array = np.empty(len(series), object)
    for i, each in enumerate(series):
        array[i] = each
    return array


def write_npy(folder: Path) -> str:
    np.save(folder / "it.npy", as_objects(ragged()))
    return "it.npy"


def write_npz(folder: Path) -> str:
    np.savez(folder / "it.npz", *ragged())
    return "it.npz"


def write_npz_of_objects(folder: Path) -> str:
    np.savez_compressed(folder / "it.npz", anything=as_objects(ragged()))
    return "it.npz"


def write_folder(folder: Path) -> str:
    (folder / "it" / "sub [1]").mkdir(parents=True)
    for i, each in enumerate(ragged()):
        np.save(folder / "it" / "sub [1]" / f"{i:02}.npy", each)
    return "it/sub [1]/*.npy"


def write_tables(folder: Path) -> str:
    (folder / "it").mkdir()
    for i, each in enumerate(ragged()):
        lines = ["a;b", "", *(f"{x:g}; {y:g}" for x, y in each)] if i % 2 else [f"{x}\t{y}" for x, y in each]
        (folder / "it" / f"{i:02}.CSV").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    return "it"


def write_long_table(folder: Path) -> str:
    rows = [f'2020-01-01,"nr. {i}",{x},{y}' for i, each in enumerate(ragged()) for x, y in each]
    (folder / "it.csv").write_text("\n".join(["day,patient,a,b", *rows]))
    return "it.csv"


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_npy, {}),
        (write_npz, {}),
        (write_npz_of_objects, {}),
        (write_folder, {}),
        (write_tables, {}),
        (write_long_table, {"by": "patient", "columns": ["a", "b"]}),
    ],
)
def test_the_same_series_from_every_kind_of_file(
    write: Callable[[Path], str], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path)
    monkeypatch.chdir("/")
    data = TimeSeries(source, root=str(tmp_path), batch_size=4, **options)
    assert (data.sequence_dim, data.longest) == (2, 6)
    assert data.channel_names == (["a", "b"] if "it.csv" in source or source == "it" else [])
    assert everything(data) == sorted(series.tolist() for series in ragged())
    assert [len(own(data, part)) for part in data.part_names] == [10, 1, 1]


def test_arrays_of_equally_long_series() -> None:
    values = np.arange(60, dtype=np.int16).reshape(10, 6)
    np.save("flat.npy", values)
    np.save("deep.npy", values.reshape(10, 3, 2))
    flat, deep = TimeSeries("flat.npy"), TimeSeries("deep.npy")
    assert (flat.sequence_dim, flat.longest, deep.sequence_dim, deep.longest) == (1, 6, 2, 3)
    assert everything(flat) == values[:, :, None].tolist()
    assert everything(deep) == values.reshape(10, 3, 2).tolist()


def test_given_parts_and_classes() -> None:
    rows = {"train": np.arange(8.0)[:, None] + [0, 10], "valid": np.zeros((2, 2)), "test": np.ones((3, 2))}
    np.savez("parts.npz", **rows, train_labels=["b", "a"] * 4)
    for part, values in rows.items():
        for i, row in enumerate(values):
            file = Path("parts", part, "ab"[i % 2], f"{i}.npy")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, row)
        np.save(f"{part}.npy", values)
    three = TimeSeries("train.npy", val_source="valid.npy", test_source="test.npy")
    for data in (TimeSeries("parts.npz"), TimeSeries("parts"), three):
        assert data.part_names == ["train", "val", "test"]
        assert sorted(series[:, 0].tolist() for series in own(data, "train")) == rows["train"].tolist()
        assert [len(own(data, part)) for part in ("val", "test")] == [2, 3]
        assert not data.parts_are_cut
    assert three.class_names == []
    labeled = TimeSeries("parts")
    assert labeled.class_names == ["a", "b"]
    assert labeled.sample_names("test")["class"] == ["a", "a", "b"]
    assert {Path(name).name for name in labeled.sample_names("val")["series"]} == {"0.npy", "1.npy"}
    with pytest.raises(ValueError, match=r"test_source=test.npy: is a second test part"):
        TimeSeries("parts.npz", test_source="test.npy")


def test_the_split_is_random_and_the_same_each_time_or_by_position() -> None:
    np.save("it.npy", np.arange(200.0).reshape(100, 2))

    def firsts(**options: Any) -> dict[str, list[float]]:
        data = TimeSeries("it.npy", **options)
        return {part: [round(float(series[0, 0])) // 2 for series in own(data, part)] for part in data.part_names}

    random, other = firsts(), firsts(split_seed=1)
    torch.manual_seed(5)
    assert random == firsts()
    assert sorted(number for part in random.values() for number in part) == list(range(100))
    assert random["val"] != other["val"]
    assert max(random["train"]) > 90 > 10 > min(random["test"] + random["val"])
    assert firsts(split="position", val_fraction=0.2) == {
        "train": list(range(70)),
        "val": list(range(70, 90)),
        "test": list(range(90, 100)),
    }
    assert list(firsts(test_fraction=0.0)) == ["train", "val"]


def test_evaluation_begins_with_all_classes() -> None:
    np.savez("it.npz", x=np.arange(160.0).reshape(80, 2), labels=np.repeat([10, 9], 40))
    data = TimeSeries("it.npz", batch_size=4, split="position", val_fraction=0.7)
    assert data.class_names == ["9", "10"], "in the order of numbers"
    first = next(iter(data.val_dataloader()))
    assert sorted(first.labels.tolist()) != [1, 1, 1, 1]
    assert sum(len(batch.lengths) for batch in data.val_dataloader()) == 56


def test_long_series_are_cut_into_windows(caplog: pytest.LogCaptureFixture) -> None:
    np.savetxt("long.csv", np.arange(103.0), header="load", comments="")
    data = TimeSeries("long.csv", window=10, split="position")
    assert everything(data) == [[[float(step)] for step in range(at, at + 10)] for at in range(0, 100, 10)]
    assert data.sample_names("test")["series"] == ["long.csv: steps 90 to 99"]
    assert "3 of 103 steps left out, which do not fill a window of 10" in data.found()
    with pytest.raises(ValueError, match=r"source=long.csv: 1 series, expected at least 3 for the parts"):
        TimeSeries("long.csv")
    with pytest.raises(ValueError, match="window=200: no series is as long, expected at most 103"):
        TimeSeries("long.csv", window=200)


def test_channels_are_scaled_by_the_training_part_alone(caplog: pytest.LogCaptureFixture) -> None:
    draw = np.random.default_rng(0)
    train = draw.normal([1e9, 5], [1, 0.01], (20, 7, 2))
    train[:, :, 1] = 5.1  # never changes, and is no sum of powers of two
    np.savez("it.npz", train=train, val=train[:2] + np.array([3, 100]))
    flat = train.reshape(-1, 2)
    expected = {
        "standard": (flat.mean(0), [flat[:, 0].std(), 1]),
        "range": (flat.min(0), [np.ptp(flat[:, 0]), 1]),
        "none": ([0, 0], [1, 1]),
    }
    for how, (shift, scale) in expected.items():
        data = TimeSeries("it.npz", scale=how)  # type: ignore[arg-type]
        np.testing.assert_allclose(data.scaling["shift"], shift, rtol=1e-12)
        np.testing.assert_allclose(data.scaling["scale"], scale, rtol=1e-7)
    data = TimeSeries("it.npz")
    with caplog.at_level(logging.INFO):
        data.setup()
    assert "22 series of 7 steps, 2 channels; 20 train, 2 val, no test; scaled by the mean" in caplog.text
    assert "channel 1 never changes in the training part" in caplog.text
    values = data.parts["train"].values
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:, 0], (flat[:, 0] - flat[:, 0].mean()) / flat[:, 0].std(), atol=1e-5)
    assert not values[:, 1].any()


def test_batches_are_padded_with_zeros_and_the_epoch_has_every_series() -> None:
    np.save("it.npy", as_objects(ragged(40)))
    torch.manual_seed(0)
    data = TimeSeries("it.npy", batch_size=8)
    batches = list(data.train_dataloader())
    assert [len(batch.lengths) for batch in batches] == [8] * 4
    for values, lengths, labels in batches:
        assert values.shape == (8, int(lengths.max()), 2)
        inside = torch.arange(values.shape[1]) < lengths[:, None]
        assert not values[~inside].any()
        assert values[inside].all(1).all()
        assert labels.tolist() == [-1] * 8
    together: Tensor = torch.cat([batch.values.sum((1, 2)) for batch in data.sequences("train")])
    assert len(together.unique()) == 32


def test_a_trained_models_facts_win() -> None:
    Path("old.csv").write_text("a,b\n" + "\n".join(f"{i},{i * i}" for i in range(60)))
    Path("new.csv").write_text("b,a\n" + "\n".join(f"{-i},{i + 500}" for i in range(50)))
    Path("less.csv").write_text("a\n" + "1\n2\n" * 30)
    Path("other.csv").write_text("a,c\n" + "1,2\n" * 30)
    old, new = (TimeSeries(f"{name}.csv", window=size) for name, size in (("old", 5), ("new", 10)))
    facts = ("scaling", "channel_names", "sequence_dim", "longest")
    adopt(new, {fact: getattr(old, fact) for fact in facts}, Path("it.ckpt"))
    assert new.channel_names == ["a", "b"]
    assert new.scaling == old.scaling
    assert own(new, "train")[0][:, 0].min() >= 500, "channels are told apart by their names"
    assert "scaled as the checkpoint's; 5 longer than 5 steps, the most that the model writes" in new.found()
    for name, message in (("less", "sequence_dim: 1 in the data, 2 in the checkpoint"), ("other", "not know 'c'")):
        with pytest.raises((ValueError, Mistake), match=message):
            adopt(TimeSeries(f"{name}.csv", window=5), {fact: getattr(old, fact) for fact in facts}, Path("it.ckpt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y\n1,2\n3,nan\n", r"a.csv: line 3, channel 1 \(y\) is nan, expected finite numbers"),
        ("a.csv", "x,y\n\n1,2\n3,high\n", r"a.csv: line 4, column y: 'high', expected a number; 'columns' says which"),
        ("a.csv", 'temp\n1\n""\n3\n', "a.csv: line 3, column temp: '', expected a number"),
        ("a.csv", 'temp\n1\n""\n\n', "a.csv: line 3, column temp: '', expected a number"),
        ("a.csv", "temp\n\n1\n", "a.csv: line 2: empty, expected a number in each row"),
        ("a.csv", "x,y\n1,2\n \n3,4\n", "a.csv: line 3: empty, expected a number in each row"),
        ("a.csv", "x,y\n1,2\n,\n", "a.csv: line 3, column x: '', expected a number"),
        ("a.csv", ",\n1,2\n", "a.csv: line 1, column 0: '', expected a number"),
        ("a.csv", "a,t,a\n1,2,3\n", "a.csv: 2 columns are called 'a', expected each name once"),
        ("a.csv", "1,2\n3,4,5\n", "a.csv: line 2: 3 columns, expected 2 as in the first row"),
        ("a.csv", "x,y\n", "a.csv: no row of numbers"),
        ("a.csv", b"x\n\xff1\n", "a.csv: byte 2: not UTF-8"),
        ("a.npy", np.array([[1, 2], [3, np.inf]]), "a.npy: series 1: step 1, channel 0 is inf, expected finite"),
        ("a.npy", np.array([["a", "b"]]), "a.npy: series 0: <U1 of shape"),
        ("a.npy", np.zeros((7, 2, 2, 2)), r"a.npy: an array of shape \(7, 2, 2, 2\), expected \(series, steps\), "),
        ("a.npy", np.zeros(7), "a.npy: 1 series, expected at least 3 for the parts .*: see 'window'"),
        ("a.npy", as_objects([np.zeros((3, 2)), np.zeros((3, 1))]), "series 1: 1 channels, expected 2, as .*series 0"),
        ("a.npy", b"\x93NUMPY", "a.npy: cannot be read: "),
        ("a.npz", b"PK", "a.npz: no complete .npz file"),
        ("a.txt", "1 2 3", r"a.txt: expected a file that ends in .npy, .npz, .csv or .tsv"),
        ("a.csvv", None, r"source=a.csv: no such file, folder or glob; expected .*; did you mean 'a.csvv'"),
    ],
)
def test_what_is_no_series_is_named(name: str, content: Any, message: str) -> None:
    if isinstance(content, np.ndarray):
        np.save(name, content)
    else:
        Path(name).write_bytes(content if isinstance(content, bytes) else (content or "1").encode())
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        TimeSeries("a.csv" if content is None else name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "names", "note"),
    [
        ("0,1,2\n5,6,7\n8,9,9\n", [], "a first row 0, 1, … taken for a heading (as a step, write 0.0)"),
        (",0,1,2\n0,5,6,7\n1,8,9,9\n", [], "a first column without a name, which numbers the rows, left out"),
        (",a,b,c\n0,5,6,7\n1,8,9,9\n", ["a", "b", "c"], "a first column without a name"),
        ('"","a","b","c"\n"1",5,6,7\n"2",8,9,9\n', ["a", "b", "c"], "a first column without a name"),
        ("a,b,c\n5,6,7\n8,9,9\n\n \n", ["a", "b", "c"], ""),
    ],
    ids=["pandas without index", "pandas without names", "pandas", "R", "blank lines at the end"],
)
def test_what_pandas_and_r_add_is_no_measurement(table: str, names: list[str], note: str) -> None:
    for i in range(3):
        Path(f"{i}.csv").write_text(table)
    data = TimeSeries("*.csv", test_fraction=0.0)
    assert everything(data) == [[[5, 6, 7], [8, 9, 9]]] * 3
    assert data.channel_names == names
    assert (f"{note} in 3 tables" if note.endswith(")") else note) in data.found()
    assert note or "column" not in data.found()


def test_one_recording_without_channels_is_cut_into_windows() -> None:
    np.save("long.npy", np.arange(103.0))
    assert everything(TimeSeries("long.npy", window=10))[1] == [[float(step)] for step in range(10, 20)]


def test_columns_are_found_in_either_case_if_that_tells_them_apart() -> None:
    Path("it.csv").write_text("Patient,Pulse,x,X\n" + "".join(f"{i},{60 + i},{i},1\n" for i in range(9)))
    data = TimeSeries("it.csv", by="patient", columns=["pulse", "X"])
    assert data.channel_names == ["Pulse", "X"]
    assert everything(data)[0] == [[60, 1]]
    Path("two.csv").write_text("A,a\n1,2\n")
    with pytest.raises(ValueError, match=r"columns=Á: two.csv has no such column; expected one of A, a"):
        TimeSeries("two.csv", columns=["Á"])


def test_yes_and_no_are_one_and_zero_in_every_form() -> None:
    bits = np.array([[True, False, True], [False, False, True], [True, True, False]])
    np.save("it.npy", bits)
    np.save("objects.npy", as_objects(list(bits)))
    Path("tables").mkdir()
    for i, row in enumerate(bits.tolist()):
        Path("tables", f"{i}.csv").write_text("\n".join(map(str, row)))
    expected = sorted(bits[:, :, None].astype(float).tolist())
    assert [everything(TimeSeries(name)) for name in ("it.npy", "objects.npy", "tables")] == [expected] * 3


def test_other_mistakes_are_named() -> None:
    Path("it.csv").write_text("patient,x\n" + "1,2\n" * 9)
    np.savez("two.npz", x=np.zeros((4, 2)), labels=[1, 2])
    np.savez("X.npz", X=np.zeros((9, 7)), y=np.zeros(9))
    np.savez("X_train.npz", X_train=np.zeros((9, 7)), X_test=np.zeros((2, 7)), X_val=np.zeros((2, 7)))
    np.savez("lost.npz", x=np.zeros((9, 7)), x_labels=np.zeros(9))
    np.save("wide.npy", np.zeros((50, 3)))
    Path("two").mkdir()
    np.save("two/many.npy", np.zeros((3, 4, 2)))
    for call, message in (
        (lambda: TimeSeries("it.csv", by="patients"), "by=patients: it.csv has no such column; did you mean 'patient'"),
        (lambda: TimeSeries("it.csv", columns=["y"]), "columns=y: it.csv has no such column"),
        (lambda: TimeSeries("it.csv", columns=["c", "x"]), "columns=c: it.csv has no such column"),
        (
            lambda: TimeSeries("X.npz"),
            "X.npz: arrays X, y, expected 'train', 'val' and 'test', with 'train_labels', …;",
        ),
        (lambda: TimeSeries("X_train.npz"), "X_train.npz: arrays X_train, X_test, X_val, expected 'train', 'val'"),
        (lambda: TimeSeries("lost.npz"), "lost.npz: x_labels beside x, expected 'train'"),
        (
            lambda: TimeSeries("wide.npy", window=10),
            r"expected at most 3; if .*, expected an array of shape \(1, 50, 3\)",
        ),
        (lambda: TimeSeries("two.npz"), r"two.npz: x: labels of shape \(2,\), expected \(4,\)"),
        (lambda: TimeSeries("two"), "a file of many series is a source by itself"),
        (lambda: TimeSeries(""), "source='': expected a file, a folder or a glob"),
        (lambda: TimeSeries("it.csv", split="rows"), "split='rows': expected 'random' or 'position'"),  # type: ignore
        (lambda: TimeSeries("it.csv", scale="max"), "scale='max': expected 'standard', 'range' or 'none'"),  # type: ignore
        (lambda: TimeSeries("it.csv", window=1), "window=1: expected at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_nothing_that_an_array_of_objects_asks_for_is_run(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    array = np.empty(1, object)
    array[0] = Call()
    with open("a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        pickle.dump(array, file)
    with pytest.raises(ValueError, match=r"a.npy: cannot be read: .* refused and not run"):
        TimeSeries("a.npy")
    assert not (tmp_path / "ran").exists()
