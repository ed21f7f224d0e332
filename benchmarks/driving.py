"""One run of the real driver with stages that are none, in this process; prints figures of the driver as JSON.

    python -m benchmarks.driving FOLDER OUTPUT OPTIONS

benchmarks/simulation.py calls it. The nodes are a cluster of this machine, gone at the end; their processors are what Ray is
told of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks import made
from benchmarks.rounds import Figure
from benchmarks.sampler import Usage
from benchmarks.stand_ins import DIM, FRAMES_BYTES, Decode, Embed
from cluster.attach import attached
from cluster.nodes import started
from cluster.sizing import FEWEST_STAGING
from pipeline import events, flow, plan, run
from pipeline.plan import Step, staging
from pipeline.progress import Progress

REAL_BYTES = 8 * 224 * 398 * 3  # of a clip's frames; blocks hold as many clips as if theirs were as large

# Of a run, between two marks of a watch. Starting is Ray's own, and what Ray Data makes of all blocks before it begins.
_PARTS = {
    "listing": ("begin", "listed"),
    "starting": ("listed", "first receipt"),
    "working": ("first receipt", "last receipt"),
    "ending": ("last receipt", "end"),
}


class Watch:
    """An observer that notes when the run was where, by clock and by CPU seconds of this process, and its memory."""

    def __init__(self) -> None:
        self.marks: dict[str, tuple[float, float]] = {}
        self.receipts = self.clips = self.epochs = self.at_listed_bytes = 0
        self.head_cpu_s = _head_cpu_s()
        self.mark("begin")

    def mark(self, name: str) -> None:
        """Now."""
        self.marks[name] = (time.monotonic(), time.process_time())

    def __call__(self, event: events.Event) -> None:
        """Takes note of an event."""
        if isinstance(event, events.Listed):
            self.mark("listed")
            self.at_listed_bytes = _usage().anonymous
        elif isinstance(event, events.Received):
            if not self.receipts:
                self.mark("first receipt")
            self.mark("last receipt")
            self.receipts += event.receipts.num_rows
            self.clips += event.delta.clips
        elif isinstance(event, events.Planned):
            self.epochs += 1
        elif isinstance(event, events.Committed):  # Ray is still there
            self.head_cpu_s = _head_cpu_s()

    def between(self, first: str, last: str) -> tuple[float, float]:
        """(seconds, CPU seconds)."""
        (began_s, began_cpu_s), (ended_s, ended_cpu_s) = self.marks[first], self.marks[last]
        return ended_s - began_s, ended_cpu_s - began_cpu_s


def drive(folder: Path, output: Path, options: Mapping[str, Any]) -> Figure:
    """A run over the files of `folder`; figures of its driver."""
    resources = {"epoch_clips": options["epoch_clips"], "decode_cpus": 1.0, "object_store_bytes": 1 << 30,
                 "machines": ({"cpus": 1.0, "gpus": 1.0, "most": options["gpus"]},)}  # fmt: skip
    config, entries = made.job(str(output), str(folder), ["embed"], **resources)

    def steps(_config: Any, _entries: Any, sizing: Any, root: str, run_id: str) -> list[Step]:
        clips, batch = config.clips.fingerprint(), config.resources.batch_clips * sizing.grain
        return [
            Step("decode", Decode, (options["clips"], clips, options["sleep_s"]), cpus=sizing.decode_cpus),
            Step("embed", Embed, (entries[0], DIM), cpus=0.05, actors=(options["actors"],) * 2, batch_rows=batch),
            # As many as these nodes would have, one or two on each: every process more is one that two cores have to start.
            replace(staging(sizing, root, run_id), cpus=0.45, tasks=max(FEWEST_STAGING, options["nodes"])),
        ]

    for name in ("DECODED_BLOCK_BYTES", "MOST_DECODED_BLOCK_BYTES"):
        setattr(flow, name, getattr(flow, name) * FRAMES_BYTES // REAL_BYTES)
    # A run cuts blocks by the size of its archive: these are as those of a large one, of which this is a part.
    plan.BLOCKS_PER_CPU *= options["videos"] / max(options["videos"], options["of_videos"])
    before = _usage().anonymous
    with started(options["nodes"], cpus=options["cpus"]) as nodes:
        os.environ.update(nodes.env)
        watch = Watch()
        with attached(nodes.address):
            on_cluster = run.Request(address=nodes.address)
            result = run.run(config, entries, on_cluster, _silent(), run.Parts(steps=steps), observers=[watch])
            watch.mark("end")
    if result.stopped_reason or result.promise_broken or dict(result.counts) != {"ok": options["videos"]}:
        raise RuntimeError(f"the run did not do its work: {result}")
    return _figures(watch, before)


def _figures(watch: Watch, before: int) -> Figure:
    usage = _usage()
    return {
        "clips": watch.clips, "receipts": watch.receipts, "epochs": watch.epochs,
        **{f"{name}_{what}": used
           for name, (first, last) in _PARTS.items()
           for what, used in zip(("s", "cpu_s"), watch.between(first, last), strict=True)},
        "listed_bytes": watch.at_listed_bytes - before, "grown_bytes": usage.high_water - usage.shared - before,
        **{f"{name}_cpu_s": used for name, used in watch.head_cpu_s.items()},
    }  # fmt: skip


def _silent() -> Any:
    return Progress(open(os.devnull, "w"), live=False)


def _usage() -> Usage:
    return Usage.of(Path("/proc/self/status").read_text())


def _head_cpu_s() -> dict[str, float]:
    """CPU seconds of what Ray runs on the head: the raylet and the server of its global state."""
    found = {"raylet": 0.0, "gcs_server": 0.0}
    for server in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # workers come and go
            if server.name() == "gcs_server":  # only a head has one
                for process in server.parent().children():
                    if process.name() in found:
                        times = process.cpu_times()
                        found[process.name()] += times.user + times.system
    return found


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))), flush=True)
