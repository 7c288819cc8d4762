"""Drawings in files of one's own: .npz, Quick, Draw!'s .ndjson and .svg, one file or a folder or archive of them."""

from __future__ import annotations

import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.drawings import Preparation, to_lines, to_stroke_3
from common.files import nearest_path
from common.svg import svg_lines
from datamodules.parts.archives import Files, Single, files_in, is_hidden
from datamodules.parts.image_files import PARTS, counted, part_called
from datamodules.parts.stroke_files import check_sketches, read_stroke_file

KINDS = (".npz", ".ndjson", ".svg")


class Drawing(NamedTuple):
    """One drawing of a file."""

    points: np.ndarray
    """(n, 3): Δx, Δy and 1 if the pen is lifted after the point"""
    label: str
    """its class, or nothing"""
    part: str
    """"train", "val" or "test"; "all" where there are no parts"""
    file: str
    """its name in the folder or archive"""
    row: int
    """its place in the file, from 0 on: of an .npz in the part, of an .ndjson the line"""


class DrawingFiles:
    """The drawings of a file, a folder or an archive, in the order of the files' names.

    ==================  ============================================================================================
    ``.npz``            sketches as pen moves, see :func:`~datamodules.parts.stroke_files.read_stroke_file`; with
                        parts of their own or without; of several files each is a class, by its name
    ``.ndjson``         drawings of Quick, Draw!, one a line, as ``{"word": "cat", "drawing": [[[x, …], [y, …]], …]}``,
                        with or without times as a third list; a word is a class, or else the file is
    ``.svg``            one drawing a file, see :func:`common.svg.svg_lines`; folders are classes
    ==================  ============================================================================================

    Folders ``train``, ``val`` and ``test`` (or with other names of parts) around the rest are the parts.

    Args:
        path: a file, a folder, a ``.zip``, or a ``.tar``.
        preparation: what becomes of the lines of ``.svg`` files and of ``.ndjson`` with times, which are as dense as
            somebody drew them. Those without are prepared already, and an ``.npz`` has pen moves.
        everything: prepare all drawings.

    Attributes:
        drawings: all of them.
        notes: what was left out, in words.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: there is no drawing, or a file is broken; names the file and the line or the sketch.
    """

    def __init__(self, path: Path, preparation: Preparation, everything: bool = False) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder{nearest_path(path)}")
        self.files: Files = Single(path) if path.is_file() and path.suffix.lower() in KINDS else files_in(path)
        self.preparation, self.everything = preparation, everything
        shown = [name for name in self.files.sizes if not is_hidden(name)]
        names = sorted((name for name in shown if name.lower().endswith(KINDS)), key=lambda name: name.split("/"))
        if not names:
            raise ValueError(f"{path}: no drawing in it, expected files that end in {', '.join(KINDS)}")
        self.notes: list[str] = []
        if others := Counter(posixpath.splitext(name)[1].lower() or name for name in shown if name not in set(names)):
            kinds = ", ".join(kind for kind, _ in others.most_common(3))
            self.notes.append(f"{counted(others.total(), 'file')} of other kinds left out ({kinds})")
        shared = posixpath.commonpath([f"/{posixpath.dirname(name)}" for name in names])
        self.below = [posixpath.relpath(f"/{name}", shared).split("/") for name in names]
        self.in_parts = self._has_parts()
        self._not_drawn: Counter[str] = Counter()  # elements of SVG
        self._blank = 0
        found = [self._read(name, place) for name, place in zip(names, self.below, strict=True)]
        self.drawings = [drawing for file in found for drawing in file]
        if not self.drawings:
            raise ValueError(f"{path}: no drawing with a line in it")
        parts = {drawing.part for drawing in self.drawings}
        if len(parts) > 1 and ("all" in parts or "train" not in parts):
            raise ValueError(f"{path}: some drawings are in {', '.join(sorted(parts - {'all'}))} and others in no part")
        if self._blank:
            self.notes.append(f"{counted(self._blank, 'drawing')} without a line left out")
        for name, count in self._not_drawn.most_common():
            self.notes.append(f"<{name}> is not strokes: {counted(count, 'element')} left out")

    def _has_parts(self) -> bool:
        """Whether the outermost folders are parts; raises ValueError where some are and others are not."""
        tops = {place[0]: part_called(place[0]) for place in self.below if len(place) > 1}
        called = {top: part for top, part in tops.items() if part is not None}
        beside = [place[0] for place in self.below if len(place) == 1] + sorted(tops.keys() - called.keys())
        if len(called) < 2 or "train" not in called.values():
            return False  # a class may have such a name
        if beside or len(set(called.values())) < len(called):
            listed = ", ".join([*sorted(called), *beside[:3]])
            raise ValueError(f"{self.files.path}: {listed}; expected one folder for each of {', '.join(PARTS)}")
        return True

    def _read(self, name: str, place: Sequence[str]) -> list[Drawing]:
        where = self.files.where(name)
        try:
            content = self.files.read(name)
        except Exception as error:  # of the archive's own module too
            raise ValueError(f"{where}: cannot be read: {' '.join(str(error).split()) or repr(error)}") from error
        part = str(part_called(place[0])) if self.in_parts else "all"
        folders, kind = place[self.in_parts : -1], posixpath.splitext(name)[1].lower()
        if kind == ".svg":
            return self._svg(content, where, Drawing(np.empty(0), folders[0] if folders else "", part, name, 0))
        stem = posixpath.splitext(place[-1])[0]
        several = len(self.below) > 1
        form = Drawing(np.empty(0), folders[0] if folders else stem if several else "", part, name, 0)
        return self._ndjson(content, where, form) if kind == ".ndjson" else self._npz(content, where, form)

    def _svg(self, content: bytes, where: str, form: Drawing) -> list[Drawing]:
        try:
            lines, left_out = svg_lines(content)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        self._not_drawn += left_out
        if not lines:
            self._blank += 1
            return []
        points = self.preparation(lines)
        check_sketches([points], where)
        return [form._replace(points=points)]

    def _npz(self, content: bytes, where: str, form: Drawing) -> list[Drawing]:
        parts = read_stroke_file(io.BytesIO(content), where)
        if self.in_parts and list(parts) != ["all"]:
            raise ValueError(f"{where}: it has {', '.join(parts)} in a folder that is a part; expected one array")
        found = []
        for part, sketches in parts.items():
            for row, points in enumerate(sketches):
                points = self.preparation(to_lines(points)) if self.everything else points
                found.append(form._replace(points=points, row=row, part=form.part if part == "all" else part))
        return found

    def _ndjson(self, content: bytes, where: str, form: Drawing) -> list[Drawing]:
        found = []
        for row, line in enumerate(content.split(b"\n")):
            if not line.strip():
                continue
            try:
                word, strokes = _drawing_of(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}:{row + 1}: {' '.join(str(error).split())}") from error
            lines = [stroke[:2].T for stroke in strokes if stroke.shape[1]]
            if not lines:
                self._blank += 1
                continue
            is_raw = any(len(stroke) == 3 for stroke in strokes)
            points = self.preparation(lines) if is_raw or self.everything else to_stroke_3(lines)
            check_sketches([points], f"{where}:{row + 1}")
            found.append(form._replace(points=points, label=word or form.label, row=row))
        return found


def _drawing_of(entry: object) -> tuple[str, list[np.ndarray]]:
    """The word and the strokes of a line of an .ndjson file: each (2 or 3, n), of x, y and perhaps times."""
    if not isinstance(entry, dict) or not isinstance(strokes := entry.get("drawing"), list):
        raise ValueError("expected an object with a 'drawing', a list of strokes")
    arrays = []
    for number, stroke in enumerate(strokes):
        try:
            array = np.array(stroke, np.float64)
        except (ValueError, TypeError, OverflowError):
            array = np.empty(0)
        if array.ndim != 2 or len(array) not in (2, 3):
            raise ValueError(f"stroke {number}: expected [[x, …], [y, …]], of as many numbers each")
        arrays.append(array)
    word = entry.get("word", "")
    return word if isinstance(word, str) else "", arrays


def by_part(drawings: Sequence[Drawing]) -> Iterator[tuple[str, list[Drawing]]]:
    """Each part that there is, with its drawings."""
    for part in ("all", *PARTS):
        if some := [drawing for drawing in drawings if drawing.part == part]:
            yield part, some
