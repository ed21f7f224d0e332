"""A whole run: what it costs beside decoding and the models, how busy the cores are, and how soon it begins.

    python -m benchmarks.job [--videos FOLDER_OF_RECORDINGS] [--copies 40] [--rounds 3]

`clipmill run --preset embedded` over repeated real recordings, in a process of its own. Decoding tells its CPU time with every
unit, Ray Data that of the step with the models; all processes of the run, Ray's own included, are counted when they have ended.
What a run over tiny videos takes is start-up, and taken off.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil

from benchmarks import growth
from benchmarks.clipmill import environment
from benchmarks.places import digest_of, parser_of
from benchmarks.process import run
from benchmarks.report import Row, at_least, at_most, publish, table
from benchmarks.rounds import ROOT, Figure, Results, Section, Stat

TITLE = "A whole run"
JOB, START, HELP = "run", "start-up", "help"
_LOOK_S = 0.25
_TINY_VIDEOS = 8
_HELPS = 5


@dataclass
class Busy:
    """CPU seconds that the machine has worked, at moments of time.time()."""

    looks: list[tuple[float, float]] = field(default_factory=list)

    def share(self, first_s: float, last_s: float) -> float:
        """Part of all cores that worked between two moments. ValueError where fewer than two looks lie between them."""
        inside = [look for look in self.looks if first_s <= look[0] <= last_s]
        if len(inside) < 2:
            raise ValueError("too short to say how busy the cores were")
        (began_s, before_s), (ended_s, after_s) = inside[0], inside[-1]
        return (after_s - before_s) / (ended_s - began_s) / psutil.cpu_count()


@contextmanager
def watched() -> Iterator[Busy]:
    """Looks at the machine while it is entered."""
    busy, over = Busy(), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            times = psutil.cpu_times()
            busy.looks.append((time.time(), sum(times) - times.idle - times.iowait - times.guest))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield busy
    finally:
        over.set()
        thread.join()


def measured(videos: Path, work: Path) -> Figure:
    """One run's figures; all times in seconds."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [sys.executable, "-m", "pipeline", "run", "--input", str(videos), "--output", str(work / "tables")]
    command += ["--preset", "embedded", "--log-format", "json", "--log-level", "debug"]
    with watched() as busy:
        cost = run(command, log=work / "log", env=environment())
    units = [line for line in _lines(work / "log") if line.get("event") == "unit"]
    received_s = sorted(datetime.fromisoformat(line["time"]).timestamp() for line in units)
    record = json.loads(next((work / "tables" / "_runs").glob("*/run.json")).read_text())
    figures = {
        "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
        "decode_cpu_s": sum(line["decode_cpu_s"] for line in units),
        "models_cpu_s": sum(took["cpu_s"] for name, took in record["summary"]["measured"]["steps"].items() if name != "decode"),
        "first_receipt_s": received_s[0] - cost.began_s,
        "videos": len(units),
        "clips": sum(line["clips"] for line in units),
    }
    if received_s[-1] - received_s[0] > 10 * _LOOK_S:
        whole_s = busy.share(cost.began_s, cost.began_s + cost.wall_s) * cost.wall_s * (psutil.cpu_count() or 1)
        others = max(0.0, whole_s - cost.cpu_s) / cost.wall_s / (psutil.cpu_count() or 1)
        figures["busy"] = busy.share(received_s[0], received_s[-1]) - others
    shutil.rmtree(work)
    return figures


def _lines(log: Path) -> Iterator[dict[str, object]]:
    """The JSON lines of a log, which has the summary for people at its end."""
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def helped(work: Path) -> Figure:
    """Seconds that `clipmill --help` takes, the median of a few."""
    work.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("clipmill")), "--help"]
    return {"wall_s": statistics.median(run(command, log=work / "help", env=environment()).wall_s for _ in range(_HELPS))}


def overhead(results: Results) -> Stat:
    """Part of a run's CPU time that went neither into decoding nor into the models, start-up aside."""
    ours, start = results.figures[JOB], results.figures[START]
    shares = []
    for turn in sorted(ours.keys() & start.keys()):
        all_s, decode_s, models_s = (ours[turn][name] - start[turn][name] for name in ("cpu_s", "decode_cpu_s", "models_cpu_s"))
        shares.append(1 - (decode_s + models_s) / all_s)
    return Stat.of(shares)


def targets(results: Results) -> list[Row]:
    return [
        at_most("CPU time beside decoding and models, of a run less its start-up", 0.08, overhead(results), digits=3),
        at_least("busy share of the cores from the first receipt to the last", 0.92, results.of(JOB, "busy"), digits=3),
        at_most("seconds from start to first receipt", 12, results.of(JOB, "first_receipt_s"), digits=1),
        at_most("seconds that `clipmill --help` takes", 0.5, results.of(HELP, "wall_s")),
    ]


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    names = ("videos", "clips", "wall_s", "cpu_s", "decode_cpu_s", "models_cpu_s", "first_receipt_s")
    rows = [[name, *(f"{results.of(name, figure).median:.1f}" for figure in names)] for name in (JOB, START)]
    head = ["", "videos", "clips", "whole run, s", "CPU, s", "of it decoding", "of it models", "first receipt after, s"]
    publish("job", TITLE, f"{_WORDS}\n\n{table(head, rows)}", targets(results), results, page)


_WORDS = f"""
`python -m benchmarks.job`. Real recordings, repeated under new names, through decoding and the three embedded models. CPU
seconds are those of all processes, Ray's own included. Decoding is the stage; the models are what their actor takes for clips,
with preparing frames and staging the rows, which that actor does itself where there is no GPU. `start-up` is a run over
{_TINY_VIDEOS} videos of half a second, taken off. How busy the cores are is less what others took of them.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--videos", type=Path, default=ROOT.parent / "shared" / "videos", help="folder of real recordings")
    parser.add_argument("--copies", type=int, default=40, help="of each recording: ten minutes of CPU time and more")
    args = parser.parse_args(arguments)
    recordings = [path for path in sorted(args.videos.iterdir()) if path.suffix in (".mp4", ".mkv", ".webm", ".mov")]
    settings = {"copies": args.copies, "inputs": digest_of(recordings)}
    section = Section("job", settings=settings, packages=("av", "ray", "torch"), folder=args.records)
    if not args.report:
        work = args.records / "job"
        tiny = growth.archive(work / "archives", [growth.tiny(work / "tiny.mp4")], _TINY_VIDEOS)
        whole = growth.archive(work / "archives", recordings, args.copies)
        contestants = {
            JOB: partial(measured, whole, work / "run"),
            START: partial(measured, tiny, work / "run"),
            HELP: partial(helped, work),
        }
        section.run(contestants, args.rounds)
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
