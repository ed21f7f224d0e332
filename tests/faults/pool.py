"""Processes that run the decode stage as a run's tasks do, and may die of it.

As in `pipeline.rounds`: a block of units at a time; a process that dies, hangs or raises costs the rest of its block, whose
missing units run again, each alone; two such deaths of a unit alone, and it is given up. What a worker says of its memory
and what the kernel says of its death is kept.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import resource
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from pipeline.rounds import LONE_DEATHS
from schemas.identity import unit_id
from schemas.rows import CLIP_ROW, UNIT_ROW, rows_table

Row = dict[str, Any]
Stage = Callable[[pa.Table], Iterator[pa.Table]]
_spawning = get_context("spawn")
_STDERR = 2


@dataclass
class Told:
    """What became of one unit."""

    unit: Row
    rows: list[Row] = field(default_factory=list)  # of the attempt that ended; frames are their digest
    given_up: bool = False
    lone_deaths: int = 0
    deaths: list[str] = field(default_factory=list)  # of processes that died with it, or while it waited behind another one
    faults: list[str] = field(default_factory=list)  # tracebacks that came out of the stage
    peak_bytes: int = 0  # resident, beyond what the worker had before its first unit
    wall_s: float = 0.0
    hung: bool = False  # nothing ended it: neither its deadline nor what comes after

    @property
    def end(self) -> Row | None:
        """Its END struct."""
        return self.rows[-1]["end"] if self.rows else None


class Pool:
    """Processes that each build `stage(*args)` once and keep it; as a context manager, gone at its end."""

    def __init__(self, stage: Callable[..., Stage], args: tuple[Any, ...], silence_s: float, processes: int = 2) -> None:
        self._stage, self._args, self._silence_s, self._processes = stage, args, silence_s, processes
        self._idle: list[_Worker] = []
        self.deaths: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._idle:
            worker.stop()
        self._idle.clear()

    def run(self, blocks: Sequence[Sequence[Row]]) -> dict[str, Told]:
        """By unit_id, what became of every unit."""
        told = {_id(unit): Told(unit) for block in blocks for unit in block}
        self._round(blocks, told)
        while missing := [each for each in told.values() if not each.rows and not each.given_up]:
            self._round([[each.unit] for each in missing], told)
            for each in missing:
                if not each.rows:
                    each.lone_deaths += 1
                    each.given_up = each.lone_deaths >= LONE_DEATHS
        return told

    def _round(self, blocks: Sequence[Sequence[Row]], told: dict[str, Told]) -> None:
        waiting = deque(block for block in blocks if block)
        busy: dict[Connection, _Worker] = {}
        while waiting or busy:
            while waiting and len(busy) < self._processes:
                worker = self._idle.pop() if self._idle else _Worker(self._stage, self._args)
                worker.begin(waiting.popleft())
                busy[worker.link] = worker
            for link in wait(list(busy), timeout=1.0):
                assert isinstance(link, Connection)
                if busy[link].hear(told):
                    worker = busy.pop(link)
                    if worker.died is None:
                        self._idle.append(worker)
                    else:
                        self.deaths[worker.died] += 1
            for link, worker in list(busy.items()):
                if worker.silent_s() > self._silence_s:
                    worker.hang(told)
                    del busy[link]
                    self.deaths["hung"] += 1


class _Worker:
    """The driver's end of one process."""

    def __init__(self, stage: Callable[..., Stage], args: tuple[Any, ...]) -> None:
        self.link, theirs = _spawning.Pipe()
        self._process = _spawning.Process(target=_serve, args=(theirs, stage, args), daemon=True)
        self._process.start()
        theirs.close()
        self._left: list[Row] = []
        self._rows: list[Row] = []
        self._heard_s = self._unit_s = time.monotonic()
        self.died: str | None = None

    def begin(self, block: Sequence[Row]) -> None:
        """Gives it a block."""
        self._left, self._rows = list(block), []
        self._heard_s = self._unit_s = time.monotonic()
        with suppress(BrokenPipeError):  # it died: hearing it says so
            self.link.send(self._left)

    def silent_s(self) -> float:
        """Seconds since it last said anything."""
        return time.monotonic() - self._heard_s

    def hear(self, told: dict[str, Told]) -> bool:
        """Takes one message; True when the block is over."""
        self._heard_s = time.monotonic()
        try:
            kind, value, peak_bytes = self.link.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.died = f"exit {self._process.exitcode}"
            for unit in self._left:
                told[_id(unit)].deaths.append(self.died)
            return True
        if kind == "rows":
            self._rows += value
            if value[-1]["end"] is not None:
                self._finish_unit(told, peak_bytes)
            return False
        if kind == "raised":
            told[_id(self._left[0])].faults.append(value)
        return True

    def _finish_unit(self, told: dict[str, Told], peak_bytes: int) -> None:
        each = told[_id(self._left.pop(0))]
        each.rows, self._rows = self._rows, []
        each.peak_bytes = max(each.peak_bytes, peak_bytes)
        each.wall_s, self._unit_s = time.monotonic() - self._unit_s, time.monotonic()

    def hang(self, told: dict[str, Told]) -> None:
        """Nothing else ended it: it says on stderr where it is, and is killed."""
        if self._left:
            told[_id(self._left[0])].hung = True
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGUSR1)
        self._process.join(5)
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """Ends it, if it has not ended."""
        self.link.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _id(unit: Row) -> str:
    return unit_id(unit["video_id"], unit["unit"])


def _serve(link: Connection, stage: Callable[..., Stage], args: tuple[Any, ...]) -> None:
    """The worker's end: blocks in, rows out as they come; an exception ends the block, as it ends a task."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(signal.SIGUSR1, file=_STDERR, all_threads=True)
    built = stage(*args)
    before = peak_resident_bytes()
    while True:
        try:
            block = link.recv()
        except EOFError:
            return
        try:
            for table in built(rows_table(block, UNIT_ROW)):
                assert table.schema.equals(CLIP_ROW), table.schema
                rows = [_light(row) for row in table.to_pylist()]
                link.send(("rows", rows, peak_resident_bytes() - before))
                if rows[-1]["end"] is not None:
                    Path("/proc/self/clear_refs").write_text("5")  # the next unit has its own peak
            link.send(("over", None, 0))
        except Exception:  # noqa: BLE001 - what a task raises ends it, whatever it is
            link.send(("raised", traceback.format_exc(), 0))


def _light(row: Row) -> Row:
    """A row whose frames are their digest, once their number of bytes is right."""
    frames = row["frames"]
    if frames is None:
        return row
    expected = row["frame_count"] * row["frame_height"] * row["frame_width"] * 3
    assert len(frames) == expected, f"{len(frames)} bytes of frames where {expected} belong"
    return row | {"frames": hashlib.sha256(frames).digest()}


def peak_resident_bytes() -> int:
    """Most memory that this process had in RAM since it began, or since its mark was reset."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")
