"""One suite over every kind of store: a folder, memory, and S3 (without conditional writes)."""

from __future__ import annotations

import errno
import io
import multiprocessing
import pickle
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from botocore.parsers import ResponseParserError

from schemas.errors import BadRequest
from stages import filesystems, telemetry
from stages.disk import TEMPORARY_PREFIX, Disk
from stages.patience import BrokenAnswer, Patience
from stages.remote import S3
from stages.storage import ObjectInfo, StorageUnavailable, Store
from tests.s3 import S3Server, environment

KINDS = ["disk", "memory", pytest.param("s3", marks=pytest.mark.s3)]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "root"))
    if request.param == "memory":
        return Store(f"memory://{secrets.token_hex(8)}/root")
    return Store(f"{request.getfixturevalue('s3').bucket()}/some/root")


def keys(store: Store, prefix: str = "", recursive: bool = True) -> list[str]:
    return [info.key for info in store.list(prefix, recursive)]


def test_what_is_written_is_read_and_replaced(store: Store) -> None:
    store.write("a/b.bin", b"one")
    store.write("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"second"
    assert store.size("a/b.bin") == 6
    assert store.exists("a/b.bin")


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert list(store.list()) == [ObjectInfo("empty", 0)]
    with store.open_read("empty") as file:
        assert file.read() == b""


def test_what_is_not_there_says_so(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    with pytest.raises(FileNotFoundError):
        store.open_read("nothing/at/all")
    assert store.size("nothing") is None
    assert not store.exists("nothing")
    assert keys(store) == keys(store, "nothing") == list(store.folders("nothing")) == []
    store.delete("nothing")
    store.write("folder/file", b"")
    assert store.size("folder") is None


def test_objects_are_removed_together_and_others_stay(store: Store) -> None:
    for number in range(5):
        store.write(f"a/{number} &+é", b"x")
    store.delete_all([f"a/{number} &+é" for number in (0, 2, 3)] + ["a/nothing", "nothing/at/all"])
    assert keys(store) == ["a/1 &+é", "a/4 &+é"]
    store.delete_all([])
    assert keys(store) == ["a/1 &+é", "a/4 &+é"]


@pytest.mark.s3
def test_a_store_that_removes_nothing_together_is_asked_one_by_one(s3: S3Server) -> None:
    class Unable(S3):
        @property
        def filesystem(self) -> Any:
            return _Refusing(super().filesystem)

    class _Refusing:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def call_s3(self, name: str, **kwargs: Any) -> Any:
            if name == "delete_objects":
                asked.append(len(kwargs["Delete"]["Objects"]))
                raise OSError(errno.ENOSYS, "NotImplemented")
            return self._inner.call_s3(name, **kwargs)

    class OnIt(Store):
        @cached_property
        def _backend(self) -> Any:  # type: ignore[override]
            return Unable(self.root)

    asked: list[int] = []
    store = OnIt(s3.bucket())
    for name in ("a", "b", "c"):
        store.write(name, b"x")
    store.delete_all(["a", "c"])
    assert keys(store) == ["b"]
    assert asked == [2]


def test_create_refuses_to_replace_another_object(store: Store) -> None:
    store.create("_log/00000001.json", b"mine")
    with pytest.raises(FileExistsError):
        store.create("_log/00000001.json", b"theirs")
    assert store.read("_log/00000001.json") == b"mine"
    assert keys(store) == ["_log/00000001.json"]


def test_create_takes_an_equal_object_for_its_own(store: Store) -> None:
    store.write("entry", b"mine, token 1")
    store.create("entry", b"mine, token 1")


def test_a_file_appears_when_its_block_ends_and_not_before(store: Store) -> None:
    with store.open_write("table/x=1/part.parquet") as file:
        file.write(b"abc")
        assert keys(store) == []
        file.write(b"def")
    assert store.read("table/x=1/part.parquet") == b"abcdef"
    assert keys(store) == ["table/x=1/part.parquet"]


def test_a_large_file_appears_whole(store: Store) -> None:
    block = secrets.token_bytes(1 << 20)
    with store.open_write("large") as file:
        for _ in range(18):  # more than one part of a multipart upload
            file.write(block)
        assert keys(store) == []
    assert store.size("large") == 18 << 20
    with store.open_read("large") as file:
        file.seek((9 << 20) - 5)
        assert file.read(10) == block[-5:] + block[:5]


@pytest.mark.parametrize("block_count", [1, 18])
def test_an_exception_leaves_nothing_behind(store: Store, block_count: int) -> None:
    def fail() -> None:
        with store.open_write("large") as file:
            for _ in range(block_count):
                file.write(bytes(1 << 20))
            raise OSError("my own")

    with pytest.raises(OSError, match="my own"):
        fail()
    assert keys(store) == []
    assert not store.exists("large")


def test_an_exclusive_file_is_refused_only_where_another_object_is(store: Store) -> None:
    with store.open_write("new", exclusive=True) as file:
        file.write(b"first")
    assert store.read("new") == b"first"
    if store.conditional_writes():
        with pytest.raises(FileExistsError), store.open_write("new", exclusive=True) as file:
            file.write(b"second")
        assert store.read("new") == b"first"
        assert keys(store) == ["new"]


def test_an_opened_file_can_seek(store: Store) -> None:
    store.write("a", bytes(range(100)))
    with store.open_read("a") as file:
        assert file.read(3) == bytes([0, 1, 2])
        assert file.seek(-2, 2) == 98
        assert file.read() == bytes([98, 99])
        assert file.seek(10) == file.tell() == 10


def test_listing_is_by_folder_not_by_beginning(store: Store) -> None:
    for key in ("a/1", "a/b/2", "a/b/c/3", "ab/4", "top"):
        store.write(key, b"x")
    assert sorted(keys(store)) == ["a/1", "a/b/2", "a/b/c/3", "ab/4", "top"]
    assert sorted(keys(store, "a")) == sorted(keys(store, "a/")) == ["a/1", "a/b/2", "a/b/c/3"]
    assert keys(store, "a", recursive=False) == ["a/1"]
    assert keys(store, recursive=False) == ["top"]
    assert sorted(store.folders()) == ["a", "ab"]
    assert list(store.folders("a")) == ["b"]


def test_names_are_data(store: Store) -> None:
    names = ["é ü.bin", "a#b%20c.bin", "x*?[1]&+=.bin", "100%", 'quote\'s "here".bin', "model=m/fingerprint=f/part.parquet"]
    for name in names:
        store.write(name, name.encode())
    assert sorted(keys(store)) == sorted(names)
    for name in names:
        assert store.read(name) == name.encode()
        store.delete(name)
    assert keys(store) == []


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../../b", "a//b", "a/", "."])
def test_a_key_cannot_leave_the_root(key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        Store("memory://keys").read(key)


def test_a_store_travels_by_pickle(store: Store) -> None:
    store.write("a", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert again.root == store.root
    assert again.read("a") == b"x"


def test_checking_and_probing_leave_nothing(store: Store) -> None:
    store.check_writable()
    store.conditional_writes()
    assert keys(store) == []


def test_conditional_writes_are_told_apart(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).conditional_writes()
    assert Store("memory://conditions").conditional_writes()


@pytest.mark.s3
def test_a_store_that_ignores_conditions_is_found_out(s3: S3Server) -> None:
    assert not Store(s3.bucket()).conditional_writes()


@pytest.mark.s3
def test_more_than_a_page_of_keys_is_listed_once_each(s3: S3Server) -> None:
    bucket = s3.bucket()
    names = [f"many/{i:04d}" for i in range(1050)]
    s3.upload(bucket, dict.fromkeys(names, b"x"))
    assert keys(Store(bucket), "many") == names


def test_uris_are_full(tmp_path: Path) -> None:
    assert Store(f"{tmp_path}/a/../b/").uri("k/1") == f"{tmp_path}/b/k/1"
    assert Store("s3a://bucket/x/").uri("k") == "s3://bucket/x/k"
    assert Store("memory://").uri("k") == "memory://k"
    assert Store("/").uri("k") == "/k"
    assert Store(f"file://{tmp_path}/a%20b").root == f"{tmp_path}/a b"


def test_a_relative_root_stays_where_it_was_when_the_working_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("tables")
    monkeypatch.chdir("/")
    store.write("a", b"x")
    assert (tmp_path / "tables" / "a").read_bytes() == b"x"


def test_a_file_that_is_being_written_on_disk_is_hidden_and_no_parquet(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.open_write("t/part.parquet") as file:
        file.write(b"x")
        (name,) = [path.name for path in (tmp_path / "t").iterdir()]
        assert name.startswith(".")
        assert not name.endswith(".parquet")
        assert keys(store) == []
    (tmp_path / "t" / f"{TEMPORARY_PREFIX}left-by-a-crash").write_bytes(b"x")
    assert keys(store) == ["t/part.parquet"]


def test_disks_without_hard_links_still_create_and_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    Disk().create(str(tmp_path / "a"), b"one")
    with pytest.raises(FileExistsError):
        Disk().create(str(tmp_path / "a"), b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"one"


class _LosesAnswers(Disk):
    """Writes, and then hears from the store that the object was there: the first answer got lost, the client asked again."""

    def create(self, path: str, data: bytes) -> None:
        super().create(path, data)
        super().create(path, data)


class _OnLossyLine(Store):
    @cached_property
    def _backend(self) -> Any:
        return _LosesAnswers()


def test_a_lost_answer_to_a_write_that_succeeded_is_success(tmp_path: Path) -> None:
    store = _OnLossyLine(str(tmp_path))
    store.create("entry", b"mine, token 1")
    assert store.read("entry") == b"mine, token 1"
    with pytest.raises(FileExistsError):
        store.create("entry", b"theirs, token 2")


class _FakeS3:
    """Answers each `pipe_file` and each completion of an upload with the next of `answers`."""

    def __init__(self, *answers: Exception | None) -> None:
        self._answers = iter(answers)
        self.modes: list[str] = []

    def answer(self, mode: str) -> None:
        self.modes.append(mode)
        answer = next(self._answers)
        if answer is not None:
            raise answer

    def pipe_file(self, _path: str, _data: bytes, mode: str) -> None:
        self.answer(mode)

    def open(self, _path: str, mode: str, **_: object) -> _FakeUpload:
        return _FakeUpload(self, mode)


class _FakeUpload:
    def __init__(self, s3: _FakeS3, mode: str) -> None:
        self._s3 = s3
        self.mode = mode
        self.closed = False
        self.discarded = False

    def close(self) -> None:
        self._s3.answer(self.mode)

    commit = close

    def discard(self) -> None:
        self.discarded = True
        raise ConnectionError("cannot be reached to abort either")


class _Scripted(S3):
    def __init__(self, fake: _FakeS3) -> None:
        super().__init__("s3://bucket")
        self._fake = fake

    @property
    def filesystem(self) -> Any:
        return self._fake


def refusal(code: str, kind: type[OSError] = OSError) -> OSError:
    error = kind(5, code)
    error.__cause__ = _Refused({"Error": {"Code": code}})
    return error


class _Refused(Exception):
    def __init__(self, response: dict[str, Any]) -> None:
        super().__init__(response)
        self.response = response


def test_two_conditional_writes_that_collide_are_tried_again() -> None:
    fake = _FakeS3(refusal("ConditionalRequestConflict"), refusal("409"), None)
    _Scripted(fake).create("bucket/k", b"x")
    assert fake.modes == ["create"] * 3


def test_a_conditional_write_that_loses_says_so_at_once() -> None:
    fake = _FakeS3(FileExistsError("there"))
    with pytest.raises(FileExistsError):
        _Scripted(fake).create("bucket/k", b"x")


def test_an_exclusive_upload_is_completed_again_after_a_collision_and_without_its_condition_where_there_is_none() -> None:
    fake = _FakeS3(refusal("ConditionalRequestConflict"), refusal("NotImplemented"), None)
    with _Scripted(fake).open_write("bucket/k", exclusive=True) as file:
        pass
    assert fake.modes == ["xb", "xb", "wb"]
    assert file.closed


def test_an_exclusive_upload_that_loses_is_thrown_away() -> None:
    with pytest.raises(FileExistsError), _Scripted(_FakeS3(FileExistsError("there"))).open_write("b/k", exclusive=True) as file:
        pass
    assert file.discarded  # type: ignore[attr-defined]
    assert file.closed


@pytest.fixture
def refused(s3: S3Server) -> Iterator[str]:
    """A bucket, for a client whose secret is wrong."""
    bucket = s3.bucket()
    filesystems._kept.cache_clear()
    with environment(s3.env() | {"AWS_SECRET_ACCESS_KEY": "WRONGSECRET"}):
        yield bucket
    filesystems._kept.cache_clear()


def _write_a_large_file(store: Store) -> None:
    with store.open_write("a") as file:
        for _ in range(18):
            file.write(bytes(1 << 20))


USES: list[Callable[[Store], object]] = [
    lambda store: store.read("a"),
    lambda store: store.write("a", b""),
    lambda store: store.create("a", b""),
    lambda store: store.exists("a"),
    lambda store: store.delete("a"),
    lambda store: list(store.list()),
    lambda store: list(store.folders()),
    lambda store: store.open_read("a"),
    _write_a_large_file,
    Store.conditional_writes,
]


@pytest.mark.s3
@pytest.mark.parametrize("use", USES)
def test_refused_credentials_stop_a_run_and_are_never_shown(refused: str, use: Callable[[Store], object]) -> None:
    with pytest.raises(StorageUnavailable, match=f"{refused}.*access refused") as caught:
        use(Store(refused))
    assert "WRONGSECRET" not in str(caught.value)


@pytest.mark.s3
def test_a_preflight_names_a_root_that_refuses(refused: str) -> None:
    with pytest.raises(BadRequest, match=f"output {refused}/x is not writable: access refused") as caught:
        Store(f"{refused}/x").check_writable()
    assert "WRONGSECRET" not in str(caught.value)


@pytest.mark.s3
def test_a_preflight_names_a_bucket_that_is_not_there(s3: S3Server) -> None:
    with pytest.raises(BadRequest, match=r"output s3://no-such-bucket/x is not writable: there is no such"):
        Store("s3://no-such-bucket/x").check_writable()
    with pytest.raises(BadRequest, match="Invalid bucket name"):
        Store("s3://Not_A_Bucket!/x").check_writable()
    with pytest.raises(StorageUnavailable, match="s3://no-such-bucket/x/k"):
        Store("s3://no-such-bucket/x").create("k", b"")


@pytest.mark.s3
def test_a_preflight_soon_gives_up_on_a_server_that_is_not_there(s3: S3Server) -> None:
    with environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}), pytest.raises(BadRequest, match="EndpointConnectionError"):
        Store("s3://bucket/x").check_writable()


def test_a_folder_that_cannot_be_made_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadRequest, match=f"output {tmp_path}/file is not writable"):
        Store(f"{tmp_path}/file").check_writable()
    with pytest.raises(BadRequest, match=f"output {tmp_path}/file/below is not writable"):
        Store(f"{tmp_path}/file/below").check_writable()
    Store(f"{tmp_path}/new/folder").check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_in_trouble_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match=f"{tmp_path}/file/a"):
        Store(str(tmp_path / "file")).write("a", b"x")


@pytest.mark.parametrize("url", ["s3://KEY:SECRET@bucket/x", "s3://SECRET@bucket/x", "ftp://user:SECRET@host/x"])
def test_credentials_in_a_url_are_refused_and_never_shown(url: str) -> None:
    with pytest.raises(BadRequest, match="credentials do not belong in a URL") as caught:
        Store(url)
    assert "SECRET" not in str(caught.value)
    assert "***@" in str(caught.value)


@pytest.mark.parametrize("url", ["nosuchthing://x", "s3://"])
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match=url):
        Store(url)


def test_the_query_of_a_signed_link_is_not_shown() -> None:
    assert filesystems.redacted("https://host/v.mp4?Signature=SECRET") == "https://host/v.mp4?***"
    assert filesystems.redacted("s3://bucket/what?.mp4") == "s3://bucket/what?.mp4"


def _read_in_child(store: Store, answers: Any) -> None:
    answers.put(store.read("a"))


@pytest.mark.s3
def test_a_forked_process_gets_a_connection_of_its_own(s3: S3Server) -> None:
    store = Store(s3.bucket())
    store.write("a", b"x")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, answers), daemon=True)
    child.start()
    try:
        assert answers.get(timeout=120) == b"x"
    finally:
        child.join(timeout=30)
        child.kill()
    assert store.read("a") == b"x"


class _Http:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class _Outage:
    """A patience, its clock, and calls that fail."""

    def __init__(self, most_tries: int | None = None) -> None:
        self.now_s = 0.0
        self.patience = Patience(most_tries, clock=lambda: self.now_s, jitter=lambda: 1.0)

    def tell(self, attempts: int, call: dict[str, Any], status: int = 200, operation: str = "PutObject", **parsed: Any) -> Any:
        request, name = {"context": call}, SimpleNamespace(name=operation)
        return self.patience.on_answer(
            attempts=attempts, request_dict=request, operation=name, response=(_Http(status), {"ETag": "e"} | parsed)
        )

    def fail(self, status: int = 500, code: str = "InternalError") -> float:
        """A call that meets nothing but this; how long until it was given up."""
        began_s, call, attempts = self.now_s, {}, 0  # type: ignore[var-annotated]
        while (wait_s := self.tell(attempts := attempts + 1, call, status, Error={"Code": code})) is not None:
            self.now_s += wait_s
        return self.now_s - began_s


def test_patience_is_spent_once_in_an_outage_and_returns_with_the_first_answer() -> None:
    outage = _Outage()
    assert 60 <= outage.fail() <= 80
    assert outage.patience.is_over
    assert outage.fail() == outage.fail() == 0
    assert outage.tell(1, {}, 404, Error={"Code": "NoSuchKey"}) is None  # an answer
    assert not outage.patience.is_over
    assert 60 <= outage.fail() <= 80


def test_a_store_that_says_slow_down_is_waited_for_longer() -> None:
    assert 180 <= _Outage().fail(503, "SlowDown") <= 200


def test_a_key_that_always_fails_is_given_up_though_others_succeed() -> None:
    outage, call, attempts = _Outage(), {}, 0  # type: ignore[var-annotated]
    while (wait_s := outage.tell(attempts := attempts + 1, call, 500)) is not None:
        outage.now_s += wait_s
        outage.tell(1, {})
    assert 60 <= outage.now_s <= 80


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_refused_credentials_are_never_asked_about_again(code: str) -> None:
    assert _Outage().tell(1, {}, 403, Error={"Code": code}) is None


def test_a_connection_that_breaks_is_tried_again_as_often_as_configured() -> None:
    outage, request = _Outage(most_tries=3), {}  # type: ignore[var-annotated]
    waits = [
        outage.patience.on_answer(attempts=n, request_dict=request, operation=None, caught_exception=OSError())
        for n in (1, 2, 3)
    ]
    assert waits == [1.0, 2.0, None]


def test_every_call_that_is_tried_again_is_counted_under_one_of_few_reasons() -> None:
    telemetry.collect()
    outage = _Outage()
    outage.tell(1, {}, 503, Error={"Code": "SlowDown"})
    outage.tell(1, {}, 418, Error={"Code": "InternalError"})
    outage.tell(1, {}, 500, Error={"Code": "a word that only this server knows"})
    outage.patience.on_answer(attempts=1, request_dict={}, operation=None, caught_exception=OSError())
    outage.tell(1, {}, ETag=None)
    outage.tell(1, {})  # good
    outage.tell(1, {}, 404, Error={"Code": "NoSuchKey"})
    counted = [(one.figure, one.value, one.labels["reason"]) for one in telemetry.collect()]
    reasons = ("throttled", "server_error", "server_error", "no_answer", "nonsense")
    assert counted == [(telemetry.Figure.STORAGE_RETRY, 1, reason) for reason in reasons]
    assert outage.tell(1, {}, 503, Error={"Code": "SlowDown"}) is not None
    given_up = _Outage(most_tries=1)
    telemetry.collect()
    assert given_up.tell(1, {}, 503, Error={"Code": "SlowDown"}) is None
    assert telemetry.collect() == []


def test_a_good_answer_without_what_s3_always_says_is_none() -> None:
    outage = _Outage(most_tries=2)
    assert outage.tell(1, {}, operation="CompleteMultipartUpload", ETag=None) == 1.0
    with pytest.raises(BrokenAnswer, match="not S3"):
        outage.tell(2, {}, operation="CompleteMultipartUpload", ETag=None)
    assert _Outage().tell(1, {}, operation="DeleteObject", ETag=None) is None


def test_an_answer_that_broke_off_is_asked_for_again_and_one_that_makes_no_sense_is_the_storages_trouble() -> None:
    answers: list[Exception | None] = [BrokenAnswer("half"), ResponseParserError("no XML"), None]

    def ask() -> str:
        if answer := answers.pop(0):
            raise answer
        return "whole"

    assert filesystems.answered(ask) == "whole"
    answers = [BrokenAnswer("half")] * 3
    with pytest.raises(StorageUnavailable, match="half"), filesystems.translated("s3://bucket"):
        filesystems.answered(ask)
    with pytest.raises(StorageUnavailable, match="no XML"), filesystems.translated("s3://bucket"):
        raise ResponseParserError("no XML")


def test_a_condition_that_was_not_met_is_known_by_its_code_alone() -> None:
    with pytest.raises(FileExistsError):
        _Scripted(_FakeS3(refusal("PreconditionFailed"))).create("bucket/k", b"x")
    with pytest.raises(FileExistsError), _Scripted(_FakeS3(refusal("412"))).open_write("bucket/k", exclusive=True):
        pass


def test_what_must_be_there_is_looked_at_twice(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("a", b"x")
    with pytest.raises(StorageUnavailable, match="was not found, and then was there"), store.known("a"):
        raise FileNotFoundError("for a moment")
    with pytest.raises(FileNotFoundError), store.known("b"):
        store.read("b")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EIO, "the disk is failing"),
    ],
)
def test_trouble_with_a_disk_is_named(code: int, says: str) -> None:
    assert says in filesystems.reason(OSError(code, "as the system says it"))


class _FullOnTheWayOut(Disk):
    """What is written stays in memory until the file is closed, which fails; so does throwing it away."""

    @contextmanager
    def open_write(self, path: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        del path, exclusive
        try:
            yield io.BytesIO()
        finally:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_an_exception_is_not_hidden_by_the_trouble_of_throwing_away_what_was_written(tmp_path: Path) -> None:
    class OnIt(Store):
        @cached_property
        def _backend(self) -> Any:
            return _FullOnTheWayOut()

    with pytest.raises(ZeroDivisionError), OnIt(str(tmp_path)).open_write("a"):
        raise ZeroDivisionError
    with pytest.raises(StorageUnavailable, match="the disk is full"), OnIt(str(tmp_path)).open_write("a"):
        pass
