"""What the whole decode stage costs on top of bare decoding.

    python -m benchmarks.decode FOLDER_OR_FILES... [--repeats 7] [--frames 8] [--min-rows 480]

For every video of at least `--min-rows` rows it alternates bare PyAV decoding (one thread, packet by packet, nothing else) and
the stage (decode, shots, quality, kept frames as RGB, rows), and prints the ratio of their throughputs: 1.00 would be free.
CPU seconds of the thread, median of the repeats, so that neighbours on the machine disturb little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import av
from av.codec.context import ThreadType

from schemas.config import VIDEO_EXTENSIONS, ClipsConfig
from schemas.errors import BadVideo
from schemas.rows import UNIT_ROW, rows_table
from stages.decode import Decode
from stages.media import open_media

_ENTRY = "abenched"


def bare_s(path: Path) -> tuple[float, int]:
    """(CPU seconds, frames) of decoding and nothing else."""
    start_s = time.thread_time()
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
    return time.thread_time() - start_s, frames


def stage_s(decode: Decode, path: Path) -> tuple[float, int]:
    """(CPU seconds, frames) of the whole stage on one file."""
    unit = {
        "video_id": "0" * 32,
        "uri": str(path),
        "size_bytes": path.stat().st_size,
        "unit": 0,
        "units": 1,
        "due": [_ENTRY],
    }
    units = rows_table([unit], UNIT_ROW)
    start_s = time.thread_time()
    for table in decode(units):
        last = table
    used_s = time.thread_time() - start_s
    return used_s, last.column("end")[-1].as_py()["frames"]


def is_measured(path: Path, min_rows: int) -> bool:
    if path.suffix.lstrip(".").lower() not in VIDEO_EXTENSIONS:
        return False
    try:
        with path.open("rb") as file, open_media(file, ClipsConfig().limits) as media:
            return media.facts.height >= min_rows
    except BadVideo:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip that the models see")
    parser.add_argument("--min-rows", type=int, default=480)
    args = parser.parse_args()
    files = sorted(f for path in args.paths for f in (path.iterdir() if path.is_dir() else [path]))
    decode = Decode(ClipsConfig(), {_ENTRY: args.frames}, unit_deadline_s=600.0)
    print(f"{'file':34} {'frames':>6} {'bare fps':>9} {'stage fps':>9} {'ratio':>6}")
    bare_total_s = stage_total_s = 0.0
    for path in files:
        if not is_measured(path, args.min_rows):
            continue
        pairs = [(bare_s(path), stage_s(decode, path)) for _ in range(args.repeats)]
        bare = statistics.median(pair[0][0] for pair in pairs)
        stage = statistics.median(pair[1][0] for pair in pairs)
        frames = pairs[0][1][1]
        bare_total_s, stage_total_s = bare_total_s + bare, stage_total_s + stage
        print(f"{path.name:34} {frames:6d} {frames / bare:9.0f} {frames / stage:9.0f} {bare / stage:6.3f}", flush=True)
    if stage_total_s:
        print(f"{'all':34} {'':6} {'':9} {'':9} {bare_total_s / stage_total_s:6.3f}")


if __name__ == "__main__":
    main()
