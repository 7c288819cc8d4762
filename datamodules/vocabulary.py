"""Words and their numbers: one tokenisation for training, for a loaded model and for the figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, UNK = "<pad>", "<unk>"
_TOKEN = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Lower-case words, with apostrophes kept inside (``what's``), and each punctuation mark but ``?`` as a token."""
    return [token for token in _TOKEN.findall(text.lower()) if token != "?"]


def build_vocab(texts: Iterable[str], min_count: int = 1) -> list[str]:
    """``<pad>``, ``<unk>`` and then every token that occurs ``min_count`` times or more, in alphabetical order."""
    counts = Counter(token for text in texts for token in tokenize(text))
    return [PAD, UNK, *sorted(token for token, count in counts.items() if count >= min_count)]


def encode(texts: Sequence[str], vocab: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids (N, T), 0 behind the end of a text, and lengths (N,); a token that ``vocab`` lacks becomes ``<unk>``.

    Raises:
        ValueError: a text has no token at all.
    """
    index = {token: i for i, token in enumerate(vocab)}
    rows = [[index.get(token, 1) for token in tokenize(text)] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise ValueError(f"text {text!r}: expected at least one word")
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, lengths
