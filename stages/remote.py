"""Object stores: S3 by s3fs, everything else by whatever fsspec knows."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from stages.filesystems import filesystem, store_errors, translated
from stages.ranges import RangeFile, exact

PART_BYTES = 16 << 20  # of a multipart upload; S3 takes 10,000 parts
_CONFLICT_TRIES = 5
_create_lock = threading.Lock()


class Remote:
    """Objects of any fsspec filesystem (memory, gcs, ...). What is being written is held in memory until it is whole."""

    def __init__(self, root: str, patient: bool = True) -> None:
        self._root = root
        self._patient = patient
        self._impatient: Any = None

    @property
    def filesystem(self) -> Any:
        """Asked for at every use: after a fork it is another one."""
        if self._patient:
            return filesystem(self._root)[0]
        if self._impatient is None:
            self._impatient = filesystem(self._root, patient=False)[0]
        return self._impatient

    def read(self, path: str) -> bytes:
        """The whole object."""
        return bytes(self.filesystem.cat_file(path))

    def create(self, path: str, data: bytes) -> None:
        """One conditional write; FileExistsError where the store says that something is there."""
        with _create_lock:  # the memory store looks before it writes
            self.filesystem.pipe_file(path, data, mode="create")

    def write(self, path: str, data: bytes) -> None:
        """One write."""
        self.filesystem.pipe_file(path, data)

    @contextmanager
    def open_write(self, path: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        """A file that becomes the object when the block ends without an exception; `exclusive` as in `create`."""
        file = io.BytesIO()
        yield file
        (self.create if exclusive else self.write)(path, file.getvalue())

    def open_read(self, path: str) -> BinaryIO:
        """A seekable file; what reading it raises is translated."""
        size_bytes = self.size(path)
        if size_bytes is None:
            raise FileNotFoundError(path)

        def fetch(start: int, end: int) -> bytes:
            with translated(self._root):
                return exact(bytes(self.filesystem.cat_file(path, start=start, end=end)), start, end)

        return cast(BinaryIO, RangeFile(fetch, size_bytes))

    def size(self, path: str) -> int | None:
        """Bytes of the object, None where there is none."""
        try:
            found = self.filesystem.info(path)
        except FileNotFoundError:
            return None
        return None if found["type"] == "directory" else int(found["size"])

    def delete(self, path: str) -> None:
        """Removes the object, if there is one."""
        with suppress(FileNotFoundError):
            self.filesystem.rm_file(path)

    def list(self, folder: str, recursive: bool) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the objects below a folder."""
        for entry in _entries(self.filesystem, folder):
            if entry["type"] == "directory":
                if recursive:
                    yield from self.list(entry["name"], recursive)
            else:
                yield entry["name"], int(entry["size"])

    def folders(self, folder: str) -> Iterator[str]:
        """Names of the folders directly in a folder."""
        for entry in _entries(self.filesystem, folder):
            if entry["type"] == "directory":
                yield entry["name"].rstrip("/").rpartition("/")[2]


class S3(Remote):
    """Objects of an S3 bucket; paths are `bucket/key`."""

    def read(self, path: str) -> bytes:
        """The whole object in one request."""
        return bytes(self.filesystem.cat_file(path, max_concurrency=1))

    def create(self, path: str, data: bytes) -> None:
        """One conditional PUT. Two that collide are told to try again (409); the later one then finds the other's object."""
        for left in reversed(range(_CONFLICT_TRIES)):
            try:
                self.filesystem.pipe_file(path, data, mode="create")
            except OSError as error:
                if not left or not _is_conflict(error):
                    raise
            else:
                return

    @contextmanager
    def open_write(self, path: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        """One PUT, or a multipart upload that is completed at the end and aborted on an exception."""
        file = self.filesystem.open(path, "xb" if exclusive else "wb", block_size=PART_BYTES)
        try:
            yield cast(BinaryIO, file)
            _finish(file)
        except BaseException:
            file.closed = True  # or its finaliser would complete the upload
            with suppress(*store_errors()):  # an upload that cannot even be aborted stays unfinished, and unseen
                file.discard()
            raise

    def size(self, path: str) -> int | None:
        """Bytes of the object, None where there is none; one request."""
        bucket, key, _ = self.filesystem.split_path(path)
        try:
            return int(self.filesystem.call_s3("head_object", Bucket=bucket, Key=key)["ContentLength"])
        except FileNotFoundError:
            return None

    def list(self, folder: str, recursive: bool) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the objects below a folder, page by page, in the order of their keys."""
        bucket = folder.partition("/")[0]
        with suppress(FileNotFoundError):
            for page in s3_pages(self.filesystem, folder, recursive):
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/"):  # markers of folders
                        yield f"{bucket}/{item['Key']}", int(item["Size"])

    def folders(self, folder: str) -> Iterator[str]:
        """Names of the folders directly in a folder."""
        with suppress(FileNotFoundError):
            for page in s3_pages(self.filesystem, folder, recursive=False):
                for item in page.get("CommonPrefixes", ()):
                    yield item["Prefix"].rstrip("/").rpartition("/")[2]


def _entries(store: Any, folder: str) -> list[dict[str, Any]]:
    try:
        return sorted(store.ls(folder, detail=True), key=lambda entry: entry["name"])
    except (FileNotFoundError, NotADirectoryError):
        return []


def s3_pages(s3: Any, folder: str, recursive: bool = True, starts_with: str = "") -> Iterator[dict[str, Any]]:
    """Pages of at most 1000 keys below `bucket/folder` whose rest starts so; s3fs's own listings hold everything at once.

    FileNotFoundError where there is no such bucket.
    """
    bucket, _, prefix = folder.partition("/")
    request = {"Bucket": bucket, "Prefix": (f"{prefix}/" if prefix else "") + starts_with}
    request |= {} if recursive else {"Delimiter": "/"}
    token: dict[str, str] = {}
    while True:
        page = s3.call_s3("list_objects_v2", **request, **token)
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _finish(file: Any) -> None:
    """Completes an upload; on a conflict (409) once more, and without its condition where the store knows none."""
    finish = file.close
    for left in reversed(range(_CONFLICT_TRIES)):
        try:
            finish()
        except OSError as error:
            if refuses_conditions(error):
                file.mode = "wb"
            elif not left or not _is_conflict(error):
                raise
            finish = file.commit  # all its parts are in the store already
        else:
            file.closed = True
            return


def refuses_conditions(error: OSError) -> bool:
    """Whether the store said that it does not implement conditional writes."""
    return error.errno == errno.ENOSYS or _code(error) == "NotImplemented"


def _is_conflict(error: OSError) -> bool:
    return _code(error) in ("ConditionalRequestConflict", "409")


def _code(error: BaseException) -> str:
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
