"""What the whole decode stage costs on top of bare decoding, and what `clips.effort: fast` saves and changes.

    python -m benchmarks.decode [--videos ../shared/videos] [--rounds 5] [--passes 3]

Every file is decoded by PyAV and nothing else (one thread, packet by packet), by the stage (decode, shots, quality, kept frames
as RGB, rows) and by the stage in fast mode, one after the other, `passes` times a round. CPU seconds of the thread, so that
neighbours on the machine disturb little. 1.00 would be free. Where the stage's time goes is told by its first parts alone: the
reader, and the reader with what cuts its frames into clips. What fast mode changes is measured once, on files with B-frames.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
from av.codec.context import ThreadType

from benchmarks import effort
from benchmarks.places import digest_of
from benchmarks.report import Row, at_least, publish, table
from benchmarks.rounds import Figure, Results, Section, Stat
from schemas.config import VIDEO_EXTENSIONS, ClipsConfig, Effort
from schemas.errors import BadVideo
from schemas.rows import UNIT_ROW, rows_table
from stages.clipper import Clipper
from stages.decode import Decode
from stages.media import open_media
from stages.reader import Reader, Span

TITLE = "The decode pass against bare decoding"
FRAMES = 8  # of a clip, as most models see
ROWS = 480  # of the picture: files from here on have a target each
FAST_ROWS = 720
_ENTRY = "abenched"
_WORDS = {"bare": "bare decoding", "exact": "the stage", "fast": "the stage, fast"}

Way = Callable[[Path], int]


def bare(path: Path) -> int:
    """Decodes and does nothing else; frames."""
    frames = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = ThreadType.NONE
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames += len(packet.decode())
            except av.FFmpegError:
                continue
    return frames


def staged(effort: Effort) -> Way:
    """The whole stage on one file."""
    decode = Decode(ClipsConfig(effort=effort), {_ENTRY: FRAMES}, unit_deadline_s=600.0)

    def way(path: Path) -> int:
        unit = {"video_id": "0" * 32, "uri": str(path), "size_bytes": path.stat().st_size, "unit": 0, "units": 1}
        for made in decode(rows_table([unit | {"due": [_ENTRY]}], UNIT_ROW)):
            last = made
        return int(last.column("end")[-1].as_py()["frames"])

    return way


def in_part(cuts: bool) -> Way:
    """What the stage does first: it reads frames in bursts; with `cuts` also looks at them and cuts clips."""
    config = ClipsConfig()

    def way(path: Path) -> int:
        with path.open("rb") as file, open_media(file, config.limits) as media:
            reader, clipper = Reader(media, config.limits, Span(), lambda: None), Clipper(config, "start")
            for burst in reader.bursts():
                if cuts:
                    clipper.push(burst)
            for _ in clipper.finish(reader.end_s):
                pass
            return reader.frames_read

    return way


def pass_over(files: Sequence[Path], passes: int) -> Figure:
    """CPU seconds by way and file, `WAY/FILE`, of all passes, and the frames of each file."""
    ways: dict[str, Way] = {"bare": bare, "read": in_part(cuts=False), "cut": in_part(cuts=True)}
    ways |= {"exact": staged("exact"), "fast": staged("fast")}
    figures: dict[str, float] = {}
    for _ in range(passes):
        for path in files:
            for name, way in ways.items():
                start_s = time.thread_time()
                frames = way(path)
                used_s = time.thread_time() - start_s
                figures[f"{name}/{path.name}"] = figures.get(f"{name}/{path.name}", 0.0) + used_s
                if name == "bare":
                    figures[f"frames/{path.name}"] = frames
    return figures


class Measured:
    """What the rounds say."""

    def __init__(self, results: Results, files: Sequence[Path]) -> None:
        self._rounds = list(results.figures["all"].values())
        self._files = files
        self.passes = int(results.setup.settings["passes"])

    def ratio(self, path: Path, way: str) -> Stat:
        """Throughput over that of bare decoding of one file."""
        return Stat.of([turn[f"bare/{path.name}"] / turn[f"{way}/{path.name}"] for turn in self._rounds])

    def weighted(self, way: str) -> Stat:
        """Mean of the files' ratios, weighted by their frames."""
        frames = {path: self._rounds[0][f"frames/{path.name}"] for path in self._files}
        turns = [
            sum(count * turn[f"bare/{path.name}"] / turn[f"{way}/{path.name}"] for path, count in frames.items())
            for turn in self._rounds
        ]
        return Stat.of([value / sum(frames.values()) for value in turns])

    def together(self, way: str) -> Stat:
        """The ratio of all files as one."""
        totals = [{w: sum(turn[f"{w}/{path.name}"] for path in self._files) for w in ("bare", way)} for turn in self._rounds]
        return Stat.of([total["bare"] / total[way] for total in totals])

    def more_us(self, path: Path, way: str, before: str) -> float:
        """CPU microseconds a frame that one way takes beyond another; the median round's, over all passes."""
        return statistics.median(
            1e6 * (turn[f"{way}/{path.name}"] - turn[f"{before}/{path.name}"]) / self.passes / turn[f"frames/{path.name}"]
            for turn in self._rounds
        )

    def bare_fps(self, path: Path) -> float:
        """Frames a CPU second that bare decoding gives; the median round's, over all passes."""
        return statistics.median(self.passes * turn[f"frames/{path.name}"] / turn[f"bare/{path.name}"] for turn in self._rounds)


def videos_of(folder: Path) -> list[tuple[Path, int, bool]]:
    """(file, rows of its picture, whether it has frames that no other is made from) of the videos that decode."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lstrip(".").lower() not in VIDEO_EXTENSIONS:
            continue
        try:
            with path.open("rb") as file, open_media(file, ClipsConfig().limits) as media:
                height = media.facts.height
        except BadVideo:
            continue
        frames = bare(path)
        if frames:
            found.append((path, height, staged("fast")(path) < 0.9 * frames))
    return found


def rows_of(measured: Measured, videos: Sequence[tuple[Path, int, bool]], found: effort.Changes) -> list[Row]:
    """The targets and what came of them."""
    named = [path for path, height, has_b in videos if height >= FAST_ROWS and has_b]
    rows = [at_least("decode pass over bare decoding, all videos, by frames", 0.92, measured.weighted("exact"))]
    rows += [
        at_least(f"the same, {path.stem}", 0.88, measured.ratio(path, "exact")) for path, height, _ in videos if height >= ROWS
    ]
    rows += [at_least(f"fast mode over bare decoding, {path.stem}", 1.25, measured.ratio(path, "fast")) for path in named]
    rows.append(at_least("fast mode: median cosine of embeddings", 0.99, Stat.of([found.median_cosine]), digits=4))
    rows.append(at_least("fast mode: F1 of shots at one frame", 0.97, Stat.of([found.f1]), digits=3))
    return rows


def text_of(measured: Measured, videos: Sequence[tuple[Path, int, bool]], found: effort.Changes) -> str:
    head = [
        "file",
        "rows",
        "frames that others need",
        "bare, frames/s",
        "the stage",
        "fast",
        "reading, us",
        "cutting",
        "keeping",
    ]
    lines = [
        [
            path.stem,
            str(height),
            "nine in ten at most" if has_b else "most or all",
            f"{measured.bare_fps(path):,.0f}",
            measured.ratio(path, "exact").text(),
            measured.ratio(path, "fast").text(),
            *(
                f"{measured.more_us(path, way, before):.0f}"
                for way, before in (("read", "bare"), ("cut", "read"), ("exact", "cut"))
            ),
        ]
        for path, height, has_b in videos
    ]
    lines.append(
        ["all, by frames", "", "", "", measured.weighted("exact").text(), measured.weighted("fast").text(), "", "", ""]
    )
    lines.append(["all, as one", "", "", "", measured.together("exact").text(), measured.together("fast").text(), "", "", ""])
    return f"{EXPLAINED}\n\n{table(head, lines)}\n\n{found.text()}"


EXPLAINED = """Throughput of the whole stage (decode, shots, quality, kept frames, rows) over that of bare PyAV decoding of the
same file, one thread, one after the other; CPU time. 1.00 would be free. Where the stage's time goes beyond bare decoding, in
microseconds of each frame: reading (opening with care, times, damage, frames that stay while others decode), cutting (looks at
frames, motion, shots, clips), keeping (quality, kept frames as RGB, rows). It hardly depends on the size of the picture, so it
shows most where decoding itself is cheapest: in small pictures, and in files of a few frames, where opening counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=Path("../shared/videos"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    videos = videos_of(args.videos)
    files = [path for path, _, _ in videos]
    settings = {"files": len(files), "passes": args.passes, "inputs": digest_of(files)}
    section = Section("decode", settings=settings, packages=("av", "numpy"))
    results = section.run({"all": lambda: pass_over(files, args.passes)}, args.rounds)
    measured = Measured(results, files)
    with tempfile.TemporaryDirectory() as folder:
        montages = effort.montages(Path(folder), args.videos)
        found = effort.changes([*(path for path, _, has_b in videos if has_b), *montages])
    publish("decode", TITLE, text_of(measured, videos, found), rows_of(measured, videos, found), results)


if __name__ == "__main__":
    main()
