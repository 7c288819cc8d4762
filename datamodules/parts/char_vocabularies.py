"""Vocabularies of characters that are given: read from earlier runs, checked, and extended by a new text's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from common.files import nearest_path, read_checkpoint, read_json
from common.vocabulary import UNK


def read_vocab(path: str) -> list[str]:
    """The vocabulary that a checkpoint's model was trained with, or the list in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file contains no vocabulary.
    """
    file = Path(path).expanduser()
    if file.suffix != ".json":
        vocab = read_checkpoint(file, "vocab_from").get("hyper_parameters", {}).get("vocab")
    elif file.is_file():
        vocab = read_json(file)
    else:
        raise FileNotFoundError(f"vocab_from={path}: no such file{nearest_path(file)}")
    if not isinstance(vocab, list) or not all(isinstance(char, str) for char in vocab):
        raise ValueError(f"vocab_from={path}: its vocabulary is {_shortened(vocab)}, expected a list of characters")
    return vocab


def check_vocab(vocab: Sequence[str]) -> None:
    """Raises ValueError unless these are single characters or ``<unk>``, each once."""
    if not vocab or any(len(char) != 1 for char in vocab if char != UNK) or len(set(vocab)) < len(vocab):
        raise ValueError(f"vocab={_shortened(vocab)}: expected single characters, each once, or {UNK!r}")


def extended(vocab: Sequence[str], characters: Iterable[str], with_unknown: bool) -> list[str]:
    """A vocabulary with the characters that it lacks behind its own, and ``<unk>`` before them if it is to have it."""
    unknown = [UNK] if with_unknown and UNK not in vocab else []
    return [*unknown, *vocab, *sorted(set(characters) - set(vocab))]


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} ..."
