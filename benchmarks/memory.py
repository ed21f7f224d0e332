"""Memory of a run by the length of the video: it should not grow.

    python -m benchmarks.memory [--minutes 1 10 60 120] [--height 1080]

Each file is annotated by `clipmill run --preset embedded` in a process of its own, alone, while all processes of the run are
looked at ten times a second. The files are made once (half a minute of it is rendered, the rest is repeated) and kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import footage
from benchmarks.clipmill import annotate, table, work_s
from benchmarks.places import parser_of
from benchmarks.report import Row, at_most, publish
from benchmarks.report import table as markdown
from benchmarks.rounds import Figure, Results, Section, Stat
from benchmarks.sampler import DRIVER, KINDS, MODELS, PUBLISHING, RAY, TASKS, watched

TITLE = "Memory by the length of a video"
MOST_BYTES = 1.5e9
MOST_GROWTH = 1.1  # of the longest file over the first that is as long as a unit
_SHOWN = {TASKS: "decoding, staging", MODELS: "models", PUBLISHING: "publishing", DRIVER: "driver", RAY: "Ray's own"}


def measured(video: Path, work: Path, timeout_s: float) -> Figure:
    """One run over one file."""
    with watched() as found:
        cost = annotate(video, work, timeout_s=timeout_s)
    figure = {
        "size_bytes": video.stat().st_size, "clips": table(work, "clips").num_rows, "wall_s": cost.wall_s, "cpu_s": cost.cpu_s,
        "work_s": work_s(work), "video_s": sum(table(work, "videos")["decoded_s"].to_pylist()),
        "together_bytes": found.together, **{f"{kind}_bytes": found.most(kind) for kind in KINDS},
    }  # fmt: skip
    shutil.rmtree(work)
    return figure


def name_of(minutes: float) -> str:
    """How a contestant is called."""
    return f"{minutes:g} min"


def growth_s(results: Results, shorter: str, longer: str) -> float:
    """CPU seconds of one more second of video, from two files of different length: without what a run costs in any case."""
    more_cpu_s = results.of(longer, "cpu_s").median - results.of(shorter, "cpu_s").median
    return more_cpu_s / (results.of(longer, "video_s").median - results.of(shorter, "video_s").median)


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    publish("memory", TITLE, _body(results), _targets(results), results, page)


def _body(results: Results) -> str:
    head = ["video", "file, MB", "clips", *(f"{said}, MB" for said in _SHOWN.values()), "all together, MB"]
    lines = []
    for name in results.setup.contestants:
        figures = [f"{kind}_bytes" for kind in _SHOWN]
        size, *rest = (f"{results.of(name, figure).median / 1e6:.0f}" for figure in ("size_bytes", *figures, "together_bytes"))
        lines.append([name, size, f"{results.of(name, 'clips').median:.0f}", *rest])
    return _WORDS + "\n\n" + markdown(head, lines)


def _gb(size: Stat) -> Stat:
    return Stat(size.median / 1e9, size.low / 1e9, size.high / 1e9, size.rounds)


def _targets(results: Results) -> list[Row]:
    last = results.setup.contestants[-1]
    largest = max((results.of(last, f"{kind}_bytes") for kind in (TASKS, MODELS)), key=lambda stat: stat.median)
    rows = [at_most(f"memory of the largest worker, {last} of video, GB", MOST_BYTES / 1e9, _gb(largest))]
    if len(results.setup.contestants) > 2:
        first = results.setup.contestants[1]
        growth = results.ratio(last, to=first, of=f"{TASKS}_bytes")
        rows.append(at_most(f"memory of the largest decode worker, {last} of video over {first}", MOST_GROWTH, growth))
    return rows


_WORDS = """
`python -m benchmarks.memory`. Rendered scenes with camera moves, cuts and noise, H.264, repeated to the length wanted; each
file is the only one of a run of the three embedded models, in processes of its own. Of each kind of process the largest one
at its peak: resident memory less what is shared with others, where frames lie in Ray's object store (`VmHWM` less
`RssShmem`). A file longer than 10 minutes and larger than 32 MB is decoded in units of 10 minutes, as many at a time as the
machine bears. All together: anonymous memory of all processes at one moment, and the object store once.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0, 60.0, 120.0])
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="seconds that one run may take")
    args = parser.parse_args(arguments)
    section = Section("memory", settings={"height": args.height}, packages=("av", "ray", "torch"), folder=args.records)
    if args.report:
        report(section.results(), args.page)
        return
    contestants = {}
    for minutes in args.minutes:
        video = footage.long_file(args.records / "footage", minutes, args.height)
        contestants[name_of(minutes)] = partial(measured, video, args.records / "memory", args.timeout_s)
    results = section.run(contestants, args.rounds)
    if results.rounds():
        report(results, args.page)


if __name__ == "__main__":
    main()
