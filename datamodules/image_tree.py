"""ImageTree: pictures in a folder or an archive, with classes or without, in memory or decoded by workers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from common.checks import at_least, one_of, within
from common.memory import gigabytes, memory_limit
from common.pictures import Fit, Preprocessing
from datamodules.parts.archives import Archive
from datamodules.parts.decoding import check_all, decode_all
from datamodules.parts.image_files import Broken, Form, Tree
from datamodules.parts.image_sets import ImageBatch, Images, Part, divided, parts_of, stratified_order
from datamodules.parts.loader import TensorLoader, WorkerLoader, checksum

SHARE = 0.75
"""of the memory that there is, which decoded pictures may take"""


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
        taken = TreeImages(self.tree, self.rows[rows], self.form)
        taken.labels = self.labels[rows]
        return taken

    def fingerprint(self) -> int:
        """A checksum of the files' names and sizes, of how they are selected and shaped, and of their labels.

        Pixels are not read.
        """
        form = zlib.crc32(repr(self.form).encode())
        return checksum([torch.tensor([self.tree.fingerprint(), form]), self.rows])


class ImageTree(Images):
    """Pictures in a folder or an archive, in class folders or in none: nothing has to be moved, and none is unpacked.

    :class:`~datamodules.parts.image_files.Tree` says which forms there are. One line tells what was found::

        pictures: 360 pictures of 3 classes (bee, cat, dog); 292 train, 32 val, 36 test

    What takes long to decode is kept decoded, and what takes long to check is kept as checked, in
    ``$XDG_CACHE_HOME/lit-baselines`` (by default ``~/.cache/lit-baselines``), as raw pixels. There may be
    ``LIT_CACHE_GB`` of the environment (by default 20) gigabytes of them; the oldest are removed.

    Args:
        path: the folder, ``.zip`` or ``.tar`` (compressed or not), either the path itself or below ``root``. Folders
            ``train``, ``val`` and ``test`` in it are its parts; without them, the test part is split off too.
        labels: what the classes are: ``folders``; ``none``, for pictures without classes wherever they lie; or a CSV
            file of ``file,label`` or ``file,label,split``, by its path or its name in the tree. By default a
            ``labels.csv``, if there is one, or else folders, if there are several.
        size: side of the square that images become, in pixels. By default they keep their size, which must be the same
            for all.
        fit: how images that are not square become it: see :func:`common.pictures.fitted`.
        grayscale: one channel instead of three.
        broken: "error" stops at an image that cannot be decoded; "skip" leaves it out.
        num_workers: 0 decodes all images once into memory. Otherwise this many processes decode each batch, for trees
            larger than memory.
        check: with ``num_workers``, decode each image once before the first step, to find those that are broken.
        cache: whether to keep what takes long to decode or to check.
        test_fraction: share of a tree without parts used as the test part; 0 means no test part.

    Raises:
        ValueError: see also :class:`~datamodules.parts.image_files.Tree`; the images take more than three quarters of
            the memory, or an option does not work with ``num_workers``.
    """

    reads_anew = True

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
        labels: str | None = None,
        check: bool = True,
        cache: bool = True,
    ) -> None:
        super().__init__(batch_size, root, val_fraction, split_seed, limit)
        at_least(1, "or null for images that have one size", size=size)
        at_least(0, num_workers=num_workers)
        one_of(Broken, broken=broken)
        one_of(Fit, fit=fit)
        within("[0, 1)", test_fraction=test_fraction)
        self.tree = Tree(self._below_root(path), labels and str(self._below_root(labels)))
        self.size, self.broken, self.check, self.cache = size, broken, check, cache
        self.num_workers, self.test_fraction = num_workers, test_fraction
        self.class_names = self.tree.class_names
        if num_workers:
            self._refuse_with_workers()
        channels = 1 if grayscale else 3
        self.image_shape = [channels, *((size, size) if size else self._first_size(channels))]
        self.preprocessing["fit"] = fit
        self.form: Form = Preprocessing(self.image_shape, fit) if size else channels
        self._rows: dict[str, Tensor] = {}  # of the tree, for each part that was read
        self._refuse_too_large(1)

    def _below_root(self, path: str) -> Path:
        """A path as it is, or below the root where it exists only there."""
        below = self.root / path
        return below if below.exists() and not Path(path).exists() else Path(path)

    def _refuse_too_large(self, processes: int) -> None:
        """Raises ValueError if the images that as many processes hold do not fit into the memory."""
        needed, there = processes * len(self.tree.names) * int(np.prod(self.image_shape)), memory_limit()
        if not self.num_workers and needed > SHARE * there:
            each = f" in {processes} processes" if processes > 1 else ""
            raise ValueError(
                f"{self.tree.files.path}: {gigabytes(needed)} when decoded{each}, expected at most "
                f"{gigabytes(int(SHARE * there))} of {gigabytes(there)} of memory; use num_workers or a smaller size"
            )

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`Images.adopt`; and files are read as the model's own pictures were, at its size."""
        how = facts.get("preprocessing") or self.preprocessing
        channels, *size = facts.get("image_shape", self.image_shape)
        self.image_shape = [channels, *(how["stored"] or size)]
        self.preprocessing = {"fit": how["fit"], "stored": None}
        self.form = Preprocessing(self.image_shape, how["fit"])
        try:
            return super().adopt(facts) | {"image_shape"}
        except ValueError as error:
            raise ValueError(f"{error}; labels=none takes the pictures without their classes") from None

    def table(self, name: str) -> Path:
        """:meth:`Images.table`."""
        inside = self.tree.files.path / name
        return inside if inside.is_file() and not Path(name).exists() else Path(name)

    def _refuse_with_workers(self) -> None:
        files, workers = self.tree.files, f"num_workers={self.num_workers}"
        if self.size is None:
            raise ValueError(f"{workers}: expected a 'size' for all images")
        if self.broken == "skip" and not self.check:
            raise ValueError(f"broken='skip' with check=false and {workers}: expected check=true, which finds them")
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
        if not self.num_workers or self.check:
            self.setup()  # one process decodes, and the others find it done where it took long

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        if self.trainer is not None:
            self._refuse_too_large(self.trainer.num_devices)
        super().setup(stage)
        rank_zero_info(f"{self.tree.files.path}: {self.found()}")

    def found(self) -> str:
        """What there is, after ``setup``: ``9 pictures, no classes; 7 train, 1 val, 1 test``."""
        sizes = [f"{len(part.labels)} {name}" for name, part in self.parts.items()]
        if "test" not in self.parts:
            own = "all" not in self.tree.parts
            sizes.append("no test: it has none" if own else f"no test: test_fraction={self.test_fraction:g}")
        return "; ".join([self.tree.in_words(), ", ".join(sizes), *self.tree.left_out_in_words()])

    @property
    def parts_are_cut(self) -> bool:  # type: ignore[override]
        return "all" in self.tree.parts

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The path of each file within the tree, and its class."""
        columns = super().sample_names(part)
        source, rows = self.origins[part]
        del columns["row"]
        return {"file": [self.tree.names[row] for row in self._rows[source][rows].tolist()], **columns}

    def read(self) -> dict[str, Part]:
        tree = self.tree
        if self.num_workers:
            assert isinstance(self.form, Preprocessing)
            whole = check_all(tree, self.broken, self.cache) if self.check else np.ones(len(tree.names), bool)
            parts: dict[str, Part] = {
                name: TreeImages(tree, torch.from_numpy(rows[whole[rows]]), self.form)
                for name, rows in tree.parts.items()
            }
        else:
            images, whole = decode_all(tree, self.form, self.broken, self.cache)
            parts = parts_of(tree, images, whole)
        self._rows = {name: torch.from_numpy(rows[whole[rows]]) for name, rows in tree.parts.items()}
        training = parts["all" if "all" in parts else "train"].labels
        if lost := set(range(len(tree.class_names))) - set(training.tolist()):
            names = ", ".join(tree.class_names[code] for code in sorted(lost))
            raise ValueError(f"{tree.files.path}: every training image of {names} is broken")
        if "all" in parts:
            everything, rows = parts.pop("all"), self._rows.pop("all")
            order = stratified_order(everything.labels, "test", self.split_seed)
            num_test = round(len(order) * self.test_fraction)
            chosen = {"train": order[num_test:].sort().values, "test": order[:num_test].sort().values}
            parts = dict(zip(chosen, divided(everything, list(chosen.values()), in_place=True), strict=True))
            self._rows = {name: rows[of] for name, of in chosen.items()}
            if not num_test:
                del parts["test"], self._rows["test"]
        return parts

    def number_of(self, image: str) -> int:
        """:meth:`Images.number_of`, by the name of its file: the place of a number would depend on the split."""
        self.setup()
        tree, name = self.tree, self.tree.find(image)
        if name is None and image.isdecimal():
            example = tree.names[int(self._rows["train"][0])].removeprefix(tree.above)
            raise ValueError(f"image {image}: expected the name of a file, such as {example!r}")
        if name not in tree.row_of:
            raise ValueError(tree.missing(image))
        row = tree.row_of[name]
        if row not in self._numbers:
            part = next((part for part, rows in self._rows.items() if row in rows), None)
            reason = f"is in the part {part}" if part else "is broken"
            raise ValueError(f"{image!r} {reason}; expected a training image")
        return self._numbers[row]

    @cached_property
    def _numbers(self) -> dict[int, int]:
        """The place of each row of the tree among the training images, before any validate."""
        return {row: number for number, row in enumerate(self._rows["train"].tolist())}

    def loader(self, part: str, **options: Any) -> TensorLoader:
        if self.num_workers:
            return WorkerLoader(self.part(part), self.batch_size, num_workers=self.num_workers, **options)
        return super().loader(part, **options)
