"""Words or characters and their ids: one tokenization for training, for loaded models and for the metrics."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

PAD, UNK = "<pad>", "<unk>"

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese"""


_ASCII = re.compile(r"<unk>|\w+(?:'\w+)?|[^\w\s]")


@cache
def _token() -> re.Pattern[str]:
    """What a token is. A word may have combining marks, such as the vowels of Hindi, which ``\\w`` alone leaves out."""
    marked = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    marks = "\u200c\u200d" + "".join(map(chr, marked)) + "\U000e0100-\U000e01ef"
    word = f"(?:(?![{UNSPACED}])[\\w{marks}])+"
    return re.compile(f"<unk>|[{UNSPACED}][{marks}]*|{word}(?:'{word})?|[^\\w\\s{marks}]")


def tokenize(text: str) -> list[str]:
    """Lower-case words, keeping inner apostrophes (``what's``), and each punctuation mark except ``?`` as a token.

    Accents count the same whether they are composed or not (Unicode's form NFC). In scripts that put no blanks between
    words every character is a token. ``<unk>`` is one token, so that a text may leave a word open.
    """
    if text.isascii():  # the same, several times as fast
        return [token for token in _ASCII.findall(text.lower()) if token != "?"]
    return [token for token in _token().findall(unicodedata.normalize("NFC", text.lower())) if token != "?"]


def build_vocab(texts: Iterable[str], min_count: int = 1, split: Callable[[str], list[str]] = tokenize) -> list[str]:
    """``<pad>``, ``<unk>`` and then every token that occurs at least ``min_count`` times, in alphabetical order.

    ``split`` is ``str.split`` for texts that are tokens with blanks between them. Says so where characters stand for
    words, see :func:`tokenize`.

    Raises:
        ValueError: no token occurs so often.
    """
    counts: Counter[str] = Counter()
    for text, times in Counter(texts).items():  # questions repeat: each is split once
        for token in split(text):
            counts[token] += times
    words = sorted(token for token, count in counts.items() if count >= min_count and token != UNK)
    if not words:
        found = f"the most frequent of {len(counts)} words occurs {max(counts.values())} times" if counts else "no word"
        raise ValueError(f"min_count={min_count}: leaves no word in the vocabulary ({found}), expected less")
    if single := sum(count for token, count in counts.items() if re.match(f"[{UNSPACED}]", token)):
        rank_zero_info(f"{single} of {counts.total()} tokens are single characters, of scripts without blanks")
    return [PAD, UNK, *words]


def as_sentence(tokens: Iterable[str]) -> str:
    """Tokens as one would print them: without blanks before punctuation marks, after brackets, between characters."""
    text = re.sub(r" ([,.;:!%)\]}])", r"\1", " ".join(tokens))
    return re.sub(f"(?<=[{UNSPACED}]) (?=[{UNSPACED}])", "", re.sub(r"([(\[{]) ", r"\1", text))


def encode(
    texts: Sequence[str], vocab: Sequence[str], split: Callable[[str], list[str]] = tokenize
) -> tuple[Tensor, Tensor]:
    """Token ids (N, T), 0 after the end of a text, and lengths (N,); tokens that are not in ``vocab`` become ``<unk>``.

    Raises:
        ValueError: a text has no token.
    """
    index = {token: i for i, token in enumerate(vocab)}
    rows = [[index.get(token, 1) for token in split(text)] for text in texts]
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
