"""Reckons what a large archive needs from what was measured, and writes it into docs/scale.md.

    python -m benchmarks.scale [--hours 1000000] [--nodes 64] [--captions-s 10] ...

Measured figures come from the records of the other programs, which docs/measured keeps; every assumption is an option, and
stands on the page.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks import memory, planning, publishing, requests, simulation
from benchmarks.report import KEPT, conditions, table
from benchmarks.rounds import ROOT, Results, Section
from benchmarks.sampler import DRIVER, MODELS, TASKS
from cluster.machines import ClusterSize, Machine
from cluster.sizing import size
from pipeline.plan import STAGED_ROWS
from schemas.config import LimitsConfig, ResourcesConfig

PAGE = ROOT / "docs" / "scale.md"
RECORDS = PAGE.parent / KEPT
MARKS = ("<!-- reckoning -->", "<!-- end of reckoning -->")
USED = ("memory", "planning", "publishing", "requests", "simulation")
BLOCK_BYTES, UPLOAD_BYTES = 4 << 20, 16 << 20  # read at a time of a source; written at a time of an object
EPOCHS_AT_A_TIME = 2
PAGE_KEYS = 1000  # of a page of a listing, and of a request that removes them
CLEARING = "clearing away parts"


@dataclass(frozen=True)
class Assumed:
    """What was not measured: the archive, the cluster, and how fast GPUs and stores are. Defaults are for 1080p footage."""

    hours: float = 1_000_000.0  # of video
    clips_an_hour: float = 600.0
    video_minutes: float = 10.0
    gb_an_hour: float = 2.0  # of a source
    nodes: int = 64
    gpus: int = 8  # of a node
    cores: int = 96  # of a node
    gbit_s: float = 50.0  # of a node's network
    captions_s: float = 10.0  # clips a second and GPU
    vision_s: float = 200.0  # clips a second and GPU, classifier and embedder together
    writes_s: float = 3500.0  # writes and removals a second that the object store takes below one prefix
    epoch_clips: float = 500_000.0


@dataclass(frozen=True)
class Measured:
    """What the records say."""

    decode_s: float  # CPU seconds of a second of 1080p video
    driver_s: float  # seconds of a clip where the driver is the limit
    part_published_s: float  # seconds of a publishing task, of a part whatever it holds
    clip_published_s: float  # and of each of its clips
    clip_bytes: float  # of all tables
    due_bytes: float  # driver's memory of a source
    task_bytes: float
    model_bytes: float
    driver_bytes: float
    video_requests: dict[str, float]
    block_requests: float
    part_requests: dict[str, float]
    epoch_requests: dict[str, float]


@dataclass(frozen=True)
class Need:
    """Hours that one resource of the cluster is busy with all of it."""

    what: str
    hours: float
    how: str
    remedy: str


@dataclass(frozen=True)
class Amounts:
    """What an archive comes to."""

    clips: float
    videos: float
    parts: float
    epochs: float
    blocks: float  # of 4 MB, beyond the first one of each video

    @classmethod
    def of(cls, assumed: Assumed) -> Amounts:
        """Of an archive of videos of equal length."""
        clips, videos = assumed.hours * assumed.clips_an_hour, assumed.hours * 60 / assumed.video_minutes
        blocks = math.ceil(assumed.gb_an_hour * 1e9 * assumed.video_minutes / 60 / BLOCK_BYTES)
        cluster = ClusterSize.of([Machine(assumed.cores, assumed.gpus)] * assumed.nodes)
        staged_rows = STAGED_ROWS * size(ResourcesConfig(), cluster).grain
        units = videos * math.ceil(assumed.video_minutes * 60 / LimitsConfig().unit_s)
        parts = units + clips / staged_rows  # a part is of one unit, and of one batch: a batch ends within a unit
        return cls(clips, videos, parts, clips / assumed.epoch_clips, videos * (blocks - 1))


def needs(assumed: Assumed, measured: Measured) -> list[Need]:
    """Of each resource, the one that takes longest first."""
    archive = Amounts.of(assumed)
    gpus, cores = assumed.nodes * assumed.gpus, assumed.nodes * assumed.cores
    one_gpu_s = 1 / assumed.captions_s + 1 / assumed.vision_s  # of a clip
    gpu_s = archive.clips * one_gpu_s
    published_s = archive.parts * measured.part_published_s + archive.clips * measured.clip_published_s
    network_s = assumed.hours * assumed.gb_an_hour * 8 / (assumed.nodes * assumed.gbit_s)
    found = [
        Need("GPUs", gpu_s / gpus / 3600, f"{archive.clips:,.0f} clips, {gpus} GPUs",
             "more GPUs, a smaller captioner, fewer or shorter captions"),
        Need("cores that decode", assumed.hours * measured.decode_s / cores,
             f"{measured.decode_s:.3f} CPU s of a second of video, small models on CPUs included, {cores} cores",
             "more cores, nodes without GPUs for decoding, `clips.effort: fast`"),
        Need("the driver", archive.clips * measured.driver_s / 3600,
             f"{1000 * measured.driver_s:.2f} s of 1000 clips, in videos of ten; it is the limit from "
             f"{1 / measured.driver_s:,.0f} clips a second on, which {1 / measured.driver_s * one_gpu_s:,.0f} such GPUs make",
             "several runs, each over its part of the archive, into one output (the log keeps them apart)"),
        Need("publishing", published_s / EPOCHS_AT_A_TIME / 3600,
             f"{archive.clips / published_s:,.0f} clips a second and task, in parts of {archive.clips / archive.parts:,.0f}, "
             f"{EPOCHS_AT_A_TIME} tasks at a time",
             "more epochs at a time, or larger parts"),
        Need("the store, staging parts", archive.parts * measured.part_requests["put"] / assumed.writes_s / 3600,
             f"{archive.parts:,.0f} parts below one prefix", "larger batches, or parts under several prefixes"),
        Need(CLEARING, archive.parts / assumed.writes_s / 3600,
             f"{archive.parts:,.0f} parts below one prefix, after the last epoch",
             "a rule of the store that lets `_runs/*/parts/` lapse"),
        Need("the network", network_s / 3600, f"{assumed.hours * assumed.gb_an_hour / 1e3:,.0f} TB of sources",
             "nodes in the region of the footage"),
    ]  # fmt: skip
    return sorted(found, key=lambda need: -need.hours)


def wall_hours(found: Sequence[Need]) -> float:
    """Of the run: what goes on side by side takes as long as the slowest, and what was staged is cleared away after it."""
    last = next(need for need in found if need.what == CLEARING)
    return max(need.hours for need in found if need is not last) + last.hours


def requests_of(assumed: Assumed, measured: Measured) -> list[tuple[str, dict[str, float]]]:
    """Of the object store, by what they are for and their kind."""
    archive = Amounts.of(assumed)
    sources = {kind: archive.videos * each for kind, each in measured.video_requests.items()}
    sources["get"] += archive.blocks * measured.block_requests
    sources["list"] += archive.videos / PAGE_KEYS
    parts = {kind: archive.parts * each for kind, each in measured.part_requests.items()}
    parts["list"] += archive.parts / PAGE_KEYS
    parts["put"] += archive.parts / PAGE_KEYS  # that remove them
    epochs = {kind: archive.epochs * each for kind, each in measured.epoch_requests.items()}
    epochs["put"] += archive.clips * measured.clip_bytes / UPLOAD_BYTES
    return [("reading sources", sources), ("staged parts", parts), ("epochs, log and tables", epochs)]


def _results(name: str, folder: Path) -> Results:
    section = Section(name, folder=folder)
    if not (section.path.exists() and section.results().rounds()):
        raise FileNotFoundError(f"{section.path}: nothing measured yet, python -m benchmarks.{name} does it")
    return section.results()


def measured_from(folder: Path) -> tuple[Measured, Results]:
    """From the records, and the one of the driver. FileNotFoundError where one is missing or has no round yet."""
    found = {name: _results(name, folder) for name in USED}
    of_memory, drive = found["memory"], found["simulation"]
    names = of_memory.setup.contestants
    epoch = found["publishing"]
    part_published_s, clip_published_s = publishing.costs(epoch)
    tens = epoch.setup.contestants[0]

    def kinds(of: Any) -> dict[str, float]:
        return {kind: of(found["requests"], kind) for kind in requests.KINDS}

    return Measured(
        decode_s=memory.growth_s(of_memory, names[0], names[-1]),
        driver_s=statistics.median(1 / cost.limit_clips_s for cost in simulation.costs(drive)),
        part_published_s=part_published_s,
        clip_published_s=clip_published_s,
        clip_bytes=epoch.of(tens, "bytes").median / epoch.of(tens, "clips").median,
        due_bytes=planning.due_bytes(found["planning"]).median,
        task_bytes=of_memory.of(names[-1], f"{TASKS}_bytes").median,
        model_bytes=of_memory.of(names[-1], f"{MODELS}_bytes").median,
        driver_bytes=of_memory.of(names[-1], f"{DRIVER}_bytes").median,
        video_requests=kinds(requests.of_a_video),
        block_requests=requests.of_a_block(found["requests"]),
        part_requests=kinds(requests.of_a_part),
        epoch_requests=kinds(requests.of_an_epoch),
    ), drive


def words(assumed: Assumed, measured: Measured) -> str:
    """The generated part of the page."""
    archive, found = Amounts.of(assumed), needs(assumed, measured)
    hours = wall_hours(found)
    lines = [[need.what, f"{need.hours:,.1f}", need.how] for need in found]
    asked = requests_of(assumed, measured)
    kinds = requests.KINDS
    totals = [[what, *(_millions(each[kind]) for kind in kinds)] for what, each in asked]
    rate = sum(sum(each.values()) for _, each in asked) / hours / 3600
    first = [f"{place}. **{need.what}**: {need.remedy}." for place, need in enumerate(found[:3], start=1)]
    driver_gb = (measured.driver_bytes + archive.videos * measured.due_bytes) / 1e9
    node_gb = (assumed.cores * measured.task_bytes + assumed.gpus * measured.model_bytes) / 1e9
    return "\n\n".join(
        [
            f"{assumed.hours:,.0f} hours of video are {archive.videos:,.0f} videos and {archive.clips:,.0f} clips. "
            f"On {assumed.nodes} nodes of {assumed.gpus} GPUs and {assumed.cores} cores they take **{hours:,.0f} hours**: "
            f"{hours * assumed.nodes:,.0f} node hours, {hours * assumed.nodes * assumed.gpus:,.0f} GPU hours, and a head.",
            table(["busy with all of it", "hours", "reckoned from"], lines),
            "The first three to hold it up, and what would move them:",
            "\n".join(first),
            f"The driver holds about {driver_gb:,.1f} GB; a node's processes {node_gb:,.0f} GB where every core decodes "
            "(with the embedded models: real ones come on top, most of them on the GPU).",
            f"The tables come to {archive.clips * measured.clip_bytes / 1e12:,.1f} TB. Requests to the object store, "
            f"in millions; {rate:,.0f} a second on average:",
            table(["", "LIST", "GET and HEAD", "PUT and POST", "DELETE"], totals),
            "Assumed, each an option of the program:",
            table(["", ""], [[said, f"{getattr(assumed, name):,.12g}"] for name, said in _SAID.items()]),
        ]
    )


_SAID = {
    "hours": "hours of video",
    "clips_an_hour": "clips of an hour of video",
    "video_minutes": "minutes of a video",
    "gb_an_hour": "GB of an hour of video",
    "nodes": "nodes",
    "gpus": "GPUs of a node",
    "cores": "cores of a node",
    "gbit_s": "Gbit/s of a node's network",
    "captions_s": "clips that a GPU captions a second (no GPU was at hand)",
    "vision_s": "clips that a GPU classifies and embeds a second (no GPU was at hand)",
    "writes_s": "writes and removals a second that the object store takes below one prefix (S3 says 3,500)",
    "epoch_clips": "clips of an epoch",
}


def _millions(count: float) -> str:
    return f"{count / 1e6:,.2f}"


def replaced(page: str, part: str) -> str:
    """The page with its generated part. ValueError where it has no place for one."""
    before, first, rest = page.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not (first and last):
        raise ValueError(f"the page has no {MARKS[0]} ... {MARKS[1]}")
    return f"{before}{first}\n{part}\n{last}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--print", action="store_true", help="prints the generated part, leaves the page as it is")
    for field in fields(Assumed):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default, help=_SAID[field.name]
        )
    args = parser.parse_args(arguments)
    try:
        measured, drive = measured_from(args.records)
    except FileNotFoundError as error:
        sys.exit(f"scale: {error}")
    assumed = Assumed(**{field.name: getattr(args, field.name) for field in fields(Assumed)})
    part = f"{words(assumed, measured)}\n\nOf the driver's record: {conditions(drive)}"
    if args.print:
        print(part)
    else:
        args.page.write_text(replaced(args.page.read_text(), part))


if __name__ == "__main__":
    main()
