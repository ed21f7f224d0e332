"""Whole runs without Ray, as `clipmill run` leads them, for processes of their own: what they return travels by pickle."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline import lease
from pipeline.outcome import Row
from pipeline.session import RunClosed, Session
from pipeline.verify import verify
from schemas.config import InputConfig
from schemas.errors import BadRequest
from schemas.rows import PART_ROW, rows_table
from stages.discover import Discovery
from stages.storage import StorageUnavailable, Store
from tests.pipeline.faults import all_groups, memory, tables
from tests.pipeline.rows import Steps, Video, World
from tests.stages.units import decoder, rows_of, unit

ARCHIVE = (
    Video("plain", (2,)),
    Video("long", (1, 2)),
    Video("unreadable", (0,), error="unreadable"),
    Video("torn", (2,), error="truncated", failing={"embed": (1,)}),
    Video("absent", missing=True),
)
LARGE_CAPTION_BYTES = 3 << 20


class LargeWorld(World):
    """The same with captions that make their object an upload of several parts."""

    def rows(self, unit: Mapping[str, Any], attempt: str = "a1", noise: float = 0.0) -> pa.Table:
        rows: list[Row] = super().rows(unit, attempt, noise).to_pylist()
        for caption in itertools.chain.from_iterable(row["captions"] or () for row in rows):
            if caption["caption"]:
                noise = random.Random(caption["caption"]).randbytes(LARGE_CAPTION_BYTES)
                caption["caption"] = base64.b64encode(noise).decode()
        return rows_table(rows, PART_ROW)


def world(output: str | Store, name: str, large: bool = False) -> World:
    kind = LargeWorld if large else World
    store = output if isinstance(output, Store) else Store(output)
    return kind(store, ARCHIVE, Steps(name), epoch_videos=5 if large else 3, batch_rows=6)


@dataclass(frozen=True)
class Ended:
    """How a run ended: `stopped` says why it did not finish."""

    stopped: str | None
    now: datetime


def die(root: str, steps: int) -> Ended:
    """A run that is gone after some steps."""
    first = world(root, "0")
    for _ in itertools.islice(first.program(), steps):
        pass
    return Ended(None, first.steps.now)


def run(output: str | Store, name: str, large: bool = False, after: Ended | None = None) -> Ended:
    """A run that renews its lease as it goes, and closes whatever happens; any other error than the store's is raised."""
    now = world(output, name, large)
    _wait(now, after)
    stopped = None
    session: Session | None = None
    try:
        for session in now.program():
            with contextlib.suppress(StorageUnavailable):  # as the thread does that renews it
                session.renew_lease()
    except StorageUnavailable as error:
        stopped = str(error)
    if stopped and session is not None:
        try:
            session.close(complete=False)
        except (StorageUnavailable, RunClosed) as error:  # closed: it was the end of the close that failed
            stopped += f"; {error}"
    return Ended(stopped, now.steps.now)


def _wait(next_one: World, after: Ended | None) -> None:
    """Until the lease of the run before has lapsed."""
    if after is not None:
        next_one.steps.now = after.now
        next_one.steps.advance(lease.LEASE_S + 1)


@dataclass(frozen=True)
class Published:
    """What the tables hold after the next run, and what a stranger could see before it."""

    before: dict[tuple[str, ...], int]
    rows: dict[str, list[tuple[Any, ...]]]
    problems: list[str]


def run_again(root: str, name: str, after: Ended, large: bool = False) -> Published:
    """The next night: a run after the lease of the first has lapsed, and all that it leaves."""
    store = Store(root)
    before = all_groups(store)
    second = world(root, name, large)
    _wait(second, after)
    second.run()
    return Published(before, tables(store), [str(found) for found in verify(store, second.steps.now)])


def undisturbed(large: bool = False) -> Published:
    """A run that was left alone."""
    root = memory()
    first = world(root, "0", large)
    first.run()
    return Published(all_groups(Store(root)), tables(Store(root)), [])


def parts_seen(before: Mapping[tuple[str, ...], int], whole: Mapping[tuple[str, ...], int]) -> int:
    """Groups of rows of which a stranger saw some and not all, or too many."""
    return Counter(whole.get(group) != count for group, count in before.items())[True]


def decode(uri: str, size_bytes: int, etag: str | None) -> tuple[list[tuple[Any, ...]], Row]:
    """What decode makes of one source: its clips, frames by their digest, and the end row."""
    *clips, end = rows_of(decoder(), unit(uri, size_bytes=size_bytes, etag=etag))
    return [
        (row["clip_id"], row["start_s"], row["end_s"], row["frame_times_s"], hashlib.sha256(row["frames"]).hexdigest())
        for row in clips
    ], end["end"]


def discover(uri: str) -> list[str] | str:
    """URIs of the videos below a folder, or why there are none."""
    try:
        return [uri for found in Discovery(InputConfig(uri=uri)) for uri in found["uri"].to_pylist()]
    except (BadRequest, StorageUnavailable) as error:
        return str(error)
