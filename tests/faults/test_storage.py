"""A store that fails in every way that stores fail: the run finishes or stops, and the next one leaves the same tables."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from stages.sources import describe, open_source
from tests.faults import proxy as s3_faults
from tests.faults.damage import Damage, compared
from tests.faults.fresh import Hung, in_fresh_process
from tests.faults.full_disk import Attempt, FailingDisk, attempt, count_writes, with_small_files
from tests.faults.proxy import Act, Proxy, Rule, error_after, late, proxied, refused
from tests.faults.record import Record
from tests.faults.storage_runs import Ended, Published, decode, die, discover, parts_seen, run, run_again, undisturbed
from tests.media import textured, write_video
from tests.pipeline.rows import START
from tests.s3 import S3Server, serve_conditional_s3, serve_s3
from tests.stages.units import decoder, rows_of, unit

pytestmark = pytest.mark.s3

PLAN = r"/_log/00000001\.json"  # of the first epoch
COMMIT = r"/_log/00000002\.json"
CLOSE = r"/_log/0000000[4-9]\.json"
PLANNED = r"/_runs/[^/]+/epochs/"
PART = r"/parts/.*\.parquet"
OBJECT = r"/(clips|labels|embeddings)/.*\.parquet"
CAPTIONS = r"/captions/.*\.parquet"
LEDGER = r"/videos/.*\.parquet"
LEASE = r"/lease\.json"
FINISHES, STOPS, EITHER = "finishes", "stops", "either"


@dataclass(frozen=True)
class Fault:
    """One rule of the proxy, and what must become of the run: it finishes, it stops, or either."""

    name: str
    act: Act
    operations: str
    key: str
    must: str
    nth: int = 1
    times: int | None = 1
    on: str = "moto"
    tries: int | None = 4  # of a call, in all
    read_timeout_s: float = 5
    large: bool = False
    dead_after: int = 0  # steps of another run that was there before

    def rule(self) -> Rule:
        return Rule(self.name, self.act, self.operations, self.key, self.nth, self.times)


SLOW_DOWN, BROKEN = refused(503, "SlowDown"), refused(500, "InternalError")
CONFLICT = refused(409, "ConditionalRequestConflict")
BEFORE, AFTER = s3_faults.dropped_before, s3_faults.dropped_after
NOT_FOUND = refused(404, "NoSuchKey")
EXPIRED, UNKNOWN, DENIED = refused(403, "ExpiredToken"), refused(403, "InvalidAccessKeyId"), refused(403, "AccessDenied")
LATE, NEVER = late(2.5, happens=True), late(2.5, happens=False)
FOREVER: Any = {"times": None, "tries": 3}
SOON: Any = {"read_timeout_s": 1}
LARGE: Any = {"large": True}
RECOVERY: Any = {"dead_after": 8}
MOTO: Any = {"on": "moto"}
RCLONE: Any = {"on": "rclone"}

OUTAGE = "the endpoint dies, and the client is as patient as it is by itself"

# The first ones also run in `make test`.
FAULTS = [
    Fault("a plan's answer is lost", AFTER, "Put", PLAN, FINISHES, **MOTO),
    Fault("objects are slowed down", SLOW_DOWN, "Put", OBJECT, FINISHES, times=3, **RCLONE),
    Fault("credentials expire", EXPIRED, "*", "", STOPS, nth=60, **FOREVER, **MOTO),
    Fault("the endpoint dies", BEFORE, "*", "", STOPS, nth=90, **FOREVER, **RCLONE),
    Fault("the body of a part is cut", s3_faults.cut_body, "Get", PART, FINISHES, **MOTO),
    Fault("a commit collides", CONFLICT, "Put", COMMIT, FINISHES, times=2, **MOTO),
    Fault("completing fails inside a 200", s3_faults.error_in_200, "Complete", CAPTIONS, FINISHES, **LARGE, **MOTO),
    Fault("listings are login pages", s3_faults.login_page, "List", "", FINISHES, **RCLONE),
    # the log
    Fault("a plan's answer is lost", AFTER, "Put", PLAN, FINISHES, **RCLONE),
    Fault("a plan breaks off", BEFORE, "Put", PLAN, FINISHES, **MOTO),
    Fault("a plan is written and the answer is an error", error_after(500, "InternalError"), "Put", PLAN, FINISHES, **MOTO),
    Fault("a plan is written and the answer comes too late", LATE, "Put", PLAN, FINISHES, **SOON, **MOTO),
    Fault("a plan is not written and no answer comes", NEVER, "Put", PLAN, FINISHES, **SOON, **RCLONE),
    Fault("a plan is never allowed", DENIED, "Put", PLAN, STOPS, **FOREVER, **MOTO),
    Fault("a plan collides", CONFLICT, "Put", PLAN, FINISHES, times=2, **MOTO),
    Fault("a plan collides for ever", CONFLICT, "Put", PLAN, STOPS, **FOREVER, **MOTO),
    Fault("a plan meets a login page", s3_faults.login_page, "Put", PLAN, FINISHES, **MOTO),
    Fault("a plan is sent elsewhere", s3_faults.redirected, "Put", PLAN, STOPS, **FOREVER, **MOTO),
    Fault("a plan fails for ever", BROKEN, "Put", PLAN, STOPS, **FOREVER, **RCLONE),
    Fault("a commit's answer is lost", AFTER, "Put", COMMIT, FINISHES, **RCLONE),
    Fault("a commit's answer is lost", AFTER, "Put", COMMIT, FINISHES, **MOTO),
    Fault("a commit is refused once", EXPIRED, "Put", COMMIT, STOPS, **MOTO),
    Fault("a commit fails for ever", BROKEN, "Put", COMMIT, STOPS, **FOREVER, **MOTO),
    Fault("the close fails for ever", BROKEN, "Put", CLOSE, STOPS, **FOREVER, **MOTO),
    Fault("the close's answer is lost", AFTER, "Put", CLOSE, FINISHES, **RCLONE),
    # what a plan names
    Fault("what is planned is never stored", BROKEN, "Put", PLANNED, STOPS, **FOREVER, **RCLONE),
    Fault("what is planned is not there for a moment", NOT_FOUND, "Get", PLANNED, STOPS, **MOTO),
    # parts
    Fault("parts are slowed down", SLOW_DOWN, "Put", PART, FINISHES, times=3, **RCLONE),
    Fault("a part's answer is lost", AFTER, "Put", PART, FINISHES, **MOTO),
    Fault("parts are never stored", SLOW_DOWN, "Put", PART, STOPS, **FOREVER, **MOTO),
    Fault("a part's length is too long", s3_faults.too_long_length, "Get", PART, FINISHES, **MOTO),
    Fault("a part's length is too short", s3_faults.too_short_length, "Get", PART, FINISHES, **RCLONE),
    Fault("half of a part comes and nothing says so", s3_faults.short_body, "Get", PART, FINISHES, **MOTO),
    Fault("half of a part comes, always", s3_faults.short_body, "Get", PART, STOPS, **FOREVER, **MOTO),
    Fault("a part meets a login page", s3_faults.login_page, "Get", PART, FINISHES, **RCLONE),
    Fault("a part is not there for a moment", NOT_FOUND, "Get", PART, STOPS, **MOTO),
    # objects and the ledger
    Fault("an object's answer is lost", AFTER, "Put", OBJECT, FINISHES, **RCLONE),
    Fault("an object's answer is lost", AFTER, "Put", OBJECT, FINISHES, **MOTO),
    Fault("an object is written and the answer is an error", error_after(503, "SlowDown"), "Put", OBJECT, FINISHES, **MOTO),
    Fault("objects are never stored", BROKEN, "Put", OBJECT, STOPS, nth=2, **FOREVER, **RCLONE),
    Fault("objects are refused", UNKNOWN, "Put", OBJECT, STOPS, nth=2, **FOREVER, **MOTO),
    Fault("a ledger object's answer is lost", AFTER, "Put", LEDGER, FINISHES, **MOTO),
    Fault("a ledger object is refused", DENIED, "Put", LEDGER, STOPS, **MOTO),
    # uploads of several parts
    Fault("a piece of an upload fails", BROKEN, "UploadPart", CAPTIONS, FINISHES, times=2, **LARGE, **RCLONE),
    Fault("a piece of an upload breaks off", BEFORE, "UploadPart", CAPTIONS, FINISHES, nth=2, **LARGE, **MOTO),
    Fault("the second piece always fails", BROKEN, "UploadPart", CAPTIONS, STOPS, nth=2, **FOREVER, **LARGE, **MOTO),
    Fault("uploads cannot even begin", s3_faults.login_page, "CreateUpload", CAPTIONS, STOPS, **FOREVER, **LARGE, **MOTO),
    Fault("completing never works", s3_faults.error_in_200, "Complete", CAPTIONS, STOPS, **FOREVER, **LARGE, **MOTO),
    Fault("completing meets a login page", s3_faults.login_page, "Complete", CAPTIONS, FINISHES, **LARGE, **MOTO),
    Fault("completing meets a broken gateway", s3_faults.garbage, "Complete", CAPTIONS, FINISHES, **LARGE, **RCLONE),
    Fault("completing works and says no", s3_faults.error_in_200_after, "Complete", CAPTIONS, EITHER, **LARGE, **MOTO),
    Fault("completing works and says no", s3_faults.error_in_200_after, "Complete", CAPTIONS, EITHER, **LARGE, **RCLONE),
    Fault("completing's answer is lost", AFTER, "Complete", CAPTIONS, EITHER, **LARGE, **MOTO),
    Fault("completing collides", CONFLICT, "Complete", CAPTIONS, FINISHES, times=2, **LARGE, **MOTO),
    Fault("an upload fails and cannot be aborted", BROKEN, "Complete Abort", CAPTIONS, STOPS, **FOREVER, **LARGE, **RCLONE),
    # leases, probes, the end
    Fault("a lease's answer is lost", AFTER, "Put", LEASE, FINISHES, times=2, **MOTO),
    Fault("the lease is never renewed", BROKEN, "Put", LEASE, FINISHES, nth=2, **FOREVER, **RCLONE),
    Fault("the first lease is refused", DENIED, "Put", LEASE, STOPS, **FOREVER, **MOTO),
    Fault("the probe for conditions collides", CONFLICT, "Put", "/_probe-", FINISHES, times=2, **MOTO),
    Fault("the probe's answer is lost", AFTER, "Put", "/_probe-", FINISHES, **MOTO),
    Fault("nothing may be deleted", DENIED, "Delete", "", STOPS, **FOREVER, **MOTO),
    Fault("a deletion's answer is lost", AFTER, "Delete", "", FINISHES, times=2, **RCLONE),
    Fault("the record of the run is not stored", SLOW_DOWN, "Put", r"/run\.json|/_current", STOPS, **FOREVER, **MOTO),
    # everything at once
    Fault("credentials expire early", EXPIRED, "*", "", STOPS, nth=9, **FOREVER, **RCLONE),
    Fault("the endpoint falls silent", NEVER, "*", "", STOPS, nth=70, **FOREVER, **SOON, **MOTO),
    Fault("the endpoint answers with login pages", s3_faults.login_page, "*", "", STOPS, nth=50, **FOREVER, **MOTO),
    Fault("a storm of 503", SLOW_DOWN, "*", "", FINISHES, nth=40, times=3, **MOTO),
    Fault("a storm of 503 that stays", SLOW_DOWN, "*", "", STOPS, nth=100, **FOREVER, **RCLONE),
    # the run after one that died: it reads what the other has left
    Fault("listings end early", s3_faults.cut_body, "List", "", FINISHES, times=2, **RECOVERY, **MOTO),
    Fault("listings know nothing yet", s3_faults.emptied_list, "List", "/?$", FINISHES, times=1, **RECOVERY, **MOTO),
    Fault("there is no bucket for a moment", refused(404, "NoSuchBucket"), "List", "", EITHER, **RECOVERY, **MOTO),
    Fault("listings are refused", DENIED, "List", "", STOPS, **FOREVER, **RECOVERY, **RCLONE),
    Fault("half of an entry of the log comes", s3_faults.short_body, "Get", "/_log/", FINISHES, **RECOVERY, **MOTO),
    Fault("entries of the log are not there for a moment", NOT_FOUND, "Get", "/_log/0000000[02]", STOPS, **RECOVERY, **MOTO),
    Fault("the ledger is not there for a moment", NOT_FOUND, "Get", LEDGER, STOPS, **RECOVERY, **MOTO),
    Fault("half of a ledger object comes", s3_faults.short_body, "Get", LEDGER, FINISHES, **RECOVERY, **MOTO),
    Fault("what was planned comes in half", s3_faults.cut_body, "Get", PLANNED, FINISHES, times=2, **RECOVERY, **RCLONE),
    Fault("objects cannot be looked at", BROKEN, "Head", OBJECT, FINISHES, times=2, **RECOVERY, **MOTO),
    Fault("leases cannot be read", DENIED, "Get", LEASE, STOPS, **FOREVER, **RECOVERY, **MOTO),
    Fault("the store dies in recovery", BEFORE, "*", "", STOPS, nth=25, **FOREVER, **RECOVERY, **RCLONE),
    Fault(OUTAGE, BEFORE, "*", "", STOPS, nth=90, times=None, tries=None),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[S3Server, Proxy]]]:
    with (
        serve_s3(tmp_path_factory.mktemp("rclone")) as rclone,
        serve_conditional_s3() as moto,
        proxied(rclone.endpoint) as before_rclone,
        proxied(moto.endpoint) as before_moto,
    ):
        yield {"rclone": (rclone, before_rclone), "moto": (moto, before_moto)}


@cache
def expected(large: bool) -> Published:
    return undisturbed(large)


def clients(server: S3Server, endpoint: str, fault: Fault, **secrets: str) -> dict[str, str]:
    """The environment of a process whose client has little patience."""
    config: dict[str, Any] = {"read_timeout": fault.read_timeout_s, "connect_timeout": 5}
    if fault.tries:
        config["retries"] = {"total_max_attempts": fault.tries}
    return server.env() | {"AWS_ENDPOINT_URL": endpoint, "FSSPEC_S3": json.dumps({"config_kwargs": config})} | secrets


@pytest.mark.timeout(1000)
@pytest.mark.cases(quick=6, long=len(FAULTS))
def test_promise_3_whatever_the_store_does_a_run_finishes_or_stops_and_the_next_leaves_the_same_tables(
    case: int, servers: dict[str, tuple[S3Server, Proxy]], tmp_path: Path, record: Record
) -> None:
    fault = FAULTS[case]
    server, proxy = servers[fault.on]
    secret = server.secret if fault.on == "rclone" else f"canary-secret-{case}"  # moto takes any
    token = {} if fault.on == "rclone" else {"AWS_SESSION_TOKEN": f"canary-token-{case}"}
    env = clients(server, proxy.endpoint, fault, AWS_SECRET_ACCESS_KEY=secret, **token)
    root = f"{server.bucket()}/out"
    dead = None
    if fault.dead_after:
        dead = in_fresh_process(die, root, fault.dead_after, env=env, log=tmp_path / "dead").value
    rule = fault.rule()
    proxy.obey(rule)
    ended, said, hangs = dead or Ended("it hung", START), "", 0
    began_s = time.monotonic()
    try:
        done = in_fresh_process(run, root, "a", fault.large, dead, env=env, log=tmp_path / "log")
        ended, said = done.value, done.said
    except Hung as error:
        hangs, said = 1, str(error)
    hits = rule.hits
    if fault.name == OUTAGE:
        record.figure("from the death of an S3 endpoint to the end of its run", f"{time.monotonic() - began_s:.0f} s")
    proxy.obey()
    direct = env | {"AWS_ENDPOINT_URL": server.endpoint}
    after = in_fresh_process(run_again, root, "b", ended, fault.large, env=direct, log=tmp_path / "log of the next").value
    whole = expected(fault.large)
    damage = compared(whole.rows, after.rows) + Damage(partial_views=parts_seen(after.before, whole.before), hangs=hangs)
    record("storage fault rules", damage)
    damage.check(f"{fault.name}: {said}")
    assert after.problems == []
    assert hits, "the fault never struck"
    assert fault.must == EITHER or (ended.stopped is not None) == (fault.must == STOPS), ended
    for word in (secret, *token.values(), "X-Amz-Signature", "Signature="):
        assert word not in f"{ended.stopped} {said}"
    assert said == ""


@cache
def writes_of_a_run() -> int:
    with tempfile.TemporaryDirectory() as folder:
        return count_writes(folder)


def judge(found: Sequence[Attempt], what: str, record: Record, says: str) -> None:
    for one in found:
        damage = Damage(one.lost_rows, one.doubled_rows, one.partial_views)
        record(what, damage)
        damage.check(f"{what}: {one}")
        assert one.problems == []
        assert one.leftovers == [] or "read-only" in what, one  # nothing can be removed from such a disk
        if one.stopped is None:
            assert one.write.endswith("lease.json") or ("nearly" in what and one.write.endswith(".json")), one
        else:
            assert says in one.stopped.split("; ")[0], one
            assert "\n" not in one.stopped


def chosen(is_long: bool, few: int, step: int = 1) -> list[int]:
    """Numbers of writes: all of a run, or a few that lie far apart."""
    count = writes_of_a_run()
    return list(range(0, count, step)) if is_long else [count * number // few for number in range(few)]


@pytest.mark.timeout(1000)
def test_promise_3_a_disk_that_is_full_at_any_write_stops_a_run_and_the_next_goes_on(
    tmp_path: Path, record: Record, is_long: bool
) -> None:
    for kind, step in (("full", 1), ("nearly full", 3)) if is_long else (("full", 1),):
        found = on_small_disk(tmp_path, kind, chosen(is_long, 2, step), record)
        judge(found, f"writes to a disk that is {kind}", record, "the disk is full (No space left on device)")


@pytest.mark.timeout(1000)
def test_promise_3_a_disk_that_becomes_read_only_stops_a_run_and_the_next_goes_on(
    tmp_path: Path, record: Record, is_long: bool
) -> None:
    found = on_small_disk(tmp_path, "read-only", chosen(is_long, 1, step=4), record)
    judge(found, "writes to a disk that became read-only", record, "the disk is read-only (Read-only file system)")


def on_small_disk(tmp_path: Path, kind: str, writes: Sequence[int], record: Record) -> list[Attempt]:
    """On a real disk of 2 MB, where the system lets us mount one."""
    command = ["unshare", "-Urm", sys.executable, "-m", "tests.faults.full_disk", str(tmp_path), kind, *map(str, writes)]
    if subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        record.figure("real small disks", "this machine lets nobody mount one")
        return []
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return [Attempt(**one) for one in json.loads(done.stdout)]


@pytest.mark.timeout(1000)
def test_promise_3_a_file_that_may_not_grow_stops_a_run_and_the_next_goes_on(
    tmp_path: Path, record: Record, is_long: bool
) -> None:
    env: dict[str, str] = {}
    writes = chosen(is_long, 3, step=2)
    done = in_fresh_process(with_small_files, str(tmp_path), writes, 100, env=env, log=tmp_path / "log", timeout_s=900)
    judge(done.value, "writes of files that may not grow", record, "for us it is full (File too large)")


FAILURES = [(code, moment) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO) for moment in ("begin", "middle", "end")]


@pytest.mark.cases(quick=2, long=9)
def test_promise_3_a_disk_that_fails_in_the_middle_of_a_write_stops_a_run_and_the_next_goes_on(
    case: int, tmp_path: Path, record: Record, is_long: bool
) -> None:
    code, moment = FAILURES[(case * 4) % len(FAILURES)]
    writes = chosen(is_long, 1, step=7)
    found = [attempt(str(tmp_path / str(at)), FailingDisk(at, code, moment), lambda: None) for at in writes]
    judge(found, "writes that fail half-way", record, f"({os.strerror(code)})")


# Of a source: what must come of it, its rows or a code that makes it due again.
ROWS = "rows"
VIDEO = r"/a\.mp4"
SOURCE_FAULTS = [
    Fault("a storm of 503", SLOW_DOWN, "Get Head", VIDEO, ROWS, times=3),
    Fault("bodies are cut", s3_faults.cut_body, "Get", VIDEO, ROWS, times=2, **RCLONE),
    Fault("credentials expire while it is read", EXPIRED, "*", VIDEO, "forbidden", nth=3, **FOREVER),
    Fault("it is replaced while it is read", s3_faults.another_etag, "Get", VIDEO, "changed", nth=2, **FOREVER),
    Fault("a storm of 503 that stays", SLOW_DOWN, "Get", VIDEO, "storage", nth=2, **FOREVER),
    Fault("bodies are cut, always", s3_faults.cut_body, "Get", VIDEO, "storage", nth=2, **FOREVER),
    Fault("half of a body comes and nothing says so", s3_faults.short_body, "Get", VIDEO, ROWS, times=2),
    Fault("half of a body comes, always", s3_faults.short_body, "Get", VIDEO, "storage", **FOREVER),
    Fault("a length is too short", s3_faults.too_short_length, "Get", VIDEO, ROWS, **RCLONE),
    Fault("a length is too long", s3_faults.too_long_length, "Get", VIDEO, ROWS),
    Fault("connections break", BEFORE, "*", VIDEO, ROWS, times=3, **RCLONE),
    Fault("connections break for ever", BEFORE, "Get", VIDEO, "storage", nth=2, **FOREVER, **RCLONE),
    Fault("an answer comes too late", NEVER, "Get", VIDEO, ROWS, times=2, **SOON),
    Fault("no answer comes any more", NEVER, "*", VIDEO, "storage", nth=2, **FOREVER, **SOON),
    Fault("login pages", s3_faults.login_page, "*", VIDEO, ROWS, times=2),
    Fault("login pages for ever", s3_faults.garbage, "Get", VIDEO, "storage", nth=2, **FOREVER),
    Fault("it may not be read", DENIED, "Get", VIDEO, "forbidden", **FOREVER, **RCLONE),
    Fault("it is gone while it is read", NOT_FOUND, "Get", VIDEO, "vanished", nth=2, **FOREVER),
    Fault("it is replaced before it is opened", s3_faults.another_etag, "Head", VIDEO, "changed", **FOREVER),
    Fault("it is replaced after it was read", s3_faults.another_etag, "Head", VIDEO, "changed", nth=2, **FOREVER, **RCLONE),
    Fault("its end cannot be checked", BROKEN, "Head", VIDEO, "storage", nth=2, **FOREVER),
    Fault("it is elsewhere", s3_faults.redirected, "Get", VIDEO, "storage", **FOREVER),
]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two shots, and an index that lies so far behind the pictures that reading goes to and fro."""
    path = write_video(tmp_path_factory.mktemp("video") / "a.mp4", textured(30, 1) + textured(30, 2))
    data = path.read_bytes()
    index = data.index(b"moov") - 4
    return data[:index] + struct.pack(">I4s", 9 << 20, b"free") + bytes((9 << 20) - 8) + data[index:]


@pytest.mark.timeout(1000)
@pytest.mark.cases(quick=2, long=len(SOURCE_FAULTS))
def test_promise_4_no_video_is_blamed_for_what_its_store_does(
    case: int, servers: dict[str, tuple[S3Server, Proxy]], video: bytes, tmp_path: Path, record: Record
) -> None:
    fault = SOURCE_FAULTS[case]
    server, proxy = servers[fault.on]
    env = clients(server, proxy.endpoint, fault)
    bucket = server.bucket()
    server.upload(bucket, {"a.mp4": video})
    source = (f"{bucket}/a.mp4", len(video), hashlib.md5(video).hexdigest())
    rule = fault.rule()
    proxy.obey(rule)
    done = in_fresh_process(decode, *source, env=env, log=tmp_path / "log")
    hits = rule.hits
    proxy.obey()
    clips, end = done.value
    (tmp_path / "a.mp4").write_bytes(video)
    expected_clips, _ = decode(str(tmp_path / "a.mp4"), len(video), None)
    assert len(expected_clips) == 2
    if fault.must == ROWS:
        damage = Damage(harmed=int((clips, end["error_code"]) != (expected_clips, None)))
    else:
        damage = Damage(harmed=int(end["error_code"] != fault.must))
    record("storage faults while a video is read", damage)
    damage.check(f"{fault.name}: {end}")
    assert hits, "the fault never struck"
    assert server.secret not in f"{end} {done.said}"


LISTING_FAULTS = [
    Fault("the second listing breaks off", s3_faults.cut_body, "List", "", FINISHES, nth=2, times=2),
    Fault("listings make no sense for ever", s3_faults.garbage, "List", "", STOPS, **FOREVER, **RCLONE),
    Fault("the second listing is a login page", s3_faults.login_page, "List", "", FINISHES, nth=2, times=2),
    Fault("the second listing is slowed down", SLOW_DOWN, "List", "", FINISHES, nth=2, times=3, **RCLONE),
    Fault("the second listing is refused", EXPIRED, "List", "", STOPS, nth=2, **FOREVER),
    Fault("the second listing never comes", NEVER, "List", "", STOPS, nth=2, **FOREVER, **SOON),
]


@pytest.mark.timeout(1000)
@pytest.mark.cases(quick=1, long=len(LISTING_FAULTS))
def test_promise_1_a_listing_is_whole_or_stops_the_run(
    case: int, servers: dict[str, tuple[S3Server, Proxy]], tmp_path: Path, record: Record
) -> None:
    fault = LISTING_FAULTS[case]
    server, proxy = servers[fault.on]
    bucket = server.bucket()
    server.upload(bucket, {f"{number}.mp4": b"x" for number in range(3)})
    rule = fault.rule()
    proxy.obey(rule)
    done = in_fresh_process(discover, bucket, env=clients(server, proxy.endpoint, fault), log=tmp_path / "log")
    hits = rule.hits
    proxy.obey()
    whole = [f"{bucket}/{number}.mp4" for number in range(3)]
    is_right = done.value == whole if fault.must == FINISHES else isinstance(done.value, str)
    record("storage faults while sources are listed", Damage(harmed=int(not is_right)))
    assert is_right, (fault.name, done)
    assert hits, "the fault never struck"
    assert server.secret not in f"{done.value} {done.said}"


def test_promise_4_a_file_that_is_replaced_while_it_is_read_is_not_called_broken(tmp_path: Path, record: Record) -> None:
    path = write_video(tmp_path / "a.mp4", textured(30, 1))
    size_bytes = path.stat().st_size

    def opened(*source: Any) -> BinaryIO:
        file = open_source(*source)
        path.write_bytes(bytes(size_bytes))  # somebody writes another one over it
        return file

    listed = describe(str(path))
    assert listed.mtime_ns is not None
    modified_at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=listed.mtime_ns // 1000)
    *_, row = rows_of(decoder(open_file=opened), unit(path, modified_at=modified_at))
    record("storage faults while a video is read", Damage(harmed=int(row["end"]["error_code"] != "changed")))
    assert row["end"]["error_code"] == "changed"
