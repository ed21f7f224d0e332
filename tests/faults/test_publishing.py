"""Publishing and recovery killed at every write, in real processes, while a stranger reads the tables."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from pipeline.verify import verify
from stages.storage import Store
from tests.faults import large, stranger, tamper
from tests.faults.damage import Damage, compared
from tests.faults.killed import DEADLINE_S, ROOT, Processes, processes
from tests.faults.record import Record
from tests.faults.steps import world
from tests.pipeline.faults import memory, tables
from tests.pipeline.rows import Steps
from tests.s3 import S3Server, serve_conditional_s3

LONG = 16  # tests that share the kill points of a store in `make test-faults`
# The kinds of writes there are, and a write that is one: if publishing gets another kind, it belongs here too.
STEPS = {
    "lease": "lease.json", "log": "_log/", "part": "/parts/", "sidecar": "/epochs/", "object": "/part-", "probe": "_probe-",
    "current": "_current.json", "record": "run.json",
}  # fmt: skip
WHEN = ("before", "after", "middle")
KILL = 9
MOST_MORE_MB = 40  # that verify may take for eight times the rows
_names = itertools.count()


@dataclass(frozen=True)
class Point:
    """What is killed, at which write, and when."""

    what: str  # run, recover (a run that died with an epoch half published), vanished (and what it had staged is gone)
    at: int
    when: str
    write: str


@dataclass
class Place:
    """Where processes publish, and who sees to it."""

    processes: Processes
    root: str
    folder: Path
    whole: dict[str, int] = field(default_factory=dict)
    expected: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    _points: list[Point] = field(default_factory=list)

    def new_root(self) -> str:
        return f"{self.root}/{next(_names)}"

    @property
    def out(self) -> Path:
        return self.folder / "out.json"

    def points(self) -> list[Point]:
        """All there are: every write of a run, and of both kinds of recovery."""
        if not self._points:
            self._points = [point for point in self._found() if point.when != "middle" or "delete" not in point.write]
        return self._points

    def _found(self) -> Iterator[Point]:
        for what in ("run", "recover", "vanished"):
            root = self.new_root()
            number = prepare(self, root, what)
            ended = self.processes.done(self.out, job="run" if what == "run" else "recover", root=root, number=number)
            writes = [write.replace(root.removeprefix("s3://"), "").replace("/", "", 1) for write in ended.out["writes"]]
            yield from (Point(what, at, when, write) for at, write in enumerate(writes) for when in WHEN)


def undisturbed(place: Place, tmp_path: Path) -> None:
    root = str(tmp_path / "undisturbed")
    world(Store(root), 0).run()
    place.expected = tables(Store(root))
    place.whole = dict(stranger.look(fs.LocalFileSystem(), root)[0])


def prepare(place: Place, root: str, what: str) -> int:
    """Makes what recovery finds; the number of the run that comes next."""
    if what == "run":
        return 0
    left = place.processes.done(place.out, job="half", root=root, number=0)
    assert left.signal == KILL, left
    if what == "vanished":
        place.processes.done(place.out, job="vanished", root=root, number=0, run=left.out["run"])
    return 1


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A folder on disk."""
    folder = tmp_path_factory.mktemp("killed")
    with processes({}) as found:
        place = Place(found, str(folder / "roots"), folder)
        undisturbed(place, folder)
        yield place


@pytest.fixture(scope="module")
def bucket(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A bucket of an S3 server without conditional writes."""
    folder = tmp_path_factory.mktemp("killed-s3")
    with processes(s3.env()) as found:
        place = Place(found, s3.bucket(), folder)
        undisturbed(place, folder)
        yield place


@pytest.fixture(scope="module")
def conditional_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A bucket of an S3 server with conditional writes."""
    folder = tmp_path_factory.mktemp("killed-s3-conditional")
    with serve_conditional_s3() as server, processes(server.env()) as found:
        place = Place(found, server.bucket(), folder)
        undisturbed(place, folder)
        yield place


class Watch:
    """A stranger at work."""

    def __init__(self, place: Place, root: str) -> None:
        self._place = place
        self._out, self._stop, self._looks = (
            place.folder / f"stranger-{next(_names)}-{name}" for name in ("out", "stop", "looks")
        )
        paths = {"out": str(self._out), "stop": str(self._stop), "looks": str(self._looks)}
        self._pid = place.processes.start(job="watch", root=root, **paths)
        self.hung = False

    def look_once_more(self) -> None:
        """Waits for a look that began after now."""
        wanted, until = self._number() + 2, time.monotonic() + DEADLINE_S
        while self._number() < wanted and not self.hung:
            time.sleep(0.005)
            self.hung = time.monotonic() > until

    def _number(self) -> int:
        return int(self._looks.read_text()) if self._looks.exists() else 0

    def end(self, may_void: bool) -> tuple[Damage, int, list[str]]:
        """What it saw that nobody may see, counted, how often it looked, and the same in words."""
        self._stop.touch()
        ended = self._place.processes.wait(self._pid, self._out)
        if ended.signal is not None or "looks" not in ended.out:
            raise AssertionError(f"the stranger ended by {ended}")
        # An object is replaced, by one without rows, only where its epoch is taken back. Whoever was reading it may have to
        # look again: a store gives ranges of an object, not a moment of it.
        sights = [] if may_void else list(ended.out["failed"])
        for group, counts in ended.out["counts"].items():
            whole = 1 if group.startswith("videos ") else self._place.whole.get(group)
            if counts != [whole]:
                sights.append(f"{group}: {counts} rows, of {whole}")
            fewer = ended.out["shrunk"].get(group, 0)
            # An epoch whose parts are gone is taken back: all of a video's rows at once, and once only.
            if fewer > (1 if may_void and not group.startswith("videos ") else 0):
                sights.append(f"{group}: fewer rows than before, {fewer} times")
        return Damage(partial_views=len(sights), hangs=int(self.hung or ended.hung)), int(ended.out["looks"]), sights


def survive(place: Place, point: Point) -> tuple[Damage, int, list[str]]:
    """Kills there, starts again, and compares: the damage, how often the stranger looked, and what it saw that nobody may."""
    root = place.new_root()
    number = prepare(place, root, point.what)
    watch = Watch(place, root)
    watch.look_once_more()
    job = "run" if point.what == "run" else "recover"
    died = place.processes.done(place.out, job=job, root=root, number=number, at=point.at, when=point.when)
    watch.look_once_more()
    last = place.processes.done(place.out, job="run", root=root, number=number + 1)
    seen, looks, sights = watch.end(may_void=point.what == "vanished")
    assert died.hung or died.signal == KILL, f"{point} was not killed: {died}"
    if last.hung:
        return seen + Damage(hangs=1), looks, sights
    assert last.signal is None, f"{point}: what began again ended by {last}"
    assert last.out["verify"] == [], (point, last.out["verify"])
    assert last.out["left"] == [], (point, last.out["left"])
    assert last.out["is_named"], f"{point}: _current.json names another configuration"
    found = {name: [tuple(row) for row in rows] for name, rows in last.out["tables"].items()}
    return seen + compared(place.expected, found) + Damage(hangs=int(died.hung)), looks, sights


def survive_all(place: Place, points: Sequence[Point], what: str, record: Record, replay: str) -> None:
    damage = Damage()
    for point in points:
        found, looks, sights = survive(place, point)
        record(what, found)
        record.figure(
            f"looks of the stranger, {what}", f"{int(record.figures.get(f'looks of the stranger, {what}', '0')) + looks}"
        )
        damage += found
        found.check(f"{point}: {sights} {replay}")


def on_s3(disk: Place) -> list[Point]:
    """The same writes; there, an object has no middle."""
    return [point for point in disk.points() if point.when != "middle"]


def chosen(points: Sequence[Point], case: int, is_long: bool, quick: int) -> list[Point]:
    """A share of the points; of the quick size, a few of them."""
    rng = random.Random(f"points-{case}")
    return list(points[case::LONG]) if is_long else rng.sample(list(points), quick)


@pytest.mark.timeout(1800)
@pytest.mark.cases(quick=2, long=LONG)
def test_promises_2_and_3_killed_at_any_write_on_disk(case: int, is_long: bool, disk: Place, record: Record) -> None:
    points = disk.points()
    assert {name for name, part in STEPS.items() if any(part in point.write for point in points)} == set(STEPS)
    replay = f"pytest 'tests/faults/test_publishing.py' -k 'on_disk and {case}'" + " --long" * is_long
    survive_all(disk, chosen(points, case, is_long, 3), "kill points of publishing on disk", record, replay)


@pytest.mark.s3
@pytest.mark.timeout(1800)
@pytest.mark.cases(quick=1, long=4)
def test_promises_2_and_3_killed_at_some_writes_on_s3(
    case: int, is_long: bool, disk: Place, bucket: Place, record: Record
) -> None:
    points = random.Random(f"s3-{case}").sample(on_s3(disk), 8 if is_long else 2)
    replay = f"pytest 'tests/faults/test_publishing.py' -k 'some_writes_on_s3 and {case}'" + " --long" * is_long
    survive_all(bucket, points, "kill points of publishing on S3", record, replay)


@pytest.mark.s3
@pytest.mark.timeout(1800)
@pytest.mark.cases(quick=1, long=3)
def test_promises_2_and_3_killed_at_some_writes_on_s3_with_conditional_writes(
    case: int, is_long: bool, disk: Place, conditional_bucket: Place, record: Record
) -> None:
    points = random.Random(f"conditional-{case}").sample(on_s3(disk), 6 if is_long else 1)
    replay = f"pytest 'tests/faults/test_publishing.py' -k 'conditional_writes and {case}'" + " --long" * is_long
    survive_all(conditional_bucket, points, "kill points of publishing on S3 with conditional writes", record, replay)


@pytest.fixture(scope="module")
def good() -> tuple[dict[str, bytes], Steps]:
    return tamper.output()


@pytest.mark.cases(quick=12, long=330)
def test_verify_finds_whatever_was_tampered_with(case: int, good: tuple[dict[str, bytes], Steps], record: Record) -> None:
    objects, steps = good
    store = Store(memory())
    for key, data in objects.items():
        store.write(key, data)
    if case == 0:
        assert [str(finding) for finding in verify(store, steps.now)] == []
    what = tamper.tamper(store, case)
    record("tamperings that verify found")
    assert verify(store, steps.now), f"not found: {what}"


@pytest.mark.timeout(900)
@pytest.mark.cases(quick=1, long=1)
def test_verify_takes_no_more_memory_for_a_table_of_eight_times_the_size(
    case: int, is_long: bool, tmp_path: Path, record: Record
) -> None:
    del case
    clips = 20_000 if is_long else 2_000
    grown = {}
    # Eight epochs of the same size; and of the long size also one epoch whose objects are eight times as large.
    for epochs, each in ((1, clips), (8, clips), (1, 8 * clips))[: 3 if is_long else 2]:
        root = str(tmp_path / f"{epochs}-{each}")
        large.make(root, epochs, each)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.faults.large", root, str(clips)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
        said = json.loads(ended.stdout)
        assert said["found"] == []
        grown[epochs, each] = said["peak_mb"] - said["before_mb"]
        record.figure(f"verify: memory for {epochs} x {each:,} clips", f"{grown[epochs, each]} MiB")
    assert max(grown.values()) - min(grown.values()) < MOST_MORE_MB, grown
