"""Files: finding and fetching data sets, writing files atomically, and reading checkpoints as data."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import pickle
import tempfile
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from common.checks import nearest


def data_root(root: str | None = None) -> Path:
    """``root``, or else ``LIT_DATA`` in the environment, or else ``data/``."""
    return Path(root or os.environ.get("LIT_DATA") or "data").expanduser()


def matching(pattern: str) -> list[Path]:
    """The files and folders that a pattern matches, sorted; ``**`` stands for folders of any depth.

    As far as it names folders that there are, it is taken as it is: they may have brackets in their names.
    """
    path, there = Path(pattern), Path()
    if path.exists():
        return [path]
    rest = list(path.parts)
    while len(rest) > 1 and (there / rest[0]).is_dir():
        there /= rest.pop(0)
    return sorted(Path(found) for found in glob.glob(str(Path(glob.escape(str(there)), *rest)), recursive=True))


def existing(name: str) -> Path:
    """The path itself, or the one below the data folder if only that exists."""
    path, below = Path(name).expanduser(), data_root() / name
    return below if below.exists() and not path.exists() else path


def cache_file(key: object, suffix: str) -> Path:
    """The file in ``$XDG_CACHE_HOME/lit-baselines`` (by default ``~/.cache/lit-baselines``) for what ``key`` describes.

    Args:
        key: anything whose ``repr`` covers everything that the file's content depends on.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-baselines"
    return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}{suffix}"


def make_room(folder: Path, needed: int) -> bool:
    """Removes the oldest decoded pictures from the cache, so that ``needed`` more bytes fit into its share of the disk.

    They may take ``LIT_CACHE_GB`` of the environment, by default 20 GB.

    Returns:
        whether so many bytes are allowed at all.

    Raises:
        ValueError: ``LIT_CACHE_GB`` is no number.
    """
    allowed = os.environ.get("LIT_CACHE_GB") or "20"
    try:
        most = float(allowed) * 2**30
    except ValueError:
        raise ValueError(f"LIT_CACHE_GB={allowed}: expected a number of gigabytes") from None
    if needed > most:
        return False
    kept = sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime) if folder.is_dir() else []
    total = needed + sum(file.stat().st_size for file in kept)
    for file in kept:
        if total <= most:
            break
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)
    return True


def state_of(file: Path) -> tuple[str, int, int]:
    """The state of a file, which changes with it: its path, size in bytes and modification time in nanoseconds."""
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def fetch(address: str, file: Path, sha256: str) -> None:
    """Makes sure that ``file`` exists and is complete, downloading it if it does not exist.

    Raises:
        FileNotFoundError: it does not exist and cannot be downloaded.
        ValueError: the file, existing or downloaded, has the wrong checksum.
    """
    if file.exists():
        content, what, remedy = file.read_bytes(), f"{file}", "; delete it to download it again"
    else:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = answer.read()
        except (OSError, HTTPException) as error:  # the latter of a connection that breaks off
            reason = getattr(error, "reason", error)
            raise FileNotFoundError(f"{file}: not found; download it from {address} to this path ({reason})") from error
        what, remedy = f"{address}: for {file}", ""
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"{what}: its SHA-256 is {found[:16]}..., expected {sha256[:16]}...{remedy}")
    if not file.exists():
        write_whole(file, [content])


def require(path: Path, address: str) -> None:
    """Raises FileNotFoundError if ``path``, which must be downloaded by hand from ``address``, does not exist."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; download it from {address}, unpack it and put it there")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is broken; names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def write_whole(file: Path, content: str | Iterable[bytes | memoryview]) -> None:
    """Writes text, or pieces one after another, to a file that gets its name once it is complete.

    Readers never see half a file, and several processes may write it at the same time.
    """
    pieces = [content.encode()] if isinstance(content, str) else content
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", suffix=".part", delete=False) as part:
        try:
            for piece in pieces:
                part.write(piece)
        except BaseException:
            os.unlink(part.name)
            raise
    os.chmod(part.name, 0o644)  # temporary files are their maker's alone
    os.replace(part.name, file)


def nearest_path(path: Path, *others: str) -> str:
    """``; did you mean …?`` with a name from the same folder or from ``others``, or nothing."""
    there = [str(path.with_name(entry.name)) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(str(path), [name for name in (*there, *others) if name != str(path)], cutoff=0.6)


class BrokenCheckpoint(ValueError):
    """A checkpoint cannot be read, or contains more than data."""


def read_checkpoint(path: Path, argument: str = "") -> dict[str, Any]:
    """The content of a Lightning checkpoint; its tensors are read from the file as they are used.

    Args:
        argument: what the path was given as, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenCheckpoint: the file is cut off or no checkpoint, or holds more than tensors and plain data.
    """
    import torch  # not for those who only compare runs

    where = f"{argument}={path}" if argument else f"{path}"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no such file; expected a checkpoint{nearest_path(path)}")
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # PyTorch before 1.6 wrote another format, which cannot be mapped
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a file that is no checkpoint can make the unpickler raise almost anything
        holds_more = isinstance(error, pickle.UnpicklingError) and is_zip
        what = "refused, because it holds more than tensors and plain data" if holds_more else "broken"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BrokenCheckpoint(f"{where}: {what} ({reason})") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise BrokenCheckpoint(f"{where}: expected a checkpoint of Lightning, which has a 'state_dict'")
    return content
