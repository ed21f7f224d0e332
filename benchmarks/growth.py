"""What a clip costs in a run of 1, 10 and 100 times the work.

    python -m benchmarks.growth [--videos FOLDER_OF_RECORDINGS] [--files 12] [--copies 3]

The work is small real recordings, again and again under new names; `clipmill run --preset embedded` in a process of its own.
What a run costs in any case is measured by one over tiny videos of one clip each, and taken off.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np

from benchmarks.clipmill import annotate, table
from benchmarks.places import digest_of, parser_of
from benchmarks.report import Row, at_most, publish
from benchmarks.report import table as markdown
from benchmarks.rounds import ROOT, Figure, Results, Section, Stat

TITLE = "Cost of a clip as the work grows"
START = "start-up"
TIMES = {"1 time": 1, "10 times": 10, "100 times": 100}
_REPEATED = {START: 3, "1 time": 3}  # runs of one measurement: they are short, and the difference of the two counts
MOST = 1.1
_TINY_VIDEOS = 8  # enough for every worker to be started, few enough to cost nothing else
_SUFFIXES = (".mp4", ".mkv", ".webm")
_SIZES = (100_000, 700_000)  # bytes of a recording that is taken


def recordings(folder: Path, files: int) -> list[Path]:
    """Small recordings that decode whole. FileNotFoundError where there are not enough."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES]
    small = [path for path in found if _SIZES[0] <= path.stat().st_size <= _SIZES[1] and _decodes(path)]
    if len(small) < files:
        raise FileNotFoundError(f"{folder} has {len(small)} small recordings, not {files}")
    return small[:files]


def _decodes(path: Path) -> bool:
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0)) > 0
    except av.FFmpegError:
        return False


def archive(folder: Path, originals: Sequence[Path], times: int) -> Path:
    """A folder of every original so many times: one copy, and links to it."""
    below = folder / f"{digest_of(originals)}-{times}"
    if not below.exists():
        made = folder / "partial"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for original in originals:
            first = made / f"000-{original.name}"
            shutil.copy(original, first)
            for number in range(1, times):
                os.link(first, made / f"{number:03d}-{original.name}")
        made.rename(below)
    return below


def tiny(path: Path) -> Path:
    """A video of half a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for brightness in (90, 100, 110, 120, 130):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), brightness, np.uint8), "rgb24")))
        container.mux(stream.encode())
    return path


def measured(videos: Path, work: Path, repeated: int) -> Figure:
    """Means of some runs."""
    costs = [annotate(videos, work) for _ in range(repeated)]
    clips, files = (table(work, name).num_rows for name in ("clips", "videos"))
    shutil.rmtree(work)
    cpu_s, wall_s = (sum(getattr(cost, name) for cost in costs) / repeated for name in ("cpu_s", "wall_s"))
    return {"cpu_s": cpu_s, "repeated_cpu_s": (repeated - 1) * cpu_s, "wall_s": wall_s, "clips": clips, "videos": files}


def of_a_clip(results: Results, name: str) -> Stat:
    """CPU seconds of a clip beyond those of the start-up, over the rounds."""
    ours, start = results.figures[name], results.figures[START]
    turns = sorted(ours.keys() & start.keys())
    return Stat.of([(ours[turn]["cpu_s"] - start[turn]["cpu_s"]) / ours[turn]["clips"] for turn in turns])


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    head = ["", "videos", "clips", "whole run, s", "CPU, s", "CPU of a clip, ms"]
    lines = []
    for name in results.setup.contestants:
        cells = [f"{results.of(name, figure).median:.0f}" for figure in ("videos", "clips", "wall_s", "cpu_s")]
        lines.append([name, *cells, "" if name == START else f"{1000 * of_a_clip(results, name).median:.0f}"])
    publish("growth", TITLE, _WORDS + "\n\n" + markdown(head, lines), _targets(results), results, page)


def _targets(results: Results) -> list[Row]:
    first, *more = (name for name in results.setup.contestants if name != START)
    base = of_a_clip(results, first).median
    rows = []
    for name in more:
        found = of_a_clip(results, name)
        ratio = Stat(found.median / base, found.low / base, found.high / base, found.rounds)
        rows.append(at_most(f"CPU time of a clip at {name} the work over 1 time", MOST, ratio))
    return rows


_WORDS = f"""
`python -m benchmarks.growth`. Small real recordings, each as often as it says under new names, and the three embedded models.
CPU seconds of all processes of a run, less those of a run over {_TINY_VIDEOS} tiny videos of one clip each: what starting up
costs.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--videos", type=Path, default=ROOT.parent / "shared" / "videos", help="folder of real recordings")
    parser.add_argument("--files", type=int, default=12, help="recordings that are the work")
    parser.add_argument("--copies", type=int, default=3, help="of each recording, in the work of 1 time")
    parser.add_argument("--most", type=int, default=100, help="times the work, at most")
    args = parser.parse_args(arguments)
    originals = recordings(args.videos, args.files)
    settings = {"files": args.files, "copies": args.copies, "inputs": digest_of(originals)}
    section = Section("growth", settings=settings, packages=("av", "ray", "torch"), folder=args.records)
    if not args.report:
        work = args.records / "growth"
        archives = {START: archive(work / "archives", [tiny(work / "tiny.mp4")], _TINY_VIDEOS)}
        wanted = {name: times for name, times in TIMES.items() if times <= args.most}
        archives |= {name: archive(work / "archives", originals, times * args.copies) for name, times in wanted.items()}
        section.run(
            {name: partial(measured, videos, work / "run", _REPEATED.get(name, 1)) for name, videos in archives.items()},
            args.rounds,
        )
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
