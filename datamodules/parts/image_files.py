"""The pictures of a folder or an archive: which there are, their classes and parts, and the pixels of each."""

from __future__ import annotations

import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from common.checks import nearest
from common.pictures import EXTENSIONS, Decoded, Preprocessing, channels_first, decode
from datamodules.parts.archives import files_in, is_hidden
from datamodules.parts.tables import read_table

PARTS = ("train", "val", "test")
Broken = Literal["error", "skip"]
Form = int | Preprocessing
"""what images become: of one size, or, with a number of channels (1 or 3) instead, of the size that they have"""

TABLE = "labels.csv"
"""the name of a table of labels that is found by itself"""

_PART = re.compile(
    r"(?:(train(?:ing)?)|(val(?:id(?:ation)?)?|dev(?:elopment)?)|(test(?:ing)?))(?:[ _-]?(?:set|data|images|\d{4}))?",
    re.IGNORECASE,
)


def part_called(name: str) -> str | None:
    """The part that people call so: "train" for ``Training`` and ``train_set``, "val" for ``valid`` and ``dev``."""
    found = _PART.fullmatch(name.strip())
    return PARTS[found.lastindex - 1] if found and found.lastindex else None


class Row(NamedTuple):
    """A line of a table of labels."""

    line: int
    file: str
    label: str
    """empty where the picture has none"""
    part: str | None
    """"train", "val" or "test"; None in a table without splits"""


class Tree:
    """The pictures below a folder or in an archive, in the order of their names, wherever they come from.

    What is a class and what is a part is decided by the form, or by ``labels``:

    ==================================  ================================================================================
    ``<class>/…/<picture>``             at least two folders: they are the classes, in alphabetical order
    ``<picture>``, or one folder        no classes: every label is -1
    a ``labels.csv`` beside the rest    the classes are the table's: see :meth:`read_table`
    ``train/…``, ``val/…``, ``test/…``  each in one of these forms: the parts. Other names of parts will do as well, in
                                        upper or lower case: see :func:`part_called`. The classes are those in training.
    ==================================  ================================================================================

    A single folder around all the rest, as archives often have, is skipped. Hidden files are passed over.

    Args:
        path: a folder, a ``.zip``, or a ``.tar``, compressed or not.
        labels: "folders" if the folders are classes whatever they are called; "none" if pictures have no classes
            wherever they lie; or the path of a table, by itself or in the tree. By default as above.

    Attributes:
        names: of all N pictures, with ``/`` between their parts, from the folder or the archive on.
        labels: (N,) int64, or -1 for a picture without a class.
        class_names: of the labels, in their order; empty where there are none.
        parts: the rows of each existing part; without parts, "all" has all rows.
        skipped: sorted names of the files that are no pictures by their names.
        unlisted: number of pictures that are left out because the table does not list them.
        above: the folder that all pictures are below, with ``/`` at its end, or nothing.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: there is no picture; the form is none of these, or could be two; see also
            :class:`~datamodules.parts.archives.Archive`.
    """

    def __init__(self, path: Path, labels: str | None = None) -> None:
        self.files = files_in(path)
        shown = {name: name.split("/") for name in self.files.sizes if not is_hidden(name)}
        images = {name: parts for name, parts in shown.items() if name.lower().endswith(EXTENSIONS)}
        if not images:
            raise ValueError(f"{path}: no image in it, expected files that end in {', '.join(EXTENSIONS)}")
        for name in images:
            if not name.isascii() and name != name.encode(errors="replace").decode():
                raise ValueError(f"{path}: the name {name!r} is not UTF-8, which tables and predictions are written in")
        self.names = sorted(images, key=lambda name: images[name])
        depth = _depth(images.values())
        shared = posixpath.commonpath([f"/{name.rpartition('/')[0]}" for name in images])
        self.above = f"{shared}/".lstrip("/")
        table = self._table(labels, [name for name in shown if name not in images])
        self.skipped = sorted(name for name in shown if name not in images and name != table)
        self.unlisted = 0

        rows = None if table is None else self.read_table(table)
        if rows is not None:
            self.unlisted = len(self.names) - len(rows)
            self.names = [name for name in self.names if name in rows]
            if len(self.names) == 0:
                raise ValueError(f"{self._where(table)}: lists no picture")
        split = rows is not None and next(iter(rows.values())).part is not None
        in_parts = not split and self._has_parts({name: images[name] for name in self.names}, depth, labels)
        part_of = [
            str(rows[name].part)
            if rows is not None and split
            else str(part_called(images[name][depth]))
            if in_parts
            else "all"
            for name in self.names
        ]
        level = depth + in_parts  # of class folders
        if rows is not None:
            class_of = [rows[name].label for name in self.names]
        elif labels != "none" and self._has_classes({name: images[name] for name in self.names}, level, labels):
            class_of = [images[name][level] for name in self.names]
        else:
            class_of = [""] * len(self.names)
        self._set(class_of, part_of)

    # ---- the form --------------------------------------------------------------------------------------------------

    def _has_parts(self, images: Mapping[str, list[str]], depth: int, labels: str | None) -> bool:
        """Whether the folders at a depth are parts; raises ValueError where some are and others are not."""
        path = self.files.path
        called = {parts[depth]: part_called(parts[depth]) for parts in images.values() if len(parts) > depth + 1}
        beside = [parts[depth] for parts in images.values() if len(parts) == depth + 1]
        found = {name: part for name, part in called.items() if part is not None}
        others = [*sorted(called.keys() - found.keys()), *sorted(beside)]
        if not found or (others and labels == "folders"):
            return False
        listed = ", ".join(sorted(found))
        if others:
            if "train" not in found.values() and len(found) == 1:
                return False  # one class of several that happens to have such a name
            more = "" if len(others) < 4 else " and others"
            raise ValueError(
                f"{path}: {listed} beside {', '.join(others[:3])}{more}; expected train, val and test alone, or "
                "labels=folders if they are all classes"
            )
        if "train" not in found.values():
            raise ValueError(f"{path}: found {listed.replace(', ', ' and ')} but no folder 'train'")
        if len(set(found.values())) < len(found):
            raise ValueError(f"{path}: {listed}: expected one folder for each part")
        return True

    def _has_classes(self, images: Mapping[str, list[str]], level: int, labels: str | None) -> bool:
        """Whether the folders at a level are classes; raises ValueError where that can't be told."""
        direct = [name for name, parts in images.items() if len(parts) == level + 1]
        folders = [folder.split("/") for folder in self.files.folders]
        filled = {tuple(parts[: level + 1]) for parts in images.values() if len(parts) > level + 1}
        above = {parts[:-1] for parts in filled}
        empty = [
            parts
            for parts in folders
            if len(parts) == level + 1
            and tuple(parts[:-1]) in above
            and tuple(parts) not in filled
            and not is_hidden("/".join(parts))
        ]
        classes = {parts[level] for parts in filled} | {parts[level] for parts in empty}
        if direct and (filled or labels == "folders"):
            where, name = self.files.where(direct[0]), direct[0].split("/")[-1]
            raise ValueError(
                f"{where}: no class folder, expected <class>/{name}; or labels=none to take all "
                f"{len(images)} pictures without classes"
            )
        if labels is None and len(classes) < 2:
            return False
        if len(classes) < 2:
            raise ValueError(
                f"{self.files.path}: only one class, {min(classes)!r}; expected a folder for each class, or labels=none"
            )
        for parts in empty:
            raise ValueError(f"{self.files.where('/'.join(parts))}: no image in this class folder")
        return True

    def _set(self, class_of: list[str], part_of: list[str]) -> None:
        """Codes, class names and parts of the pictures, from the class of each, or "", and its part."""
        path = self.files.path
        training = {name for name, part in zip(class_of, part_of, strict=True) if part in ("train", "all")}
        if not training:
            raise ValueError(f"{path}: no picture in the part train")
        self.class_names = sorted(training - {""})
        if len(self.class_names) == 1:
            raise ValueError(f"{path}: only one class, {self.class_names[0]!r}; expected several, or labels=none")
        codes = {name: code for code, name in enumerate(self.class_names)} | {"": -1}
        for name, found in zip(self.names, class_of, strict=True):
            if found not in codes:
                known = ", ".join(self.class_names[:5]) or "none"
                raise ValueError(f"{self.files.where(name)}: no class {found!r} in training, but {known}")
        self.labels = np.array([codes[name] for name in class_of], np.int64)
        of = np.array(part_of)
        self.parts = {part: np.flatnonzero(of == part) for part in ("all", *PARTS) if part in part_of}
        for part, rows in self.parts.items():
            lacking = sorted(set(range(len(self.class_names))) - set(self.labels[rows].tolist()))
            if lacking:
                listed = ", ".join(self.class_names[code] for code in lacking)
                rank_zero_warn(
                    f"{path}: {part} has no images of {len(lacking)} of {len(self.class_names)} classes: {listed}"
                )

    # ---- a table of labels -----------------------------------------------------------------------------------------

    def _table(self, labels: str | None, others: list[str]) -> str | Path | None:
        """The table that ``labels`` names, or that lies above all pictures: a name in the tree, or a path."""
        if labels in ("folders", "none"):
            return None
        if labels is not None:
            if Path(labels).is_file():
                return Path(labels)
            for name in (labels, self.above + labels):
                if name in self.files.sizes:
                    return name
            hint = nearest(labels, ["folders", "none", *others])
            raise ValueError(f"labels={labels!r}: expected 'folders', 'none' or a CSV file{hint}")
        tables = [name for name in others if name.rpartition("/")[2].lower() == TABLE]
        folders = {name: name.rpartition("/")[0] for name in tables}
        around = [name for name in tables if self.above.startswith(f"{folders[name]}/" if folders[name] else "")]
        return min(around, key=len, default=None)

    def _where(self, table: str | Path | None) -> str:
        return self.files.where(table) if isinstance(table, str) else str(table)

    def read_table(self, table: str | Path) -> dict[str, Row]:
        """Its line for each picture, by the picture's name.

        It is a CSV file in UTF-8 with the columns ``file`` and ``label``, and perhaps ``split``, with one of a part's
        names in each line; others are passed over. A file's name is relative to the tree or to the table. A picture
        with an empty label is trained on by what needs no labels; one that is not listed is left out.

        Raises:
            ValueError: it has another form, or lists what is not there; names the line.
        """
        where = self._where(table)
        content = self.files.read(table) if isinstance(table, str) else table.read_bytes()
        below = table.rpartition("/")[0] + "/" if isinstance(table, str) and "/" in table else ""
        rows: dict[str, Row] = {}
        note = "; with labels=folders or none it is not read"
        for number, values in read_table(content, where, ("file", "label"), ("split",), note):
            if (name := self.find(values["file"], below)) is None:
                raise ValueError(f"{where}:{number}: {self.missing(values['file'])}")
            if name in rows:
                raise ValueError(f"{where}:{number}: {values['file']!r} is listed in line {rows[name].line} too")
            part = part_called(values["split"]) if "split" in values else None
            if part is None and "split" in values:
                raise ValueError(f"{where}:{number}: split {values['split']!r}, expected train, val or test")
            rows[name] = Row(number, values["file"], values["label"], part)
        return rows

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each picture by its name."""
        return {name: row for row, name in enumerate(self.names)}

    def find(self, file: str, below: str = "") -> str | None:
        """The name of the picture that a table calls ``file``, relative to the tree or to ``below``; None if none."""
        file = file.replace("\\", "/").removeprefix("./")
        there = [name for name in (file, below + file, self.above + file) if name in self.files.sizes]
        return next((name for name in there if name.lower().endswith(EXTENSIONS)), None)

    def missing(self, file: str) -> str:
        """What is wrong with the name of a picture that is not there."""
        there = [name.removeprefix(self.above) for name in self.names[:5000]]
        if self.find(file) is not None:
            return f"{file!r} is not in the table of labels"
        return f"no picture {file!r} in {self.files.path}{nearest(file, there)}"

    # ---- in words --------------------------------------------------------------------------------------------------

    def in_words(self) -> str:
        """How many pictures and classes there are: ``360 pictures of 3 classes (bee, cat, dog)``."""
        count, few = len(self.class_names), 8
        if not count:
            return f"{counted(len(self.names), 'picture')}, no classes"
        without = int((self.labels < 0).sum())
        names = f"{', '.join(self.class_names[:few])}{', …' if count > few else ''}"
        return (
            f"{counted(len(self.names), 'picture')} of {count} classes ({names})"
            f"{f', {without} of them without a label' if without else ''}"
        )

    def left_out_in_words(self) -> list[str]:
        """What else there is in the folder or archive."""
        said = []
        if self.unlisted:
            said.append(f"{counted(self.unlisted, 'picture')} left out that the table of labels does not list")
        if self.skipped:
            kinds = Counter(Path(name).suffix.lower() or Path(name).name for name in self.skipped).most_common(3)
            are = "is no picture" if len(self.skipped) == 1 else "are no pictures"
            listed = ", ".join(kind for kind, _ in kinds)
            said.append(f"{counted(len(self.skipped), 'file')} skipped that {are} ({listed})")
        return said

    def fingerprint(self) -> int:
        """A checksum of the pictures' names, sizes and labels, in their order."""
        listed = "\n".join(f"{name} {self.files.sizes[name]}" for name in self.names)
        return zlib.crc32(listed.encode() + self.labels.tobytes())

    # ---- pixels ----------------------------------------------------------------------------------------------------

    def content(self, row: int) -> bytes:
        """A picture's file.

        Raises:
            ValueError: it cannot be read; names it.
        """
        try:
            return self.files.read(self.names[row])
        except Exception as error:  # of the archive's own module too
            raise self._broken(row, error) from error

    def decoded(self, row: int, content: bytes) -> Decoded:
        """A picture from its file.

        Raises:
            ValueError: it cannot be decoded; names it.
        """
        try:
            return decode(content)
        except ValueError as error:
            raise self._broken(row, error) from error

    def decode(self, row: int, form: Form) -> np.ndarray:
        """One picture, (C, H, W) uint8; errors as of :meth:`content` and :meth:`decoded`."""
        return shaped(self.decoded(row, self.content(row)), form)

    def _broken(self, row: int, error: Exception) -> ValueError:
        reason = " ".join(str(error).split()) or repr(error)
        return ValueError(f"{self.files.where(self.names[row])}: cannot be decoded: {reason}")


def shaped(picture: Decoded, form: Form) -> np.ndarray:
    """A picture (C, H, W) uint8."""
    return channels_first(picture.image, form) if isinstance(form, int) else form.pixels(picture.image)


def counted(count: int, what: str) -> str:
    """``1 file``, ``3 files``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _depth(images: Iterable[Sequence[str]]) -> int:
    """How many single folders there are around everything else, but for one that holds all pictures or is a part."""
    images, depth = list(images), 0
    least = min(map(len, images))
    while depth + 3 <= least:
        tops = {parts[depth] for parts in images}
        if len(tops) > 1 or part_called(next(iter(tops))):
            break
        depth += 1
    return depth
