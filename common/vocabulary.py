"""Words or characters and their ids: one tokenization for training, for loaded models and for the metrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, UNK = "<pad>", "<unk>"
_TOKEN = re.compile(r"<unk>|\w+(?:'\w+)?|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Lower-case words, keeping inner apostrophes (``what's``), and each punctuation mark except ``?`` as a token.

    ``<unk>`` is one token, so that a text may leave a word open.
    """
    return [token for token in _TOKEN.findall(text.lower()) if token != "?"]


def build_vocab(texts: Iterable[str], min_count: int = 1) -> list[str]:
    """``<pad>``, ``<unk>`` and then every token that occurs at least ``min_count`` times, in alphabetical order."""
    counts = Counter(token for text in texts for token in tokenize(text))
    return [PAD, UNK, *sorted(token for token, count in counts.items() if count >= min_count and token != UNK)]


def encode(texts: Sequence[str], vocab: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids (N, T), 0 after the end of a text, and lengths (N,); tokens that are not in ``vocab`` become ``<unk>``.

    Raises:
        ValueError: a text has no token.
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


def build_char_vocab(characters: Iterable[str], unknown: bool = False) -> list[str]:
    """Every character once, by code point; preceded by ``<unk>`` if ``unknown`` characters are to get a code."""
    return [*([UNK] if unknown else []), *sorted(set(characters))]


def encode_chars(text: str, vocab: Sequence[str], unknown: str | None = None) -> Tensor:
    """The codes (T,) int64 of a text's characters, which are their positions in ``vocab``.

    ``unknown`` determines what happens to a character that is not in ``vocab``: "unk" makes it ``<unk>``, "error"
    refuses it. By default it becomes ``<unk>`` if ``vocab`` has that, and is refused otherwise.

    Raises:
        ValueError: a character is unknown; names the character and its position.
    """
    index = {char: code for code, char in enumerate(vocab)}
    fallback = None if unknown == "error" else index.get(UNK)
    codes = []
    for place, char in enumerate(text):
        code = index.get(char, fallback)
        if code is None:
            raise ValueError(f"character {place}: {describe_char(char)} is not one of the vocabulary's {len(vocab)}")
        codes.append(code)
    return torch.tensor(codes, dtype=torch.long)


def decode_chars(codes: Iterable[int], vocab: Sequence[str]) -> str:
    """The text for codes, a tensor (T,) or numbers; an unknown character becomes ``<unk>``."""
    return "".join(vocab[int(code)] for code in codes)


def describe_char(char: str) -> str:
    """``'é' (U+00E9)``."""
    return f"{char!r} (U+{ord(char):04X})"
