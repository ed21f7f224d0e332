"""Opening a source video: whatever goes wrong is a BadVideo, and a file that is no longer the one that was listed is `changed`.

A video is handed on as a file object, never as a URL: what FFmpeg may open is decided here.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

from schemas.errors import BadRequest, BadVideo, ErrorCode
from stages.filesystems import filesystem, is_url, local_path, reason, scheme, store_errors
from stages.ranges import RangeFile, exact
from stages.remote import Replaced, s3_bytes, unquoted
from stages.roots import ANYWHERE, Roots

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Found:
    """A file as the store knows it. `etag` without quotes; `mtime_ns` nanoseconds since 1970, as exact as the store has it."""

    size_bytes: int | None
    etag: str | None
    mtime_ns: int | None

    @property
    def version(self) -> str | None:
        """What tells two contents under one name apart: the etag, or the mtime in ns as text."""
        return self.etag or (None if self.mtime_ns is None else str(self.mtime_ns))


def describe(uri: str, roots: Roots = ANYWHERE) -> Found:
    """Size, etag and mtime of a source. Raises BadVideo (vanished, forbidden, storage; unreadable for what is no file)."""
    with _as_bad_video():
        roots.check(uri)
        if is_url(uri):
            return _describe_remote(uri)
        if not roots.uris:
            return _describe_status(os.stat(local_path(uri)))  # noqa: PTH116 - a name is data, Path would tidy it
        with _place(local_path(uri), roots) as place:
            return _describe_status(os.fstat(place))


def open_source(
    uri: str, size_bytes: int | None, etag: str | None, modified_at: datetime | None, roots: Roots = ANYWHERE
) -> BinaryIO:
    """The source as a seekable binary file, once it is sure that it is the one that was listed.

    Reading it raises BadVideo too. Give it back to `check_unchanged` (after closing) before believing what was read.

    Raises BadVideo: vanished, changed, empty, forbidden, storage, or unreadable where it is no file.
    """
    with _as_bad_video():
        roots.check(uri)
        if is_url(uri):
            found = _describe_remote(uri)
            _compare(found, size_bytes, etag, modified_at)
            return cast(BinaryIO, RangeFile(_fetcher(uri, found.etag), found.size_bytes or 0))
        return _open_local(local_path(uri), size_bytes, etag, modified_at, roots)


def check_unchanged(
    uri: str, size_bytes: int | None, etag: str | None, modified_at: datetime | None, roots: Roots = ANYWHERE
) -> None:
    """Raises BadVideo unless the source still is the one that was listed: called when a source has been read."""
    _compare(describe(uri, roots), size_bytes, etag, modified_at)


def read_head(uri: str, count: int, roots: Roots = ANYWHERE) -> bytes:
    """The first `count` bytes of a source, fewer where it is shorter. Raises BadVideo."""
    with _as_bad_video():
        roots.check(uri)
        if is_url(uri):
            store, path = filesystem(uri)
            return s3_bytes(store, path, 0, count) if scheme(uri) == "s3" else bytes(store.cat_file(path, start=0, end=count))
        with _open_local(local_path(uri), None, None, None, roots) as file:
            return file.read(count)


class _LocalFile(io.FileIO):
    """A file on disk whose read errors are BadVideo."""

    def read(self, size: int | None = -1, /) -> bytes:
        with _as_bad_video():
            return super().read(-1 if size is None else size) or b""

    def readinto(self, buffer: Any, /) -> int:
        with _as_bad_video():
            return super().readinto(buffer) or 0

    def readall(self) -> bytes:
        with _as_bad_video():
            return super().readall() or b""


@contextmanager
def _place(path: str, roots: Roots) -> Iterator[int]:
    """What a path leads to, held but not opened, once it is sure that it lies below a root."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        roots.check_open(place, path)
        yield place
    finally:
        os.close(place)


def _descriptor(path: str, roots: Roots) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # without O_NONBLOCK, opening a pipe waits for a writer for ever
    if not roots.uris:
        _describe_status(os.stat(path))  # noqa: PTH116 - a device is not even opened: that alone may do something
        return os.open(path, flags)
    with _place(path, roots) as place:
        _describe_status(os.fstat(place))
        return os.open(f"/proc/self/fd/{place}", flags)


def _open_local(path: str, size_bytes: int | None, etag: str | None, modified_at: datetime | None, roots: Roots) -> BinaryIO:
    descriptor = _descriptor(path, roots)
    try:
        _compare(_describe_status(os.fstat(descriptor)), size_bytes, etag, modified_at)
        return cast(BinaryIO, _LocalFile(descriptor, "rb"))
    except BaseException:
        os.close(descriptor)
        raise


def _fetcher(uri: str, etag: str | None) -> Callable[[int, int], bytes]:
    def fetch(start: int, end: int) -> bytes:
        with _as_bad_video():
            store, path = filesystem(uri)
            if scheme(uri) == "s3":
                return exact(s3_bytes(store, path, start, end, etag=etag), start, end)
            return exact(bytes(store.cat_file(path, start=start, end=end)), start, end)

    return fetch


def _describe_status(status: os.stat_result) -> Found:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise BadVideo(ErrorCode.UNREADABLE, f"is {kind}, not a file")
    return Found(status.st_size, None, status.st_mtime_ns)


def _describe_remote(uri: str) -> Found:
    store, path = filesystem(uri)
    if scheme(uri) == "s3":
        bucket, key, _ = store.split_path(path)
        return found_s3(store.call_s3("head_object", Bucket=bucket, Key=key))
    info = store.info(path)
    if info["type"] == "directory":
        raise BadVideo(ErrorCode.UNREADABLE, "is a folder, not a file")
    return found_info(info)


def found_s3(item: dict[str, Any]) -> Found:
    """From an object of a listing, or from the answer to HEAD."""
    size_bytes = item["Size"] if "Size" in item else item["ContentLength"]
    return Found(int(size_bytes), unquoted(item.get("ETag")), _nanoseconds(item.get("LastModified")))


def found_info(info: dict[str, Any]) -> Found:
    """From what fsspec says of a file; every filesystem calls these things differently."""
    etag = info.get("ETag") or info.get("etag")
    moment = next(
        (info[name] for name in ("mtime", "LastModified", "last_modified", "modified", "created") if info.get(name)), None
    )
    size_bytes = info.get("size")
    return Found(None if size_bytes is None else int(size_bytes), unquoted(etag), _nanoseconds(moment))


def _nanoseconds(moment: Any) -> int | None:
    """Of a datetime, of seconds as a number, or of an ISO text; microseconds at best, so that all spellings agree."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return None
    if isinstance(moment, datetime):
        return microseconds(moment) * 1000
    return None if moment is None else round(moment * 1e6) * 1000


def microseconds(moment: datetime) -> int:
    """Since 1970, exactly; a time without zone is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _compare(found: Found, size_bytes: int | None, etag: str | None, modified_at: datetime | None) -> None:
    if size_bytes is not None and found.size_bytes != size_bytes:
        raise BadVideo(ErrorCode.CHANGED, f"had {size_bytes} bytes when listed, has {found.size_bytes}")
    if etag is not None and found.etag != etag:
        raise BadVideo(ErrorCode.CHANGED, f"had etag {etag} when listed, has {found.etag}")
    if (
        etag is None
        and modified_at is not None
        and found.mtime_ns is not None
        and found.mtime_ns // 1000 != microseconds(modified_at)
    ):
        raise BadVideo(ErrorCode.CHANGED, f"was written to after it was listed (modified {modified_at.isoformat()} then)")
    if found.size_bytes == 0:
        raise BadVideo(ErrorCode.EMPTY, "has no bytes")


@contextmanager
def _as_bad_video() -> Iterator[None]:
    """What a store or a disk raises, as a BadVideo with its code."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadVideo(ErrorCode.VANISHED, "there is no such file") from error
    except Replaced as error:
        raise BadVideo(ErrorCode.CHANGED, str(error)) from error
    except PermissionError as error:
        raise BadVideo(ErrorCode.FORBIDDEN, reason(error)) from error
    except BadRequest as error:  # a scheme that is not installed here
        raise BadVideo(ErrorCode.STORAGE, str(error)) from error
    except store_errors() as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            raise BadVideo(ErrorCode.UNREADABLE, "is a link that leads in a circle") from error
        raise BadVideo(ErrorCode.STORAGE, reason(error)) from error
