"""The files of a folder or an archive: listed, checked and read, and never unpacked to disk."""

from __future__ import annotations

import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import nearest_path, state_of
from common.pictures import EXTENSIONS

MEMBER_LIMIT = 2**28
"""bytes that one file of an archive may unpack to"""


class Files:
    """The files below a folder or in an archive.

    Attributes:
        path: of the folder or archive.
        sizes: size in bytes of each file by its name, with ``/`` between its parts, in the best order for reading.
        folders: names of the listed folders; an archive may leave them out.
    """

    sizes: dict[str, int]
    folders: list[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    def where(self, name: str) -> str:
        return f"{self.path}: member {name}"

    def read(self, name: str) -> bytes:
        """Raises OSError, or the error of the archive's own module, if the file is broken."""
        raise NotImplementedError

    def state(self) -> object:
        """Changes when a file does."""
        return state_of(self.path)


class Folder(Files):
    """Links are followed: a folder is its owner's own."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sizes, self.folders = {}, []
        around: dict[str, set[str]] = {}  # a link to a folder above it would be followed for ever
        for place, folders, files in os.walk(path, followlinks=True):
            real, above_it = os.path.realpath(place), around.get(os.path.dirname(place), set())
            if real in above_it:
                folders.clear()
                continue
            around[place] = above_it | {real}
            above = Path(place).relative_to(path)
            self.folders += [(above / folder).as_posix() for folder in folders]
            for file in files:
                full = Path(place) / file
                self.sizes[(above / file).as_posix()] = full.stat().st_size if full.exists() else 0

    def where(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        file = self.path / name
        if file.exists() and not file.is_file():
            raise OSError("a pipe or a device, expected a file")  # which could be waited for without end
        return file.read_bytes()

    def state(self) -> object:
        return [state_of(self.path / name) for name in sorted(self.sizes) if (self.path / name).exists()]


class Single(Files):
    """One file by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sizes, self.folders = {path.name: path.stat().st_size}, []

    def where(self, name: str) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        return self.path.read_bytes()


class Archive(Files):
    """A ``.zip``, or a ``.tar``, compressed or not.

    Raises:
        ValueError: it is not an archive or is broken; a member leads out of its folder, occurs twice, is a link, or is
            larger than :data:`MEMBER_LIMIT`; names the member.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_zip = path.suffix.lower() == ".zip"
        self._opened: tuple[int, Any] = (0, None)
        try:
            members = list(self._members())
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            reason = str(error).split("\n")[0].rstrip(":") or "it ends early"
            raise ValueError(f"{path}: neither a complete .zip nor a complete .tar: {reason}") from error
        self.sizes, self.folders, self._members_by_name = {}, [], {}
        for member, name, size, kind in members:
            parts = name.replace("\\", "/").split("/")
            if kind == "link":
                raise ValueError(f"{self.where(name)}: a link or a device, expected only files and folders")
            if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
                raise ValueError(f"{self.where(name)}: its name leads out of the archive's folder")
            if size > MEMBER_LIMIT:
                raise ValueError(f"{self.where(name)}: {size} bytes, expected at most {MEMBER_LIMIT}")
            # Some programs of Windows write "\\" into a .zip; in a .tar it may be part of a name.
            name = "/".join(part for part in (parts if self.is_zip else name.split("/")) if part not in ("", "."))
            if kind == "folder":
                self.folders.append(name)
            elif name in self.sizes:
                raise ValueError(f"{self.where(name)}: occurs twice, expected once")
            else:
                self.sizes[name], self._members_by_name[name] = size, member

    def _members(self) -> Iterator[tuple[Any, str, int, str]]:
        """Each member, its name, its size in bytes, and whether it is a file, a folder or a link."""
        archive = self._open()
        if self.is_zip:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
                is_link = stat.S_ISLNK(entry.external_attr >> 16)
                kind = "link" if is_link else "folder" if entry.filename.endswith(("/", "\\")) else "file"
                yield entry, entry.filename, entry.file_size, kind
        else:
            for entry in archive:
                kind = "file" if entry.isreg() else "folder" if entry.isdir() else "link"
                yield entry, entry.name, entry.size, kind
            # A header that is cut off or damaged would end the archive without a word; its true end is a block of 0.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it is truncated or damaged at byte {archive.offset}")
            while archive.fileobj.read(2**20):  # to where compression has its checksum
                pass

    def _open(self) -> Any:
        """The archive, opened once per process: workers sharing a file would move each other's position in it."""
        if self._opened[0] != os.getpid():
            opened = zipfile.ZipFile(self.path) if self.is_zip else tarfile.open(self.path)  # noqa: SIM115, kept open
            self._opened = (os.getpid(), opened)
        return self._opened[1]

    def read(self, name: str) -> bytes:
        archive, member = self._open(), self._members_by_name[name]
        if self.is_zip:
            content: bytes = archive.read(member)
            return content
        content = archive.extractfile(member).read()
        return content

    def is_compressed_tar(self) -> bool:
        """A compressed archive, in which reading a member means unpacking all members before it."""
        return not self.is_zip and not isinstance(self._open().fileobj, io.BufferedReader)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": (0, None)}  # for workers that are spawned rather than forked


def files_in(path: Path) -> Files:
    """The files of a folder, a ``.zip``, or a ``.tar``, compressed or not.

    Raises:
        FileNotFoundError: there is no such path. ValueError: see :class:`Archive`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder, .zip or .tar{nearest_path(path)}")
    if path.is_dir():
        return Folder(path)
    is_picture = path.is_file() and path.suffix.lower() in EXTENSIONS
    return Single(path) if is_picture else Archive(path)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, like ``.DS_Store`` and the files that macOS adds to archives."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
