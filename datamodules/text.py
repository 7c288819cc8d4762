"""CharText: running text as characters, in rows that a recurrent network keeps reading from batch to batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import floor
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from common.checks import at_least, one_of, within
from common.distributed import rank_and_world_size
from common.vocabulary import UNK, build_char_vocab, describe_char
from datamodules.parts import loader
from datamodules.parts.char_vocabularies import check_vocab, extended, read_vocab
from datamodules.parts.corpus import SHIPPED, Corpus, files_of, name_of, pieces
from datamodules.parts.loader import TensorLoader

Part = Literal["train", "val", "test"]
Split = Literal["contiguous", "rows"]
WindowKind = Literal["stateful", "random"]
Unknown = Literal["error", "unk"]
PARTS = ("train", "val", "test")

IGNORED = -100
"""the target where there is none, as in PyTorch's cross-entropy"""

SHOWN = 3
"""characters that a line lists"""


class TextBatch(NamedTuple):
    """B rows of T characters."""

    inputs: Tensor
    """(B, T) int64: codes of characters"""
    targets: Tensor
    """(B, T) int64: the character after each input; -100 if there is nothing to predict"""
    fresh: Tensor
    """(B,) bool: the row starts here, from a fresh state; otherwise it continues from the previous batch"""

    @property
    def unit(self) -> str:
        """What its size is counted in."""
        return "characters"

    @property
    def num_units(self) -> int:
        """How many of them it has."""
        return self.inputs.numel()


class CharText(LightningDataModule):
    """A text, cut into R = ``batch_size`` × ranks rows that are read side by side, ``seq_len`` characters per batch.

    Row i of a batch continues in row i of the next (``windows: stateful``), so that a state can be carried over; in an
    epoch's first batch every row is ``fresh``. Training cuts its part into R rows of equal length and leaves out the
    remainder, less than one window per row. Every target is in its own part: no training row sees a validation
    character.

    Validation and test predict each character of their part exactly once, except for the first, which has nothing
    before it. They are also cut into R rows. Each row except the first starts with up to ``eval_context`` preceding
    characters of its part, with targets of -100, so that its state is warm when scoring begins. Rows are at least as
    long as that context, so a short part may have empty rows. Windows after a row's end have no targets: a loss should
    be a sum over targets divided by their number.

    Files are UTF-8, with or without a byte order mark, which is left out; line ends are kept unchanged.

    Args:
        source: "python", the sources of Python's standard library (:data:`datamodules.parts.corpus.MODULES`, without
            the few lines that have anything but printable ASCII, so that the alphabet is the same for all versions of
            Python); "tiny_shakespeare" (1,115,394 characters), from ``root`` or else downloaded to it; or a file, a
            folder (all ``*.txt`` and ``*.TXT`` below it) or a glob, such as ``notes/**/*.md``. Several files are joined
            in the order of their paths; between two of them there is a line end, added where it is missing.
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        batch_size: rows per rank.
        seq_len: characters of a row in a batch.
        split: "contiguous" validates and tests on the end of the text, the test part last. "rows" is char-rnn's: the
            whole text is cut into R rows, and the end of *each* is for validation and test, from a fresh state. Its
            parts depend on R, so the vocabulary is that of the whole text, as in char-rnn.
        val_fraction, test_fraction: shares of the text. Without a test part there is nothing to test.
        windows: "random" trains on single windows instead, every row fresh: window k begins at a random one of the
            ``seq_len`` characters starting at ``k · seq_len``, drawn anew each epoch.
        eval_context: number of characters that a row reads before it is scored.
        unknown: what happens to characters outside the vocabulary: "error" refuses them, "unk" makes them ``<unk>``,
            the vocabulary's first entry, about which nothing is learned unless it occurs in training. By default "unk"
            for text of one's own, which has rare characters, and "error" for "python" and "tiny_shakespeare", whose
            vocabularies are those of published results.
        vocab: the vocabulary; by default, the sorted characters of the training part. If ``unknown`` is not given, what
            it lacks becomes ``<unk>`` if it has that, and is refused otherwise.
        vocab_from: a file with the vocabulary of an earlier run, its checkpoint or a JSON list of characters, to go on
            with its model on a new text. If ``unknown`` is not given, the characters of the training part that it lacks
            are added behind its own, and ``<unk>`` before them if the other parts of a text of one's own need it.
        limit: number of characters to use from the beginning of the text; by default all.

    Attributes:
        vocab: the characters, in the order of their codes.
        corpus_name: "python", "tiny_shakespeare", or the name of the file, folder or glob.

    One line tells how many characters are unknown or were added to an earlier vocabulary.

    Codes larger than 64 MB are kept in ``$XDG_CACHE_HOME/lit-baselines`` (by default ``~/.cache/lit-baselines``) and
    mapped into memory; the whole text is never held in memory.

    Raises:
        FileNotFoundError: a file does not exist or cannot be downloaded; says where to put it.
        ValueError: an argument is out of range; a file is empty or not UTF-8; a part is too short for one batch; a
            character is unknown (to the text's own vocabulary: in ``setup``).
    """

    def __init__(
        self,
        source: str = "python",
        root: str | None = None,
        batch_size: int = 50,
        seq_len: int = 50,
        split: Split = "contiguous",
        val_fraction: float = 0.1,
        test_fraction: float = 0.05,
        windows: WindowKind = "stateful",
        eval_context: int = 256,
        unknown: Unknown | None = None,
        vocab: list[str] | None = None,
        vocab_from: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, seq_len=seq_len, limit=limit)
        at_least(0, eval_context=eval_context)
        one_of(Split, split=split)
        one_of(WindowKind, windows=windows)
        one_of(Unknown, unknown="unk" if unknown is None else unknown)
        within("(0, 1)", val_fraction=val_fraction)
        within("[0, 1)", test_fraction=test_fraction)
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction}: expected less than 1 together"
            )
        if vocab is not None and vocab_from is not None:
            raise ValueError(f"vocab_from={vocab_from!r} with a vocab: expected only one of them")
        self.batch_size, self.seq_len, self.eval_context = batch_size, seq_len, eval_context
        self.split, self.windows = split, windows
        # Where a part begins, as a share of the text or of a row.
        self._shares = (0.0, 1 - val_fraction - test_fraction, 1 - test_fraction, 1.0)
        self.order_seed = torch.initial_seed()  # of seed_everything
        self.source = source
        self.corpus_name = name_of(source)
        self.corpus = Corpus(files_of(source, root), limit, printable_ascii=source == "python")
        if completed := len(self.corpus.completed):
            rank_zero_info(
                f"{self.corpus_name}: {completed} of {len(self.corpus.paths)} files did not end with a line end: "
                "one was added to each"
            )
        given = vocab if vocab_from is None else read_vocab(vocab_from)
        if vocab is not None and unknown is None:
            unknown = "unk" if UNK in vocab else "error"
        self.unknown: Unknown = unknown or ("error" if source in SHIPPED else "unk")
        self._is_own = given is None  # the vocabulary is that of the training part
        self.vocab = self._vocabulary(given, vocab_from, extend=vocab_from is not None and unknown is None)
        if UNK not in self.vocab:
            self.unknown = "error"
        if given is not None:
            self._refuse_unknown()
        self._codes: np.ndarray | None = None
        self._check_lengths(batch_size)  # on one rank, if there are more of them: the sooner it is said the better

    separators: ClassVar[str] = ""
    """characters of the text that are no part of the vocabulary; their codes are behind its own"""

    def _vocabulary(self, given: Sequence[str] | None, vocab_from: str | None, extend: bool) -> list[str]:
        """``given``, extended by the characters of the training part, or the vocabulary of that part alone."""
        end = self.bounds(self.corpus.length)[1] if self.split == "contiguous" else self.corpus.length
        seen = [char for char, place in self.corpus.first_seen.items() if place < end and char not in self.separators]
        if given is None:
            return build_char_vocab(seen, self.unknown == "unk")
        check_vocab(given)
        if vocab_from is None:
            if self.unknown == "unk" and UNK not in given:
                raise ValueError(f"unknown='unk': expected a vocabulary that has {UNK!r}, or 'error'")
            return list(given)
        added = seen if extend else []
        is_all = extend and {*self.corpus.first_seen} <= {*given, *added, *self.separators}
        vocab = extended(given, added, with_unknown=self.unknown == "unk" and not is_all)
        if len(vocab) > len(given):
            new = [char for char in vocab if char not in given]
            rank_zero_info(
                f"vocab_from={vocab_from}: {len(new)} more than its {len(given)} characters: {_described(new)}"
            )
        return vocab

    def _unknown_characters(self) -> dict[str, int]:
        """The characters that are not in the vocabulary, and where each first occurs."""
        known = {*self.vocab, *self.separators}
        return {char: place for char, place in self.corpus.first_seen.items() if char not in known}

    def _refuse_unknown(self) -> None:
        """Raises ValueError for the text's first character that is not in the vocabulary, if that is an error."""
        lacking = f"is not one of the given vocabulary's {len(self.vocab)}"
        remedy = "expected unknown=unk" if UNK in self.vocab else "expected a text without it"
        if self._is_own:
            lacking, remedy = "does not occur in the training part", "expected unknown=unk, or more text"
        for char, place in self._unknown_characters().items() if self.unknown == "error" else ():
            raise ValueError(f"{self.corpus.where(place)}: {describe_char(char)} {lacking}; {remedy}")

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """Codes characters as a checkpoint's model does; unknown ones become its ``<unk>``, if it has that.

        Raises:
            ValueError: it has not, and there is an unknown character; names its place in the text.
        """
        if "vocab" in facts:
            self.vocab, self._is_own = list(facts["vocab"]), False
            self.unknown = "unk" if UNK in self.vocab else "error"
            self._refuse_unknown()
        return {"vocab"}

    def prepare_data(self) -> None:
        self.setup()  # one process puts a large text's codes on disk, and the others find them there

    def setup(self, stage: str | None = None) -> None:
        if self._codes is None:
            self._refuse_unknown()  # not before: a checkpoint's vocabulary may have it all
            self._codes = self.corpus.encode([*self.vocab, *self.separators], self.unknown)
            if unknown := self._unknown_characters():
                code = self.vocab.index(UNK)
                count = sum(int((piece == code).sum()) for piece in pieces(self._codes))
                rank_zero_info(
                    f"{self.corpus_name}: {count} of {self.corpus.length} characters are not in the vocabulary and "
                    f"become {UNK}: {_described(list(unknown))}"
                )
        self._check_lengths(self._rows())

    @property
    def codes(self) -> np.ndarray:
        """The codes of the whole text, (N,) in the smallest type that fits."""
        if self._codes is None:
            self.setup()
        assert self._codes is not None
        return self._codes

    def part(self, part: Part) -> np.ndarray:
        """The codes of "train", "val" or "test", one row after the other."""
        return np.concatenate([self.codes[start:end] for start, end in self._segments(part, self._rows())])

    def train_dataloader(self) -> TensorLoader:
        if self.windows == "stateful":
            return TensorLoader(self._windows("train"), self.batch_size)
        # Twice as long as wanted: `on_after_batch_transfer` cuts each to a random part.
        span = 2 * self.seq_len - 1
        starts = [np.arange(s, e - span, self.seq_len) for s, e in self._segments("train", self._rows())]
        source = Windows(self.codes, np.concatenate(starts), span, 1, span, fingerprint=self.fingerprint)
        return TensorLoader(source, self.batch_size, shuffle=True, drop_last=True, seed=self.order_seed)

    def val_dataloader(self) -> TensorLoader:
        return TensorLoader(self._windows("val"), self.batch_size)

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return TensorLoader(self._windows("test"), self.batch_size) if self._has("test") else []

    parts_are_cut = True
    """whether the parts are cut from one whole here"""

    @property
    def part_names(self) -> list[str]:
        """The parts that there are."""
        return [part for part in PARTS if self._has(part)]

    def plain_loader(self, part: str) -> TensorLoader:
        """A part from beginning to end, ``seq_len`` characters a batch, as one row (with ``split: rows``, as many)."""
        one_of(self.part_names, part=part)
        source = self._plain_windows(part)
        return TensorLoader(source, len(source.starts))

    def sample_names(self, part: str) -> dict[str, Sequence[int]]:
        """The place in the text of the first character that each window is to predict, counted from 0."""
        source = self._plain_windows(part)
        window, row = np.divmod(np.arange(len(source)), len(source.starts))
        return {"place": (source.starts[row] + window * self.seq_len + 1).tolist()}

    def _plain_windows(self, part: str) -> Windows:
        starts, ends = np.array(self._segments(part, self._rows())).T
        lengths = ends - starts - 1
        windows = int(-(-lengths.max() // self.seq_len))
        return Windows(self.codes, starts, self.seq_len, windows, lengths, fingerprint=self.fingerprint)

    def on_after_batch_transfer(self, batch: TextBatch, dataloader_idx: int) -> TextBatch:
        if self.windows == "stateful" or self.trainer is None or not self.trainer.training:
            return batch
        draws = loader.draws_per_sample(self.trainer, len(batch.inputs), 1, self.order_seed)
        offsets = (draws * self.seq_len).long()
        columns = offsets + torch.arange(self.seq_len, device=offsets.device)
        return batch._replace(inputs=batch.inputs.gather(1, columns), targets=batch.targets.gather(1, columns))

    def fingerprint(self) -> int:
        """A checksum of the text and of the meaning of its codes."""
        alphabet = torch.tensor([ord(char) if char != UNK else -1 for char in self.vocab])
        return loader.checksum(tensor for tensors in ([alphabet], pieces(self.codes)) for tensor in tensors)

    def _rows(self) -> int:
        return self.batch_size * rank_and_world_size()[1]

    def bounds(self, length: int) -> list[int]:
        """The positions of so many characters at which train, val and test begin, and at which test ends."""
        return [floor(length * share + 1e-6) for share in self._shares]  # 1 - 0.9 is a little less than 0.1

    def _segments(self, part: str, rows: int) -> list[tuple[int, int]]:
        """Beginning and end of each unbroken run of a part's characters."""
        i = PARTS.index(part)
        length = self.corpus.length if self.split == "contiguous" else self.corpus.length // rows
        start, end = self.bounds(length)[i : i + 2]
        if self.split == "contiguous":
            return [(start, end)]
        return [(row * length + start, row * length + end) for row in range(rows)]

    def _has(self, part: str) -> bool:
        i = PARTS.index(part)
        return self._shares[i] < self._shares[i + 1]

    def _check_lengths(self, rows: int) -> None:
        """Raises ValueError if a part is too short for ``rows`` rows."""
        segments = 1 if self.split == "contiguous" else rows
        needed = {"train": rows * self.seq_len + segments, "val": 2 * segments, "test": 2 * segments}
        if self.windows == "random":
            needed["train"] = (rows + 1 if segments == 1 else 2 * rows) * self.seq_len
        for part in filter(self._has, PARTS):
            there = sum(end - start for start, end in self._segments(part, rows))
            if there < needed[part]:
                sizes = f"{rows} rows" + (f" of seq_len={self.seq_len}" if part == "train" else "")
                raise ValueError(
                    f"source={self.source!r}: its {part} part has {there} of its {self.corpus.length} characters, "
                    f"expected at least {needed[part]} for {sizes}: see batch_size, seq_len and the fractions"
                )

    def _windows(self, part: str) -> Windows:
        """The rows of a part: see the class."""
        rows, segments = self._rows(), np.array(self._segments(part, self._rows()))
        contexts = np.zeros(rows, np.int64)
        if self.split == "rows":
            starts, lengths = segments[:, 0], segments[:, 1] - segments[:, 0] - 1
        elif part == "train":
            # All but the last character are inputs, so that the last row's last target is still of this part.
            length = (segments[0, 1] - segments[0, 0] - 1) // rows
            starts, lengths = segments[0, 0] + length * np.arange(rows), np.full(rows, length)
        else:
            start, num_targets = segments[0, 0], segments[0, 1] - segments[0, 0] - 1
            length = max(-(-num_targets // rows), self.eval_context)
            begins = np.minimum(length * np.arange(rows), num_targets)
            ends = np.minimum(begins + length, num_targets)
            contexts = np.where(begins < ends, np.minimum(begins, self.eval_context), 0)
            starts, lengths = start + begins - contexts, ends - begins + contexts
        num_windows = lengths.min() // self.seq_len if part == "train" else -(-lengths.max() // self.seq_len)
        return Windows(
            self.codes, starts, self.seq_len, int(num_windows), lengths, contexts, fingerprint=self.fingerprint
        )


class Windows:
    """Rows of a text in windows of T characters: sample k·R + r is window k of row r, a row of a :class:`TextBatch`.

    Args:
        codes: (N,) the text.
        starts: (R,) the start of each row's inputs.
        seq_len: T.
        num_windows: number of windows in each row.
        lengths: (R,) number of inputs of each row with a target or as context; after them inputs are 0, targets -100.
        contexts: (R,) number of inputs at a row's beginning whose targets are -100.
        fingerprint: what :meth:`fingerprint` returns.
    """

    def __init__(
        self,
        codes: np.ndarray,
        starts: np.ndarray,
        seq_len: int,
        num_windows: int,
        lengths: np.ndarray | int,
        contexts: np.ndarray | int = 0,
        *,
        fingerprint: Callable[[], int],
    ) -> None:
        self.codes, self.starts, self.num_windows = codes, starts, num_windows
        self.lengths, self.contexts = np.broadcast_to(lengths, starts.shape), np.broadcast_to(contexts, starts.shape)
        self.columns = np.arange(seq_len)
        self.fingerprint = fingerprint
        # Most often every input of every row has a target.
        self.full = not self.contexts.any() and bool((self.lengths >= num_windows * seq_len).all())

    def __len__(self) -> int:
        return len(self.starts) * self.num_windows

    def __getitem__(self, indices: Tensor) -> TextBatch:
        window, row = np.divmod(indices.numpy(), len(self.starts))
        columns = window[:, None] * len(self.columns) + self.columns  # (B, T) places in the row
        places = self.starts[row][:, None] + columns
        if self.full:
            inputs, targets = self.codes[places].astype(np.int64), self.codes[places + 1].astype(np.int64)
        else:
            lengths, contexts = self.lengths[row][:, None], self.contexts[row][:, None]
            inside = columns < lengths
            places = np.where(inside, places, 0)
            inputs = np.where(inside, self.codes[places], np.int64(0))
            scored = inside & (columns >= contexts)
            targets = np.where(scored, self.codes[places + scored], np.int64(IGNORED))
        return TextBatch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(window == 0))


def _described(characters: Sequence[str]) -> str:
    """``'é' (U+00E9), 'ü' (U+00FC) and 2 more``."""
    shown = ", ".join(char if char == UNK else describe_char(char) for char in characters[:SHOWN])
    more = len(characters) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
