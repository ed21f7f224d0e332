"""Small views of a decoded frame, taken straight from its planes: what shot detection and quality look at.

Sampling every n-th value of a plane costs microseconds; a scaler costs as much as a fifth of decoding. Common formats are
read in place, all others (RGB, palettes, packed or big-endian YUV) go through one scaler kept per thread.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from schemas.errors import BadVideo, ErrorCode

LUMA_AREA = 160 * 90  # pixels to aim for
CHROMA_AREA = 80 * 45
_BLACK, _WHITE = 16, 235  # of limited ("MPEG") range
_NEUTRAL = 128
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Planes:
    """A frame's small planes, uint8, contiguous, its own memory.

    `luma` is (rows, columns), sampled equally in both directions, about 90 rows of a 16:9 frame (no more than the frame has).
    `u` and `v` are alike in shape, about half as fine, 128 where the frame has no colour. Values are the codes of the
    stream: `black` and `white` are the codes that stand for black and white (16 and 235, or 0 and 255 at full range).
    """

    luma: np.ndarray
    u: np.ndarray
    v: np.ndarray
    black: int
    white: int


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


@lru_cache(maxsize=1024)
def _view(component: _Component, area: int, width: int, height: int, line_bytes: int) -> dict[str, Any] | None:
    """How NumPy looks at a plane's memory to see the samples wanted, or None where the memory runs bottom up."""
    size = np.dtype(component.dtype).itemsize
    if line_bytes < width * component.step * size:
        return None
    stride = stride_of(width, height, area)
    first = stride // 2
    return {
        "shape": ((height - first + stride - 1) // stride, (width - first + stride - 1) // stride),
        "dtype": component.dtype,
        "offset": first * line_bytes + (component.offset + first * component.step) * size,
        "strides": (stride * line_bytes, stride * component.step * size),
    }


def _samples(frame_planes: tuple[Any, ...], component: _Component, area: int) -> np.ndarray | None:
    """Small contiguous uint8 copy of a component, or None where the plane's memory runs bottom up."""
    plane = frame_planes[component.plane]
    view = _view(component, area, plane.width, plane.height, plane.line_size)
    if view is None:
        return None
    grid: np.ndarray = np.ndarray(buffer=plane, **view)
    if component.shift:
        return (grid >> component.shift).astype(np.uint8)
    return grid.copy() if grid.dtype == np.uint8 else grid.astype(np.uint8)


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


def planes(frame: av.VideoFrame) -> Planes:
    """Small planes of `frame`. BadVideo(UNSUPPORTED_CODEC) for a pixel format that FFmpeg's scaler does not take either."""
    name = frame.format.name
    layout = _layout(name)
    if layout is None:
        return planes(_scaled(frame))
    parts = frame.planes
    luma = _samples(parts, layout[0], LUMA_AREA)
    if luma is None:
        return planes(_scaled(frame))
    if len(layout) == 1:
        u = v = np.full((max(1, luma.shape[0] // 2), max(1, luma.shape[1] // 2)), _NEUTRAL, np.uint8)
    else:
        sampled_u, sampled_v = (_samples(parts, component, CHROMA_AREA) for component in layout[1:])
        if sampled_u is None or sampled_v is None:
            return planes(_scaled(frame))
        u, v = sampled_u, sampled_v
    black, white = (0, 255) if _is_full_range(frame, name) else (_BLACK, _WHITE)
    return Planes(luma, u, v, black, white)
