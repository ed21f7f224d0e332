"""A program run as its own process, and what it cost with everything that it started."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_SUBREAPER, _IS_SUBREAPER = 36, 37  # PR_SET_CHILD_SUBREAPER and PR_GET_CHILD_SUBREAPER of prctl(2)
_LINGER_S = 20.0  # that what a program left running may take to end
_LOOK_S = 0.25
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Seconds from start to end, CPU seconds of all processes, and what the program printed last."""

    began_s: float  # time.time()
    wall_s: float
    cpu_s: float
    tail: str


class ProgramFailed(Exception):
    """The program ended with another code than 0."""


def run(command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, timeout_s: float = 1800.0) -> Cost:
    """Runs `command` and waits for it and for all that it started. Its output goes to the file `log`.

    Daemons (such as Ray's) outlive their parents; as the reaper of orphans we are told what they took, too. Of processes whose
    parents do not wait for them (Ray's workers) nobody is told, so all are looked at meanwhile as well, and the larger sum
    counts. What still runs some time after the program has ended is killed. ProgramFailed with the end of the log where it
    fails or takes too long.
    """
    before = {child.pid for child in psutil.Process().children()}
    with _reaping(), log.open("wb") as output:
        began_s, start_s = time.time(), time.monotonic()
        started = subprocess.Popen(
            [*command], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, start_new_session=True
        )
        with _Looks(before) as looks:
            code, cpu_s = _waited(started.pid, start_s + timeout_s)
            wall_s = time.monotonic() - start_s
            started.returncode = code  # reaped here: Popen must not wait for it again
            cpu_s += _orphans_cpu_s(before)
    tail = log.read_text(errors="replace")[-4000:]
    if code != 0:
        raise ProgramFailed(f"{' '.join(command)} ended with {code}:\n{tail}")
    return Cost(began_s, wall_s, max(cpu_s, looks.cpu_s), tail)


@contextmanager
def _reaping() -> Iterator[None]:
    """Orphans become our children meanwhile, and nobody else's for whom we would never wait."""
    libc, before = ctypes.CDLL(None, use_errno=True), ctypes.c_int()
    for option, value in ((_IS_SUBREAPER, ctypes.byref(before)), (_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "this system does not let a process reap orphans")
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, before.value, 0, 0, 0)


def _waited(pid: int, until_s: float) -> tuple[int, float]:
    """(exit code, CPU seconds of the process and of those it waited for); killed at `until_s` of the monotonic clock."""
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if time.monotonic() > until_s:
            os.killpg(pid, signal.SIGKILL)
            until_s = float("inf")
        time.sleep(0.005)


def _orphans_cpu_s(before: set[int]) -> float:
    """CPU seconds of all that the program left behind, once it has ended."""
    total_s = 0.0
    ends_s = time.monotonic() + _LINGER_S
    while left := [child for child in psutil.Process().children() if child.pid not in before]:
        for child in left:
            if time.monotonic() > ends_s and child.status() != psutil.STATUS_ZOMBIE:
                child.kill()
            found, _, used = os.wait4(child.pid, os.WNOHANG)
            if found:
                total_s += used.ru_utime + used.ru_stime
        time.sleep(0.01)
    return total_s


class _Looks:
    """Looks at all processes below ours, but for the children in `before` and theirs, while it is entered."""

    def __init__(self, before: set[int]) -> None:
        self._before = before
        self._seen: dict[tuple[int, int], int] = {}  # (pid, when it began) -> ticks
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def cpu_s(self) -> float:
        """Of every process, until it was last seen."""
        return sum(self._seen.values()) / _TICKS_PER_S

    def __enter__(self) -> _Looks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        parents, ticks = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                said = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            pid = int(path.parent.name)
            parents[pid] = int(said[1])
            ticks[pid] = (int(said[19]), int(said[11]) + int(said[12]))
        ours = {os.getpid()}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours - self._before:
            ours |= more
        for pid in ours - {os.getpid()}:
            began, used = ticks[pid]
            self._seen[pid, began] = used
