"""A million videos through the real driver, with stages that only make rows: planned, received, published and verified.

    python -m benchmarks.million [--videos 1000000] [--clips 10] [--nodes 12] [--cpus 2] [--actors 24]

One run of benchmarks/simulation.py, at full length: two cores for two hours, 20 GB of disk and 20 GB of memory. Not a
part of `make bench`. Afterwards `clipmill verify` reads all tables.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from benchmarks import simulation
from benchmarks.clipmill import environment
from benchmarks.places import parser_of
from benchmarks.process import run as run_program
from benchmarks.report import Row, at_least, publish, table
from benchmarks.rounds import Figure, Results, Section, Stat
from schemas.tables import TABLES

TITLE = "A million videos through the driver"
RUN = "run"
HOURS = 6


def measured(options: dict[str, Any], work: Path) -> Figure:
    """The run and what it has left. ProgramFailed where a video is missing, or `verify` finds anything."""
    output = work / "tables"
    figure = simulation.measured({**options, "timeout_s": HOURS * 3600.0}, work, None, keep=True)
    start_s = time.monotonic()
    verify = [sys.executable, "-m", "pipeline", "verify", str(output)]
    run_program(verify, log=work / "verify", env=environment(), timeout_s=HOURS * 3600.0)
    verified_s = time.monotonic() - start_s
    rows = {name: _rows(output / name) for name in TABLES}
    shutil.rmtree(output)
    return {**figure, "verified_s": verified_s, **{f"{name}_rows": count for name, count in rows.items()}}


def _rows(folder: Path) -> int:
    """Of all objects of a table; none where it has no folder."""
    return ds.dataset(folder, format="parquet").count_rows() if folder.exists() else 0


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    publish("million", TITLE, _body(results), _targets(results), results, page)


def _targets(results: Results) -> list[Row]:
    limit = 1 / sum(_of_a_clip_s(results, part) for part in simulation.PARTS)
    what = "clips a second that keep a core of the driver busy, of the whole run"
    return [at_least(what, simulation.WANTED_CLIPS_S, Stat.of([limit]), digits=0)]


def _of_a_clip_s(results: Results, part: str) -> float:
    """CPU seconds of the driver in a part of the run, by its clips."""
    return results.of(RUN, f"{part}_cpu_s").median / results.of(RUN, "clips").median


def _body(results: Results) -> str:
    def figure(*names: str, digits: int = 0, times: float = 1.0) -> str:
        return f"{times * sum(results.of(RUN, name).median for name in names):,.{digits}f}"

    rows = [
        ["videos planned", f"{results.setup.settings['videos']:,}"],
        ["receipts", figure("receipts")],
        ["epochs", figure("epochs")],
        *([f"rows of `{name}`", figure(f"{name}_rows")] for name in TABLES),
        ["run, s", figure("wall_s")],
        ["CPU of all processes, s", figure("cpu_s")],
        ["of it raylet and GCS, s", figure("raylet_cpu_s", "gcs_server_cpu_s")],
        ["memory of the driver when all was listed, MB", figure("listed_bytes", times=1e-6)],
        ["the same at its most, MB", figure("grown_bytes", times=1e-6)],
        ["`clipmill verify`, s", figure("verified_s")],
    ]
    parts = [
        [part, figure(f"{part}_s"), figure(f"{part}_cpu_s"), f"{1000 * _of_a_clip_s(results, part):.3f}"]
        for part in simulation.PARTS
    ]
    head = ["part of the run", "s", "driver's CPU, s", "driver's CPU, s of 1000 clips"]
    return f"{_WORDS}\n\n{table(['', ''], rows)}\n\n{table(head, parts)}"


_WORDS = """
`python -m benchmarks.million`. The simulation of the driver at full length, once, on nodes of their own: sources listed,
planned, decoded and embedded by stages that only make rows, received, staged, published in epochs of 500,000 clips and
more, and then verified. All processes share this machine, so the seconds say nothing about a cluster; that all arrives
does, and the driver's CPU and memory.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = simulation.options_of(parser_of(__doc__, rounds=1), videos=1_000_000)
    args = parser.parse_args(arguments)
    settings = {"videos": args.videos, **simulation.settings_of(args)}
    section = Section("million", settings=settings, packages=("ray", "pyarrow"), folder=args.records)
    if not args.report:
        options = {**settings, "sleep_s": 0.0}
        section.run({RUN: partial(measured, options, args.records / "simulation")}, args.rounds)
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
