"""How fast an epoch is published: rows of all tables a second, from staged parts, by one process.

    python -m benchmarks.publishing [--clips 100000] [--dim 512]

The parts are staged by the real stage, planned by a real run and published by the code that a publishing task runs, on disk.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from benchmarks import made
from benchmarks.places import parser_of
from benchmarks.report import publish as write_section
from benchmarks.report import table
from benchmarks.rounds import Figure, Results, Section
from pipeline.publish import publish
from pipeline.session import Session
from pipeline.staging import StageParts
from stages.storage import Store

TITLE = "Publishing"
STAGES = ("classify", "embed", "caption")
PARTS = {"parts of 10 clips": 10, "parts of 100 clips": 100}
_VIDEOS = 2000  # staged at a time


def measured(clips: int, of_a_video: int, dim: int, output: Path) -> Figure:
    """Stages, plans and publishes an epoch of `clips` clips, one part a video."""
    shutil.rmtree(output, ignore_errors=True)
    config, entries = made.job(str(output), "/footage", STAGES)
    store = Store(str(output))
    session = Session.open(store, config, entries)
    rows = partial(made.clip_rows, clips=of_a_video, clips_fingerprint=config.clips.fingerprint(), entries=entries, dim=dim)
    staged_s = _stage(session, StageParts(store, session.run_id), clips // of_a_video, rows)
    began_s = time.monotonic()
    plan = session.plan_epoch()
    assert plan is not None
    planned_s, cpu_s = time.monotonic(), time.process_time()
    written = publish(store, plan)
    published_s, used_s = time.monotonic(), time.process_time() - cpu_s
    session.commit(plan)
    session.close()
    shutil.rmtree(output)
    return {
        "clips": clips, "rows": sum(item.rows for item in written), "bytes": sum(item.size_bytes for item in written),
        "staged_cpu_s": staged_s, "planned_s": planned_s - began_s, "published_s": published_s - planned_s,
        "published_cpu_s": used_s, "rows_s": sum(item.rows for item in written) / (published_s - planned_s),
    }  # fmt: skip


def _stage(session: Session, stage: StageParts, videos: int, rows_of: Callable[[pa.Table], pa.Table]) -> float:
    """Stages and reports videos; CPU seconds of staging alone."""
    used_s = 0.0
    for first in range(0, videos, _VIDEOS):
        units = made.units(session.due(made.sources(first, min(_VIDEOS, videos - first))))
        session.expect(units)
        for begin in range(0, units.num_rows, 16):
            rows = rows_of(units.slice(begin, 16))
            began_s = time.process_time()
            receipts = stage(rows)
            used_s += time.process_time() - began_s
            session.receive(receipts)
    return used_s


def costs(results: Results) -> tuple[float, float]:
    """Seconds that publishing takes of a part whatever it holds, and of each of its clips: from parts of two sizes."""
    (few, few_s), (many, many_s) = (
        (size, results.of(name, "published_s").median / results.of(name, "clips").median) for name, size in PARTS.items()
    )
    part_s = max(0.0, (few_s - many_s) / (1 / few - 1 / many))
    return part_s, max(0.0, many_s - part_s / many)


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    head = ["", "rows a second", "clips a second", "CPU s of 1000 clips", "bytes of a clip", "staging, CPU s of 1000 clips"]
    lines = []
    for name in results.setup.contestants:
        clips = results.of(name, "clips").median
        cpu_ms, staged_ms = (1000 * results.of(name, figure).median / clips for figure in ("published_cpu_s", "staged_cpu_s"))
        lines.append([
            name, f"{results.of(name, 'rows_s').median:.0f}", f"{clips / results.of(name, 'published_s').median:.0f}",
            f"{cpu_ms:.2f}", f"{results.of(name, 'bytes').median / clips:.0f}", f"{staged_ms:.2f}",
        ])  # fmt: skip
    write_section("publishing", TITLE, _WORDS + "\n\n" + table(head, lines), [], results, page)


_WORDS = """
`python -m benchmarks.publishing`. One epoch of made rows: of each clip a row of `clips`, five of `labels`, one of `captions`
and one of `embeddings`, beside the ledger's rows. Staged, planned and published by the real code, in one process, on a local
disk; a cluster publishes two epochs at a time, each in a task of its own. Of publishing only its rows a second count, for
staging runs in all workers.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512, help="length of an embedding")
    args = parser.parse_args(arguments)
    settings = {"clips": args.clips, "dim": args.dim}
    section = Section("publishing", settings=settings, packages=("pyarrow",), folder=args.records)
    if not args.report:
        work = args.records / "publishing"
        contestants = {name: partial(measured, args.clips, clips, args.dim, work) for name, clips in PARTS.items()}
        section.run(contestants, args.rounds)
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
