"""Where the pictures of a data set come from: a folder, a zip or tar file, or a text file that lists them.

Each can be read in any process, one picture at a time, and none of them is listed as a whole in memory but a folder's
own names, which are sorted. A tar file that is compressed can only be read from its beginning: where it is listed, each
picture is read, and goes to other processes with its name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ddim_ode.files import read_file
from ddim_ode.images import ImageFileError
from ddim_ode.training.data import DataError, PictureZip, check_member, is_picture, too_large

# What begins a compressed file, and what opens it.
_COMPRESSED: Mapping[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_ZIP = b"PK"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LONGEST_LINE = 1 << 16


class Entry(NamedTuple):
    """A picture by its ``name``; in a tar file with its first byte and its length, or with its ``content``."""

    name: str
    start: int = 0
    size: int = 0
    content: bytes | None = None


class Pictures(Protocol):
    """Pictures that can be listed and read."""

    def entries(self) -> Iterator[Entry]:
        """All of them, in an order that does not change."""

    def read(self, entry: Entry) -> bytes:
        """The content of one of them.

        Raises:
            ImageFileError: if it cannot be read.
        """

    def close(self) -> None:
        """Close what is open."""


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> Iterator[Entry]:
        return self._below("", frozenset())

    def _below(self, folder: str, above: frozenset[str]) -> Iterator[Entry]:
        """All pictures in ``folder`` and below it, but not in folders that are ``above`` it, by a link."""
        real = os.path.realpath(self._root / folder)
        if real in above:
            return
        for name in sorted(os.listdir(real)):
            path = os.path.join(folder, name)
            if os.path.isdir(self._root / path):
                yield from self._below(path, above | {real})
            elif is_picture(path):
                yield Entry(path)

    def read(self, entry: Entry) -> bytes:
        return read_file(self._root / entry.name, "picture", ImageFileError)

    def close(self) -> None:
        pass


class _Zip:
    def __init__(self, path: Path) -> None:
        self._zip = PictureZip(path)

    def entries(self) -> Iterator[Entry]:
        return (Entry(name) for name in self._zip.names() if is_picture(name))

    def read(self, entry: Entry) -> bytes:
        return self._zip.read(entry.name)

    def close(self) -> None:
        self._zip.close()


class _Watched(io.BufferedReader):
    """A file that keeps what was read last."""

    last = b""

    def read(self, size: int | None = -1, /) -> bytes:
        self.last = super().read(size)
        return self.last


def _members(
    path: Path, opened: Callable[..., Any], make: Callable[[tarfile.TarFile, tarfile.TarInfo], Entry]
) -> Iterator[Entry]:
    """What ``make`` makes of each picture in a tar file, ``opened``, before the next one is read."""
    try:
        with opened(path) as raw, _Watched(raw) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or else it keeps them all
                if member.isreg() and not member.issparse() and is_picture(member.name):
                    yield make(tar, member)
            # tarfile takes whatever is no header for the end, which is zeros, or where the file ends.
            if file.last.strip(b"\0"):
                raise tarfile.ReadError("what follows the last of its files is damaged")
            while file.read(1 << 20):  # up to the sum that a compressed one ends with
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot read the tar file '{path}': {error}") from error


class _Tar:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")

    def entries(self) -> Iterator[Entry]:
        return _members(
            self._path, partial(open, mode="rb"), lambda _, member: Entry(member.name, member.offset_data, member.size)
        )

    def read(self, entry: Entry) -> bytes:
        check_member(entry.name, entry.size)
        self._file.seek(entry.start)
        content = self._file.read(entry.size)
        if len(content) != entry.size:
            raise ImageFileError(f"cannot read '{entry.name}': the tar file is cut off")
        return content

    def close(self) -> None:
        self._file.close()


class _CompressedTar:
    def __init__(self, path: Path, opened: Callable[..., Any]) -> None:
        self._path, self._opened = path, opened
        next(self.entries(), None)  # which refuses what is none

    def entries(self) -> Iterator[Entry]:
        return _members(self._path, self._opened, self._entry)

    @staticmethod
    def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
        file = None if too_large(member.size) else tar.extractfile(member)
        return Entry(member.name, size=member.size, content=file.read() if file else None)

    def read(self, entry: Entry) -> bytes:
        check_member(entry.name, entry.size)
        return entry.content or b""

    def close(self) -> None:
        pass


class _List:
    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Iterator[Entry]:
        try:
            with self._path.open(encoding="utf-8-sig") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    if "\0" in line or len(line) == _LONGEST_LINE:
                        raise ValueError("a line is no name of a file")
                    if name := line.rstrip("\r\n"):
                        yield Entry(name)
        except ValueError as error:
            raise DataError(
                f"'{self._path}' is neither a folder, a zip or tar file of pictures, nor a text file that names a "
                f"picture in each line: {error}"
            ) from None

    def read(self, entry: Entry) -> bytes:
        return read_file(self._path.parent / entry.name, "picture", ImageFileError)

    def close(self) -> None:
        pass


def open_pictures(source: Path) -> Pictures:
    """The pictures in the folder or file ``source``; the names in a text file are relative to its own folder.

    Raises:
        DataError: if there is no such thing, or it is of another kind.
    """
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            return _Folder(source)
        if not stat.S_ISREG(mode):
            raise DataError(f"'{source}' is a device, a pipe or a socket; name a folder or a file of pictures")
        return _open_file(source)
    except FileNotFoundError:
        raise DataError(f"there is no folder or file '{source}'") from None
    except OSError as error:
        raise DataError(f"cannot read '{source}': {error.strerror or error}") from error


def _open_file(path: Path) -> Pictures:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_ZSTD):
        raise DataError(f"'{path}' is compressed with zstd, which is not read here; uncompress it first")
    for begin, opened in _COMPRESSED.items():
        if start.startswith(begin):
            return _CompressedTar(path, opened)
    # First, since a tar file whose last member is a zip file ends as one does.
    if not start.startswith(_ZIP) and _is_tar(path):
        return _Tar(path)
    if not zipfile.is_zipfile(path):
        return _List(path)
    try:
        return _Zip(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise DataError(f"cannot read the zip file '{path}': {error}") from error


def _is_tar(path: Path) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, ValueError):
        return False
    return True
