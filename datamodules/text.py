"""CharText: running text as characters, in rows that a recurrent network keeps reading from batch to batch."""

from __future__ import annotations

import codecs
import glob
import os
import sysconfig
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import floor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from common.checks import at_least, one_of, within
from common.distributed import rank_and_world_size
from common.files import cache_file, data_root, fetch, nearest_path, read_checkpoint, read_json, state_of, write_whole
from common.vocabulary import UNK, build_char_vocab, describe_char
from datamodules.parts import loader
from datamodules.parts.loader import TensorLoader

Part = Literal["train", "val", "test"]
Split = Literal["contiguous", "rows"]
WindowKind = Literal["stateful", "random"]
Unknown = Literal["error", "unk"]
PARTS = ("train", "val", "test")

IGNORED = -100
"""the target where there is none, as in PyTorch's cross-entropy"""

MODULES = (
    *("string", "argparse", "ast", "bdb", "bisect", "calendar", "cmd", "code", "codecs", "configparser", "contextlib"),
    *("copy", "csv", "dataclasses", "difflib", "enum", "filecmp", "fileinput", "fnmatch", "fractions", "functools"),
    *("getopt", "glob", "gzip", "hashlib", "heapq", "inspect", "io", "ipaddress", "linecache", "mailbox", "numbers"),
    *("operator", "optparse", "os", "pickle", "platform", "plistlib", "posixpath", "pprint", "queue", "random"),
    *("reprlib", "sched", "selectors", "shelve", "shlex", "shutil", "socket", "socketserver", "statistics"),
    *("subprocess", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "traceback", "types", "uuid"),
    *("warnings", "weakref"),
)
"""The modules that the source "python" reads: each is one file in Python 3.11 to 3.13, about 2 MB in all.

``string`` comes first since it spells out every printable character, so that every training part has all of them.
"""

TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

MEMORY_LIMIT = 64 * 2**20
"""size of the codes in bytes above which they are kept on disk and mapped into memory"""

CHUNK = 2**18
"""bytes of a file, or codes, that are processed together"""


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
        source: "python", the sources of Python's standard library (:data:`MODULES`, without the few lines that have
            anything but printable ASCII, so that the alphabet is the same for all versions of Python);
            "tiny_shakespeare" (1,115,394 characters), from ``root`` or else downloaded to it; or a file, a folder
            (all ``*.txt`` below it) or a glob. Several files are joined in the order of their paths.
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
            the vocabulary's first entry. Nothing is learned about it unless ``vocab`` comes from another text.
        vocab: the vocabulary, to continue training an old model on a new text; by default, the sorted characters of the
            training part.
        vocab_from: a file with the vocabulary: a checkpoint of the earlier run, or a JSON list of characters.
        limit: number of characters to use from the beginning of the text; by default all.

    Attributes:
        vocab: the characters, in the order of their codes.
        corpus_name: "python", "tiny_shakespeare", or the name of the file, folder or glob.

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
        unknown: Unknown = "error",
        vocab: list[str] | None = None,
        vocab_from: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, seq_len=seq_len, limit=limit)
        at_least(0, eval_context=eval_context)
        one_of(Split, split=split)
        one_of(WindowKind, windows=windows)
        one_of(Unknown, unknown=unknown)
        within("(0, 1)", val_fraction=val_fraction)
        within("[0, 1)", test_fraction=test_fraction)
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction}: expected less than 1 together"
            )
        if vocab is not None and vocab_from is not None:
            raise ValueError(f"vocab_from={vocab_from!r} with a vocab: expected only one of them")
        self.batch_size, self.seq_len, self.eval_context = batch_size, seq_len, eval_context
        self.split, self.windows, self.unknown = split, windows, unknown
        # Where a part begins, as a share of the text or of a row.
        self._shares = (0.0, 1 - val_fraction - test_fraction, 1 - test_fraction, 1.0)
        self.order_seed = torch.initial_seed()  # of seed_everything
        self.source = source
        self.corpus_name = _name(source)
        self.corpus = Corpus(_find(source, root), limit, printable_ascii=source == "python")
        given = vocab if vocab_from is None else read_vocab(vocab_from)
        self._is_own = given is None  # the vocabulary is that of the training part
        self.vocab = self._vocabulary(given)
        if given is not None:
            self._refuse_unknown()
        self._codes: np.ndarray | None = None
        self._check_lengths(batch_size)  # on one rank, if there are more of them: the sooner it is said the better

    def _vocabulary(self, given: Sequence[str] | None) -> list[str]:
        """``given``, or the vocabulary of the training part."""
        if given is None:
            end = self._bounds(self.corpus.length)[1] if self.split == "contiguous" else self.corpus.length
            seen = (char for char, place in self.corpus.first_seen.items() if place < end)
            return build_char_vocab(seen, self.unknown == "unk")
        vocab = list(given)
        if not vocab or any(len(char) != 1 for char in vocab if char != UNK) or len(set(vocab)) < len(vocab):
            raise ValueError(f"vocab={_shortened(vocab)}: expected single characters, each once, or {UNK!r}")
        if self.unknown == "unk" and UNK not in vocab:
            raise ValueError(f"unknown='unk': expected a vocabulary that has {UNK!r}, or 'error'")
        return vocab

    def _refuse_unknown(self) -> None:
        """Raises ValueError for the text's first character that is not in the vocabulary, if that is an error."""
        lacking = f"is not one of the given vocabulary's {len(self.vocab)}"
        remedy = "expected unknown: unk" if UNK in self.vocab else "expected a text without it"
        if self._is_own:
            lacking, remedy = "does not occur in the training part", "expected unknown: unk, or more text"
        known = set(self.vocab)
        for char, place in self.corpus.first_seen.items() if self.unknown == "error" else ():
            if char not in known:
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
            self._codes = self.corpus.encode(self.vocab, self.unknown)
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
        return loader.checksum(tensor for tensors in ([alphabet], _pieces(self.codes)) for tensor in tensors)

    def _rows(self) -> int:
        return self.batch_size * rank_and_world_size()[1]

    def _bounds(self, length: int) -> list[int]:
        """The positions at which train, val and test begin, and at which test ends."""
        return [floor(length * share + 1e-6) for share in self._shares]  # 1 - 0.9 is a little less than 0.1

    def _segments(self, part: str, rows: int) -> list[tuple[int, int]]:
        """Beginning and end of each unbroken run of a part's characters."""
        i = PARTS.index(part)
        length = self.corpus.length if self.split == "contiguous" else self.corpus.length // rows
        start, end = self._bounds(length)[i : i + 2]
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


class Corpus:
    """The text of several files, one after the other, never entirely in memory.

    Args:
        paths: of UTF-8 files.
        limit: number of characters to use from the beginning.
        printable_ascii: leave out lines with any other character.

    Attributes:
        length: number of characters.
        first_seen: each distinct character and the position where it first occurs, in the order of positions.

    Raises:
        ValueError: there are no characters, or a file is not UTF-8; names the file and the byte.
    """

    def __init__(self, paths: Sequence[Path], limit: int | None = None, printable_ascii: bool = False) -> None:
        self.paths, self.limit, self.printable_ascii = paths, limit, printable_ascii
        self._begins = []  # the place of each file's first character
        self.first_seen: dict[str, int] = {}
        self.length = 0
        seen = np.zeros(0x110000, bool)
        for path in paths:
            self._begins.append(self.length)
            for text in self._chunks(path, self.length):
                points = _code_points(text)
                new = np.unique(points[~seen[points]])
                seen[new] = True
                places = {chr(point): self.length + text.index(chr(point)) for point in new}
                self.first_seen.update(sorted(places.items(), key=lambda item: item[1]))
                self.length += len(text)
        if not self.length:
            raise ValueError(f"{paths[0]}: empty, expected text" + (" there or in a file after it" * (len(paths) > 1)))

    def _chunks(self, path: Path, used: int) -> Iterator[str]:
        """The text of a file, which ``used`` characters precede."""
        chunks: Iterable[str] = _decoded(path)
        if self.printable_ascii:
            lines = "".join(chunks).split("\n")
            chunks = ["\n".join(line for line in lines if line.isascii() and (line.isprintable() or not line))]
        for text in chunks:
            text = text if self.limit is None else text[: max(0, self.limit - used)]
            if not text:
                return
            used += len(text)
            yield text

    def where(self, place: int) -> str:
        """The file and the character in it, counted from 0."""
        i = bisect_right(self._begins, place) - 1
        return f"{self.paths[i]}: character {place - self._begins[i]}"

    def encode(self, vocab: Sequence[str], unknown: str = "error") -> np.ndarray:
        """Codes (length,) in the smallest of uint8, uint16 and int32; mapped from disk above :data:`MEMORY_LIMIT`.

        Every character is in ``vocab``, or ``unknown`` is "unk".

        Raises:
            ValueError: the text has changed since it was first read.
        """
        size = len(vocab)
        dtype = np.dtype(np.uint8 if size <= 2**8 else np.uint16 if size <= 2**16 else np.int32)
        table = np.full(0x110000, vocab.index(UNK) if unknown == "unk" else 0, dtype)
        for code, char in enumerate(vocab):
            if char != UNK:
                table[ord(char)] = code

        def pieces() -> Iterator[np.ndarray]:
            length = 0
            for path in self.paths:
                for text in self._chunks(path, length):
                    length += len(text)
                    yield table[_code_points(text)]
            if length != self.length:
                raise ValueError(f"{self.paths[0]}: {length} characters, expected {self.length}; it has just changed")

        if self.length * dtype.itemsize <= MEMORY_LIMIT:
            return np.concatenate(list(pieces()))
        states = [state_of(path) for path in self.paths]
        cached = cache_file((states, self.limit, self.printable_ascii, list(vocab), unknown), ".codes")
        if not cached.exists() or cached.stat().st_size != self.length * dtype.itemsize:
            write_whole(cached, (piece.data for piece in pieces()))
        return np.memmap(cached, dtype, "r")


def read_vocab(path: str) -> list[str]:
    """The vocabulary that a checkpoint's model was trained with, or the list in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file contains no vocabulary.
    """
    file = Path(path)
    if file.suffix != ".json":
        vocab = read_checkpoint(file, "vocab_from").get("hyper_parameters", {}).get("vocab")
    elif file.is_file():
        vocab = read_json(file)
    else:
        raise FileNotFoundError(f"vocab_from={path}: no such file{nearest_path(file)}")
    if not isinstance(vocab, list) or not all(isinstance(char, str) for char in vocab):
        raise ValueError(f"vocab_from={path}: its vocabulary is {_shortened(vocab)}, expected a list of characters")
    return vocab


def _find(source: str, root: str | None) -> list[Path]:
    """The files of ``source``, in order."""
    if source == "python":
        folder = Path(sysconfig.get_path("stdlib"))
        files = [folder / f"{module}.py" for module in MODULES]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: not found; this Python has no source code, use another 'source'")
        return files
    if source == "tiny_shakespeare":
        file = data_root(root) / "tiny_shakespeare" / "input.txt"
        fetch(TINY_SHAKESPEARE, file, TINY_SHAKESPEARE_SHA256)
        return [file]
    path = Path(source)
    if path.is_file():
        return [path]
    pattern = str(path / "**" / "*.txt") if path.is_dir() else source
    files = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if not files:
        near = nearest_path(path, "python", "tiny_shakespeare")
        what = "no *.txt file in it" if path.is_dir() else f"no such file, folder or glob{near}"
        raise FileNotFoundError(f"source={source!r}: {what}; expected one, 'python' or 'tiny_shakespeare'")
    return files


def _name(source: str) -> str:
    return source if source in ("python", "tiny_shakespeare") else Path(source).stem


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]} ..."


def _decoded(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in chunks, without a byte order mark."""
    with open(path, "rb") as file:
        offset = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(offset)
        pending = b""  # the beginning of a character whose end is in the next chunk
        while True:
            chunk = file.read(CHUNK)
            try:
                text, used = codecs.utf_8_decode(pending + chunk, "strict", not chunk)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: byte {offset + error.start}: not UTF-8 ({error.reason}), expected a UTF-8 text"
                ) from error
            pending, offset = (pending + chunk)[used:], offset + used
            if text:
                yield text
            if not chunk:
                return


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _pieces(codes: np.ndarray) -> Iterator[Tensor]:
    """Codes in chunks; those on disk are read rather than mapped, which would hold them in memory."""
    for start in range(0, len(codes), CHUNK):
        count = min(CHUNK, len(codes) - start)
        if isinstance(codes, np.memmap):
            piece = np.fromfile(str(codes.filename), codes.dtype, count, offset=start * codes.dtype.itemsize)
        else:
            piece = codes[start : start + count]
        yield torch.from_numpy(piece)
