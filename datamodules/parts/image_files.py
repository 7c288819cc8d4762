"""Image files in class folders, in a folder or an archive: their classes and parts, and their pixels."""

from __future__ import annotations

import io
import json
import time
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from common.files import cache_file, write_whole
from common.pictures import EXTENSIONS, Preprocessing, channels_first, decode
from datamodules.parts.archives import files_in, is_hidden

PARTS = ("train", "val", "test")
Broken = Literal["error", "skip"]
Form = int | Preprocessing
"""what images become: of one size, or, with a number of channels (1 or 3) instead, of the size that they have"""
DECODING = 2
"""counted up when a file's pixels change with the code that reads it: what is kept decoded is then decoded anew"""

CACHE_SECONDS = 2.0
"""seconds; trees that take longer to decode are kept decoded on disk"""


class Tree:
    """The images of class folders: ``<class>/…/<image>``, or ``train/<class>/…`` and so ``val/`` and ``test/``.

    A single folder around all the rest, as archives often have, is skipped. Classes are the folders of the training
    part in alphabetical order, and images are in the order of their names, wherever they come from.

    Args:
        path: a folder, a ``.zip``, or a ``.tar``, compressed or not.

    Attributes:
        names: of all N images.
        labels: (N,) int64.
        parts: the rows of each existing part; without parts, "all" has all rows.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: there is no image, fewer than two classes, an empty class folder, or an image outside class folders;
            see also :class:`~datamodules.parts.archives.Archive`.
    """

    def __init__(self, path: Path) -> None:
        self.files = files_in(path)
        self.animated = 0  # images found so far to have several frames
        shown = {name: name.split("/") for name in self.files.sizes if not is_hidden(name)}
        images = {name: parts for name, parts in shown.items() if name.lower().endswith(EXTENSIONS)}
        if not images:
            raise ValueError(f"{path}: no image in it, expected class folders with {', '.join(EXTENSIONS)}")
        depth = 0  # of the class folders, or of train, val and test
        while (tops := {parts[depth] for parts in images.values()}) and len(tops) == 1 and not tops & set(PARTS):
            if min(map(len, images.values())) < depth + 3:
                break
            depth += 1
        in_parts = tops <= set(PARTS)
        if in_parts and "train" not in tops:
            raise ValueError(f"{path}: found {' and '.join(sorted(tops))} but no folder 'train'")
        self.names = sorted(images, key=lambda name: images[name])
        level = depth + in_parts  # of the class folders
        for name in self.names:
            if len(images[name]) < level + 2:
                raise ValueError(f"{self.files.where(name)}: no class folder, expected <class>/{images[name][-1]}")
        is_train = [not in_parts or images[name][depth] == "train" for name in self.names]
        self.class_names = sorted({images[name][level] for name, of in zip(self.names, is_train, strict=True) if of})
        self._refuse_empty([folder.split("/") for folder in self.files.folders], images, level)
        if len(self.class_names) < 2:
            raise ValueError(f"{path}: only one class, {self.class_names[0]!r}; expected a folder for each class")
        codes = {name: code for code, name in enumerate(self.class_names)}
        for name in self.names:
            if images[name][level] not in codes:
                known = ", ".join(self.class_names[:5])
                raise ValueError(f"{self.files.where(name)}: no class {images[name][level]!r} in training, but {known}")
        self.labels = np.array([codes[images[name][level]] for name in self.names])
        part_of = np.array([images[name][depth] if in_parts else "all" for name in self.names])
        self.parts = {str(part): np.flatnonzero(part_of == part) for part in np.unique(part_of)}
        for part, rows in self.parts.items():
            lacking = sorted(set(codes.values()) - set(self.labels[rows].tolist()))
            if lacking:
                listed = ", ".join(self.class_names[code] for code in lacking)
                rank_zero_warn(f"{path}: {part} has no images of {len(lacking)} of {len(codes)} classes: {listed}")
        others = sum(len(parts) > level + 1 for name, parts in shown.items() if name not in images)
        if others:
            rank_zero_warn(f"{path}: left out {others} files whose names are not those of images")

    def _refuse_empty(self, folders: list[list[str]], images: dict[str, list[str]], level: int) -> None:
        """Raises ValueError if a class folder has no image."""
        filled = {tuple(parts[: level + 1]) for parts in images.values()}
        above = {parts[:-1] for parts in filled}
        for parts in folders:
            is_class = len(parts) == level + 1 and tuple(parts[:-1]) in above and not is_hidden("/".join(parts))
            if is_class and tuple(parts) not in filled:
                raise ValueError(f"{self.files.where('/'.join(parts))}: no image in this class folder")

    def fingerprint(self) -> int:
        """A checksum of the images' names and sizes, in their order."""
        return zlib.crc32("\n".join(f"{name} {self.files.sizes[name]}" for name in self.names).encode())

    def decode(self, row: int, form: Form) -> np.ndarray:
        """One image, (C, H, W) uint8.

        Raises:
            ValueError: it cannot be decoded; names the file or the member.
        """
        name = self.names[row]
        try:
            found = decode(self.files.read(name))
        except Exception as error:  # of the archive's own module too
            reason = " ".join(str(error).split()) or repr(error)
            raise ValueError(f"{self.files.where(name)}: cannot be decoded: {reason}") from error
        self.animated += found.frames > 1
        return channels_first(found.image, form) if isinstance(form, int) else form.pixels(found.image)

    def decode_all(self, form: Form, broken: Broken = "error") -> tuple[np.ndarray, np.ndarray]:
        """All images (N, C, H, W) uint8, and which of them are intact, (N,) bool; the others are black.

        If decoding takes long, the result is kept on disk and mapped from there.

        Raises:
            ValueError: an image cannot be decoded, or has another size than the first; names it.
        """
        from PIL import __version__ as decoder

        cached = cache_file((self.files.state(), self.names, form, broken, decoder, DECODING), ".npy")
        faults = cached.with_suffix(".json")  # written first, so that where there is an array there are its faults
        if cached.exists() and faults.exists():
            # Mapped such that writing to it, which nobody does, would not reach the file: else torch would warn.
            images, messages = np.load(cached, mmap_mode="c"), json.loads(faults.read_bytes())
        else:
            start = time.monotonic()
            images, messages = self._decode_all(form, broken)
            if time.monotonic() - start > CACHE_SECONDS:
                write_whole(faults, [json.dumps(messages).encode()])
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(images))
                write_whole(cached, [header.getvalue(), images.data])
        whole = np.ones(len(self.names), bool)
        whole[[row for row, _ in messages]] = False
        if self.animated:
            rank_zero_warn(f"{self.files.path}: of {self.animated} animated images only the first frame is used")
        if messages:
            rank_zero_warn(f"{self.files.path}: left out {len(messages)} broken images, the first: {messages[0][1]}")
        return images, whole

    def _decode_all(self, form: Form, broken: str) -> tuple[np.ndarray, list[tuple[int, str]]]:
        row_of = {name: row for row, name in enumerate(self.names)}
        images: np.ndarray | None = None
        first, messages = "", []
        for row in (row_of[name] for name in self.files.sizes if name in row_of):  # as they lie in an archive
            try:
                image = self.decode(row, form)
            except ValueError as error:
                if broken == "error":
                    raise
                messages.append((row, str(error)))
                continue
            if images is None:
                images, first = np.zeros((len(self.names), *image.shape), np.uint8), self.names[row]
            if image.shape != images.shape[1:]:
                raise ValueError(
                    f"{self.files.where(self.names[row])}: {image.shape[2]}×{image.shape[1]} pixels, but {first} has "
                    f"{images.shape[3]}×{images.shape[2]}; expected one size, or a 'size' for all"
                )
            images[row] = image
        if images is None:
            raise ValueError(f"{self.files.path}: all {len(messages)} images are broken, the first: {messages[0][1]}")
        return images, sorted(messages)
