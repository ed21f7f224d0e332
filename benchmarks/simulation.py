"""The real driver at scale: listing, receipts, publishing and the ledger are real, stages only sleep and make rows.

    python -m benchmarks.simulation [--videos 10000] [--clips 10] [--cpus 8]

Ray is told of `--cpus` processors, whatever the machine has. The sources are real files of `--video-mb` (holes, no bytes on the
disk), so that blocks are as many as they would be. Each run is a process of its own. `--profile FILE` has py-spy, where it is
installed, write down where the driver's time goes.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.clipmill import environment
from benchmarks.places import parser_of
from benchmarks.process import run as run_program
from benchmarks.report import Row, at_least, at_most, publish, table
from benchmarks.rounds import Figure, Results, Section, Stat

TITLE = "The driver at scale"
WANTED_CLIPS_S = 5000  # 500 GPUs that caption ten clips a second each
_IN_A_FOLDER = 1000
DUE_BYTES = 1024
PARTS = ("listing", "starting", "working", "ending")  # of a run, as benchmarks/driving.py tells them


def archive(folder: Path, videos: int, video_mb: int) -> Path:
    """A folder of so many files, all hole; made where it is not there."""
    below = folder / f"{videos}-videos"
    if not below.exists():
        made_here = folder / "partial"
        shutil.rmtree(made_here, ignore_errors=True)
        for first in range(0, videos, _IN_A_FOLDER):
            part = made_here / f"{first // _IN_A_FOLDER:06d}"
            part.mkdir(parents=True)
            for number in range(first, min(first + _IN_A_FOLDER, videos)):
                with open(part / f"{number:09d}.mp4", "wb") as file:
                    file.truncate(video_mb << 20)
        made_here.rename(below)
    return below


def measured(options: Mapping[str, Any], work: Path, profile: Path | None) -> Figure:
    """`drive` in a process of its own."""
    folder, output = archive(work, options["videos"], options["video_mb"]), work / "tables"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.driving", str(folder), str(output), json.dumps(options)]
    if profile is not None:
        spy = shutil.which("py-spy")
        assert spy is not None, "py-spy is not installed"
        command = [spy, "record", "--rate", "50", "--format", "raw", "--output", str(profile), "--", *command]
    env = {**environment(), "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": options["cpus"]})}
    cost = run_program(command, log=work / "log", env=env, timeout_s=options["timeout_s"])
    figure: dict[str, float] = json.loads(next(line for line in cost.tail.splitlines()[::-1] if line.startswith("{")))
    shutil.rmtree(output)
    return {**figure, "wall_s": cost.wall_s, "cpu_s": cost.cpu_s}


def cpu_s_of_1000_clips(figure: Figure) -> float:
    """Of the driver, from the first look at the sources to the end of the run."""
    return 1000 * sum(figure[f"{part}_cpu_s"] for part in PARTS) / figure["clips"]


def over_rounds(results: Results, name: str, of: Any) -> Stat:
    """A figure that is reckoned from others, over the rounds."""
    return Stat.of([of(figure) for figure in results.figures[name].values()])


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    publish("simulation", TITLE, _body(results), _targets(results), results, page)


def _body(results: Results) -> str:
    head = ["videos", "clips", "listing, s", "run, s", "driver's CPU, s of 1000 clips", *PARTS,
            "raylet and GCS", "driver's memory, bytes a video"]  # fmt: skip
    lines = []
    for name in results.setup.contestants:
        clips = results.of(name, "clips").median
        parts = [1000 * results.of(name, f"{part}_cpu_s").median / clips for part in PARTS]
        rays = sum(1000 * results.of(name, f"{part}_cpu_s").median / clips for part in ("raylet", "gcs_server"))
        held = results.of(name, "grown_bytes").median / int(name.split()[0])
        total = over_rounds(results, name, cpu_s_of_1000_clips)
        cells = [f"{results.of(name, figure).median:.0f}" for figure in ("clips", "listing_s", "wall_s")]
        lines.append([name, *cells, total.text(), *(f"{part:.2f}" for part in parts), f"{rays:.2f}", f"{held:.0f}"])
    return _WORDS + "\n\n" + table(head, lines)


def _targets(results: Results) -> list[Row]:
    last = results.setup.contestants[-1]
    limit = over_rounds(results, last, lambda figure: 1000 / cpu_s_of_1000_clips(figure))
    held = over_rounds(results, last, lambda figure: figure["listed_bytes"] / int(last.split()[0]))
    return [
        at_least("clips a second at which the driver has a core's work to do", WANTED_CLIPS_S, limit, digits=0),
        at_most("driver memory of a due source once all are listed, bytes", DUE_BYTES, held, digits=0),
    ]


_WORDS = """
`python -m benchmarks.simulation`. The run, its driver, Ray Data, staging, publishing and the log are the real ones; decoding
and the embedder make rows of numbers. Ten clips a video, three videos of 20 MB a block. Every process is on this one machine,
so the time says nothing; the driver's CPU time does: a driver that has 1 s of work for 1 s of a cluster's is the limit of
that cluster. What Ray's own two processes beside it take is told apart: they share the head's other cores.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--videos", type=int, nargs="+", default=[10_000])
    parser.add_argument("--clips", type=int, default=10, help="of a video")
    parser.add_argument("--cpus", type=int, default=8, help="that Ray believes in")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--decode-sleep-s", type=float, default=0.0, help="of a video")
    parser.add_argument("--embed-sleep-s", type=float, default=0.0, help="of a clip")
    parser.add_argument("--epoch-clips", type=int, default=500_000)
    parser.add_argument("--video-mb", type=int, default=20)
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="seconds that one run may take")
    parser.add_argument("--profile", type=Path, help="has py-spy write where the time of the driver goes, as folded stacks")
    args = parser.parse_args(arguments)
    names = ("clips", "cpus", "actors", "decode_sleep_s", "embed_sleep_s", "epoch_clips", "video_mb")
    settings = {name: getattr(args, name) for name in names}
    section = Section("simulation", settings=settings, packages=("ray", "pyarrow"), folder=args.records)
    if not args.report:
        options = {**settings, "timeout_s": args.timeout_s}
        contestants = {
            f"{videos} videos": partial(measured, {**options, "videos": videos}, args.records / "simulation", args.profile)
            for videos in args.videos
        }
        section.run(contestants, args.rounds)
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
