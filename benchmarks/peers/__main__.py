"""Clipmill beside Daft, Data-Juicer, datatrove, Ray Data and a pool of processes, at the same work on the same machine.

    python -m benchmarks.peers.install
    python -m benchmarks.peers [--rounds 5] [--copies 8] [--videos ../shared/videos]

Each contestant is a program of its own (`with_NAME.py`), run as its own process on an archive of MP4 files: 8 frames of each
10 seconds, embedded with one small CLIP checkpoint, to Parquet. Afterwards its rows are compared with those of the pool.
Interrupted, or out of time, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peers import archive, check, install
from benchmarks.peers.watch import first_read
from benchmarks.process import Cost, run
from benchmarks.report import PAGE, Row, at_least, publish, table
from benchmarks.rounds import RECORDS, ROOT, Figure, Results, Section, Stat

TITLE = "Beside other ways to do the same work"
CHECKPOINT = ROOT / "stages" / "models" / "embedded" / "clip"
POOL, CLIPMILL, FAST = "pool of processes", "Clipmill", "Clipmill, fast"
BY_HAND, PLAIN, JUICER = "Ray Data, by hand", "Ray Data, read_videos", "Data-Juicer"


@dataclass(frozen=True)
class Peer:
    """A program; `venv` is where it runs (None: beside Clipmill), `package` the version that counts.

    `frames` says which it takes. Its embeddings must have a cosine of `least` with the pool's, in the worst window.
    """

    program: str
    venv: str | None
    package: str | None
    frames: str
    least: float


_SAME = "those nearest to the middles of eighths"
PEERS: Mapping[str, Peer] = {
    POOL: Peer("with_pool", None, "av", _SAME, 0.9999),
    CLIPMILL: Peer("with_clipmill", None, None, f"{_SAME}, of those that it keeps meanwhile, every 8th at most", 0.95),
    FAST: Peer("with_clipmill_fast", None, None, "likewise, of those that others need", 0.9),
    "datatrove": Peer("with_datatrove", "datatrove", "datatrove", f"{_SAME} (PyAV in a step of our own)", 0.9999),
    "Daft": Peer("with_daft", "daft", "daft", "the first ones from 20 ms before those middles on", 0.98),
    BY_HAND: Peer("with_ray", None, "ray", f"{_SAME} (PyAV in tasks of our own)", 0.99),
    PLAIN: Peer("with_read_videos", "read_videos", "ray", "of 8 a second those near the middles", 0.97),
    JUICER: Peer("with_data_juicer", "data_juicer", "py-data-juicer", "evenly from the first frame to the last", 0.9),
}


class Programs:
    """Runs contestants on one archive, and on a part of it that is next to nothing: what they take for that is their start-up.
    Keeps the pool's rows to compare the others with.
    """

    def __init__(self, videos: archive.Archive, scratch: Path) -> None:
        self._archive, self._scratch = videos, scratch
        self._small = archive.smallest(videos, scratch / "small")

    def __call__(self, name: str) -> Figure:
        """Figures of both runs. WorkMissing where the rows are not what they should be."""
        peer = PEERS[name]
        startup, _ = self._run(name, self._small)
        cost, read_s = self._run(name, self._archive.folder)
        work = self._scratch / peer.program
        rows = check.read(work / "output")
        if name == POOL:
            self._keep(work / "output")
        cosines = check.cosines(rows, check.read(self._reference))
        if cosines.min() < peer.least or len(rows) != self._archive.windows:
            raise check.WorkMissing(f"{name}: {len(rows)} rows, least cosine {cosines.min():.4f}; see {work}")
        return {
            "startup_s": startup.wall_s, "read_s": read_s, "work_s": cost.wall_s - startup.wall_s, "wall_s": cost.wall_s,
            "startup_cpu_s": startup.cpu_s, "cpu_s": cost.cpu_s, "rows": len(rows),
            "least_cosine": float(cosines.min()), "median_cosine": float(np.median(cosines)),
        }  # fmt: skip

    def _run(self, name: str, videos: Path) -> tuple[Cost, float]:
        """What a run over a folder costs, and seconds until it read the first video."""
        peer = PEERS[name]
        work = self._scratch / peer.program
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        with first_read(videos) as first:
            command = self._command(peer, videos, work / "output")
            cost = run(command, log=work / "log", env=_environment(), timeout_s=1800)
        assert first.at_s is not None, f"{name} read no video"
        return cost, first.at_s - cost.began_s

    @property
    def _reference(self) -> Path:
        return self._scratch / "reference"

    def _keep(self, output: Path) -> None:
        shutil.rmtree(self._reference, ignore_errors=True)
        shutil.copytree(output, self._reference)

    def _command(self, peer: Peer, videos: Path, output: Path) -> list[str]:
        python = sys.executable if peer.venv is None else str(install.python_of(peer.venv))
        places = {"videos": videos, "output": output, "checkpoint": CHECKPOINT}
        options = [word for name, place in places.items() for word in (f"--{name}", str(place))]
        return [python, "-m", f"benchmarks.peers.{peer.program}", *options]


def _environment() -> dict[str, str]:
    """Ours, with this tree on the import path and nobody asking the network for anything."""
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "DAFT_ANALYTICS_ENABLED": "0"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}


def report(results: Results, page: Path = PAGE) -> None:
    """Writes the section of the page."""
    windows = int(results.of(POOL, "rows").median)
    hours = windows * archive.WINDOW_S / 3600
    publish("peers", TITLE, _body(results, hours), _targets(results), results, page)


def _body(results: Results, hours: float) -> str:
    lines = []
    for name, peer in PEERS.items():
        told = ("read_s", "startup_s", "work_s", "wall_s", "cpu_s")
        read, startup, work, whole, cpu = (results.of(name, figure) for figure in told)
        ratio = results.ratio(name, to=CLIPMILL, of="work_s")
        speed = f"{3600 * hours / work.median:.0f}"
        least = results.of(name, "least_cosine").low
        figures = (stat.text(1) for stat in (read, startup, work, whole, cpu))
        lines.append([name, *figures, speed, ratio.text(), f"{peer.frames}; {least:.3f}"])
    head = [
        "", "first read after, s", "start-up, s", "the work, s", "the run, s", "CPU, s", "hours of video per hour",
        "time over Clipmill's", "frames; least cosine",
    ]  # fmt: skip
    return _WORDS + "\n\n" + table(head, lines) + "\n\n" + _NOTES


def _targets(results: Results) -> list[Row]:
    others = [name for name in PEERS if name not in (CLIPMILL, FAST)]
    rows = [
        at_least(f"speed of Clipmill over that of {name}", _LEAST.get(name, 1.0), _speed(results, CLIPMILL, name))
        for name in others
    ]
    fastest = min(others, key=lambda name: results.of(name, "work_s").median)
    return [*rows, at_least(f"the same of fast mode over the fastest, {fastest}", 1.3, _speed(results, FAST, fastest))]


_LEAST = {PLAIN: 1.8, BY_HAND: 1.8, JUICER: 1.8}


def _speed(results: Results, contestant: str, other: str) -> Stat:
    """How many times as fast a contestant is as another, start-up apart."""
    return results.ratio(other, to=contestant, of="work_s")


_WORDS = """
`python -m benchmarks.peers`. Real recordings as MP4 (H.264), 8 frames of each 10 seconds, one tiny CLIP checkpoint by way of
transformers, embeddings to Parquet; every contestant is a process of its own and has the whole machine. Start-up is the whole
time of a run over the archive's smallest video, twice, before the other one: what a run takes whatever it has to do, its
end included. The work is what the run over the archive takes beyond that, and speeds are of that. CPU counts all processes of
that run, start-up included. Every contestant's rows are compared with those of the pool: one for each 10 seconds, none missing;
the least cosine is that of the worst window.
""".strip()

_NOTES = """
What each does beyond or below the others:

- All decode every frame in one pass, but for Clipmill's fast mode, which leaves out those that no other is made from, and
  Data-Juicer: its function looks for keyframes first and seeks between them.
- Clipmill's frames lie up to 0.15 s beside the others', and HD colours that declare no matrix are BT.709 to it, as to players,
  and BT.601 to the others. Hence its least cosine; of its own frames in its own colours the pool makes the same embeddings.
- Clipmill measures motion, brightness, contrast and sharpness of all clips meanwhile, and publishes tables of videos and clips
  with a log that makes the run safe to kill; the others write embeddings and nothing else.
- `read_videos` makes RGB of every frame, of which it drops what it was not asked for; 8 frames a second are the least that lie
  close enough to the frames that the others take.
- The pool, datatrove and Ray Data by hand decode by the same lines of ours (`benchmarks/peers/task.py`): datatrove has nothing
  for video. Daft's own function is what is measured. Ray Data by hand asks for half a processor a task, as Clipmill does.
- Data-Juicer fails on Matroska, where a stream has no duration: that is why the archive is MP4. It runs with the PyAV 13.1 that
  it asks for.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=ROOT.parent / "shared" / "videos", help="folder of real recordings")
    parser.add_argument("--copies", type=int, default=8, help="files made of each recording")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--archive", type=Path, help="folder to make the archive in, or to find it in; otherwise a temporary one"
    )
    parser.add_argument("--report", action="store_true", help="measures nothing, writes the page from the record")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write the section into")
    args = parser.parse_args(arguments)
    section = Section(
        "peers",
        settings={"copies": args.copies},
        packages=("torch", "transformers", "av", "pyarrow"),
        versions={peer.package: _version(peer) for peer in PEERS.values() if peer.package},
    )
    if args.report:
        report(section.results(), args.page)
        return
    if not args.videos.is_dir():
        parser.error(f"no folder of recordings at {args.videos}: give one by --videos")
    install.main([])
    with tempfile.TemporaryDirectory(prefix="clipmill-peers-") as temporary:
        folder = args.archive.absolute() if args.archive else Path(temporary, "archive")
        videos = archive.found_or_built(args.videos, folder, args.copies)
        print(f"peers: {videos.files} files, {videos.seconds / 60:.0f} minutes, {videos.frames} frames", file=sys.stderr)
        programs = Programs(videos, RECORDS / "peers")
        results = section.run({name: partial(programs, name) for name in PEERS}, args.rounds)
    if results.rounds():
        report(results, args.page)


def _version(peer: Peer) -> str:
    from importlib import metadata

    assert peer.package is not None
    return metadata.version(peer.package) if peer.venv is None else install.version_of(peer.venv, peer.package)


if __name__ == "__main__":
    main()
