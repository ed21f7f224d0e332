"""Small views of a decoded frame, taken straight from its planes: what shot detection and quality look at.

Sampling every n-th value of a plane costs microseconds; a scaler costs as much as a fifth of decoding. Common formats are
read in place, all others (RGB, palettes, packed or big-endian YUV) go through one scaler kept per thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from schemas.errors import BadVideo, ErrorCode

HANDFUL = 32  # most frames that are looked at together
LUMA_AREA = 113 * 64  # samples to aim for, of which every other row is taken
CHROMA_AREA = 40 * 22
_BLACK, _WHITE = 16, 235  # of limited ("MPEG") range
_NEUTRAL = 128
_MOST_ROWS = 257  # of 255 that 16 bits can add up
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Planes:
    """Small planes of a frame, uint8, or of several alike ones, along a first axis.

    `luma` is (..., rows, columns), about 32 x 113 of a 16:9 frame, no more than the frame has: samples are twice as close
    along a row as across rows, since what a row costs is the memory it touches. `u` and `v` are alike in shape, about
    22 x 40, 128 where the frame has no colour. Values are the codes of the stream: `black` and `white` are the codes that
    stand for black and white (16 and 235, or 0 and 255 at full range). `change` is filled by `in_sequence`.
    """

    luma: np.ndarray
    u: np.ndarray
    v: np.ndarray
    black: int
    white: int
    change: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class _Component:
    """Where one component's samples stand: value = plane[row, offset + step * column] >> shift."""

    plane: int
    offset: int
    step: int
    dtype: str
    shift: int


def _two_plane(dtype: str, shift: int, u: int, v: int) -> tuple[_Component, ...]:
    return (
        _Component(0, 0, 1, dtype, shift),
        _Component(1, u, 2, dtype, shift),
        _Component(1, v, 2, dtype, shift),
    )


# Semi-planar formats, as hardware decoders give them. The P formats keep their bits at the top of 16.
_SEMI_PLANAR = {
    "nv12": _two_plane("u1", 0, 0, 1),
    "nv21": _two_plane("u1", 0, 1, 0),
    "nv16": _two_plane("u1", 0, 0, 1),
    "nv24": _two_plane("u1", 0, 0, 1),
    "nv42": _two_plane("u1", 0, 1, 0),
    **{name: _two_plane("<u2", 8, 0, 1) for name in ("p010le", "p012le", "p016le", "p210le", "p216le", "p410le", "p416le")},
}


@lru_cache(maxsize=256)
def _layout(name: str) -> tuple[_Component, ...] | None:
    """Components (luma, or luma, u, v) of a pixel format that can be read in place, else None."""
    if name in _SEMI_PLANAR:
        return _SEMI_PLANAR[name]
    if not name.startswith(("yuv4", "yuvj4", "yuva4", "gray")) or name.endswith(("be", "msb", "msble", "f32le", "f16le")):
        return None
    parts = [c for c in av.VideoFormat(name).components if not c.is_alpha]
    if len({c.plane for c in parts}) != len(parts) or any(not 8 <= c.bits <= 16 for c in parts):
        return None
    return tuple(_Component(c.plane, 0, 1, "u1" if c.bits == 8 else "<u2", c.bits - 8) for c in parts)


def stride_of(width: int, height: int, area: int) -> int:
    """Every how many-th sample, in both directions, to keep of width x height so that about `area` remain."""
    return max(1, round(math.sqrt(width * height / area)))


@dataclass(frozen=True, slots=True)
class _Grid:
    """The samples taken of a component: every how many-th row and column of its plane."""

    component: _Component
    down: int
    across: int

    def shape(self, width: int, height: int) -> tuple[int, ...]:
        """Of what is taken of a plane."""
        return tuple((side - self.first(side) + step - 1) // step for side, step in ((height, self.down), (width, self.across)))

    def first(self, side: int) -> int:
        """Where along a side of so many samples the first one is taken: in the middle of what it stands for."""
        return min(self.across // 2, (side - 1) // 2)

    def view(self, width: int, height: int, line_bytes: int) -> dict[str, Any] | None:
        """How NumPy looks at a plane's memory to see the samples, or None where the memory runs bottom up."""
        size = np.dtype(self.component.dtype).itemsize
        if line_bytes < width * self.component.step * size:
            return None
        column = self.component.offset + self.first(width) * self.component.step
        return {
            "shape": self.shape(width, height),
            "dtype": self.component.dtype,
            "offset": self.first(height) * line_bytes + column * size,
            "strides": (self.down * line_bytes, self.across * self.component.step * size),
        }


def _grids(layout: tuple[_Component, ...], parts: tuple[Any, ...]) -> list[_Grid]:
    grids = []
    for component, area in zip(layout, (LUMA_AREA, CHROMA_AREA, CHROMA_AREA), strict=False):
        plane = parts[component.plane]
        stride = stride_of(plane.width, plane.height, area)
        grids.append(_Grid(component, 2 * stride if component is layout[0] else stride, stride))
    return grids


def _gathered(frames: Sequence[av.VideoFrame], layout: tuple[_Component, ...]) -> list[np.ndarray] | None:
    """Each component's samples of all frames, uint8 (frames, rows, columns), or None where a plane's memory runs bottom up."""
    parts = frames[0].planes
    grids = _grids(layout, parts)
    sides = [(parts[grid.component.plane].width, parts[grid.component.plane].height) for grid in grids]
    out = [np.empty((len(frames), *grid.shape(*side)), np.uint8) for grid, side in zip(grids, sides, strict=True)]
    seen: dict[tuple[int, int], dict[str, Any] | None] = {}  # views by component and bytes of a line
    for number, frame in enumerate(frames):
        parts = frame.planes
        for index, grid in enumerate(grids):
            plane = parts[grid.component.plane]
            key = (index, plane.line_size)
            if key not in seen:
                seen[key] = grid.view(*sides[index], plane.line_size)
            view = seen[key]
            if view is None:
                return None
            samples: np.ndarray = np.ndarray(buffer=plane, **view)
            if grid.component.shift:
                samples = samples >> grid.component.shift
            out[index][number] = samples
    return out


def _is_full_range(frame: av.VideoFrame, name: str) -> bool:
    if name.startswith("yuvj"):
        return True
    if name.startswith("gray"):  # as FFmpeg's own scaler takes it
        return bool(frame.color_range != ColorRange.MPEG)
    return bool(frame.color_range == ColorRange.JPEG)


def _scaled(frame: av.VideoFrame) -> av.VideoFrame:
    """`frame` as a small full-range 4:2:0 frame."""
    if not hasattr(_local, "scaler"):
        _local.scaler = VideoReformatter()
    stride = stride_of(frame.width, frame.height, LUMA_AREA)
    size = (max(2, frame.width // stride), max(2, frame.height // stride))
    try:
        return _local.scaler.reformat(frame, *size, format="yuvj420p", interpolation=Interpolation.AREA, threads=1)
    except (av.FFmpegError, ValueError) as error:
        raise BadVideo(ErrorCode.UNSUPPORTED_CODEC, f"cannot convert pixel format {frame.format.name}: {error}") from error


def luma_of(frames: Sequence[av.VideoFrame]) -> tuple[np.ndarray, int, int]:
    """`Planes.luma` of frames of one kind, uint8 (frames, rows, columns), `black` and `white`. BadVideo as `planes_of`."""
    layout = _layout(frames[0].format.name)
    found = None if layout is None else _gathered(frames, layout[:1])
    return luma_of([_scaled(frame) for frame in frames]) if found is None else (found[0], *_ends(frames[0]))


def planes_of(frames: Sequence[av.VideoFrame]) -> Planes:
    """Small planes of frames of one kind, along the first axis.

    BadVideo(UNSUPPORTED_CODEC) for a pixel format that FFmpeg's scaler does not take either.
    """
    layout = _layout(frames[0].format.name)
    found = None if layout is None else _gathered(frames, layout)
    if found is None:
        return planes_of([_scaled(frame) for frame in frames])
    luma = found[0]
    if len(found) == 1:
        u = v = np.full((len(frames), max(1, luma.shape[1] // 2), max(1, luma.shape[2] // 4)), _NEUTRAL, np.uint8)
    else:
        u, v = found[1:]
    return Planes(luma, u, v, *_ends(frames[0]))


def _ends(frame: av.VideoFrame) -> tuple[int, int]:
    """The codes that stand for black and white."""
    return (0, 255) if _is_full_range(frame, frame.format.name) else (_BLACK, _WHITE)


def strips(
    timed: Iterable[tuple[float, av.VideoFrame]], before: np.ndarray | None
) -> Iterator[tuple[Sequence[float], Sequence[av.VideoFrame], Planes]]:
    """Consecutive (time, frame) as (times, frames, planes `in_sequence`) of runs of one format and size: a stream may change
    its size on the way. `before`: the luma of the frame before them. BadVideo as `planes_of`.
    """
    for _, run in groupby(timed, lambda one: kind_of(one[1])):
        times_s, frames = zip(*run, strict=True)
        small = in_sequence(planes_of(frames), before)
        before = small.luma[-1]
        yield times_s, frames, small


def kind_of(frame: av.VideoFrame) -> object:
    """What frames have to share to be sampled together: format, size and range."""
    return frame.format.name, frame.width, frame.height, frame.color_range


def in_sequence(frames: Planes, before: np.ndarray | None) -> Planes:
    """`frames`, which lie along a first axis, with `change`: float64 (frames,), the sum of absolute differences of luma to the
    frame before (`before`: the luma of the one before the first), in codes; NaN where there is none or it has another size.
    """
    luma = frames.luma
    is_first = before is None or before.shape != luma.shape[1:]
    old, new = (luma[:-1], luma[1:]) if is_first or before is None else (np.concatenate([before[None], luma[:-1]]), luma)
    change = np.full(len(luma), np.nan)
    change[len(luma) - len(new) :] = sums_of_differences(old, new)
    return replace(frames, change=change)


def sums_of_differences(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Sums of absolute differences of uint8 pictures, (pictures, rows, columns): float64 (pictures,).

    NumPy adds in 16 bits five times faster than in 32: first, as far as that holds them, the rows.
    """
    differences = np.maximum(old, new)
    np.subtract(differences, np.minimum(old, new), out=differences)
    columns = differences.sum(axis=1, dtype=np.uint16 if differences.shape[1] <= _MOST_ROWS else np.uint32)
    sums: np.ndarray = columns.sum(axis=1, dtype=np.uint32).astype(np.float64)
    return sums
