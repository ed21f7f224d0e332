"""One long file on one core and on two: units of ten minutes let one file have the whole machine.

    python -m benchmarks.long_files [--minutes 60] [--height 720] [--rounds 3]

Both publish the same rows, or it is no result.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import footage
from benchmarks.clipmill import annotate, check_same, table, work_s
from benchmarks.places import parser_of
from benchmarks.report import at_most, publish
from benchmarks.report import table as markdown
from benchmarks.rounds import Figure, Results, Section, code_digest
from schemas.config import ClipsConfig

TITLE = "One long file on two cores"
CORES = {"one core": 1, "two cores": 2}
MOST = 0.6


class Runs:
    """Annotates the file; keeps what one run has published to compare the next one with."""

    def __init__(self, video: Path, scratch: Path) -> None:
        self._video, self._scratch = video, scratch

    def __call__(self, cores: int) -> Figure:
        """Figures of a run. RowsDiffer where it has published something else than the run before."""
        work, kept = self._scratch / f"{cores}", self._scratch / "kept"
        cost = annotate(self._video, work, cores=cores)
        if kept.exists():
            check_same(work, kept)
            shutil.rmtree(kept)
        work.rename(kept)
        clips = table(kept, "clips").num_rows
        return {"work_s": work_s(kept), "wall_s": cost.wall_s, "cpu_s": cost.cpu_s, "clips": clips}


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    ratio = results.ratio("two cores", to="one core", of="work_s")
    row = at_most("time of an hour of video on two cores over one", MOST, ratio)
    publish("long files", TITLE, _body(results), [row], results, page)


def _body(results: Results) -> str:
    head = ["", "decoding to publishing, s", "whole run, s", "CPU, s", "clips"]
    lines = [
        [name, *(results.of(name, figure).text(1) for figure in ("work_s", "wall_s", "cpu_s")),
         f"{results.of(name, 'clips').median:.0f}"]
        for name in CORES
    ]  # fmt: skip
    return _WORDS + "\n\n" + markdown(head, lines)


_WORDS = """
`python -m benchmarks.long_files`. One rendered file, H.264, larger than 32 MB, in units of 10 minutes; three embedded models.
The time is from when the first unit began to decode until all was planned for publishing, by the ledger's own columns. On one
core all processes of the run, Ray's included, are kept to it, and Ray is told of one. The tables of all runs are the same,
columns of run and time aside, floats within 1e-5.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--height", type=int, default=720)
    args = parser.parse_args(arguments)
    settings = {"minutes": args.minutes, "height": args.height}
    section = Section("long_files", settings=settings, packages=("av", "ray", "torch"), folder=args.records)
    if args.report:
        report(section.results(), args.page)
        return
    video = footage.long_file(args.records / "footage", args.minutes, args.height)
    if video.stat().st_size <= ClipsConfig().limits.unit_min_bytes:
        print("long_files: the file is too small to become several units", file=sys.stderr)
    runs = Runs(video, args.records / "long_files" / f"{args.minutes:g}-{args.height}-{code_digest()}")
    results = section.run({name: partial(runs, cores) for name, cores in CORES.items()}, args.rounds)
    if results.rounds():
        report(results, args.page)


if __name__ == "__main__":
    main()
