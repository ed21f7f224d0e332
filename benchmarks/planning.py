"""What it takes to begin a run over a million sources with a million videos in the ledger: time and memory.

    python -m benchmarks.planning [--videos 1000000]

The ledger is made by runs of the real code (due, receipts, plan, commit) whose receipts are made up and whose clips are not
published: nobody who plans looks at those. The sources are real files, empty ones, named by a manifest. Each measurement is a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import made
from benchmarks.clipmill import environment
from benchmarks.places import parser_of
from benchmarks.process import run
from benchmarks.report import Row, at_most, publish, table
from benchmarks.rounds import Figure, Results, Section, Stat
from benchmarks.sampler import Usage
from pipeline import plan
from pipeline.gather import EpochPlan
from pipeline.objects import Written, examined
from pipeline.session import Session
from stages.discover import Discovery
from stages.memory import return_freed_memory, trim_memory
from stages.storage import Store
from stages.units import units_of

TITLE = "Beginning a run over a million videos"
STAGES = ("classify", "embed", "caption")
KNOWN_BYTES, DUE_BYTES = 64, 1024  # promised: 16 bytes of id a known video and what belongs to it; 1 KB a due source
CLIPS = 10  # of a video
_IN_A_FOLDER = 1000
_EPOCH_VIDEOS = 50_000
_FEW = 1000  # videos of the ledger that is read first


# --- the archive and its ledger ---


def archive(folder: Path, videos: int, what: str) -> Path:
    """A manifest of so many empty files; made where it is not there."""
    manifest = folder / f"{what}-{videos}.parquet"
    if not manifest.exists():
        uris = []
        for first in range(0, videos, _IN_A_FOLDER):
            below = folder / f"{what}-{videos}" / f"{first // _IN_A_FOLDER:06d}"
            below.mkdir(parents=True, exist_ok=True)
            for number in range(first, min(first + _IN_A_FOLDER, videos)):
                uris.append(str(below / f"{number:09d}.mp4"))
                os.close(os.open(uris[-1], os.O_CREAT | os.O_WRONLY, 0o644))
        pq.write_table(pa.table({"uri": uris}), manifest)
    return manifest


def ledger(output: Path, manifest: Path) -> None:
    """Fills the ledger of `output` with the videos of a manifest, all of them done; nothing where that was done before."""
    if (output / "done").exists():
        return
    shutil.rmtree(output, ignore_errors=True)
    config, entries = made.job(str(output), str(manifest), STAGES)
    store = Store(str(output))
    session = Session.open(store, config, entries)
    for sources in Discovery(config.input).batches():
        units = units_of(session.due(sources), config.clips)
        session.expect(units)
        session.receive(made.receipts(units, CLIPS, entries))
        if session.sums.due - session.sums.rows >= _EPOCH_VIDEOS:
            _publish(session, store)
    _publish(session, store)
    session.close()
    (output / "done").touch()


def _publish(session: Session, store: Store) -> None:
    """Commits what is complete with its ledger alone, as if a task elsewhere had published the rest."""
    found = session.plan_epoch()
    if found is None:
        return
    data = store.read(found.ledger.key)
    store.create(found.objects[-1].key, data)
    written = [_said(store, found, number) for number in range(len(found.objects))]
    key = f"_runs/{found.run}/epochs/{found.epoch:08d}.{found.token}.written.json"
    store.write(key, json.dumps([item.to_json() for item in written]).encode())
    session.commit(found)


def _said(store: Store, found: EpochPlan, number: int) -> Written:
    planned = found.objects[number]
    is_ledger = number == len(found.objects) - 1
    return examined(store, planned.key, planned.rows) if is_ledger else Written(planned.key, planned.rows, 0, "0" * 32)


# --- what is measured ---


def look(output: Path, manifest: Path, small: Path) -> Figure:
    """Reads log and ledger, lists the manifest, finds out what is due, cuts it into units and blocks. In this process.

    `small`: tables of a few videos, read first: what is loaded at the first use is no part of it.
    """
    config, entries = made.job(str(output), str(manifest), STAGES)
    return_freed_memory()
    Session.look(Store(str(small)), config, entries)
    before, began_s = _own_bytes(), time.monotonic()
    session = Session.look(Store(str(output)), config, entries)
    read_s, known_bytes = time.monotonic() - began_s, _own_bytes() - before
    discovery = Discovery(config.input)
    for sources in discovery.batches():
        session.expect(units_of(session.due(sources), config.clips, discovery.roots))
    missing = session.missing()
    blocks = sum(1 for _ in plan.blocks(missing, 64))
    sums = session.sums
    return {
        "read_s": read_s, "planned_s": time.monotonic() - began_s - read_s, "listed": sums.listed, "due": sums.due,
        "units": missing.num_rows, "unit_bytes": missing.nbytes, "blocks": blocks, "known_bytes": known_bytes,
        "grown_bytes": _own_bytes() - before, "peak_bytes": _peak_bytes(),
    }  # fmt: skip


def _status() -> Usage:
    return Usage.of(Path("/proc/self/status").read_text())


def _own_bytes() -> int:
    trim_memory()  # as a run does all the time
    return _status().anonymous


def _peak_bytes() -> int:
    return _status().high_water


def measured(output: Path, manifest: Path, small: Path, log: Path) -> Figure:
    """`look` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.planning", "--look", str(output), str(manifest), str(small)]
    cost = run(command, log=log, env=environment())
    figure: dict[str, float] = json.loads(cost.tail.splitlines()[-1])
    return {**figure, "wall_s": cost.wall_s, "cpu_s": cost.cpu_s}


# --- the page ---


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    publish("planning", TITLE, _body(results), _targets(results), results, page)


def _body(results: Results) -> str:
    head = ["sources", "due", "reading the ledger, s", "listing and planning, s", "peak memory, MB"]
    lines = [
        [name, f"{results.of(name, 'due').median:.0f}", results.of(name, "read_s").text(1),
         results.of(name, "planned_s").text(1), f"{results.of(name, 'peak_bytes').median / 1e6:.0f}"]
        for name in results.setup.contestants
    ]  # fmt: skip
    return _WORDS + "\n\n" + table(head, lines)


def due_bytes(results: Results) -> Stat:
    """Driver memory of a due source: what planning a run over all takes more than over none."""
    known, due = (results.figures[name] for name in results.setup.contestants)
    return Stat.of([(due[turn]["grown_bytes"] - known[turn]["grown_bytes"]) / due[turn]["listed"] for turn in sorted(known)])


def _targets(results: Results) -> list[Row]:
    known = results.figures[results.setup.contestants[0]]
    held = Stat.of([figure["known_bytes"] / figure["listed"] for figure in known.values()])
    return [
        at_most("driver memory of a video that the ledger knows, bytes", KNOWN_BYTES, held, digits=0),
        at_most("driver memory of a due source, bytes", DUE_BYTES, due_bytes(results), digits=0),
    ]


_WORDS = """
`python -m benchmarks.planning`. The ledger holds as many videos as there are sources, of three models, in epochs of 50,000;
the sources are local files named by a Parquet manifest, so listing asks the disk about each. Once they are those of the
ledger, once others. Reading the ledger is what a run begins with; then sources are listed, compared and cut into units and
blocks. Memory of a known video is what reading the ledger has left behind, of which the tables themselves are 33 bytes; of a
due source, what planning a run over all takes more than over none. A ledger of a thousand videos is read before that: what
libraries load at their first use is in no figure.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--look", nargs=3, metavar=("OUTPUT", "MANIFEST", "SMALL"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.look:
        print(json.dumps(look(*map(Path, args.look))))
        return
    section = Section("planning", settings={"videos": args.videos}, packages=("pyarrow",), folder=args.records)
    if not args.report:
        work = args.records / "planning"
        known, other, few = (archive(work, *of) for of in ((args.videos, "known"), (args.videos, "new"), (_FEW, "known")))
        output, small, log = work / f"tables-{args.videos}", work / f"tables-{_FEW}", work / "log"
        ledger(output, known)
        ledger(small, few)
        sources = {"in the ledger": known, "new": other}
        section.run({name: partial(measured, output, manifest, small, log) for name, manifest in sources.items()}, args.rounds)
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
