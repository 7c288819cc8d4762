"""All pictures of a tree decoded, or checked, by several threads; what took long is kept on disk."""

from __future__ import annotations

import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from common.files import cache_file, make_room, write_whole
from common.pictures import Decoded
from common.progress import tracked
from datamodules.parts.archives import Archive
from datamodules.parts.image_files import Broken, Form, Tree, shaped

T = TypeVar("T")

DECODING = 2
"""counted up when a file's pixels change with the code that reads it: what is kept decoded is then decoded anew"""

CACHE_SECONDS = 2.0
"""seconds; trees that take longer are kept on disk"""

FEW = 100
"""pictures that are not worth a second thread"""


def decode_all(tree: Tree, form: Form, broken: Broken = "error", cache: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """All pictures (N, C, H, W) uint8, and which of them are intact, (N,) bool; the others are black.

    Args:
        cache: if decoding takes long, keep the result in :func:`common.files.cache_file`, and map it from there.

    Raises:
        ValueError: a picture cannot be decoded, or has another size than the first; names it.
    """
    kept = _file(tree, form, broken, ".npy") if cache else None
    # Written first, so that where there is an array there are its faults.
    faults = kept.with_suffix(".json") if kept else None
    if kept and faults and kept.exists() and faults.exists():
        # Mapped such that writing to it does not reach the file.
        images, messages = np.load(kept, mmap_mode="c"), json.loads(faults.read_bytes())
        os.utime(kept)  # the oldest are removed first
    else:
        start = time.monotonic()
        images, messages = _decode_all(tree, form, broken)
        if kept and faults and time.monotonic() - start > CACHE_SECONDS:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(images))
            _keep(tree, [(faults, [json.dumps(messages).encode()]), (kept, [header.getvalue(), images.data])])
    return images, _intact(tree, messages)


def check_all(tree: Tree, broken: Broken = "error", cache: bool = True) -> np.ndarray:
    """Which pictures can be decoded, (N,) bool.

    Args:
        cache: if checking takes long, keep the result, which holds until a file changes.

    Raises:
        ValueError: a picture cannot be decoded; names it.
    """
    kept = _file(tree, "check", broken, ".json") if cache else None
    if kept and kept.exists():
        return _intact(tree, json.loads(kept.read_bytes()))
    start, messages = time.monotonic(), []
    for row, found in _each(tree, lambda picture: None, "checking pictures"):
        if isinstance(found, ValueError):
            if broken == "error":
                raise found
            messages.append((row, str(found)))
    if len(messages) == len(tree.names):
        raise ValueError(f"{tree.files.path}: all {len(messages)} images are broken, the first: {messages[0][1]}")
    if kept and time.monotonic() - start > CACHE_SECONDS:
        _keep(tree, [(kept, [json.dumps(sorted(messages)).encode()])])
    return _intact(tree, sorted(messages))


def _decode_all(tree: Tree, form: Form, broken: Broken) -> tuple[np.ndarray, list[tuple[int, str]]]:
    images: np.ndarray | None = None
    first, animated = "", 0
    messages: list[tuple[int, str]] = []
    for row, found in _each(tree, lambda picture: (shaped(picture, form), picture.frames), "decoding pictures"):
        if isinstance(found, ValueError):
            if broken == "error":
                raise found
            messages.append((row, str(found)))
            continue
        image, frames = found
        animated += frames > 1
        if images is None:
            images, first = np.zeros((len(tree.names), *image.shape), np.uint8), tree.names[row]
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"{tree.files.where(tree.names[row])}: {image.shape[2]}×{image.shape[1]} pixels, but {first} has "
                f"{images.shape[3]}×{images.shape[2]}; expected one size, or a 'size' for all"
            )
        images[row] = image
    if images is None:
        raise ValueError(f"{tree.files.path}: all {len(messages)} images are broken, the first: {messages[0][1]}")
    if animated:
        rank_zero_warn(f"{tree.files.path}: of {animated} animated images only the first frame is used")
    return images, sorted(messages)


def _each(tree: Tree, use: Callable[[Decoded], T], what: str) -> Iterator[tuple[int, T | ValueError]]:
    """Each row as it lies in an archive, and what ``use`` makes of its picture, or what is wrong with that.

    Pillow lets other threads run while it decodes. The order does not depend on their number.
    """
    rows = [tree.row_of[name] for name in tree.files.sizes if name in tree.row_of]
    # What is compressed as a whole is read from the beginning for every step back.
    in_turn = isinstance(tree.files, Archive) and not tree.files.is_zip

    def work(row: int, content: bytes | None) -> T:
        return use(tree.decoded(row, tree.content(row) if content is None else content))

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pending: deque[tuple[int, Future[T]]] = deque()
    pool = ThreadPoolExecutor(threads if len(rows) > FEW else 1)
    try:
        for row in tracked(rows, f"{tree.files.path}: {what}"):
            try:
                content = tree.content(row) if in_turn else None
                found = pool.submit(work, row, content)
            except ValueError as error:
                found = Future()
                found.set_exception(error)
            pending.append((row, found))
            if len(pending) > 4 * threads:
                yield pending[0][0], _result(pending.popleft()[1])
        while pending:
            yield pending[0][0], _result(pending.popleft()[1])
    finally:
        pool.shutdown(cancel_futures=True)


def _result(found: Future[Any]) -> Any:
    try:
        return found.result()
    except ValueError as error:
        return error


def _file(tree: Tree, what: object, broken: Broken, suffix: str) -> Path:
    from PIL import __version__ as decoder

    return cache_file((tree.files.state(), tree.names, what, broken, decoder, DECODING), suffix)


def _keep(tree: Tree, files: list[tuple[Path, list[Any]]]) -> None:
    """Writes files to the cache; where that is not possible, says so."""
    try:
        needed = sum(memoryview(piece).nbytes for _, pieces in files for piece in pieces)
        if make_room(files[-1][0].parent, needed):
            for file, pieces in files:
                write_whole(file, pieces)
            return
        reason = "it would take more than its share of the cache, see LIT_CACHE_GB"
    except OSError as error:
        reason = f"{files[-1][0].parent}: {error.strerror or error}"
    rank_zero_warn(
        f"{tree.files.path}: what was decoded is not kept and will be decoded again next time ({reason}); "
        "cache=false keeps nothing"
    )


def _intact(tree: Tree, messages: list[Any]) -> np.ndarray:
    """(N,) bool; says how many are left out."""
    whole = np.ones(len(tree.names), bool)
    whole[[row for row, _ in messages]] = False
    if messages:
        rank_zero_warn(f"{tree.files.path}: left out {len(messages)} broken images, the first: {messages[0][1]}")
    return whole
