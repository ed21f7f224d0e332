"""Stages, stores and publishers that are slow enough to be caught at work, or that misbehave in earnest. Passed in by
tests/faults/driver.py.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.gather import EpochPlan
from pipeline.publish import publish, publish_epoch
from stages.decode import Decode
from stages.models.adapter import model_errors
from stages.sources import open_source
from stages.watchdog import Watchdog
from tests.pipeline.faults import FaultyStore

GREED_BYTES = 64 << 20


class SlowDecode:
    """Decodes, after a pause before each unit."""

    def __init__(self, pause_s: float, *args: Any) -> None:
        self._pause_s, self._decode = pause_s, Decode(*args)

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        for row in range(units.num_rows):
            time.sleep(self._pause_s)
            yield from self._decode(units.slice(row, 1))


class SlowStage:
    """Any other stage, with a pause before each table."""

    def __init__(self, pause_s: float, stage: Callable[..., Any], *args: Any) -> None:
        self._pause_s, self._stage = pause_s, stage(*args)

    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(self._pause_s)
        result: pa.Table = self._stage(rows)
        return result


class EvilDecode(Decode):
    """Decodes, but does at files of some names what bad media does to a decoder; its watchdog allows `deadline_s` for each.

    segfault: a real one. hang: in native code, where no exception can reach it. eat: allocates without end. raise: a bug.
    """

    def __init__(self, deadline_s: float, *args: Any) -> None:
        super().__init__(*args, open_file=open_evil, watchdog=Watchdog(deadline_s, grace_s=1.0))


def open_evil(uri: str, *rest: Any) -> BinaryIO:
    """Opens a source, unless its name says what else to do."""
    evil = Path(uri).stem.partition("-")[0]
    if evil in EVILS:
        EVILS[evil]()
    return open_source(uri, *rest)


class EvilStage:
    """A model stage whose process a clip of a video called poison kills, whenever it gets there.

    One of a video called assert breaks the device, and as on a GPU every call after it fails in this process.
    """

    def __init__(self, stage: Callable[..., Any], *args: Any) -> None:
        self._stage = stage(*args)
        self._is_broken = False

    def __call__(self, rows: pa.Table) -> pa.Table:
        names = {Path(uri).stem.partition("-")[0] for uri in rows["uri"].to_pylist()}
        if "poison" in names:
            segfault()
        self._is_broken |= "assert" in names
        if self._is_broken:
            with model_errors():
                raise RuntimeError("CUDA error: device-side assert triggered")
        result: pa.Table = self._stage(rows)
        return result


def segfault() -> None:
    """A real one."""
    ctypes.string_at(0)


def fail() -> None:
    """A bug of ours."""
    raise KeyError("nobody expected this")


def hang() -> None:
    """For ever, holding Python's lock: as a decoder that loops without returning."""
    ctypes.PyDLL(None).pause()


def eat() -> None:
    """Takes memory that malloc does not refuse softly: a native library that ends the process when there is no more."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    while True:
        place = libc.malloc(GREED_BYTES)
        if not place:
            os.abort()
        ctypes.memset(place, 1, GREED_BYTES)


EVILS: dict[str, Callable[[], None]] = {"segfault": segfault, "abort": os.abort, "hang": hang, "eat": eat, "raise": fail}


class DyingStore(FaultyStore):
    """Its process is killed at write number `kill_at`, before or after it took effect."""

    @contextmanager
    def _step(self, name: str, key: str) -> Iterator[None]:
        with self._lock:
            is_last = len(self.writes) == self.kill_at
            self.writes.append(f"{name} {key}")
            if is_last and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)


class SlowPublish:
    """Publishes with a pause after every object; leaves its pid in a folder while it is at work."""

    def __init__(self, marks: str, pause_s: float) -> None:
        self._marks, self._pause_s = Path(marks), pause_s

    def __call__(self, root: str, plan: EpochPlan) -> None:
        mark = self._marks / f"{os.getpid()}.{plan.epoch}"
        mark.touch()
        publish(FaultyStore(root, watch=lambda _: time.sleep(self._pause_s)), plan)
        publish_epoch(root, plan)
        mark.unlink()
