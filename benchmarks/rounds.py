"""Contestants side by side: round after round in changing order, with a record that an interrupted section goes on from.

    results = Section("decode", settings={"videos": 12}, packages=("av",)).run({"bare": bare, "stage": stage})
    results.ratio("bare", to="stage", of="cpu_s")

A contestant is a function without arguments that does the section's work once and returns figures: numbers by name, units in
the names (`wall_s`, `cpu_s`, `peak_bytes`). The record, `.bench/NAME.jsonl`, holds a line of what was measured with (machine,
versions, settings), then a line for each contestant and round. A record made with anything else is put aside, never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

Figure = Mapping[str, float]
Contestant = Callable[[], Figure]

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / ".bench"
LIMIT_S = 30 * 60.0
OURS = ("schemas", "stages", "pipeline", "cluster")


@dataclass(frozen=True)
class Stat:
    """Median, least and most of a figure over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        """ValueError where there are no values."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 2) -> str:
        """`1.02 (0.98 to 1.05)`, or the number alone where it was measured once."""
        alone = f"{self.median:.{digits}f}"
        return alone if self.rounds == 1 else f"{alone} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Setup:
    """What a record was measured with; two records of which any of this differs are not put together."""

    machine: str
    python: str
    versions: Mapping[str, str]  # of packages
    code: str  # digest of our own four packages
    settings: Mapping[str, Any]
    contestants: Sequence[str]


@dataclass(frozen=True)
class Results:
    """What a section has measured so far: figures by contestant and round."""

    setup: Setup
    date: str
    figures: Mapping[str, Mapping[int, Figure]]
    others: Stat | None  # share of the machine's processors that other work took meanwhile; None before the first line
    record: Path | None = None  # where this was read

    def of(self, contestant: str, name: str) -> Stat:
        """Figure `name` of a contestant over its rounds. KeyError where a round did not report it."""
        return Stat.of([figure[name] for figure in self.figures.get(contestant, {}).values()])

    def ratio(self, contestant: str, *, to: str, of: str) -> Stat:
        """Figure `of` of a contestant over that of `to`, round by round, which other work on the machine disturbs least."""
        ours, theirs = self.figures.get(contestant, {}), self.figures.get(to, {})
        return Stat.of([ours[turn][of] / theirs[turn][of] for turn in sorted(ours.keys() & theirs.keys())])

    def rounds(self) -> int:
        """Rounds that every contestant has been through."""
        return min((len(self.figures.get(name, {})) for name in self.setup.contestants), default=0)


class Section:
    """One part of the measurements, known by its name. `packages` are those whose versions matter to it."""

    def __init__(
        self,
        name: str,
        *,
        settings: Mapping[str, Any] | None = None,
        packages: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        folder: Path = RECORDS,
    ) -> None:
        self.name, self._folder = name, folder
        self._settings = json.loads(json.dumps(dict(settings or {})))  # as a record gives them back
        self._versions = {**{package: metadata.version(package) for package in packages}, **(versions or {})}

    @property
    def path(self) -> Path:
        """The record."""
        return self._folder / f"{self.name}.jsonl"

    def run(self, contestants: Mapping[str, Contestant], rounds: int = 5, limit_s: float = LIMIT_S) -> Results:
        """Measures what the record lacks of `rounds` rounds.

        Ends early where the next measurement would probably take it past `limit_s`; running it again goes on. Whatever a
        contestant raises ends it too, with the record of the others kept.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open(Setup(machine(), platform.python_version(), self._versions, code_digest(), self._settings, [*contestants]))
        done = self.results().figures
        ends_s = time.monotonic() + limit_s
        longest_s: dict[str, float] = {}
        for turn, name in _order(list(contestants), rounds):
            if turn in done.get(name, {}):
                continue
            if time.monotonic() + longest_s.get(name, 0.0) > ends_s:
                print(f"{self.name}: out of time in round {turn + 1}; the same command goes on", file=sys.stderr, flush=True)
                break
            line = _measured(contestants[name])
            longest_s[name] = max(longest_s.get(name, 0.0), line["took_s"])
            self._append({"round": turn, "contestant": name, **line})
            print(f"{self.name}: round {turn + 1} of {rounds}, {name} {line['took_s']:.1f} s", file=sys.stderr, flush=True)
        return self.results()

    def results(self) -> Results:
        """What the record holds. FileNotFoundError where nothing was ever measured."""
        head, *lines = self._lines()
        figures: dict[str, dict[int, Figure]] = {}
        for line in lines:
            figures.setdefault(line["contestant"], {})[line["round"]] = line["figure"]
        others = [line["others"] for line in lines]
        return Results(Setup(**head["setup"]), head["date"], figures, Stat.of(others) if others else None, self.path)

    def _open(self, setup: Setup) -> None:
        """A record of this setup: the one that is there where it is one."""
        wanted = json.loads(json.dumps(asdict(setup)))
        if self.path.exists():
            lines = self._lines()
            if lines and lines[0]["setup"] == wanted:
                self.path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # without a last line cut short
                return
            aside = self.path.with_suffix(f".{time.time_ns()}.jsonl")
            self.path.rename(aside)
            print(f"{self.name}: measured with something else before, put aside as {aside.name}", file=sys.stderr)
        self._append({"setup": wanted, "date": f"{datetime.now(UTC):%Y-%m-%d}"})

    def _lines(self) -> list[dict[str, Any]]:
        whole, _, _cut_short = self.path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _order(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, contestant): forwards, backwards, forwards..., so that a machine that drifts favours nobody."""
    for turn in range(rounds):
        yield from ((turn, name) for name in (names if turn % 2 == 0 else reversed(names)))


def _measured(contestant: Contestant) -> dict[str, Any]:
    """A contestant's figures, and what the machine did for others meanwhile (time that a hypervisor took counts, too)."""
    began_s, ours_s, all_s = time.monotonic(), _own_cpu_s(), _busy_s()
    figure = contestant()
    took_s = time.monotonic() - began_s
    told_s = sum(figure.get(name, 0.0) for name in ("cpu_s", "startup_cpu_s", "repeated_cpu_s"))
    own_s = max(_own_cpu_s() - ours_s, told_s)  # there may be processes that nobody waited for
    others_s = (_busy_s() - all_s) - own_s
    share = max(0.0, others_s / (took_s * (os.cpu_count() or 1)))
    return {"figure": dict(figure), "took_s": round(took_s, 3), "others": round(share, 4)}


def _own_cpu_s() -> float:
    """CPU seconds of this process and of all children that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def machine() -> str:
    """Processor, cores and memory, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0] if named else model
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {round(psutil.virtual_memory().total / 2**30)} GB"


def code_digest(root: Path = ROOT) -> str:
    """Of the contents of our own packages' Python files."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(file for package in OURS for file in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
