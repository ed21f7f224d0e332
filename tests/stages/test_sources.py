"""Opening sources: on disk, in memory and on S3."""

from __future__ import annotations

import io
import os
import secrets
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import BadVideo, ErrorCode
from stages import filesystems
from stages.filesystems import local_uri
from stages.ranges import RangeFile, exact
from stages.sources import Found, check_unchanged, describe, found_info, microseconds, open_source, read_head
from stages.storage import Store
from tests.s3 import S3Server, environment

DATA = secrets.token_bytes(1000)


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path))
    if request.param == "memory":
        return Store(f"memory://{secrets.token_hex(8)}")
    return Store(request.getfixturevalue("s3").bucket())


def modified_at(found: Found) -> datetime | None:
    return None if found.mtime_ns is None else datetime.fromtimestamp(0, UTC) + timedelta(microseconds=found.mtime_ns // 1000)


def code_of(act: Callable[[], object]) -> ErrorCode:
    with pytest.raises(BadVideo) as caught:
        act()
    return caught.value.code


def test_a_source_that_is_as_it_was_listed_opens_and_stays_unchanged(store: Store) -> None:
    store.write("a b#%.mp4", DATA)
    uri = store.uri("a b#%.mp4")
    found = describe(uri)
    with open_source(uri, found.size_bytes, found.etag, modified_at(found)) as file:
        assert file.read(10) == DATA[:10]
        assert file.seek(-10, os.SEEK_END) == 990
        assert file.read() == DATA[-10:]
        assert file.seek(500) == 500
        buffer = bytearray(4)
        assert file.readinto(buffer) == 4  # type: ignore[attr-defined]
        assert bytes(buffer) == DATA[500:504]
    check_unchanged(uri, found.size_bytes, found.etag, modified_at(found))
    assert read_head(uri, 100) == DATA[:100]
    assert read_head(uri, 5000) == DATA


def test_a_source_replaced_by_one_of_the_same_size_is_changed(store: Store) -> None:
    store.write("a.mp4", DATA)
    uri = store.uri("a.mp4")
    found = describe(uri)
    listed = (uri, found.size_bytes, found.etag, modified_at(found))
    file = open_source(*listed)
    store.write("a.mp4", DATA[::-1])
    file.close()
    assert code_of(lambda: check_unchanged(*listed)) is ErrorCode.CHANGED
    assert code_of(lambda: open_source(*listed)) is ErrorCode.CHANGED


def test_a_source_of_another_size_is_changed_and_one_that_shrank_to_nothing_too(store: Store) -> None:
    store.write("a.mp4", DATA)
    assert code_of(lambda: open_source(store.uri("a.mp4"), 999, None, None)) is ErrorCode.CHANGED
    store.write("a.mp4", b"")
    assert code_of(lambda: open_source(store.uri("a.mp4"), 1000, None, None)) is ErrorCode.CHANGED


def test_an_empty_source_is_empty(store: Store) -> None:
    store.write("a.mp4", b"")
    assert code_of(lambda: open_source(store.uri("a.mp4"), 0, None, None)) is ErrorCode.EMPTY


def test_a_source_that_is_gone_has_vanished(store: Store) -> None:
    store.write("a.mp4", DATA)
    uri = store.uri("a.mp4")
    found = describe(uri)
    store.delete("a.mp4")
    assert code_of(lambda: open_source(uri, found.size_bytes, found.etag, modified_at(found))) is ErrorCode.VANISHED
    assert code_of(lambda: check_unchanged(uri, found.size_bytes, found.etag, modified_at(found))) is ErrorCode.VANISHED


def test_a_folder_is_no_source(tmp_path: Path) -> None:
    assert code_of(lambda: open_source(str(tmp_path), None, None, None)) is ErrorCode.UNREADABLE
    Store("memory://folder-as-source").write("inner/a.mp4", DATA)
    assert code_of(lambda: open_source("memory://folder-as-source/inner", None, None, None)) is ErrorCode.UNREADABLE
    assert code_of(lambda: open_source(f"{tmp_path}/a/../nothing/b.mp4", None, None, None)) is ErrorCode.VANISHED


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert code_of(lambda: open_source(str(tmp_path / "pipe.mp4"), None, None, None)) is ErrorCode.UNREADABLE
    assert code_of(lambda: open_source("/dev/zero", None, None, None)) is ErrorCode.UNREADABLE


def test_a_socket_and_a_link_to_itself_are_no_videos_and_no_trouble_of_the_storage(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{os.open(tmp_path, os.O_PATH)}/socket.mp4")  # such an address holds 107 bytes
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    for name in ("socket.mp4", "circle.mp4"):
        assert code_of(lambda name=name: open_source(str(tmp_path / name), None, None, None)) is ErrorCode.UNREADABLE  # type: ignore[misc]


def test_refused_opens_leave_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(DATA)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        code_of(lambda: open_source(str(tmp_path / "a.mp4"), 1, None, None))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 %41.mp4")
    path.write_bytes(DATA)
    uri = local_uri(str(path))
    assert uri.startswith("file://")
    assert uri.endswith("caf%E9%20%2541.mp4")
    with open_source(uri, 1000, None, None) as source:
        assert source.read() == DATA


def test_a_plain_path_is_never_unquoted(tmp_path: Path) -> None:
    (tmp_path / "a%41.mp4").write_bytes(DATA)
    assert describe(str(tmp_path / "a%41.mp4")).size_bytes == 1000
    assert code_of(lambda: describe(str(tmp_path / "aA.mp4"))) is ErrorCode.VANISHED


def test_a_read_error_on_disk_is_the_storages(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(DATA)
    uses: list[Callable[[Any], object]] = [
        lambda file: file.read(1),
        lambda file: file.readall(),
        lambda file: file.readinto(bytearray(3)),
    ]
    for use in uses:
        file = open_source(str(tmp_path / "a.mp4"), None, None, None)
        os.close(file.fileno())  # the disk is pulled out
        assert code_of(partial(use, file)) is ErrorCode.STORAGE
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.close()


def test_a_store_that_is_not_installed_here_is_the_storages() -> None:
    assert code_of(lambda: open_source("nosuchthing://bucket/a.mp4", 1, None, None)) is ErrorCode.STORAGE


@pytest.mark.s3
def test_a_source_that_we_may_not_read_is_forbidden(s3: S3Server) -> None:
    bucket = s3.bucket()
    s3.upload(bucket, {"a.mp4": DATA})
    filesystems._kept.cache_clear()
    with environment(s3.env() | {"AWS_SECRET_ACCESS_KEY": "WRONGSECRET"}):
        assert code_of(lambda: open_source(f"{bucket}/a.mp4", None, None, None)) is ErrorCode.FORBIDDEN
        assert code_of(lambda: read_head(f"{bucket}/a.mp4", 10)) is ErrorCode.FORBIDDEN
    filesystems._kept.cache_clear()


@pytest.mark.s3
def test_a_source_that_vanishes_while_it_is_read_is_said_by_its_reader(s3: S3Server) -> None:
    store = Store(s3.bucket())
    store.write("a.mp4", DATA)
    with open_source(store.uri("a.mp4"), None, None, None) as file:
        store.delete("a.mp4")
        assert code_of(lambda: file.read(10)) is ErrorCode.VANISHED


@pytest.mark.s3
def test_a_part_of_an_object_that_others_stored_with_a_checksum_can_be_read(s3: S3Server) -> None:
    import s3fs

    bucket = s3.bucket()
    others = s3fs.S3FileSystem(key=s3.key, secret=s3.secret, endpoint_url=s3.endpoint, skip_instance_cache=True)
    others.pipe_file(f"{bucket.removeprefix('s3://')}/a.mp4", DATA)  # checksums as botocore has them by itself
    assert read_head(f"{bucket}/a.mp4", 100) == DATA[:100]


@pytest.mark.s3
def test_an_etag_has_no_quotes_and_is_that_of_the_listing(s3: S3Server) -> None:
    store = Store(s3.bucket())
    store.write("a.mp4", b"hello")
    assert describe(store.uri("a.mp4")).etag == "5d41402abc4b2a76b9719d911017c592"


def test_stores_may_call_things_differently() -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    ns = 1714979289123456000
    assert found_info({"size": 5, "mtime": moment}) == Found(5, None, ns)
    assert found_info({"size": 5, "created": moment.timestamp()}) == Found(5, None, ns)
    assert found_info({"size": 5, "LastModified": moment.isoformat(), "ETag": '"abc"'}) == Found(5, "abc", ns)
    assert found_info({"size": None, "etag": 'W/"abc"', "modified": "yesterday"}) == Found(None, "abc", None)
    assert Found(5, "abc", ns).version == "abc"
    assert Found(5, None, ns).version == str(ns)
    assert Found(5, None, None).version is None


def test_microseconds_are_exact_whatever_the_zone() -> None:
    moment = datetime(2286, 11, 20, 17, 46, 39, 999999, tzinfo=UTC)
    assert microseconds(moment) == 9999999999999999
    assert microseconds(moment.astimezone(timezone(timedelta(hours=5, minutes=30)))) == 9999999999999999
    assert microseconds(moment.replace(tzinfo=None)) == 9999999999999999


def test_a_range_file_reads_like_a_file_whatever_its_blocks() -> None:
    for block_bytes in (1, 7, 64, 5000):
        file, plain = RangeFile(lambda start, end: DATA[start:end], len(DATA), block_bytes, 2), io.BytesIO(DATA)
        for whence, offset, count in (
            (0, 0, 10),
            (1, 3, 100),
            (0, 990, 100),
            (0, 1000, 5),
            (0, 2000, 5),
            (2, -7, -1),
            (0, 63, 2),
        ):
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell()


def test_a_range_file_fetches_a_block_once_and_a_long_stretch_in_one() -> None:
    fetched: list[tuple[int, int]] = []

    def fetch(start: int, end: int) -> bytes:
        fetched.append((start, end))
        return DATA[start:end]

    file = RangeFile(fetch, len(DATA), block_bytes=100, blocks_kept=2)
    for _ in range(10):
        file.read(30)
    assert fetched == [(0, 100), (100, 200), (200, 300)]
    file.seek(950)
    file.read()
    assert fetched.pop() == (900, 1000)  # ends with the object
    file.seek(0)
    file.read(500)
    assert fetched.pop() == (0, 500)
    file.seek(0)
    file.read(1)
    assert fetched.pop() == (0, 100)  # was forgotten: two are kept


def test_a_range_file_refuses_what_a_file_refuses() -> None:
    file = RangeFile(lambda start, end: DATA[start:end], len(DATA))
    assert file.readable()
    assert file.seekable()
    with pytest.raises(ValueError, match="negative"):
        file.seek(-1)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_a_store_that_sends_too_little_is_in_trouble() -> None:
    with pytest.raises(OSError, match="asked for bytes 0 to 10, got 3"):
        exact(b"abc", 0, 10)
