"""Test videos made in code: every kind of file that the tests need, small, reproducible and of known content.

    shots = textured(50, seed=1) + textured(40, seed=2)          # RGB frames of two shots that differ
    write_video(tmp_path / "two.mp4", shots, fps=25)

Frames are lists of uint8 RGB arrays (height, width, 3).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

Frames = list[np.ndarray]
SIZE = (160, 90)  # width, height of a test frame where nothing else is said
RED, GREEN, BLUE = (220, 30, 30), (30, 200, 40), (30, 40, 220)
BLACK, GRAY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)
# Lossless enough that frames can be told apart, fast enough for hundreds of tests.
X264 = {"preset": "ultrafast", "crf": "12", "threads": "1"}


def solid(color: tuple[int, int, int], count: int, size: tuple[int, int] = SIZE) -> Frames:
    """`count` frames of one colour."""
    width, height = size
    return [np.full((height, width, 3), color, np.uint8) for _ in range(count)]


def texture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth, colourful picture (height, width, 3) that another seed does not resemble."""
    width, height = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    picture = np.empty((height, width, 3))
    base = rng.uniform(50, 205, 3)
    for channel in range(3):
        waves = sum(
            np.sin(2 * np.pi * (fx * x + fy * y) + phase)
            for fx, fy, phase in zip(rng.uniform(-9, 9, 5), rng.uniform(-9, 9, 5), rng.uniform(0, 6, 5), strict=True)
        )
        picture[..., channel] = base[channel] + 22 * waves
    return picture.clip(0, 255).astype(np.uint8)


def textured(count: int, seed: int = 0, size: tuple[int, int] = SIZE, pan: int = 1) -> Frames:
    """A shot: a texture moving `pan` pixels to the left with every frame. pan=0 is a frozen shot."""
    picture = texture(seed, size)
    return [np.roll(picture, -pan * index, axis=1) for index in range(count)]


def numbered(count: int, size: tuple[int, int] = SIZE, bits: int = 10, first: int = 0) -> Frames:
    """Frames that carry their own index as black and white bars: `number_of` reads it back after any codec."""
    width, height = size
    frames = []
    for index in range(first, first + count):
        frame = np.zeros((height, width, 3), np.uint8)
        for bit in range(bits):
            if index >> bit & 1:
                frame[:, bit * width // bits : (bit + 1) * width // bits] = 255
        frames.append(frame)
    return frames


def number_of(frame: np.ndarray, bits: int = 10) -> int:
    """The index that `numbered` wrote into a frame (any size)."""
    width = frame.shape[1]
    centres = [(2 * bit + 1) * width // (2 * bits) for bit in range(bits)]
    band = frame[frame.shape[0] // 4 : -(frame.shape[0] // 4) or None]
    return sum(int(band[:, centre].mean() > 127) << bit for bit, centre in enumerate(centres))


def write_video(
    path: Path | str,
    frames: Iterable[np.ndarray],
    *,
    fps: float | Fraction = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times_s: Sequence[float] | None = None,
    time_base: Fraction | None = None,
    gop: int = 12,
    full_range: bool = False,
    bt709: bool = False,
    audio: bool = False,
    mux_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Encodes `frames`, at `fps` or, for variable rate, shown at `times_s` (seconds, may be negative or out of order).

    `full_range` and `bt709` both convert and tag the colours. `audio` adds a silent track as long as the video.
    """
    path = Path(path)
    rate = Fraction(fps).limit_denominator(1001)
    base = time_base or (Fraction(1, 90000) if times_s is not None else 1 / rate)
    scaler = VideoReformatter()
    with _as_ever(), av.open(str(path), "w", format=format, options=mux_options or {}) as out:
        stream: Any = None
        sound: Any = out.add_stream("aac" if path.suffix in (".mp4", ".mov") else "mp2", rate=48000) if audio else None
        index = -1
        for index, picture in enumerate(frames):
            if stream is None:
                stream = _video_stream(out, codec, rate, picture, pix_fmt, options, gop, base, full_range, bt709)
            frame = _frame(picture, pix_fmt, scaler, full_range, bt709)
            frame.pts = index if times_s is None else round(Fraction(times_s[index]) / base)
            frame.time_base = base
            if times_s is None:
                frame.pts = round(index / rate / base)
            out.mux(stream.encode(frame))
        if stream is not None:
            out.mux(stream.encode(None))
        if sound is not None:
            _silence(out, sound, (index + 1) / float(rate))
    return path


@contextmanager
def _as_ever() -> Iterator[None]:
    """Where it may, SVT-AV1 makes the whole process one of real time, and all that it starts: they would hang the machine."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _video_stream(
    out: Any,
    codec: str,
    rate: Fraction,
    picture: np.ndarray,
    pix_fmt: str,
    options: dict[str, str] | None,
    gop: int,
    base: Fraction,
    full_range: bool,
    bt709: bool,
) -> Any:
    chosen = options if options is not None else (X264 if codec == "libx264" else {})
    stream = out.add_stream(codec, rate=rate, options=chosen)
    stream.height, stream.width = picture.shape[:2]
    stream.pix_fmt = pix_fmt
    context = stream.codec_context
    context.time_base = base
    context.gop_size = gop
    context.thread_count = 1
    context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    context.colorspace = 1 if bt709 else 6
    return stream


def _frame(picture: np.ndarray, pix_fmt: str, scaler: VideoReformatter, full_range: bool, bt709: bool) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return scaler.reformat(
        frame,
        format=pix_fmt,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
        dst_colorspace=Colorspace.ITU709 if bt709 else Colorspace.ITU601,
        threads=1,
    )


def _silence(out: Any, stream: Any, seconds: float) -> None:
    samples = 1024
    layout = stream.codec_context.layout.name
    for index in range(max(1, int(seconds * 48000 / samples))):
        planar = stream.codec_context.format.name
        quiet = av.AudioFrame(format=planar, layout=layout, samples=samples)
        for plane in quiet.planes:
            plane.update(bytes(plane.buffer_size))
        quiet.sample_rate = 48000
        quiet.pts = index * samples
        quiet.time_base = Fraction(1, 48000)
        out.mux(stream.encode(quiet))
    out.mux(stream.encode(None))


def write_audio(path: Path | str, seconds: float = 1.0, cover: bool = False) -> Path:
    """An audio file (.m4a, .mp3); with `cover`, it holds an attached picture, which FFmpeg shows as a video stream."""
    path = Path(path)
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as out:
        sound = out.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=48000)
        picture: Any = None
        if cover:
            picture = out.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), RED, np.uint8), format="rgb24").reformat(format="yuvj420p")
            out.mux(picture.encode(frame))
            out.mux(picture.encode(None))
        _silence(out, sound, seconds)
    return path


def rotate(path: Path, clockwise_deg: int) -> Path:
    """Writes a rotation into the track header of an MP4 or MOV, in place: players turn the picture clockwise by it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    matrix = at + (40 if data[at] == 0 else 52)  # after version, flags, times, id, duration, layer, volume of version 0 or 1
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise_deg]
    one = 1 << 16
    struct.pack_into(">9i", data, matrix, cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def truncate(path: Path, fraction: float) -> Path:
    """Cuts the file short, in place."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def flip_bits(path: Path, first: int, count: int, seed: int = 0) -> Path:
    """Overwrites `count` bytes from offset `first` with noise, in place."""
    data = bytearray(path.read_bytes())
    data[first : first + count] = np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()
    path.write_bytes(data)
    return path


def packets(path: Path) -> list[tuple[int, int, bool]]:
    """(offset, size, is_keyframe) of the video packets, in file order: where to aim `flip_bits`."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(p.pos, p.size, p.is_keyframe) for p in container.demux(stream) if p.size]
