"""Tables about pictures of one's own: CSV files with a picture in each line, cut into parts by pictures."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from common.checks import nearest
from common.files import existing, nearest_path
from common.pictures import Fit
from datamodules.parts.image_features import PhotographFiles
from datamodules.parts.image_files import part_called
from datamodules.parts.tables import read_table
from datamodules.parts.visual_questions import split_images

MOST_SHOWN = 5000
"""names among which the nearest to a wrong one is looked for"""

T = TypeVar("T")


class PictureNumbers:
    """Numbers for pictures that are known by the names of their files, in the order in which they are first asked for.

    Args:
        folder: of the pictures.
        page: where to get them, for the message of a missing one.
    """

    def __init__(self, folder: Path, page: str) -> None:
        self.folder, self.page = folder, page
        self.names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        name = posixpath.normpath(name.replace("\\", "/"))
        if name not in self._numbers:
            number = self._numbers[name] = len(self.names)
            self.names[number] = name
        return self._numbers[name]

    def files(self, size: int, fit: Fit) -> PhotographFiles:
        return PhotographFiles(self.folder, self.names, size, fit, self.page)


class PictureLine(NamedTuple):
    """A line of a table about pictures."""

    number: int
    """in the file, from 1"""
    image: int
    """the number of its picture"""
    part: str
    """"train", "val" or "test"; "" in a table without the column ``split``"""
    values: dict[str, str]


class PictureTable:
    """A CSV file with the column ``image``, the path of a picture, and perhaps ``split``.

    Args:
        path: the file, or its name in the data folder.
        images: the folder of the pictures, by default that of the file.
        required, optional: its other columns.

    Raises:
        FileNotFoundError: the file, the folder or a picture is not there; names the line, and the nearest.
        ValueError: it is malformed; names the line.
    """

    def __init__(self, path: str, images: str | None, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        self.file = existing(path)
        if not self.file.is_file():
            raise FileNotFoundError(f"path={path}: no such file; expected a CSV file{nearest_path(self.file)}")
        folder = existing(images) if images else self.file.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"images={images}: no such folder{nearest_path(folder)}")
        self.numbers = PictureNumbers(folder, f"{folder}, which images=… may change")
        self.lines = [
            self._line(number, values)
            for number, values in read_table(
                self.file.read_bytes(), str(self.file), ("image", *required), ("split", *optional)
            )
        ]
        if not self.lines:
            raise ValueError(f"{self.file}: has no line below its heading, expected some")
        self.is_split = self.lines[0].part != ""

    def _line(self, number: int, values: dict[str, str]) -> PictureLine:
        name, part = values["image"], part_called(values["split"]) if "split" in values else ""
        if part is None:
            raise self.malformed(number, f"split {values['split']!r}, expected train, val or test")
        picture = self.numbers.folder / name.replace("\\", "/")
        if not name or picture.name not in (there := self._names_in(picture.parent)):
            hint = nearest(picture.name, sorted(there)[:MOST_SHOWN]) if name else "; expected its path as 'image'"
            raise FileNotFoundError(f"{self.file}:{number}: no picture {picture}{hint}")
        return PictureLine(number, self.numbers[name], part, values)

    def _names_in(self, folder: Path) -> set[str]:
        """One look at each folder instead of one per picture."""
        if not hasattr(self, "_there"):
            self._there: dict[Path, set[str]] = {}
        if folder not in self._there:
            self._there[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        return self._there[folder]

    def hint(self, column: str) -> str:
        """``; there is no column 'answer'; did you mean 'answers'?``, if there is none of that name."""
        there = self.lines[0].values
        return "" if column in there else f"; there is no column {column!r}{nearest(column, there)}"

    def malformed(self, number: int, what: str) -> ValueError:
        """An error that names the line."""
        return ValueError(f"{self.file}:{number}: {what}")

    def in_parts(
        self, items: Sequence[tuple[str, int, T]], val_fraction: float, test_fraction: float, seed: int
    ) -> dict[str, list[T]]:
        """Training, validation and test of items, each with its part and the number of its picture.

        Without the column ``split``, validation and test are cut from all pictures, so that all items of a picture are
        in one part; fewer than three pictures are all for the test. With it, validation is cut from the training
        pictures if no line has it.
        """
        parts: dict[str, list[tuple[int, T]]] = {"train": [], "val": [], "test": []}
        for part, image, item in items:
            parts[part or "train"].append((image, item))
        pictures = {image for image, _ in parts["train"]}
        if not self.is_split and len(pictures) < 3:
            parts = {"train": [], "val": [], "test": parts["train"]}
        elif not self.is_split:
            cut(parts, "test", test_fraction, seed)
        if parts["train"] and not parts["val"]:
            cut(parts, "val", val_fraction, seed)
        return {part: [item for _, item in them] for part, them in parts.items()}


def cut(parts: Mapping[str, list[tuple[int, T]]], name: str, fraction: float, seed: int) -> None:
    """Moves a share of the training pictures, at least one, with all that belongs to them into another part.

    Args:
        parts: numbers of pictures with what belongs to them.

    Raises:
        ValueError: no picture is left for training.
    """
    images = sorted({image for image, _ in parts["train"]})
    count = max(1, round(fraction * len(images))) if fraction else 0
    if count >= len(images):
        raise ValueError(f"{name}_fraction={fraction}: leaves none of {len(images)} pictures for training")
    taken = {images[i] for i in split_images(len(images), count / len(images), seed)[1]} if count else set()
    parts[name].extend(pair for pair in parts["train"] if pair[0] in taken)
    parts["train"][:] = [pair for pair in parts["train"] if pair[0] not in taken]
