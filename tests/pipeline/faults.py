"""Stores that break, and strangers that read: what the tests of publishing and recovery share."""

from __future__ import annotations

import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem

from schemas.tables import TABLES
from stages.storage import Store

# Columns of time and run: what may differ between a run that was left alone and one that was killed.
OF_TIME_AND_RUN = {"run_id", "run_date", "finished_at", "started_at", "attempts"}


_roots: deque[str] = deque()
_MOST_ROOTS = 8  # more than a test has at a time


def memory() -> str:
    """Root of a store of its own, in memory; the oldest ones are forgotten."""
    root = uuid.uuid4().hex
    _roots.append(root)
    if len(_roots) > _MOST_ROOTS:
        oldest = f"/{_roots.popleft()}/"
        for path in [path for path in MemoryFileSystem.store if path.startswith(oldest)]:
            del MemoryFileSystem.store[path]
    return f"memory://{root}"


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it, and nothing of its process writes any more."""


class FaultyStore(Store):
    """Counts writes; is killed at write number `kill_at`, before or after it took effect, and stays dead.

    `watch(key)` is called after every write that took effect.
    """

    def __init__(
        self, root: str, kill_at: int | None = None, *, after: bool = False, watch: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(root)
        self.kill_at, self.after, self.watch = kill_at, after, watch
        self.writes: list[str] = []
        self._dead, self._lock = False, threading.RLock()

    @contextmanager
    def _step(self, name: str, key: str) -> Iterator[None]:
        with self._lock:
            if self._dead:
                raise Killed
            is_last = len(self.writes) == self.kill_at
            self.writes.append(f"{name} {key}")
            if is_last and not self.after:
                self._dead = True
                raise Killed
            yield
            if self.watch:
                self.watch(key)
            if is_last:
                self._dead = True
                raise Killed

    def create(self, key: str, data: bytes) -> None:
        with self._step("create", key):
            super().create(key, data)

    def write(self, key: str, data: bytes) -> None:
        with self._step("write", key):
            super().write(key, data)

    @contextmanager
    def open_write(self, key: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        opened = super().open_write(key, exclusive)
        file = opened.__enter__()
        try:
            yield file
            step = self._step("appear", key)
            step.__enter__()
        except BaseException as error:
            opened.__exit__(type(error), error, error.__traceback__)
            raise
        opened.__exit__(None, None, None)
        step.__exit__(None, None, None)

    def delete(self, key: str) -> None:
        with self._step("delete", key):
            super().delete(key)

    def read(self, key: str) -> bytes:
        self._alive()
        return super().read(key)

    def open_read(self, key: str) -> BinaryIO:
        self._alive()
        return super().open_read(key)

    def _alive(self) -> None:
        if self._dead:
            raise Killed


class UnconditionalStore(Store):
    """A store that takes every write, like `rclone serve s3`."""

    def conditional_writes(self) -> bool:
        return False


def table_rows(store: Store, name: str, ignoring: set[str] | frozenset[str] = frozenset()) -> list[tuple[Any, ...]]:
    """All rows of a table, partition columns in front, in a canonical order."""
    rows = []
    for info in store.list(name):
        rows += _object_rows(store, info.key, ignoring)
    return sorted(rows, key=repr)


def _object_rows(store: Store, key: str, ignoring: set[str] | frozenset[str]) -> list[tuple[Any, ...]]:
    parts = tuple(part for part in key.split("/")[1:-1] if part.partition("=")[0] not in ignoring)
    with store.open_read(key) as file:
        table = pq.ParquetFile(file).read()
    kept = [name for name in table.column_names if name not in ignoring]
    return [(*parts, *(str(row[name]) for name in kept)) for row in table.select(kept).to_pylist()]


def tables(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every table without its columns of time and run."""
    return {name: table_rows(store, name, OF_TIME_AND_RUN) for name in TABLES}


@dataclass
class Stranger:
    """Reads the tables after every write, as somebody would who knows nothing of the log.

    Fails when rows of a video, model and fingerprint are there in part, twice, or fewer than a moment ago.
    """

    store: Store
    whole: dict[tuple[str, ...], int]  # (table, partition, video) -> rows that there are in the end
    may_shrink: bool = False
    looks: int = 0
    _seen: dict[str, Counter[tuple[str, ...]]] = field(default_factory=dict)  # by object
    _before: set[tuple[str, ...]] = field(default_factory=set)

    def __call__(self, key: str) -> None:
        if key.partition("/")[0] not in TABLES or key.startswith("videos/"):
            return
        self.looks += 1
        self._seen[key] = groups(self.store, key) if self.store.exists(key) else Counter()
        total: Counter[tuple[str, ...]] = Counter()
        for found in self._seen.values():
            for group, count in found.items():
                assert group not in total, f"{group} is in two objects after {key}"
                total[group] = count
        wrong = {group: (count, self.whole.get(group)) for group, count in total.items() if self.whole.get(group) != count}
        assert not wrong, f"rows in part after {key}: {wrong}"
        if not self.may_shrink:
            assert set(total) >= self._before, f"rows vanished with {key}"
        self._before = set(total)


def groups(store: Store, key: str) -> Counter[tuple[str, ...]]:
    """(table, partition without run_date, video) -> rows of an object."""
    with store.open_read(key) as file:
        videos = pq.ParquetFile(file).read(columns=["video_id"])["video_id"].to_pylist()
    partition = [part for part in key.split("/")[:-1] if not part.startswith("run_date=")]
    return Counter((*partition, video) for video in videos)


def all_groups(store: Store) -> dict[tuple[str, ...], int]:
    """`groups` of every table but the ledger."""
    found: Counter[tuple[str, ...]] = Counter()
    for name in TABLES:
        for info in store.list(name) if name != "videos" else ():
            found.update(groups(store, info.key))
    return dict(found)
