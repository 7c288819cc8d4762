"""Files of data sets: where they are looked for, how they are fetched and kept, and what is said where they are not."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tempfile
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any


def data_root(root: str | None = None) -> Path:
    """``root``, or else the environment's ``LIT_DATA``, or else ``data/``."""
    return Path(root or os.environ.get("LIT_DATA") or "data")


def cache_file(key: object, suffix: str) -> Path:
    """The file in ``$XDG_CACHE_HOME/lit-baselines`` (by default ``~/.cache/lit-baselines``) for what ``key`` describes.

    Args:
        key: anything whose ``repr`` tells all that the file's content depends on.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-baselines"
    return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}{suffix}"


def state_of(file: Path) -> tuple[str, int, int]:
    """What changes when a file does: its path, its size in bytes and its time of change in nanoseconds."""
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def fetch(address: str, file: Path, sha256: str) -> None:
    """Makes sure that ``file`` is there and whole, downloading it if it is not there.

    Raises:
        FileNotFoundError: it is not there and cannot be downloaded.
        ValueError: the file, or what was downloaded, is another one.
    """
    if file.exists():
        content, what, remedy = file.read_bytes(), f"{file}", "; delete it, and it is downloaded anew"
    else:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = answer.read()
        except (OSError, HTTPException) as error:  # the latter of a connection that breaks off
            reason = getattr(error, "reason", error)
            raise FileNotFoundError(f"{file}: not found; put there what is at {address} ({reason})") from error
        what, remedy = f"{address}: for {file}", ""
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{what}: its SHA-256 is {found[:16]}..., expected {sha256[:16]}...{remedy}")
    if not file.exists():
        write_whole(file, [content])


def require(path: Path, address: str) -> None:
    """Raises FileNotFoundError where nothing is at ``path``, which has to be downloaded by hand from ``address``."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; download it from {address}, unpack it and put it there")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is broken; names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def write_whole(file: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Writes a file that gets its name when it is whole; several processes may do so at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f"{file.name}.", suffix=".part", delete=False) as part:
        try:
            for piece in pieces:
                part.write(piece)
        except BaseException:
            os.unlink(part.name)
            raise
    os.chmod(part.name, 0o644)  # temporary files are their maker's alone
    os.replace(part.name, file)


def nearest(path: Path, *others: str) -> str:
    """``; did you mean …?`` of what is in the same folder and of ``others``, or nothing."""
    there = [str(path.with_name(entry.name)) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), [*there, *others], 1)
    return f"; did you mean {close[0]!r}?" if close else ""
