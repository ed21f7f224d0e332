"""Runs as a scheduler sees them: stopped before any operation on the store, gone on with later, or never.

An actor is a thread that waits before every operation of its store until it is told to go on, so one thread runs at a time and
a seed replays what happened. An actor that is killed does nothing any more; one that is left waiting while everything around it
moves on is a zombie.
"""

from __future__ import annotations

import random
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.gather import EpochPlan
from pipeline.log import EpochAbandoned, RunClosed
from pipeline.publish import PartsMissing, publish
from pipeline.recovery import Clock
from pipeline.session import Session
from pipeline.staging import StageParts
from schemas.identity import unit_id
from schemas.tables import TABLES
from stages.remote import Remote
from stages.storage import Store
from tests.pipeline.faults import OF_TIME_AND_RUN, Killed, memory
from tests.pipeline.rows import ELSEWHERE, START, Steps, Video, World, clip_rows, job, sources, units

Group = tuple[str, str, str]  # table, partition without run_date, video
Rows = list[tuple[Any, ...]]
MOST_OPERATIONS = 1_000  # on the way to a place
STOPPED = (RunClosed, EpochAbandoned, PartsMissing)  # what stops a run in good order


class Time:
    """What every clock of the model shows, but for its skew."""

    def __init__(self) -> None:
        self.now = START

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Actor:
    """A program in a thread of its own, on a store of its own."""

    name: str
    time: Time
    skew_s: float
    program: Callable[[Actor], None]
    root: str
    is_conditional: bool = True
    session: Session | None = None
    ended: bool = False
    stopped: str | None = None  # why it ended early, in good order
    error: BaseException | None = None
    operations: int = 0
    next: str = "begin"  # the operation that it waits before
    _left: int = 0
    _until: Callable[[str], bool] | None = None
    _dead: bool = False
    _tokens: int = 0

    def __post_init__(self) -> None:
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()
        self.store = Stepped(self.root, self.gate, self.is_conditional)

    @property
    def is_run(self) -> bool:
        """Whether it is a run, or was to be one, rather than somebody who recovers or only publishes."""
        return isinstance(self.program, Run)

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._dead:
                self.program(self)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - told by the machine
            self.error = error
        self.ended = True
        self._back.release()

    def go(self, operations: int = 1 << 30, until: Callable[[str], bool] | None = None) -> None:
        """Lets it do so many operations, or go on until it stands before one that `until` wants to see."""
        if not self.ended:
            self._left, self._until = operations, until
            self._turn.release()
            self._back.acquire()

    def go_to(self, place: str) -> None:
        """Lets it go on until it stands before the next operation of a kind."""
        self.go(1)
        self.go(MOST_OPERATIONS, lambda operation: re.match(place, operation) is not None)

    def kill(self) -> None:
        """Ends it where it stands: nothing that it was about to do happens."""
        self._dead = True
        self.go()
        self._thread.join()

    def gate(self, operation: str) -> None:
        """Called before every operation. Those in helping threads belong to the step that they are made in."""
        if self._dead:
            raise Killed
        if threading.current_thread() is not self._thread:
            return
        self.next = operation
        while self._left <= 0 or (self._until is not None and self._until(operation)):
            self._until = None
            self._back.release()
            self._turn.acquire()
            if self._dead:
                raise Killed
        self._left -= 1
        self.operations += 1

    def clock(self) -> Clock:
        return Clock(now=self.now, sleep=lambda s: self.time.advance(40 * s), token=self.token)

    def now(self) -> datetime:
        return self.time.now + timedelta(seconds=self.skew_s)

    def token(self) -> str:
        self._tokens += 1
        return f"{self.name[:3]:0>3}{self._tokens:03x}"

    def renew(self) -> None:
        """What the thread of a live run does beside it."""
        if self.session is not None and not self.ended and "lease" not in self.next:
            left, self._left = self._left, 1 << 30
            self.session.renew_lease()
            self._left = left


class Stepped(Store):
    """A store in memory with a gate before every operation. Without conditions it takes every write."""

    def __init__(self, root: str, gate: Callable[[str], None], is_conditional: bool = True) -> None:
        super().__init__(root)
        self._gated = _Gated(root, gate, is_conditional)

    @property
    def _backend(self) -> Any:  # type: ignore[override]
        return self._gated


class _Gated(Remote):
    def __init__(self, root: str, gate: Callable[[str], None], is_conditional: bool) -> None:
        super().__init__(root)
        self._gate, self._is_conditional = gate, is_conditional

    def read(self, path: str) -> bytes:
        self._gate(f"read {path}")
        return super().read(path)

    def create(self, path: str, data: bytes) -> None:
        self._gate(f"create {path}")
        super().create(path, data) if self._is_conditional else super().write(path, data)

    def write(self, path: str, data: bytes) -> None:
        self._gate(f"write {path}")
        super().write(path, data)

    @contextmanager
    def open_write(self, path: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        with super().open_write(path, exclusive) as file:  # appears through `create` or `write`
            yield file

    def open_read(self, path: str) -> BinaryIO:
        self._gate(f"open {path}")
        return super().open_read(path)

    def size(self, path: str) -> int | None:
        self._gate(f"size {path}")
        return super().size(path)

    def delete(self, path: str) -> None:
        self._gate(f"delete {path}")
        super().delete(path)

    def list(self, folder: str, recursive: bool) -> Iterator[tuple[str, int]]:
        self._gate(f"list {folder}")
        return super().list(folder, recursive)


# --- what the archive holds ---

ARCHIVE: Mapping[str, Video] = {
    "plain": Video("plain", (2,)),
    "long": Video("long", (1, 2)),
    "torn": Video("torn", (2,), error="truncated", failing={"embed": (1,)}),
    "absent": Video("absent", missing=True),
    # These three are right one day: then their reader, their store and their captioner have been mended.
    "unreadable": Video("unreadable", (0,), error="unreadable"),
    "late": Video("late", (1,), error="storage"),
    "mute": Video("mute", (2,), failing={"caption": (0, 1)}),
}
_MENDED = {"unreadable": (2,), "late": (1,), "mute": (2,)}
PROMPTS = ("Say it.", "Sing it.")


def mended(video: Video) -> Video:
    """A video as it is once its trouble is over."""
    return replace(video, clips=_MENDED[video.name], error=None, failing={}) if video.name in _MENDED else video


def expected(video: Video) -> Mapping[Group, Rows]:
    """What undisturbed runs over one video, with each prompt, publish beside the ledger once the video is mended."""
    return _expected(video.name, video.version)


@cache
def _expected(name: str, version: str) -> Mapping[Group, Rows]:
    store = Store(memory())
    for number, prompt in enumerate(PROMPTS):
        world = World(store, [mended(replace(ARCHIVE[name], version=version))], Steps(str(number)), caption=prompt)
        world.steps.advance(number)
        world.run()
    return groups_of(store)


def groups_of(store: Store) -> dict[Group, Rows]:
    """All rows beside the ledger's."""
    found: dict[Group, Rows] = defaultdict(list)
    for name in TABLES:
        for info in store.list(name) if name != "videos" else ():
            for group, rows in rows_of_object(info.key, store.read(info.key)).items():
                found[group] += rows
    return dict(found)


def rows_of_object(key: str, data: bytes) -> dict[Group, Rows]:
    """Rows of an object by video, columns of time and run aside."""
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    partition = "/".join(part for part in key.split("/")[1:-1] if not part.startswith("run_date="))
    kept = [name for name in table.column_names if name not in OF_TIME_AND_RUN]
    found: dict[Group, Rows] = defaultdict(list)
    for row in table.to_pylist():
        found[key.partition("/")[0], partition, row["video_id"]].append(tuple(str(row[name]) for name in kept))
    return dict(found)


def published(root: str) -> dict[str, Any]:
    """Key -> object in memory of everything below the tables, without an operation on the store."""
    base = "/" + root.removeprefix("memory://") + "/"
    found = {path[len(base) :]: file for path, file in list(MemoryFileSystem.store.items()) if path.startswith(base)}
    return {key: file for key, file in found.items() if key.partition("/")[0] in TABLES}


# --- programs ---


@dataclass
class Programs:
    """What actors do. `archive` and `is_mended` are looked at when a run lists and when a unit is decoded."""

    archive: dict[str, Video] = field(default_factory=dict)  # by name, as the files are now
    was: dict[str, Video] = field(default_factory=dict)  # by id, all that ever were
    is_mended: bool = False

    def put(self, video: Video) -> None:
        self.archive[video.name] = self.was[video.id] = video

    def decoded(self, video_id: str) -> Video:
        video = self.was[video_id]
        return mended(video) if self.is_mended else video

    def run(self, prompt: str, retry_failed: bool, seed: int) -> Run:
        """A run from its opening to its close, as `pipeline.run` does it."""
        return Run(self, prompt, retry_failed, seed)

    def publisher(self, plan: EpochPlan) -> Callable[[Actor], None]:
        """A remote task that publishes, whoever may have planned it and whatever has become of it."""

        def program(actor: Actor) -> None:
            try:
                publish(actor.store, plan)
            except STOPPED as error:
                actor.stopped = repr(error)

        return program


class Run:
    """One run. What is random about it comes from its seed."""

    _actor: Actor
    _session: Session

    def __init__(self, programs: Programs, prompt: str, retry_failed: bool, seed: int) -> None:
        self._programs, self._retry_failed, self._rng = programs, retry_failed, random.Random(seed)
        self._config, self._entries = job(caption=prompt)
        self._attempts = 0
        self._in_flight: list[EpochPlan] = []

    def __call__(self, actor: Actor) -> None:
        """Does it."""
        self._actor = actor
        session = self._session = actor.session = Session.open(
            actor.store, self._config, self._entries, clock=actor.clock(), owner=ELSEWHERE, retry_failed=self._retry_failed
        )
        try:
            archive = list(self._programs.archive.values())
            found = units(session.due(sources(archive)), archive)
            session.expect(found)
            for tries in range(3):
                if tries and session.missing().num_rows:
                    session.expect(session.missing())
                self._round(is_last=tries == 2)
            self._plan()
            self._commit(0)
        except STOPPED as error:
            actor.stopped = repr(error)
        try:
            session.close(complete=actor.stopped is None)
        except STOPPED as error:
            actor.stopped = actor.stopped or repr(error)

    def _round(self, is_last: bool) -> None:
        missing = self._session.missing().to_pylist()
        self._rng.shuffle(missing)
        for unit in missing:
            self._stage(unit, is_last)
            if self._rng.random() < 0.4:
                self._plan()

    def _plan(self) -> None:
        self._commit(1)
        plan = self._session.plan_epoch()
        if plan is not None:
            self._in_flight.append(plan)
            if self._rng.random() < 0.9:  # else the task that should have published it died
                publish(self._actor.store, plan)

    def _commit(self, most_in_flight: int) -> None:
        while len(self._in_flight) > most_in_flight:
            self._session.commit(self._in_flight[0])
            del self._in_flight[0]

    def _stage(self, unit: Mapping[str, Any], is_last: bool) -> None:
        """One or several attempts at a unit, of which one may come through; an attempt that breaks off stages other rows."""
        video = self._programs.decoded(unit["video_id"])
        if self._rng.random() < 0.3:
            count = video.clips[unit["unit"]]
            other = replace(video, clips=(*video.clips[: unit["unit"]], count + 1, *video.clips[unit["unit"] + 1 :]))
            self._attempt(unit, other, broken_off=True, is_heard=self._rng.random() < 0.5)
        if is_last or self._rng.random() < 0.9:
            self._attempt(unit, video, broken_off=False, is_heard=is_last or self._rng.random() < 0.9)

    def _attempt(self, unit: Mapping[str, Any], video: Video, broken_off: bool, is_heard: bool) -> None:
        self._attempts += 1
        attempt = f"{unit_id(unit['video_id'], unit['unit'])[-4:]}{self._actor.name}{self._attempts}"
        rows = clip_rows(unit, video, self._entries, self._config.clips.fingerprint(), attempt)
        rows = rows.slice(0, rows.num_rows - 1) if broken_off else rows
        stage = StageParts(self._actor.store, self._session.run_id)
        begin = 0
        while begin < rows.num_rows:
            count = self._rng.randint(1, 3)
            receipts = stage(rows.slice(begin, count))
            begin += count
            if is_heard or self._rng.random() < 0.5:
                self._session.receive(receipts)
