"""ImageTree: images in class folders, or in an archive of them, in memory or decoded by workers."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import at_least, one_of, within
from common.pictures import Fit, Preprocessing
from datamodules.parts.archives import Archive
from datamodules.parts.image_files import Broken, Form, Tree
from datamodules.parts.image_sets import ImageBatch, Images, Part, parts_of, stratified_order
from datamodules.parts.loader import TensorLoader, WorkerLoader, checksum


class TreeImages:
    """Rows of a tree, decoded on request: a source of batches for :class:`WorkerLoader`.

    Raises:
        ValueError: on request, an image cannot be decoded; names the file.
    """

    def __init__(self, tree: Tree, rows: Tensor, form: Preprocessing) -> None:
        self.tree, self.rows, self.form = tree, rows, form
        self.labels = torch.from_numpy(tree.labels)[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> ImageBatch:
        images = [self.tree.decode(row, self.form) for row in self.rows[indices].tolist()]
        return ImageBatch(torch.from_numpy(np.stack(images)), self.labels[indices])

    def take(self, rows: Tensor) -> TreeImages:
        """The images at ``rows``, in that order."""
        return TreeImages(self.tree, self.rows[rows], self.form)

    def fingerprint(self) -> int:
        """A checksum of the files' names and sizes and of how they are selected and shaped; pixels are not read."""
        form = zlib.crc32(repr(self.form).encode())
        return checksum([torch.tensor([self.tree.fingerprint(), form]), self.rows])


class ImageTree(Images):
    """Images in class folders, as :class:`~datamodules.parts.image_files.Tree` describes them; nothing is unpacked.

    Args:
        path: the folder, ``.zip`` or ``.tar`` (compressed or not), either the path itself or below ``root``. Folders
            ``train``, ``val`` and ``test`` in it are its parts; without them, the test part is split off too.
        size: side of the square that images become, in pixels. By default they keep their size, which must be the same
            for all.
        fit: how images that are not square become it: see :func:`common.pictures.fitted`.
        grayscale: one channel instead of three.
        broken: "error" stops at an image that cannot be decoded; "skip" leaves it out.
        num_workers: 0 decodes all images once into memory. Otherwise this many processes decode each batch, for trees
            larger than memory.
        test_fraction: share of a tree without parts used as the test part; 0 means no test part.

    Raises:
        ValueError: see also :class:`~datamodules.parts.image_files.Tree`; the images do not fit into half of the
            memory, or an option does not work with ``num_workers``.
    """

    def __init__(
        self,
        path: str,
        size: int | None = None,
        fit: Fit = "crop",
        grayscale: bool = False,
        broken: Broken = "error",
        num_workers: int = 0,
        test_fraction: float = 0.1,
        batch_size: int = 128,
        root: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, root, val_fraction, split_seed, limit)
        at_least(1, "or null for images that have one size", size=size)
        at_least(0, num_workers=num_workers)
        one_of(Broken, broken=broken)
        one_of(Fit, fit=fit)
        within("[0, 1)", test_fraction=test_fraction)
        below = self.root / path
        self.tree = Tree(below if below.exists() and not Path(path).exists() else Path(path))
        self.size, self.broken = size, broken
        self.num_workers, self.test_fraction = num_workers, test_fraction
        self.class_names = self.tree.class_names
        if num_workers:
            self._refuse_with_workers()
        channels = 1 if grayscale else 3
        self.image_shape = [channels, *((size, size) if size else self._first_size(channels))]
        self.preprocessing["fit"] = fit
        self.form: Form = Preprocessing(self.image_shape, fit) if size else channels
        needed, there = len(self.tree.names) * int(np.prod(self.image_shape)), memory_bytes() // 2
        if not num_workers and needed > there:
            raise ValueError(
                f"{self.tree.files.path}: {needed / 2**30:.1f} GB when decoded, expected at most {there / 2**30:.1f}, "
                "half of the memory; use num_workers or a smaller size"
            )

    def _refuse_with_workers(self) -> None:
        files, workers = self.tree.files, f"num_workers={self.num_workers}"
        if self.size is None:
            raise ValueError(f"{workers}: expected a 'size' for all images")
        if self.broken == "skip":  # which images are broken is known only after decoding all
            raise ValueError(f"broken='skip': expected 'error' with {workers}")
        if isinstance(files, Archive) and files.is_compressed_tar():
            raise ValueError(f"{workers}: expected a folder, a .zip or an uncompressed .tar, not {files.path.name}")

    def _first_size(self, channels: int) -> tuple[int, ...]:
        """Height and width of the first intact image."""
        for row in range(len(self.tree.names)):
            try:
                return self.tree.decode(row, channels).shape[1:]
            except ValueError:
                if self.broken == "error":
                    raise
        raise ValueError(f"{self.tree.files.path}: all {len(self.tree.names)} images are broken")

    def prepare_data(self) -> None:
        if not self.num_workers:
            self.setup()  # one process decodes, and the others find it done where it took long

    def read(self) -> dict[str, Part]:
        if self.num_workers:
            assert isinstance(self.form, Preprocessing)
            parts: dict[str, Part] = {
                name: TreeImages(self.tree, torch.from_numpy(rows), self.form) for name, rows in self.tree.parts.items()
            }
        else:
            images, whole = self.tree.decode_all(self.form, self.broken)
            parts = parts_of(self.tree, images, whole)
            training = parts["all" if "all" in parts else "train"].labels
            lost = set(range(self.num_classes)) - set(training.tolist())
            if lost:
                names = ", ".join(self.class_names[code] for code in sorted(lost))
                raise ValueError(f"{self.tree.files.path}: every training image of {names} is broken")
        if "all" in parts:
            everything = parts.pop("all")
            order = stratified_order(everything.labels, "test", self.split_seed)
            num_test = round(len(order) * self.test_fraction)
            parts["train"] = everything.take(order[num_test:].sort().values)
            if num_test:
                parts["test"] = everything.take(order[:num_test].sort().values)
        return parts

    def loader(self, part: str, **options: Any) -> TensorLoader:
        if self.num_workers:
            return WorkerLoader(self.part(part), self.batch_size, num_workers=self.num_workers, **options)
        return super().loader(part, **options)


def memory_bytes() -> int:
    """The machine's memory in bytes; a huge number if it is unknown."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return 2**63
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
