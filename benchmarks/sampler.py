"""What the processes of a run take of memory, by kind, seen from outside while it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

EVERY_S = 0.1
# Tasks: decoding and staging share their worker processes. Idle: workers that never got anything to do.
TASKS, MODELS, PUBLISHING, DRIVER, RAY, IDLE = "tasks", "models", "publishing", "driver", "ray", "idle"
KINDS = (TASKS, MODELS, PUBLISHING, DRIVER, RAY, IDLE)
_RAYS_OWN = (
    "/raylet/raylet",
    "/gcs_server",
    "/ray/dashboard/",
    "/ray/_private/log_monitor",
    "runtime_env/agent",
    "/ray/autoscaler/",
)
_TASK_NAMES = {"MapBatches(Worker)": MODELS, "MapBatches(_work)": TASKS, "ReadUnits": TASKS, "publish epoch": PUBLISHING}


@dataclass(frozen=True)
class Usage:
    """Bytes of one process at one moment. `shared` is memory of others too: where Ray's object store lies."""

    rss: int
    shared: int
    anonymous: int
    high_water: int

    @classmethod
    def of(cls, status: str) -> Usage:
        """From the text of /proc/PID/status; zeros for a process that has ended."""
        found = {name: line for name, _, line in (each.partition(":") for each in status.splitlines())}
        names = ("VmRSS", "RssShmem", "RssAnon", "VmHWM")
        return cls(*(int(found[name].split()[0]) << 10 if name in found else 0 for name in names))


@dataclass
class Peak:
    """The most that one process has taken without shared memory, also between two looks."""

    own: int = 0
    _high_water: int = 0

    def add(self, usage: Usage) -> None:
        """One look. Where the high water has risen since the last one, it counts, less what is shared now."""
        top = usage.high_water if usage.high_water > self._high_water else usage.rss
        self._high_water = max(self._high_water, usage.high_water)
        self.own = max(self.own, top - usage.shared)


def kind_of(command: str) -> str | None:
    """What a process is, by its command line; None for what is no process of a run."""
    if any(name in command for name in _RAYS_OWN):
        return RAY
    if command.startswith("ray::IDLE") or "default_worker.py" in command:
        return IDLE
    if command.startswith("ray::"):
        return next((kind for name, kind in _TASK_NAMES.items() if name in command), RAY)
    return DRIVER if " pipeline run" in command else None


@dataclass
class Watched:
    """Peaks so far, bytes. `together`: anonymous memory of all processes, and what they share once."""

    together: int = 0
    peaks: dict[tuple[int, float], Peak] = field(default_factory=dict)  # by process (its number and start)
    kinds: dict[tuple[int, float], str] = field(default_factory=dict)

    def most(self, kind: str) -> int:
        """Of the largest process of a kind; 0 where there was none."""
        return max((peak.own for key, peak in self.peaks.items() if self.kinds[key] == kind), default=0)

    def count(self, kind: str) -> int:
        """Processes of a kind."""
        return sum(found == kind for found in self.kinds.values())

    def look(self, looked: list[tuple[tuple[int, float], str, Usage]]) -> None:
        """Takes in all processes of one moment: (which, command line, usage).

        A worker changes its name with its task: it is of the first of KINDS that it ever was.
        """
        for key, command, usage in looked:
            kind = kind_of(command)
            if kind is None and key not in self.kinds:
                continue
            before = self.kinds.get(key)
            self.kinds[key] = min((each for each in (before, kind) if each), key=KINDS.index)
            self.peaks.setdefault(key, Peak()).add(usage)
        usages = [usage for _, _, usage in looked]
        if usages:
            shared = max(usage.shared for usage in usages)
            self.together = max(self.together, shared + sum(usage.anonymous for usage in usages))


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Watches everything that this process starts while it is entered."""
    found, over = Watched(), threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            found.look(_look())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _look() -> list[tuple[tuple[int, float], str, Usage]]:
    looked = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            folder = Path("/proc", str(process.pid))
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            usage = Usage.of((folder / "status").read_text())
            looked.append(((process.pid, process.create_time()), command, usage))
    return looked
