"""How a clip looks, from what decoding has in hand anyway: motion from look to look, the rest of a few frames in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import av
import numpy as np

from stages.planes import Planes, kind_of, luma_of, sums_of_differences
from stages.sample import union

LOOKED_AT = 8  # frames of a clip, at its mid-bins, that brightness, contrast and sharpness are measured on
_ROWS = 32  # pairs of neighbouring rows of such a frame
_UNIT = 1 << 24  # motion is summed as whole multiples of 1/_UNIT, so that no order of adding changes it


@dataclass(frozen=True)
class Quality:
    """Of a clip; see `clips` in schemas/tables.py for what each means. `motion` is None for a clip that was looked at once."""

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
    chosen = [frames[index] for index in union(times_s, start_s, end_s, [LOOKED_AT])]
    looks = np.concatenate([_look(list(run)) for _, run in groupby(chosen, kind_of)])
    brightness, contrast, sharpness = looks.mean(axis=0).tolist()
    return Quality(motion, brightness, contrast, sharpness)


def _look(frames: list[av.VideoFrame]) -> np.ndarray:
    """Brightness, contrast and sharpness of frames of one kind, each as a part of the range from black to white: (frames, 3).

    All frames at once: each call into NumPy costs as much as its work on one of them.
    """
    small, black, white = luma_of(frames)
    span = white - black
    values = small.reshape(len(frames), -1).astype(np.float64)
    # Whole numbers, exact in any order of adding. No dot product: of long ones BLAS wakes another thread, and waits for it.
    mean = values.mean(axis=1)
    spread = np.sqrt(np.maximum(0.0, np.square(values).mean(axis=1) - mean * mean))
    edges = _edges(frames, small)
    return np.stack([np.clip((mean - black) / span, 0, 1), np.minimum(spread / span, 0.5), np.minimum(edges / span, 1)], axis=1)


def _edges(frames: list[av.VideoFrame], small: np.ndarray) -> np.ndarray:
    """Mean absolute difference of samples that are neighbours in a row or a column, in codes of 255: (frames,)."""
    place = _luma_place(frames[0].format.name)
    # of a packed or exotic format the small picture has to do
    pairs = (small[:, :-1], small[:, 1:]) if place is None else _rows(frames, *place)
    if pairs is None or 0 in pairs[0].shape or pairs[0].shape[2] < 2:
        return np.zeros(len(frames))
    first, second = pairs
    edges: np.ndarray = (_mean_differences(first, second) + _mean_differences(first[:, :, :-1], first[:, :, 1:])) / 2
    return edges


def _rows(frames: list[av.VideoFrame], dtype: np.dtype[Any], shift: int) -> tuple[np.ndarray, np.ndarray] | None:
    """About _ROWS rows of luma of each frame and those below them, uint8 (frames, rows, width); None where there are none."""
    plane = frames[0].planes[0]
    height, width = plane.height, plane.width
    step = max(2, height // _ROWS)
    shape = (len(frames), (height - 1 + step - 1) // step, width)
    first, second = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    for number, frame in enumerate(frames):
        plane = frame.planes[0]
        line = plane.line_size // dtype.itemsize
        if line < width or height < 2:
            return None
        samples: np.ndarray = np.frombuffer(plane, dtype, count=line * height).reshape(height, line)[:, :width]
        for out, rows in ((first, samples[: height - 1 : step]), (second, samples[1::step])):
            out[number] = rows >> shift if shift else rows
    return first, second


def _mean_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    means: np.ndarray = sums_of_differences(a, b) / a[0].size
    return means


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
