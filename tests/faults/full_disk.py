"""Disks that are full, or fail, from some write on: a run stops at them, and the next one goes on when there is space again.

`python -m tests.faults.full_disk FOLDER KIND WRITE...` does it on a real small disk; it has to run where it may mount one.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO

from stages.disk import TEMPORARY_PREFIX, Disk
from stages.storage import Store
from tests.faults.damage import compared
from tests.faults.storage_runs import Published, parts_seen, run, run_again, undisturbed

DISK_BYTES = 2 << 20
PAGE_BYTES = 4096


class BreakingDisk(Disk):
    """Calls `break_it` before write number `at`, counted from 0; and before each one that follows until it has worked."""

    def __init__(self, at: int | None = None, break_it: Callable[[], bool] = lambda: True) -> None:
        self.writes: list[str] = []
        self.broken_at: str | None = None
        self._at, self._break_it = at, break_it

    @contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[BinaryIO, Path]]:
        if self._at is not None and len(self.writes) >= self._at and not self.broken_at and self._break_it():
            self.broken_at = path
        self.writes.append(path)
        with super()._temporary(path) as found:
            yield found


class FailingDisk(BreakingDisk):
    """Raises error `code` at every write from number `at` on until it is healed: at once, half-way, or at the very end."""

    def __init__(self, at: int, code: int, moment: str) -> None:
        super().__init__(at)
        self._code, self._moment = code, moment

    @contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[BinaryIO, Path]]:
        with super()._temporary(path) as (file, temporary):
            if self.broken_at and self._moment == "begin":
                raise OSError(self._code, os.strerror(self._code))
            yield (_Failing(file, self._code, self._moment) if self.broken_at else file), temporary  # type: ignore[misc]


class _Failing:
    """A file of which half is written, or all and it is not sure that it stays."""

    def __init__(self, file: BinaryIO, code: int, moment: str) -> None:
        self._file, self._code, self._moment = file, code, moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._moment == "end":
            return self._file.write(view)
        self._file.write(view[: len(view) // 2])
        raise OSError(self._code, os.strerror(self._code))

    def flush(self) -> None:
        self._file.flush()
        raise OSError(self._code, os.strerror(self._code))


class OnDisk(Store):
    """An output on such a disk."""

    def __init__(self, root: str, disk: Disk) -> None:
        super().__init__(root)
        self._disk = disk

    @cached_property
    def _backend(self) -> Any:
        return self._disk


@dataclass(frozen=True)
class Attempt:
    """What became of a run whose disk broke at one write."""

    write: str
    stopped: str | None
    lost_rows: int
    doubled_rows: int
    partial_views: int
    leftovers: list[str]  # half-written files
    problems: list[str]  # what `verify` finds after the next run


@cache
def _whole() -> Published:
    return undisturbed()


def attempt(root: str, disk: BreakingDisk, heal: Callable[[], object]) -> Attempt:
    """A run on a disk that breaks, and the next one, when it is healed."""
    ended = run(OnDisk(root, disk), "a")
    leftovers = [str(path.relative_to(root)) for path in Path(root).rglob(f"{TEMPORARY_PREFIX}*")]
    heal()
    after, whole = run_again(root, "b", ended), _whole()
    damage = compared(whole.rows, after.rows)
    write = (disk.broken_at or "none").removeprefix(f"{root}/")
    partial = parts_seen(after.before, whole.before)
    return Attempt(write, ended.stopped, damage.lost_rows, damage.doubled_rows, partial, leftovers, after.problems)


def count_writes(root: str) -> int:
    """Of a run that is left alone."""
    disk = BreakingDisk()
    run(OnDisk(root, disk), "a")
    return len(disk.writes)


def with_small_files(folder: str, writes: Sequence[int], limit_bytes: int) -> list[Attempt]:
    """The kernel lets no file grow beyond a few bytes from some write on. For a process of its own."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that it is an error
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
        return True

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return [attempt(f"{folder}/{at}", BreakingDisk(at, limit), lift) for at in writes]


def _on_small_disk(folder: Path, kind: str, writes: Sequence[int]) -> list[Attempt]:
    """`kind` full: not a byte is left. `nearly full`: a page is left. `read-only`: as kernels make bad disks."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)], check=True)
    ballast = folder / "ballast"

    def fill(pages_left: int) -> bool:
        gc.collect()  # files that are removed but still open somewhere give their pages back now, and not in the middle of it
        with open(ballast, "wb", buffering=0) as file:
            try:
                while file.write(bytes(PAGE_BYTES)):
                    pass
            except OSError:
                file.truncate(max(0, file.tell() - pages_left * PAGE_BYTES))
        return True

    def remount(mode: str) -> bool:
        # Impossible while a file is open for writing.
        command = ["mount", "-o", f"remount,{mode}", str(folder)]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0

    acts: dict[str, tuple[Callable[[], bool], Callable[[], object]]] = {
        "full": (lambda: fill(0), lambda: ballast.unlink(missing_ok=True)),
        "nearly full": (lambda: fill(1), lambda: ballast.unlink(missing_ok=True)),
        "read-only": (lambda: remount("ro"), lambda: remount("rw")),
    }
    break_it, heal = acts[kind]
    found = []
    for at in writes:
        found.append(attempt(str(folder / str(at)), BreakingDisk(at, break_it), heal))
        shutil.rmtree(folder / str(at))
    return found


if __name__ == "__main__":
    made = _on_small_disk(Path(sys.argv[1]), sys.argv[2], [int(text) for text in sys.argv[3:]])
    print(json.dumps([asdict(one) for one in made]))
