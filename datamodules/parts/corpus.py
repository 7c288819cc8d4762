"""The text that a source stands for: its files, its characters, and their codes, never entirely in memory."""

from __future__ import annotations

import codecs
import sysconfig
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import cache_file, data_root, fetch, matching, nearest_path, state_of, write_whole
from common.vocabulary import UNK

SHIPPED = ("python", "tiny_shakespeare")
"""the sources that are no files of one's own"""

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


class Corpus:
    r"""The text of several files, one after the other, never entirely in memory.

    A file before another one ends in a line end: where it has none, ``\n`` is added, so that no two lines become one.

    Args:
        paths: of UTF-8 files.
        limit: number of characters to use from the beginning.
        printable_ascii: leave out lines with any other character.

    Attributes:
        length: number of characters.
        first_seen: each distinct character and the position where it first occurs, in the order of positions.
        completed: the files to which a line end was added.

    Raises:
        ValueError: there are no characters, or a file is not UTF-8; names the file and the byte.
    """

    def __init__(self, paths: Sequence[Path], limit: int | None = None, printable_ascii: bool = False) -> None:
        self.paths, self.limit, self.printable_ascii = paths, limit, printable_ascii
        self._begins = []  # the place of each file's first character
        self.first_seen: dict[str, int] = {}
        self.completed: set[Path] = set()
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
        for text in self._whole_lines(path):
            text = text if self.limit is None else text[: max(0, self.limit - used)]
            if not text:
                return
            used += len(text)
            yield text

    def _whole_lines(self, path: Path) -> Iterator[str]:
        """The text of a file, with a line end if another file follows."""
        chunks: Iterable[str] = _decoded(path)
        if self.printable_ascii:
            lines = "".join(chunks).split("\n")
            chunks = ["\n".join(line for line in lines if line.isascii() and (line.isprintable() or not line))]
        last = ""
        for text in chunks:
            yield text
            last = text[-1:] or last
        if last not in ("", "\n", "\r") and path != self.paths[-1]:
            yield "\n"
            self.completed.add(path)  # not reached if it is beyond the limit

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
            codes, end = np.empty(self.length, dtype), 0
            for piece in pieces():
                codes[end : end + len(piece)] = piece[: self.length - end]
                end += len(piece)
            return codes
        states = [state_of(path) for path in self.paths]
        cached = cache_file((states, self.limit, self.printable_ascii, list(vocab), unknown, "whole lines"), ".codes")
        if not cached.exists() or cached.stat().st_size != self.length * dtype.itemsize:
            write_whole(cached, (piece.data for piece in pieces()))
        return np.memmap(cached, dtype, "r")


def files_of(source: str, root: str | None) -> list[Path]:
    """The files of ``source``, in order: see :class:`~datamodules.text.CharText`.

    Raises:
        FileNotFoundError: there are none, or they cannot be downloaded.
        ValueError: ``source`` is empty.
    """
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
    if not source.strip():
        raise ValueError(f"source={source!r}: expected a file, a folder, a glob, {' or '.join(map(repr, SHIPPED))}")
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in matching(str(path / "**" / "*")) if file.is_file()]
        files = [file for file in found if file.suffix.lower() == ".txt"]
        if not files:
            raise FileNotFoundError(f"source={source!r}: no *.txt file in it{_others(path, found)}")
        return files
    files = [file for file in matching(str(path)) if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f"source={source!r}: no such file, folder or glob{nearest_path(path, *SHIPPED)}; expected one, "
            f"{' or '.join(map(repr, SHIPPED))}"
        )
    return files


def _others(folder: Path, files: Sequence[Path]) -> str:
    """What there is instead, and the glob for it."""
    endings = Counter(file.suffix for file in files if file.suffix)
    if not endings:
        return ", expected some"
    ending, count = endings.most_common(1)[0]
    return f", but {count} *{ending}; '{folder}/**/*{ending}' takes these"


def name_of(source: str) -> str:
    """A short name for a source."""
    return source if source in SHIPPED else Path(source).stem


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


def pieces(codes: np.ndarray) -> Iterator[Tensor]:
    """Codes in chunks; those on disk are read rather than mapped, which would hold them in memory."""
    for start in range(0, len(codes), CHUNK):
        count = min(CHUNK, len(codes) - start)
        if isinstance(codes, np.memmap):
            piece = np.fromfile(str(codes.filename), codes.dtype, count, offset=start * codes.dtype.itemsize)
        else:
            piece = codes[start : start + count]
        yield torch.from_numpy(piece)
