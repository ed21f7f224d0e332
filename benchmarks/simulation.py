"""The real driver at scale: listing, receipts, publishing and the ledger are real, stages only sleep and make rows.

    python -m benchmarks.simulation [--videos 10000] [--clips 10] [--nodes 12] [--cpus 2] [--actors 24]

The cluster is a head and `--nodes` nodes, Ray processes of their own on this machine, each of which says that it has `--cpus`
processors: 250 MB a node, and 200 for each worker and actor. The sources are real files of `--video-mb` (holes, no bytes on the
disk), so that blocks are as many as they would be. Each run is a process of its own. `--profile FILE` has py-spy, where it is
installed, write down where the driver's time goes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.clipmill import environment
from benchmarks.places import parser_of
from benchmarks.process import run as run_program
from benchmarks.report import Row, at_least, publish, table
from benchmarks.rounds import Figure, Results, Section, Stat

TITLE = "The driver at scale"
WANTED_CLIPS_S = 5000  # 500 GPUs that caption ten clips a second each
_IN_A_FOLDER = 1000
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


def measured(options: Mapping[str, Any], work: Path, profile: Path | None, *, keep: bool = False) -> Figure:
    """`drive` in a process of its own; `keep`: its tables are left in `work`."""
    folder, output = archive(work, options["videos"], options["video_mb"]), work / "tables"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.driving", str(folder), str(output), json.dumps(options)]
    if profile is not None:
        spy = shutil.which("py-spy")
        assert spy is not None, "py-spy is not installed"
        command = [spy, "record", "--gil", "--rate", "50", "--format", "raw", "--output", str(profile), "--", *command]
    cost = run_program(command, log=work / "log", env=environment(), timeout_s=options["timeout_s"])
    figure: dict[str, float] = json.loads(next(line for line in cost.tail.splitlines()[::-1] if line.startswith("{")))
    if not keep:
        shutil.rmtree(output)
    return {**figure, "wall_s": cost.wall_s, "cpu_s": cost.cpu_s}


@dataclass(frozen=True)
class Costs:
    """Of a driver: CPU seconds of a second in which nothing comes, of each clip, and of a run whatever it has to do."""

    idle: float
    clip_s: float
    run_s: float

    @property
    def limit_clips_s(self) -> float:
        """Clips a second that keep one core busy."""
        return (1 - self.idle) / self.clip_s

    @classmethod
    def of(cls, small: Figure, fast: Figure, slow: Figure) -> Costs:
        """From runs over less and over more, and one over more that took longer: Ray Data looks around many times a second in
        any case.
        """
        more_s, more_cpu_s = (slow[name] - fast[name] for name in ("working_s", "working_cpu_s"))
        idle = min(1.0, max(0.0, more_cpu_s / more_s)) if more_s > 0 else 0.0
        few, many = (_busy_s(figure, idle) for figure in (small, fast))
        clip_s = max(0.0, many - few) / (fast["clips"] - small["clips"])
        return cls(idle, clip_s, max(0.0, few - clip_s * small["clips"]))


def _busy_s(figure: Figure, idle: float) -> float:
    """CPU seconds of a run, without those in which nothing came while it worked."""
    return sum(figure[f"{part}_cpu_s"] for part in PARTS) - idle * figure["working_s"]


def costs(results: Results) -> list[Costs]:
    """Round by round."""
    runs = [results.figures[name] for name in results.setup.contestants]
    return [Costs.of(*(run[turn] for run in runs)) for turn in sorted(set.intersection(*(set(run) for run in runs)))]


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    publish("simulation", TITLE, _body(results), _targets(results), results, page)


def _body(results: Results) -> str:
    head = ["videos", "clips", "run, s", "driver's CPU, s", *PARTS, "raylet and GCS, CPU s", "driver's memory, MB"]
    lines = []
    for name in results.setup.contestants:
        parts = [results.of(name, f"{part}_cpu_s").median for part in PARTS]
        rays = sum(results.of(name, f"{part}_cpu_s").median for part in ("raylet", "gcs_server"))
        clips, wall_s = (f"{results.of(name, figure).median:.0f}" for figure in ("clips", "wall_s"))
        held = f"{results.of(name, 'grown_bytes').median / 1e6:.0f}"
        lines.append([name, clips, wall_s, f"{sum(parts):.1f}", *(f"{part:.1f}" for part in parts), f"{rays:.1f}", held])
    found = costs(results)
    idle, clip, run_s = (
        Stat.of(values).text() for values in zip(*((cost.idle, 1000 * cost.clip_s, cost.run_s) for cost in found), strict=True)
    )
    said = f"Of a second without work the driver takes {idle} s, of 1000 clips {clip} s, of a run in any case {run_s} s."
    return f"{_WORDS}\n\n{table(head, lines)}\n\n{said}"


def _targets(results: Results) -> list[Row]:
    limit = Stat.of([cost.limit_clips_s for cost in costs(results)])
    return [at_least("clips a second that keep a core of the driver busy", WANTED_CLIPS_S, limit, digits=0)]


_WORDS = """
`python -m benchmarks.simulation`. The run, its driver, Ray Data, staging, publishing and the log are the real ones, and so are
the head and the nodes, processes of their own with their own sockets and object stores; decoding and the embedder make rows of
numbers. Ten clips and 20 MB a video; blocks and batches are cut as for a cluster of 500 GPUs and an archive of a million
videos. A clip's frames are 16 KB instead of 2 MB, and blocks may hold as much less. All processes share this machine, so the
time of a run says nothing about a cluster; the CPU time of its driver does: listing, with attaching to Ray; starting the
dataset, until actors answer; working, from the first receipt to the last; ending. Once the stages sleep, so that what the
driver does while nothing comes can be told from what it does for a clip. What Ray's own two processes on the head take beside
it is told apart: they share its other cores. What a run takes in any case is told from what it takes for each clip by a run
over a tenth of the videos; what listing, starting and ending take for each clip counts as the clips' own.
""".strip()


def options_of(parser: argparse.ArgumentParser, videos: int) -> argparse.ArgumentParser:
    """Adds what the simulated archive, cluster and stages are like."""
    parser.add_argument("--videos", type=int, default=videos)
    parser.add_argument("--of-videos", type=int, default=1_000_000, help="in the archive that blocks are cut for, at least")
    parser.add_argument("--clips", type=int, default=10, help="of a video")
    parser.add_argument("--nodes", type=int, default=12, help="of the cluster, without its head")
    parser.add_argument("--cpus", type=int, default=2, help="that a node says it has")
    parser.add_argument("--actors", type=int, default=24, help="of the models, in the whole cluster")
    parser.add_argument("--gpus", type=int, default=500, help="of the cluster that blocks and batches are cut for")
    parser.add_argument("--slow-s", type=float, default=0.25, help="that a video takes where stages sleep")
    parser.add_argument("--epoch-clips", type=int, default=500_000)
    parser.add_argument("--video-mb", type=int, default=20)
    return parser


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What a record is told apart by, of `options_of`; how many videos is for whoever runs it."""
    names = ("of_videos", "clips", "nodes", "cpus", "actors", "gpus", "slow_s", "epoch_clips", "video_mb")
    return {name: getattr(args, name) for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_of(parser_of(__doc__, rounds=1), videos=10_000)
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="seconds that one run may take")
    parser.add_argument("--profile", type=Path, help="has py-spy write where the time of the driver goes, as folded stacks")
    args = parser.parse_args(arguments)
    settings = settings_of(args)
    section = Section("simulation", settings=settings, packages=("ray", "pyarrow"), folder=args.records)
    if not args.report:
        work = args.records / "simulation"
        options = {**settings, "videos": args.videos, "sleep_s": 0.0, "timeout_s": args.timeout_s}
        few, slow = args.videos // 10, {**options, "sleep_s": args.slow_s}
        contestants = {
            f"{few} videos": partial(measured, {**options, "videos": few}, work, None),
            f"{args.videos} videos": partial(measured, options, work, args.profile),
            f"{args.videos} videos, asleep": partial(measured, slow, work, None),
        }
        section.run(contestants, args.rounds)
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
