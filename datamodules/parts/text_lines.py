"""The lines of a text that is an array of codes: where they are, and which of them come again.

For millions of lines: all at once in NumPy, with some bytes a line and nothing of the text's size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from datamodules.parts.corpus import CHUNK, pieces


def line_bounds(codes: np.ndarray, newline: int, carriage: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Start, (N,) int64, and length, (N,) int32, of the lines of a text.

    Each ends with ``\n``, ``\r\n``, ``\r`` or the text itself.

    Args:
        newline, carriage: the codes of ``\n`` and ``\r``.
    """
    found, place = [], 0
    for piece in pieces(codes):
        ends = torch.nonzero((piece == newline) | (piece == carriage))[:, 0].numpy() + place
        found.append(ends)
        place += len(piece)
    ends = np.concatenate([*found, [len(codes)]])
    del found
    if len(ends) > 1 and ends[-2] == len(codes) - 1:
        ends = ends[:-1]  # behind the last line's end there is none
    starts = np.append(0, ends[:-1] + 1)
    # Between \r and \n there is no line.
    empty = np.flatnonzero((ends == starts) & (ends > 0) & (ends < len(codes)))
    second = empty[(codes[ends[empty] - 1] == carriage) & (codes[ends[empty]] == newline)]
    if len(second):
        starts, ends = np.delete(starts, second), np.delete(ends, second)
    return starts, np.subtract(ends, starts, dtype=np.int32, casting="unsafe")


def in_chunks(starts: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Lines of about :data:`CHUNK` characters together.

    Yields:
        which lines; the places of their characters in the text, (P,), one line after the other; and where each line
        begins among these, (n,).
    """
    first = 0
    while first < len(lengths):
        some = lengths[first : first + CHUNK]
        count = max(1, int(np.searchsorted(some.cumsum(dtype=np.int64), CHUNK, side="right")))
        rows = slice(first, first + count)
        before = lengths[rows].cumsum(dtype=np.int64) - lengths[rows]
        places = np.repeat(starts[rows] - before, lengths[rows]) + np.arange(int(lengths[rows].sum()))
        yield rows, places, before
        first += count


def first_of_each(codes: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N,) bool: whether no line before it is the same."""
    keys = _hashes(codes, starts, lengths)
    order = keys.argsort(kind="stable")  # among lines of one hash, the first comes first
    keys = keys[order]
    is_new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    again = np.flatnonzero(~is_new)
    begins = np.flatnonzero(is_new) if len(again) else again
    first = begins[np.searchsorted(begins, again) - 1]
    is_first = np.ones(len(lengths), bool)
    rows, others = order[again], order[first]
    # A hash alone could take two lines for one.
    rows, others = (each[lengths[rows] == lengths[others]] for each in (rows, others))
    pairs = zip(in_chunks(starts[rows], lengths[rows]), in_chunks(starts[others], lengths[others]), strict=True)
    for (some, places, before), (_, other_places, _) in pairs:
        differing = (codes[places] != codes[other_places]).cumsum()
        is_first[rows[some]] = np.diff(np.append(0, differing)[np.append(before, len(places))]) > 0
    return is_first


def _hashes(codes: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N,) uint64: Σ (code + 1) w_place of each line modulo 2⁶⁴, with random odd weights w."""
    longest = int(lengths.max(initial=0))
    weights = np.random.default_rng(0).integers(1, 2**63, longest, np.uint64) * np.uint64(2) + np.uint64(1)
    keys = np.zeros(len(lengths), np.uint64)
    for rows, places, before in in_chunks(starts, lengths):
        column = np.arange(len(places)) - np.repeat(before, lengths[rows])
        sums = np.append(np.uint64(0), ((codes[places] + np.uint64(1)) * weights[column]).cumsum())
        keys[rows] = sums[before + lengths[rows]] - sums[before]
    return keys


def codes_of(codes: np.ndarray, starts: Tensor, lengths: Tensor) -> Iterator[Tensor]:
    """The codes of lines one after the other, int64, some at a time."""
    for _, places, _ in in_chunks(starts.numpy(), lengths.numpy()):
        yield torch.from_numpy(codes[places].astype(np.int64))
