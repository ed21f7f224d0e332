"""A root folder for tables, log and staged parts: on disk, in memory, on S3 or on any store that fsspec knows.

Whatever the store, an object is there whole or not at all. Errors: FileNotFoundError and FileExistsError where a method
says so, StorageUnavailable (stop, go on later) for every other trouble with the store, BadRequest from `check_writable`.
"""

from __future__ import annotations

import io
import os
import posixpath
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from schemas.errors import BadRequest
from schemas.secrets import redacted
from stages.disk import TEMPORARY_PREFIX, Disk
from stages.filesystems import (
    StorageUnavailable,
    filesystem,
    is_url,
    joined,
    normalised,
    reason,
    scheme,
    store_errors,
    translated,
)
from stages.remote import DELETES_TOGETHER, S3, Remote, refuses_conditions

__all__ = ["ObjectInfo", "StorageUnavailable", "Store"]

DELETED_IN_A_ROW = 16  # by one thread: of a disk, whose answer takes less than handing over to a thread


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    size_bytes: int


class _Backend(Protocol):
    def read(self, path: str) -> bytes: ...
    def create(self, path: str, data: bytes) -> None: ...
    def write(self, path: str, data: bytes) -> None: ...
    def open_write(self, path: str, exclusive: bool = False) -> Any: ...
    def open_read(self, path: str) -> BinaryIO: ...
    def size(self, path: str) -> int | None: ...
    def delete(self, path: str) -> None: ...
    def list(self, folder: str, recursive: bool) -> Iterator[tuple[str, int]]: ...
    def folders(self, folder: str) -> Iterator[str]: ...


class Store:
    """A root and what lies below it, by keys that are relative and '/'-separated. Pickles as its root.

    Raises BadRequest for a root that carries credentials, or that fsspec does not know.
    """

    def __init__(self, root: str) -> None:
        self.root = normalised(root)
        if is_url(self.root):
            filesystem_path = filesystem(self.root)[1]
            self._base = str(filesystem_path).rstrip("/")
        else:
            self._base = self.root

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.root,)

    def __repr__(self) -> str:
        return f"Store({redacted(self.root)!r})"

    @cached_property
    def _backend(self) -> _Backend:
        return _backend(self.root)

    def read(self, key: str) -> bytes:
        """The whole object; FileNotFoundError where there is none."""
        with translated(self.uri(key)):
            return self._backend.read(self._path(key))

    def create(self, key: str, data: bytes) -> None:
        """Makes an object that must not be there yet; FileExistsError where there is one with other content.

        An equal object is taken for ours: the answer to a write that succeeded may have been lost, so callers make content
        unique by a token. On a store without conditional writes (see `conditional_writes`) two creators at the same instant
        may both believe that they won.
        """
        path = self._path(key)
        with translated(self.uri(key), missing_is_trouble=True):
            is_ours = self._backend.size(path) is None and self._created(path, data)
        if not is_ours and self.read(key) != data:
            raise FileExistsError(f"{redacted(self.uri(key))} is there already")

    def _created(self, path: str, data: bytes) -> bool:
        try:
            self._backend.create(path, data)
        except FileExistsError:
            return False
        except OSError as error:
            if not refuses_conditions(error):
                raise
            self._backend.write(path, data)
        return True

    def write(self, key: str, data: bytes) -> None:
        """Makes or replaces an object, at once."""
        with translated(self.uri(key), missing_is_trouble=True):
            self._backend.write(self._path(key), data)

    @contextmanager
    def open_write(self, key: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        """A binary file that becomes the object, whole, when the block ends; after an exception nothing appears.

        With `exclusive`, FileExistsError at the end where an object is there already (it may be ours: the answer to a write
        that succeeded can get lost); on a store without conditional writes the later one replaces the earlier.
        """
        opened = self._backend.open_write(self._path(key), exclusive)
        with translated(self.uri(key), missing_is_trouble=True):
            file = opened.__enter__()
        try:
            yield cast(BinaryIO, _Written(file, self.uri(key)))
        except BaseException as error:
            with suppress(*store_errors()):  # throwing away what was begun fails like writing it did: that is what counts
                opened.__exit__(type(error), error, error.__traceback__)
            raise
        else:
            with translated(self.uri(key), missing_is_trouble=True):
                opened.__exit__(None, None, None)

    def open_read(self, key: str) -> BinaryIO:
        """A seekable binary file; FileNotFoundError where there is no object."""
        with translated(self.uri(key)):
            return self._backend.open_read(self._path(key))

    @contextmanager
    def known(self, key: str) -> Iterator[None]:
        """Around reading an object that must be there: StorageUnavailable where it is not found and, asked again, is there.

        Some gateways and caches forget for a moment. FileNotFoundError where it is gone.
        """
        try:
            yield
        except FileNotFoundError as error:
            if not self.exists(key):
                raise
            raise StorageUnavailable(f"{redacted(self.uri(key))}: was not found, and then was there") from error

    def list(self, prefix: str = "", recursive: bool = True) -> Iterator[ObjectInfo]:
        """Objects below the folder `prefix` ("" is the root), streamed; a folder that is not there holds none.

        `recursive=False` lists those directly in it. Files that are still being written are left out.
        """
        folder = self._path(prefix.strip("/")) if prefix.strip("/") else self._base
        with translated(self.uri(prefix)):
            for path, size_bytes in self._backend.list(folder, recursive):
                yield ObjectInfo(path[len(self._base) :].lstrip("/").replace(os.sep, "/"), size_bytes)

    def folders(self, prefix: str = "") -> Iterator[str]:
        """Names of the folders directly in the folder `prefix`, without a slash."""
        with translated(self.uri(prefix)):
            yield from self._backend.folders(self._path(prefix.strip("/")) if prefix.strip("/") else self._base)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        with translated(self.uri(key)):
            return self._backend.size(self._path(key))

    def delete(self, key: str) -> None:
        """Removes an object; that it is not there is fine."""
        with translated(self.uri(key)):
            self._backend.delete(self._path(key))

    @property
    def deletes_together(self) -> int:
        """Objects that `delete_all` takes at once: few where the store removes them one by one anyway."""
        return DELETES_TOGETHER if isinstance(self._backend, S3) else DELETED_IN_A_ROW

    def delete_all(self, keys: Sequence[str]) -> None:
        """Removes objects, at most `deletes_together` of them; that some are not there is fine."""
        left, backend = [self._path(key) for key in keys], self._backend
        if isinstance(backend, S3) and len(left) > 1:
            with translated(self.root):
                left = backend.delete_together(left)
        remaining = frozenset(left)
        for key in keys:
            if self._path(key) in remaining:
                self.delete(key)

    def uri(self, key: str) -> str:
        """Full path or URL of a key."""
        return joined(self.root, key.strip("/")) if key.strip("/") else self.root

    def conditional_writes(self) -> bool:
        """Whether the store keeps two creators from both winning; tried out on a small object that is removed again."""
        key = f"_probe-{secrets.token_hex(8)}"
        path = self._path(key)
        with translated(self.uri(key), missing_is_trouble=True):
            try:
                self._backend.create(path, b"first")
                self._backend.create(path, b"second")
            except FileExistsError:
                return True
            except OSError as error:
                if not refuses_conditions(error):
                    raise
            finally:
                self._backend.delete(path)
        return False

    def check_writable(self) -> None:
        """Raises BadRequest, one line that names the root, unless objects can be made in it. Leaves nothing behind."""
        try:
            if is_url(self.root):
                backend = _backend(self.root, patient=False)
                path = self._path(f"_probe-{secrets.token_hex(8)}")
                backend.write(path, b"probe")
                backend.delete(path)
            else:
                _check_folder_writable(Path(self.root))
        except store_errors() as error:
            raise BadRequest(f"output {redacted(self.root)} is not writable: {reason(error)}") from error

    def _path(self, key: str) -> str:
        if not key or posixpath.normpath(key) != key or key.startswith(("/", "../")) or key in (".", ".."):
            raise ValueError(f"not a key: {key!r}")
        return f"{self._base.rstrip('/')}/{key}"


class _Written(io.RawIOBase):
    """What a caller writes to: the store's trouble is StorageUnavailable, the caller's own exceptions stay what they are."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        super().__init__()
        self._file = file
        self._uri = uri

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any, /) -> int:
        with translated(self._uri, missing_is_trouble=True):
            return self._file.write(data)


def _backend(root: str, patient: bool = True) -> _Backend:
    if not is_url(root):
        return Disk()
    return S3(root, patient) if scheme(root) == "s3" else Remote(root, patient)


def _check_folder_writable(root: Path) -> None:
    """Writes beside where the root would be made, so that a refused request leaves no folder."""
    folder = next(folder for folder in (root, *root.parents) if os.path.lexists(folder))
    probe = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with open(probe, "xb"):
        probe.unlink()
