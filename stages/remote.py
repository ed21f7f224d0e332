"""Object stores: S3 by s3fs, everything else by whatever fsspec knows."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, cast

from stages.filesystems import answered, filesystem, store_errors, translated
from stages.patience import BrokenAnswer
from stages.ranges import RangeFile, exact

DELETES_TOGETHER = 1000  # that S3 takes in one request
PART_BYTES = 16 << 20  # of a multipart upload; S3 takes 10,000 parts
_CONFLICT_TRIES = 5
_create_lock = threading.Lock()


class Replaced(OSError):
    """An object is not the one any more that it was."""


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
                return self.fetch(path, start, end)

        return cast(BinaryIO, RangeFile(fetch, size_bytes))

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """Bytes start..end of the object."""
        return exact(bytes(self.filesystem.cat_file(path, start=start, end=end)), start, end)

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
        return s3_bytes(self.filesystem, path)

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """Bytes start..end of the object, in one request."""
        return exact(s3_bytes(self.filesystem, path, start, end), start, end)

    def create(self, path: str, data: bytes) -> None:
        """One conditional PUT. Two that collide are told to try again (409); the later one then finds the other's object."""
        for left in reversed(range(_CONFLICT_TRIES)):
            try:
                self.filesystem.pipe_file(path, data, mode="create")
            except OSError as error:
                if _is_there(error):
                    raise FileExistsError("there is another one by now") from error
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

    def delete_together(self, paths: Sequence[str]) -> list[str]:
        """Removes objects of one bucket by one request; those that are still to be removed one by one, which says why.

        Not every store that speaks S3 knows this request.
        """
        by_key = {self.filesystem.split_path(path)[1]: path for path in paths}
        bucket = self.filesystem.split_path(paths[0])[0]
        wanted = {"Objects": [{"Key": key} for key in by_key], "Quiet": True}
        try:
            found = answered(partial(self.filesystem.call_s3, "delete_objects", Bucket=bucket, Delete=wanted))
        except store_errors():
            return list(paths)
        return [by_key[refused["Key"]] for refused in found.get("Errors", ())]

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
        page = answered(partial(s3.call_s3, "list_objects_v2", **request, **token))
        yield page
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def unquoted(etag: Any) -> str | None:
    """An etag without its quotes; None for an empty one."""
    return str(etag).removeprefix("W/").strip('"') or None if etag else None


def s3_bytes(s3: Any, path: str, start: int = 0, end: int | None = None, *, etag: str | None = None) -> bytes:
    """Bytes start..end of an object: fewer only where the object ends, whatever a server or a gateway says of its answer.

    Raises Replaced where the object's etag is not `etag` (without quotes) any more.
    """
    from fsspec.asyn import sync

    bucket, key, _ = s3.split_path(path)
    return answered(lambda: bytes(sync(s3.loop, _get, s3, bucket, key, start, end, etag)))


async def _get(s3: Any, bucket: str, key: str, start: int, end: int | None, etag: str | None) -> bytes:
    # A range also for the whole: only its answer says how long the object really is.
    wanted = f"bytes={start}-{'' if end is None else end - 1}"
    try:
        answer = await s3._call_s3("get_object", Bucket=bucket, Key=key, Range=wanted)
    except OSError as error:
        if _code(error) in ("InvalidRange", "416"):  # begins behind the object's end
            return b""
        raise
    if etag and unquoted(answer["ETag"]) != etag:
        answer["Body"].close()
        raise Replaced(f"had etag {etag}, has {unquoted(answer['ETag'])}")
    try:
        data = bytes(await answer["Body"].read())
    except store_errors() as error:
        raise BrokenAnswer(f"the answer broke off: {error}") from error
    finally:
        answer["Body"].close()
    total = str(answer.get("ContentRange", "")).rpartition("/")[2]
    if not total.isdigit():  # the whole, from a server that knows no ranges
        return data[start:end]
    count = (int(total) if end is None else min(end, int(total))) - start
    if len(data) != count:
        raise BrokenAnswer(f"asked for {count} bytes from {start} on, got {len(data)}")
    return data


def _finish(file: Any) -> None:
    """Completes an upload; on a conflict (409) once more, and without its condition where the store knows none."""
    finish = file.close
    for left in reversed(range(_CONFLICT_TRIES)):
        try:
            finish()
        except OSError as error:
            if _is_there(error):
                raise FileExistsError("there is another one by now") from error
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


def _is_there(error: OSError) -> bool:
    """Whether a condition was not met; not every store says which, as s3fs expects."""
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412")


def _is_conflict(error: OSError) -> bool:
    return _code(error) in ("ConditionalRequestConflict", "409")


def _code(error: BaseException) -> str:
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
