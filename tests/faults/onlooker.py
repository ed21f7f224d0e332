"""The stranger of tests/faults/stranger.py as a program that serves many cases, one after the other.

It is told `watch ROOT` and `stop` on its standard input, and answers `stop` with what it has seen since.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import stranger

PAUSE_S = 0.2
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Seen:
    """Row counts of `table partition video` at all moments; `shrunk`: those that were fewer than a moment before."""

    looks: int
    counts: Mapping[str, list[int]]
    shrunk: list[str]

    def partial_views(self, root: str) -> int:
        """How many groups were ever seen with another number of rows than they have now, at the end."""
        now, _ = stranger.look(*stranger._opened(root))
        other = {group for group, counts in self.counts.items() if set(counts) != {now.get(group, 0)}}
        return len(other | set(self.shrunk))


class Onlooker:
    """The program, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def watch(self, root: str) -> None:
        """Begins to look at the tables below a root."""
        self._say(f"watch {root}")

    def stop(self) -> Seen:
        """Ends looking."""
        self._say("stop")
        assert self._process.stdout is not None
        return Seen(**json.loads(self._process.stdout.readline()))

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@contextmanager
def onlooker() -> Iterator[Onlooker]:
    """Starts one, which ends with the block."""
    command = [sys.executable, "-m", "tests.faults.onlooker"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield Onlooker(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def main() -> None:
    """Looks until the input ends."""
    where: tuple[Any, str] | None = None
    looks, before, shrunk = 0, Counter[str](), set[str]()
    counts: dict[str, set[int]] = {}
    while True:
        if select.select([sys.stdin], [], [], PAUSE_S if where else None)[0]:
            line = sys.stdin.readline().strip()
            if not line:
                return
            if line.startswith("watch "):
                where = stranger._opened(line.removeprefix("watch "))
                looks, before, shrunk, counts = 0, Counter(), set(), {}
                continue
            found = {group: sorted(of) for group, of in counts.items()}
            print(json.dumps({"looks": looks, "counts": found, "shrunk": sorted(shrunk)}), flush=True)
            where = None
            continue
        assert where is not None
        now, trouble = stranger.look(*where)
        if trouble:
            continue  # an object went between listing and reading, as one may: look again
        shrunk |= {group for group, count in before.items() if now.get(group, 0) < count}
        for group, count in now.items():
            counts.setdefault(group, set()).add(count)
        before, looks = now, looks + 1


if __name__ == "__main__":
    main()
