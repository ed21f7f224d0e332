"""How a clip looks, from what decoding has in hand anyway: motion of every frame, the rest of a few frames at full detail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import av
import numpy as np

from stages.planes import Planes, luma_of, sums_of_differences
from stages.sample import union

LOOKED_AT = 8  # frames of a clip, at its mid-bins, that brightness, contrast and sharpness are measured on
_ROWS = 64  # pairs of neighbouring rows of such a frame
_UNIT = 1 << 24  # motion is summed as whole multiples of 1/_UNIT, so that no order of adding changes it


@dataclass(frozen=True)
class Quality:
    """Of a clip; see `clips` in schemas/tables.py for what each means. `motion` is None for a clip of one frame."""

    motion: float | None
    brightness: float
    contrast: float
    sharpness: float


def motions(frames: Planes) -> list[int | None]:
    """Of each of frames `in_sequence` the mean absolute difference of luma to the frame before, of the range from black to
    white, in 1/_UNIT.

    None where there is nothing to compare with: the first frame, or one of another size than the one before.
    """
    assert frames.change is not None
    span = frames.luma[0].size * (frames.white - frames.black)
    return [None if total != total else min(_UNIT, int(total) * _UNIT // span) for total in frames.change.tolist()]


def mean_motion(total: int, pairs: int) -> float | None:
    """Mean of `pairs` of `motions` whose sum is `total`: 0 (frozen) to 1; None where there are none."""
    return total / pairs / _UNIT if pairs else None


def look_at(
    times_s: Sequence[float], frames: Sequence[av.VideoFrame], start_s: float, end_s: float, motion: float | None
) -> Quality:
    """Quality of the clip [start_s, end_s) from its candidate frames."""
    looks = [_look(frames[index]) for index in union(times_s, start_s, end_s, [LOOKED_AT])]
    brightness, contrast, sharpness = (sum(values) / len(looks) for values in zip(*looks, strict=True))
    return Quality(motion, brightness, contrast, sharpness)


def _look(frame: av.VideoFrame) -> tuple[float, float, float]:
    """Brightness, contrast and sharpness of a frame, each as a part of the range from black to white."""
    small, black, white = luma_of(frame)
    span = white - black
    values = small.ravel().astype(np.float64)
    # Whole numbers, exact in any order of adding. No dot product: of long ones BLAS wakes another thread, and waits for it.
    mean = float(values.sum()) / len(values)
    spread = math.sqrt(max(0.0, float(np.square(values).sum()) / len(values) - mean * mean))
    brightness = min(max((mean - black) / span, 0.0), 1.0)
    return brightness, min(spread / span, 0.5), min(_edges(frame, small) / span, 1.0)


def _edges(frame: av.VideoFrame, small: np.ndarray) -> float:
    """Mean absolute difference of samples that are neighbours in a row or a column, in codes of 255."""
    place = _luma_place(frame.format.name)
    if place is None:  # packed or exotic: the small picture has to do
        first, second = small[:-1], small[1:]
    else:
        plane: Any = frame.planes[0]
        dtype, shift = place
        line = plane.line_size // dtype.itemsize
        if line < plane.width or plane.height < 2:
            return 0.0
        samples: np.ndarray = np.frombuffer(plane, dtype, count=line * plane.height).reshape(plane.height, line)[
            :, : plane.width
        ]
        step = max(2, plane.height // _ROWS)
        first, second = samples[: plane.height - 1 : step], samples[1::step]
        if shift:
            first, second = (first >> shift).astype(np.uint8), (second >> shift).astype(np.uint8)
    if first.size == 0 or first.shape[1] < 2:
        return 0.0
    return (_mean_difference(first, second[: len(first)]) + _mean_difference(first[:, :-1], first[:, 1:])) / 2


def _mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(sums_of_differences(a[None], b[None])[0]) / a.size


@lru_cache(maxsize=256)
def _luma_place(format_name: str) -> tuple[np.dtype[Any], int] | None:
    """Type of the samples of the first plane and how far to shift them to 8 bits, where that plane is luma alone."""
    video_format = av.VideoFormat(format_name)
    luma = video_format.components[0]
    alone = all(component.plane != luma.plane for component in video_format.components[1:])
    if not luma.is_luma or not alone or luma.plane or format_name.endswith("be") or not 8 <= luma.bits <= 16:
        return None
    if luma.bits == 8:
        return np.dtype(np.uint8), 0
    padded_high = format_name.startswith("p")  # p010 and its like keep their bits at the top of 16
    return np.dtype("<u2"), 8 if padded_high else luma.bits - 8
