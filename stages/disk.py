"""A folder on disk as an object store: whole objects appear by rename, and survive a crash once they are there."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Hidden, so that readers of a table skip it; and it never ends in .parquet.
TEMPORARY_PREFIX = ".tmp-"
# Filesystems without hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Disk:
    """Objects as files below a folder; paths are absolute."""

    def read(self, path: str) -> bytes:
        """The whole object."""
        return Path(path).read_bytes()

    def create(self, path: str, data: bytes) -> None:
        """The object appears whole, or FileExistsError."""
        with self.open_write(path, exclusive=True) as file:
            file.write(data)

    def write(self, path: str, data: bytes) -> None:
        """The object appears whole, in place of what was there."""
        with self.open_write(path) as file:
            file.write(data)

    @contextmanager
    def open_write(self, path: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        """A file that becomes the object when the block ends without an exception; `exclusive` as in `create`."""
        with self._temporary(path) as (file, temporary):
            yield file
            _sync(file)
            if exclusive:
                _link(temporary, path)
            else:
                temporary.replace(path)
        _sync_folder(Path(path).parent)

    @contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[BinaryIO, Path]]:
        """A new file beside `path`, gone afterwards unless it was renamed."""
        folder = Path(path).parent
        _make_folder(folder)
        temporary = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                yield file, temporary
        finally:
            temporary.unlink(missing_ok=True)

    def open_read(self, path: str) -> BinaryIO:
        """A seekable file."""
        return open(path, "rb")

    def size(self, path: str) -> int | None:
        """Bytes of the object, None where there is none."""
        try:
            found = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if stat.S_ISDIR(found.st_mode) else found.st_size

    def delete(self, path: str) -> None:
        """Removes the object, if there is one."""
        with suppress(FileNotFoundError, NotADirectoryError):
            Path(path).unlink()

    def list(self, folder: str, recursive: bool) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the objects below a folder, in the order of their keys."""
        for name, is_folder in _entries(folder):
            path = f"{folder.rstrip('/')}/{name.rstrip('/')}"
            if is_folder:
                if recursive:
                    yield from self.list(path, recursive)
            elif (size_bytes := self.size(path)) is not None:  # one that was deleted meanwhile is not there
                yield path, size_bytes

    def folders(self, folder: str) -> Iterator[str]:
        """Names of the folders directly in a folder."""
        return (name.rstrip("/") for name, is_folder in _entries(folder) if is_folder)


def _entries(folder: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as found:
            entries = [(entry.name + "/" * entry.is_dir(), entry.is_dir()) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(entry for entry in entries if not entry[0].startswith(TEMPORARY_PREFIX))


def _link(temporary: Path, path: str) -> None:
    """Puts a file in a place that must be free. Without hard links: looked at first, so two at the same instant may collide."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from error
        temporary.replace(path)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes a rename or a new entry survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:  # not "the object is there"
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    _sync_folder(folder.parent)
