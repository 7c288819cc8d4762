"""Photographs by id: decoded on request, or as features that were computed once and are read from disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from common.files import cache_file, read_json, require, state_of, write_whole
from common.pictures import Fit, Preprocessing, decode
from common.progress import tracked
from datamodules.parts.decoding import CACHE_SECONDS
from datamodules.parts.image_files import Broken


class ImageSource(Protocol):
    """Images that are requested by id and returned as (I, C, H, W)."""

    def __call__(self, image_ids: Sequence[int]) -> Tensor: ...

    def check(self, image_ids: Iterable[int]) -> None:
        """Raises FileNotFoundError or ValueError at the first missing image."""


def decode_photograph(path: Path, size: int, fit: Fit, record: str) -> Tensor:
    """The photograph (3, size, size) uint8 in a file.

    Raises:
        ValueError: it cannot be decoded; names the file and the ``record`` that it belongs to.
    """
    try:
        image = decode(path.read_bytes()).image
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {record} cannot be decoded: {error}") from error
    return torch.from_numpy(Preprocessing([3, size, size], fit).pixels(image))


def undecodable(photographs: Sequence[tuple[Path, str]], broken: Broken) -> set[Path]:
    """The files that cannot be decoded among photographs, each a file and the record that it belongs to.

    Every file is read once, on all cores. What takes long to read is kept as checked until a file changes.

    Raises:
        ValueError: ``broken`` is "error" and there is one; names the file and the record.
    """
    known = cache_file(("photographs", broken, [state_of(file) for file, _ in photographs]), ".json")
    if known.exists():
        messages: dict[str, str] = json.loads(known.read_bytes())
    else:
        start, messages = time.monotonic(), {}

        def fault(photograph: tuple[Path, str]) -> str | None:
            try:
                decode_photograph(photograph[0], 8, "squash", photograph[1])
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = pool.map(fault, photographs)
            for file, _ in tracked(photographs, "checking photographs"):
                if (message := next(faults)) is not None:
                    messages[str(file)] = message
        if time.monotonic() - start > CACHE_SECONDS:
            with suppress(OSError):  # it is only checked again next time
                write_whole(known, json.dumps(messages))
    if messages:
        first = next(iter(messages.values()))
        if broken == "error":
            raise ValueError(f"{first}; {len(messages)} in all, which broken='skip' leaves out")
        rank_zero_warn(f"left out {len(messages)} photographs that cannot be decoded, the first: {first}")
    return {Path(file) for file in messages}


class PhotographFiles:
    """The photographs of a folder, decoded on request: (I, 3, size, size) uint8.

    Args:
        folder: of the images.
        files: the path of each below the folder, by its id.
        size, fit: see :class:`common.pictures.Preprocessing`.
        page: where to get the images, or what else the message of a missing one should say.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: on request, an image cannot be decoded; names the file and the image.
    """

    record = "image"
    """what messages call an id"""

    def __init__(self, folder: Path, files: Mapping[int, str], size: int, fit: Fit, page: str) -> None:
        require(folder, page)
        self.folder, self.size, self.fit, self.page = folder, size, fit, page
        self.files = files

    def path(self, image_id: int) -> Path:
        """The image's file."""
        return self.folder / self.files[image_id]

    def check(self, image_ids: Iterable[int]) -> None:
        """Raises FileNotFoundError at the first missing image; names its file and its id."""
        there: dict[Path, set[str]] = {}  # one look at each folder instead of one per image
        for image_id in image_ids:
            path = self.path(image_id)
            if path.parent not in there:
                there[path.parent] = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
            if path.name not in there[path.parent]:
                raise FileNotFoundError(f"{path}: {self.record} {image_id} not found; the images are at {self.page}")

    def undecodable(self, image_ids: Iterable[int], broken: Broken) -> set[int]:
        """The ids of those that cannot be decoded, see :func:`undecodable`; of all, none may be missing."""
        ids = sorted(image_ids)
        self.check(ids)
        lost = undecodable([(self.path(i), f"{self.record} {i}") for i in ids], broken)
        return {i for i in ids if self.path(i) in lost}

    def __call__(self, image_ids: Sequence[int]) -> Tensor:
        records = ((self.path(i), f"{self.record} {i}") for i in image_ids)
        return torch.stack([decode_photograph(path, self.size, self.fit, record) for path, record in records])


class CachedFeatures:
    """Image features in ``<prefix>.npy``, read from disk on request: (I, C, h, w) float32; (I, C, 1, 1) for vectors.

    ``<prefix>.npy`` holds (N, C) or (N, C, h, w) in float16 or float32, and ``<prefix>.json`` the list of the N image
    ids in the order of its rows; :func:`write_features` writes both.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is malformed, the two do not match, or an image is missing; names the file and the id.
    """

    def __init__(self, prefix: Path) -> None:
        self.path, ids_path = Path(f"{prefix}.npy"), Path(f"{prefix}.json")
        for path in (self.path, ids_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: not found; expected a file from cache_features of the data's module")
        try:
            self.array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: not a complete .npy file of numbers: {error}") from error
        if getattr(self.array, "dtype", None) not in (np.float16, np.float32) or self.array.ndim not in (2, 4):
            raise ValueError(f"{self.path}: expected (N, C) or (N, C, h, w) in float16 or float32")
        ids = read_json(ids_path)
        if not isinstance(ids, list) or len(ids) != len(self.array) or len(set(map(str, ids))) != len(ids):
            raise ValueError(f"{ids_path}: expected a list of {len(self.array)} different image ids, one per row")
        self.rows = {image_id: row for row, image_id in enumerate(ids)}
        self.shape = [*self.array.shape[1:], 1, 1][:3]
        """C, h, w"""

    def check(self, image_ids: Iterable[int]) -> None:
        """Raises ValueError at the first image that is not there."""
        for image_id in image_ids:
            if image_id not in self.rows:
                raise ValueError(f"{self.path}: image_id {image_id}: no features, expected features of every image")

    def __call__(self, image_ids: Sequence[int]) -> Tensor:
        rows = np.asarray(self.array[[self.rows[image_id] for image_id in image_ids]])  # a copy: only these are read
        return torch.from_numpy(rows).float().view(len(rows), *self.shape)


@torch.inference_mode()
def write_features(
    encoder: nn.Module, images: Sequence[tuple[ImageSource, int]], prefix: Path, batch_size: int = 64
) -> None:
    """Writes the features of images, each given by its source and its id, as :class:`CachedFeatures` reads them.

    ``encoder``, in its current mode and on its current device, gets (B, 3, size, size) in 0..1 and returns (B, C) or
    (B, C, h, w), which are stored in float16. The files get their names once they are complete.
    """
    device = next((parameter.device for parameter in encoder.parameters()), None)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    array: Any = None
    for start in range(0, len(images), batch_size):
        pixels = torch.cat([source([image_id]) for source, image_id in images[start : start + batch_size]])
        features = encoder(pixels.to(device).float() / 255).half().cpu().numpy()
        if array is None:
            shape = (len(images), *features.shape[1:])
            array = np.lib.format.open_memmap(f"{prefix}.npy.part", "w+", np.float16, shape)
        array[start : start + batch_size] = features
    array.flush()
    Path(f"{prefix}.json.part").write_text(json.dumps([image_id for _, image_id in images]))
    Path(f"{prefix}.npy").unlink(missing_ok=True)  # an older one must not meet the new list
    for suffix in ("json", "npy"):
        os.replace(f"{prefix}.{suffix}.part", f"{prefix}.{suffix}")
