"""Which frames of a clip are kept, and how they become RGB.

A clip's end is not known while it decodes, so a `Sampler` keeps references to evenly spaced frames, ever sparser, in bounded
memory; at the end each model gets those nearest to the mid-bins of the clip. What a sampler keeps depends on nothing but how
many frames the clip has: not on what follows, not on the models.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from schemas.errors import BadVideo, ErrorCode

CANDIDATE_BYTES = 64 << 20  # decoded frames that one sampler may hold, within the two bounds below
MIN_CANDIDATES = 16
MAX_CANDIDATES = 64
MAX_ASPECT = 8.0  # a longer side is shortened to this many short sides: no thread-like picture asks for gigabytes
# Colour matrices that FFmpeg's scaler knows, in its numbering; it refuses a frame that declares any other.
_KNOWN_MATRICES = frozenset({0, 1, 4, 5, 6, 7, 9})
_BT2020_CONSTANT, _BT2020 = 10, 9
_HALF_CHROMA = frozenset({"yuv420p", "yuvj420p"})
_RGB_PLANES = (2, 0, 1)  # of FFmpeg's gbrp, which keeps all chroma; packed RGB halves it at even widths, and is slower
_HD_ROWS = 720  # pictures as high as this are BT.709 where they do not say


def frame_times_s(start_s: float, end_s: float, count: int) -> np.ndarray:
    """Middles of `count` equal parts of [start_s, end_s): float64, shape (count,), seconds."""
    return np.array(_middles_s(start_s, end_s, count))


def _middles_s(start_s: float, end_s: float, count: int) -> list[float]:
    step_s = (end_s - start_s) / count
    edges_s = [*(start_s + part * step_s for part in range(count)), end_s]
    return [(a + b) / 2 for a, b in pairwise(edges_s)]


def choose(kept_times_s: np.ndarray, start_s: float, end_s: float, count: int) -> np.ndarray:
    """Which of the kept frames stand for the clip's `count` mid-bins: int64, shape (count,), not falling.

    `kept_times_s` grows, is not empty, and may hold frames kept for others. Of two frames equally near the earlier one is
    taken; a frame is taken more than once where a clip has fewer frames than bins.
    """
    return np.array(_nearest(np.asarray(kept_times_s, np.float64).tolist(), start_s, end_s, count), np.int64)


def _nearest(times_s: Sequence[float], start_s: float, end_s: float, count: int) -> list[int]:
    """`choose` in plain numbers: for as few as these, NumPy takes ten times as long."""
    found = []
    for middle_s in _middles_s(start_s, end_s, count):
        after = min(bisect_left(times_s, middle_s), len(times_s) - 1)
        before = max(after - 1, 0)
        found.append(before if middle_s - times_s[before] <= times_s[after] - middle_s else after)
    return found


def union(times_s: Sequence[float], start_s: float, end_s: float, counts: Iterable[int]) -> list[int]:
    """Indices into `times_s` of all frames that any of `counts` chooses, growing."""
    return sorted({index for count in set(counts) for index in _nearest(times_s, start_s, end_s, count)})


def candidates_of(frame: av.VideoFrame) -> int:
    """How many frames like this one a sampler may hold: decided by their size alone."""
    frame_bytes = sum(plane.buffer_size for plane in frame.planes) or 1
    return min(max(CANDIDATE_BYTES // frame_bytes, MIN_CANDIDATES), MAX_CANDIDATES)


class Sampler:
    """Every n-th frame from a clip's first one, n a power of two that grows so that at most `capacity` frames are held."""

    __slots__ = ("_capacity", "_count", "_mask", "frames", "times_s")

    def __init__(self, capacity: int) -> None:
        self.times_s: list[float] = []
        self.frames: list[av.VideoFrame] = []
        self._capacity = capacity
        self._mask = 0  # n - 1
        self._count = 0

    def push(self, time_s: float, frame: av.VideoFrame) -> None:
        """Takes the clip's next frame."""
        if not self._count & self._mask:
            self.times_s.append(time_s)
            self.frames.append(frame)
            if len(self.frames) > self._capacity:
                del self.times_s[1::2]
                del self.frames[1::2]
                self._mask = 2 * self._mask + 1
        self._count += 1


class RgbConverter:
    """Frames to upright RGB of one size, by the colours that each frame declares. One per thread."""

    def __init__(self, short_side: int) -> None:
        self._short_side = short_side
        # One for each step: a scaler that is used for something else sets itself up anew.
        self._scaler, self._shrinker, self._painter = VideoReformatter(), VideoReformatter(), VideoReformatter()

    def convert(self, frames: Sequence[av.VideoFrame], rotation_deg: int) -> np.ndarray:
        """uint8, shape (len(frames), height, width, 3), of the first frame's aspect, turned clockwise by `rotation_deg`.

        BadVideo(UNSUPPORTED_CODEC) for a pixel format that cannot be converted, MEMORY.
        """
        width, height = kept_size(frames[0].width, frames[0].height, self._short_side)
        turns = -(rotation_deg // 90) % 4  # counter-clockwise quarters, as NumPy counts
        shape = (width, height) if turns % 2 else (height, width)
        out = np.empty((len(frames), *shape, 3), np.uint8)
        for rgb, frame in zip(out, frames, strict=True):
            if frame.format.name in _HALF_CHROMA:
                rgb[:] = np.rot90(self._painted(frame, width, height), turns)
            else:
                planar = self._scaled(self._scaler, frame, width, height, "gbrp", _matrix(frame))
                for channel, plane in enumerate(_RGB_PLANES):
                    rgb[:, :, channel] = np.rot90(_samples(planar.planes[plane]), turns)
        return out

    def _painted(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """(height, width, 3) of a frame whose chroma has half its size: shrunk as it is, then painted.

        FFmpeg does each of these steps several times faster than both in one.
        """
        matrix = _matrix(frame)
        small = self._scaled(self._shrinker, frame, width, height, frame.format.name, matrix, dst_colorspace=matrix)
        rgb = self._scaled(self._painter, small, width, height, "rgb24", matrix)
        return _samples(rgb.planes[0], 3).reshape(height, width, 3)

    @staticmethod
    def _scaled(
        scaler: VideoReformatter,
        frame: av.VideoFrame,
        width: int,
        height: int,
        format_name: str,
        matrix: int | None,
        **how: int | None,
    ) -> av.VideoFrame:
        interpolation = _interpolation(frame, width)
        try:
            return scaler.reformat(
                frame, width, height, format_name, src_colorspace=matrix, interpolation=interpolation, threads=1, **how
            )
        except (av.FFmpegError, ValueError, MemoryError) as error:
            code = ErrorCode.MEMORY if isinstance(error, MemoryError) else ErrorCode.UNSUPPORTED_CODEC
            raise BadVideo(code, f"frames of pixel format {frame.format.name} do not become RGB: {error}") from error


def _interpolation(frame: av.VideoFrame, width: int) -> Interpolation:
    """Means of the area that a pixel covers where frames shrink to half or less: half the time of a bicubic, as sharp there."""
    return Interpolation.AREA if frame.width >= 2 * width else Interpolation.BICUBIC


def _samples(plane: Any, each: int = 1) -> np.ndarray:
    """A view, (height, width * each), of an 8-bit plane with so many samples a pixel."""
    line = plane.line_size
    return np.frombuffer(plane, np.uint8, count=line * plane.height).reshape(plane.height, line)[:, : plane.width * each]


def kept_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) of a kept frame, unrotated: the shorter side is `short_side`, the aspect is kept up to MAX_ASPECT."""
    aspect = min(max(width, height) / min(width, height), MAX_ASPECT)
    long_side = round(short_side * aspect)
    return (long_side, short_side) if width >= height else (short_side, long_side)


def rotation_of(frame: av.VideoFrame) -> int:
    """Clockwise turn that stands the frame upright: 0, 90, 180 or 270; 0 where its matrix turns nothing into nothing."""
    if abs(frame.rotation) > 360:  # not a number, to FFmpeg
        return 0
    return int(-round(frame.rotation / 90) * 90 % 360)


def _matrix(frame: av.VideoFrame) -> int | None:
    """The colour matrix to assume (None: as the frame says), as players do: by height where it says nothing, or nonsense."""
    declared = int(frame.colorspace)
    if declared in _KNOWN_MATRICES:
        return None
    if declared == _BT2020_CONSTANT:
        return _BT2020
    return int(Colorspace.ITU709 if frame.height >= _HD_ROWS else Colorspace.ITU601)
