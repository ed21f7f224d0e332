"""Long files of known length: a piece of half a minute with cuts and motion, repeated without encoding it again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.shots.scenes import scene

FPS = 25
PIECE_S = 30
_SHOTS = (37, 52, 88, 60, 45, 110, 73, 41, 66, 95, 83)  # frames; together PIECE_S
_SEED = 20


def long_file(folder: Path, minutes: float, height: int) -> Path:
    """A file of `minutes` (a whole number of pieces) in 16:9, H.264; made where `folder` does not have it."""
    path = folder / f"{height}p-{minutes:g}min.mp4"
    if not path.exists():
        made = path.with_suffix(".partial")
        repeat(_piece(folder, height), made, times=round(minutes * 60 / PIECE_S))
        made.rename(path)
    return path


def _piece(folder: Path, height: int) -> Path:
    path = folder / f"piece-{height}p.mp4"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(".partial")
        encode(made, height)
        made.rename(path)
    return path


def encode(path: Path, height: int, shots: tuple[int, ...] = _SHOTS) -> None:
    """Renders and encodes shots of so many frames each, joined by cuts."""
    rng = np.random.default_rng(_SEED)
    width = height * 16 // 9 // 2 * 2
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "30", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        pictures = (picture for frames in shots for picture in scene(rng, frames, (height, width)))
        for number, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def repeat(piece: Path, path: Path, times: int) -> None:
    """Writes the packets of `piece` `times` times, each time later by its length."""
    with av.open(str(path), "w", format="mp4") as target:
        stream = None
        for turn in range(times):
            with av.open(str(piece)) as source:
                video = source.streams.video[0]
                stream = stream or target.add_stream_from_template(video)
                length = round(video.frames / (FPS * video.time_base))
                for packet in source.demux(video):
                    if packet.dts is None:  # the end of the piece
                        continue
                    packet.pts, packet.dts = packet.pts + turn * length, packet.dts + turn * length
                    packet.stream = stream
                    target.mux(packet)
