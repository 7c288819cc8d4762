"""Files of numbers that were measured step by step: which series there are, in which parts and of which classes.

====================================  ==================================================================================
``.npy``                              (N, T) or (N, T, D): N series of T steps and D channels; (T,): one series; or an
                                      object array of N series (T,) or (T, D), of any lengths
``.npz``                              one such array; or arrays called ``train``, ``val`` and ``test``; or several of
                                      other names, each one series. ``labels`` (or ``train_labels``, …) are classes.
``.csv``, ``.tsv``                    one series: a row for each step, a column for each channel, and a first row of
                                      their names, if there is one. With ``by``, each value of that column is a series.
a folder, a glob                      a file for each series, (T,) or (T, D). Two or more folders in it are classes.
a folder of ``train``, ``val``, …     the parts: files or folders in any of these forms
====================================  ==================================================================================
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.files import matching, nearest_path
from datamodules.parts.image_files import part_called
from datamodules.parts.series_tables import SeriesTable
from datamodules.parts.stroke_files import unpickled_arrays

TABLES = (".csv", ".tsv")
EXTENSIONS = (".npy", ".npz", *TABLES)


NAMES_READ = (
    "'train', 'val' and 'test', with 'train_labels', …; or one array of any name, with 'labels'; or one series "
    "(steps,) or (steps, channels) in each array"
)
"""which arrays an archive may have"""


class Series(NamedTuple):
    """One series, as it was found."""

    values: np.ndarray
    """(T, D) numbers, T at least 1, all of them finite"""
    name: str
    """where it is from"""
    label: str = ""
    """its class, or empty"""


class Found(NamedTuple):
    """What a source has."""

    parts: dict[str, list[Series]]
    """"train", "val" and "test" as far as there are any; without parts, "all" """
    channel_names: list[str]
    """of the columns of tables; otherwise none"""


class SeriesReader:
    """Reads sources of series. All of their channels have to be the same, in number and by name.

    Args:
        by: the column of a table that says which series a row belongs to.
        columns: the columns of a table that are channels; by default all but ``by``.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is of no such form; a value is no finite number, or a series has other channels than the
            first. Names the file and the row.
    """

    def __init__(self, by: str | None = None, columns: Sequence[str] | None = None) -> None:
        self.by, self.columns = by, None if columns is None else list(columns)
        self.channel_names: list[str] = []
        self._notes: Counter[str] = Counter()  # and of how many tables
        self._first: tuple[str, int] | None = None  # of all series: its name, and how many channels it has

    @property
    def notes(self) -> list[str]:
        """What was in tables and is not read, in words."""
        return [note if count == 1 else f"{note} in {count} tables" for note, count in self._notes.items()]

    def read(self, source: str, argument: str = "source") -> Found:
        """The series of a file, a folder or a glob."""
        path = Path(source)
        if path.is_dir():
            parts = self._parts_of_folder(path)
        elif path.suffix.lower() == ".npz" and path.is_file():
            parts = self._archive(path)
        elif path.is_file():
            parts = {"all": self._file(path)}
        else:
            files = [file for file in matching(source) if file.suffix.lower() in EXTENSIONS]
            if len(files) == 1:
                return self.read(str(files[0]), argument)
            if not files:
                raise FileNotFoundError(
                    f"{argument}={source}: no such file, folder or glob; expected {_listed()}{nearest_path(path)}"
                )
            parts = {"all": [series for file in files for series in self._single(file)]}
        for name, series in parts.items():
            if not series:
                raise ValueError(f"{argument}={source}: no series in its part {name}, expected at least one")
        return Found(parts, self.channel_names)

    def _parts_of_folder(self, folder: Path) -> dict[str, list[Series]]:
        there = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        ours = [path for path in there if path.is_dir() or path.suffix.lower() in EXTENSIONS]
        called = {path: part_called(path.stem if path.is_file() else path.name) for path in ours}
        parts = {part: path for path, part in called.items() if part is not None}
        if "train" in parts and len(parts) == len(ours):
            return {part: self._whole(path) for part, path in sorted(parts.items(), key=lambda item: _rank(item[0]))}
        return {"all": self._folder(folder)}

    def _whole(self, path: Path) -> list[Series]:
        """All series of a folder or a file, which has no parts."""
        if path.is_dir():
            return self._folder(path)
        if path.suffix.lower() != ".npz":
            return self._file(path)
        parts = self._archive(path)
        if "all" not in parts:
            raise ValueError(f"{path}: has the parts {', '.join(parts)}, expected the series of one part")
        return parts["all"]

    def _folder(self, folder: Path) -> list[Series]:
        """A series for each file below a folder; the folders in it are classes, if there are two or more."""
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXTENSIONS and path.is_file()]
        files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        if not files:
            raise ValueError(f"{folder}: no series in it, expected files that end in {_listed()}")
        classes = {path: parts[0] for path in files if len(parts := path.relative_to(folder).parts) > 1}
        if len(classes) < len(files) or len(set(classes.values())) < 2:
            classes = {}
        return [series._replace(label=classes.get(path, "")) for path in files for series in self._single(path)]

    def _single(self, path: Path) -> list[Series]:
        """The one series of a file in a folder; several of a table that has ``by``."""
        if path.suffix.lower() in TABLES:
            return self._table(path)
        if path.suffix.lower() == ".npy":
            array = _read(path, path.read_bytes())
        else:
            arrays = _members(path)
            if len(arrays) != 1:
                raise ValueError(f"{path}: arrays {', '.join(arrays)}, expected one array, as files of a folder have")
            array = next(iter(arrays.values()))
        if array.ndim > 2 or array.dtype == object:
            raise ValueError(
                f"{path}: an array of shape {array.shape}, expected one series (steps,) or (steps, channels) in each "
                "file of a folder; a file of many series is a source by itself"
            )
        return [self._checked(array, str(path))]

    def _file(self, path: Path) -> list[Series]:
        """All series of an ``.npy`` or a table."""
        suffix = path.suffix.lower()
        if suffix not in (".npy", *TABLES):
            raise ValueError(f"{path}: expected a file that ends in {_listed()}, or a folder of such files")
        return self._table(path) if suffix in TABLES else self._series(_read(path, path.read_bytes()), str(path))

    def _series(self, array: np.ndarray, where: str, labels: np.ndarray | None = None) -> list[Series]:
        """The series of an array of many, or of one with a single channel."""
        if array.ndim == 1 and array.dtype != object:
            return [series._replace(name=where) for series in self._series(array[None], where, labels)]
        if array.ndim not in (2, 3) and not (array.dtype == object and array.ndim == 1):
            raise ValueError(
                f"{where}: an array of shape {array.shape}, expected (series, steps), (series, steps, channels) or "
                "(steps,); of unequal lengths, an object array or a file for each series"
            )
        if labels is not None and labels.shape != (len(array),):
            raise ValueError(f"{where}: labels of shape {labels.shape}, expected ({len(array)},), one for each series")
        classes = [""] * len(array) if labels is None else [str(label) for label in labels.tolist()]
        return [
            self._checked(values, f"{where}: series {i}")._replace(label=label)
            for i, (values, label) in enumerate(zip(array, classes, strict=True))
        ]

    def _archive(self, path: Path) -> dict[str, list[Series]]:
        arrays = _members(path)
        labels = {name: arrays.pop(name) for name in list(arrays) if name == "labels" or name.endswith("_labels")}
        called = {name: part_called(name) for name in arrays}
        if not arrays:
            raise ValueError(f"{path}: no array of series in it, expected at least one")
        has_parts = "train" in called.values() and all(called.values())
        of_part = {part_called(name.removesuffix("_labels")): array for name, array in labels.items()}
        whole = labels.get("labels")
        if len(arrays) > 1 and not has_parts and not _are_single_series(arrays):
            raise ValueError(f"{path}: arrays {', '.join([*arrays, *labels])}, expected {NAMES_READ}")
        if unknown := [name for name in labels if has_parts == (name == "labels")]:
            raise ValueError(f"{path}: {', '.join(unknown)} beside {', '.join(arrays)}, expected {NAMES_READ}")
        if has_parts:
            return {
                str(part): self._series(arrays[name], f"{path}: {name}", of_part.get(part))
                for name, part in sorted(called.items(), key=lambda item: _rank(item[1]))
            }
        if len(arrays) == 1:
            name, array = next(iter(arrays.items()))
            return {"all": self._series(array, f"{path}: {name}", whole)}
        rows = [self._checked(array, f"{path}: {name}") for name, array in arrays.items()]
        if whole is not None:
            if whole.shape != (len(rows),):
                raise ValueError(f"{path}: labels of shape {whole.shape}, expected ({len(rows)},)")
            rows = [row._replace(label=str(label)) for row, label in zip(rows, whole.tolist(), strict=True)]
        return {"all": rows}

    def _table(self, path: Path) -> list[Series]:
        """The series of a table: one, or with ``by`` as many as that column has values."""
        table = SeriesTable(path)
        self._notes.update(table.notes)
        key = None if self.by is None else table.place("by", self.by)
        if self.columns is None:
            places = [table.place("columns", name) for i, name in enumerate(table.names) if i != key]
        else:
            places = [table.place("columns", name) for name in self.columns]
        if table.header:
            chosen = [table.names[place] for place in places]
            if self.channel_names and chosen != self.channel_names:
                raise ValueError(
                    f"{path}: columns {', '.join(chosen)}, expected those of the files before it, "
                    f"{', '.join(self.channel_names)}"
                )
            self.channel_names = chosen
        values = table.numbers(places)
        if key is None:
            return [self._checked(values, str(path), table.lines)]
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(table.texts(key)):
            rows.setdefault(name, []).append(row)
        return [
            self._checked(values[of_it], f"{path}: {name}", [table.lines[row] for row in of_it])
            for name, of_it in rows.items()
        ]

    def _checked(self, values: np.ndarray, where: str, lines: Sequence[int] | None = None) -> Series:
        """Values (T,) or (T, D) as a series.

        Args:
            lines: of the file, one for each step.
        """
        array = np.asarray(values)
        if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or not array.size:
            raise ValueError(
                f"{where}: {array.dtype} of shape {array.shape}, expected numbers (steps,) or (steps, channels)"
            )
        array = array[:, None] if array.ndim == 1 else array
        array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
        if not (finite := np.isfinite(array).all(1)).all():
            step = int(finite.argmin())
            channel = int(np.isfinite(array[step]).argmin())
            at = f"step {step}" if lines is None else f"line {lines[step]}"
            called = f" ({self.channel_names[channel]})" if self.channel_names else ""
            raise ValueError(
                f"{where}: {at}, channel {channel}{called} is {array[step, channel]}, expected finite numbers"
            )
        if self._first is None:
            self._first = where, array.shape[1]
        elif array.shape[1] != self._first[1]:
            raise ValueError(f"{where}: {array.shape[1]} channels, expected {self._first[1]}, as {self._first[0]} has")
        return Series(array, where)


def _are_single_series(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether each array of an archive is a series, rather than many: ``X`` and ``y``, ``X_train`` and ``X_test``."""
    channels = {1 if array.ndim == 1 else array.shape[-1] for array in arrays.values()}
    words = [{part_called(word) for word in re.split(r"[\W_]+", name)} - {None} for name in arrays]
    several = len(set[str | None]().union(*words)) > 1 and {"train"} in words
    return len(channels) == 1 and all(array.ndim in (1, 2) for array in arrays.values()) and not several


def _rank(part: str | None) -> int:
    return ("train", "val", "test").index(str(part))


def _listed() -> str:
    return f"{', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}"


def _read(where: Path | str, content: bytes) -> np.ndarray:
    """The array of an ``.npy`` file; objects are arrays of numbers, and nothing that its pickle asks for is run."""
    try:
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if not read_header(stream)[2].hasobject:
            array: np.ndarray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            return array
        items = unpickled_arrays(content)
        objects = np.empty(len(items), object)
        for i, item in enumerate(items):  # at once, NumPy would join those of one length
            objects[i] = item
        return objects
    except Exception as error:  # a broken file can make NumPy and the unpickler raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: cannot be read: {reason}; expected an array that numpy.save wrote") from None


def _members(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` by their names, in its order."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            content = {name.removesuffix(".npy"): archive.read(name) for name in names}
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: no complete .npz file ({error}), expected one that numpy.savez wrote") from None
    return {name: _read(f"{path}: {name}", each) for name, each in content.items()}
