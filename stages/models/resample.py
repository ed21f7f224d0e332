"""Pillow's antialiased resize in torch, bit for bit, on any device.

Image processors resize with Pillow, on uint8 and in fixed point: a horizontal and a vertical pass of a filter that is
stretched when shrinking, each rounded to uint8 (Pillow, src/libImaging/Resample.c). The weights are the same integers here.
Sums of integer products below 2^53 are exact in float64 whatever their order, so that pixels depend neither on the device
nor on what else is in the batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Weights = npt.NDArray[np.float64]
_ONE = 1 << 22  # Pillow's fixed point: 32 bits less 8 of the pixel less 2 to spare
_STRIP = 16  # output pixels computed together: few enough that most of the weight matrix, which is zero, is left out


def _box(x: Weights) -> Weights:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _bilinear(x: Weights) -> Weights:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _hamming(x: Weights) -> Weights:
    angle = np.abs(x) * math.pi
    safe = np.where(angle == 0, 1.0, angle)
    value = np.where(angle == 0, 1.0, np.sin(safe) / safe * (0.54 + 0.46 * np.cos(angle)))
    return np.where(np.abs(x) < 1.0, value, 0.0)


def _bicubic(x: Weights) -> Weights:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: Weights) -> Weights:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


# Pillow's number of a filter -> (name, function, support).
FILTERS: dict[int, tuple[str, Callable[[Weights], Weights], float]] = {
    1: ("lanczos", _lanczos, 3.0),
    2: ("bilinear", _bilinear, 1.0),
    3: ("bicubic", _bicubic, 2.0),
    4: ("box", _box, 0.5),
    5: ("hamming", _hamming, 1.0),
}


@functools.lru_cache(maxsize=256)
def weights(size: int, new_size: int, resample: int) -> Weights:
    """Fixed-point weights of `size` input pixels for each of `new_size` output pixels: integers, shape (new_size, size)."""
    _, function, support = FILTERS[resample]
    scale = size / new_size
    stretch = max(scale, 1.0)
    matrix = np.zeros((new_size, size))
    for pixel in range(new_size):
        center = (pixel + 0.5) * scale
        first = max(int(center - support * stretch + 0.5), 0)
        last = min(int(center + support * stretch + 0.5), size)
        at = np.arange(first, last, dtype=np.float64)
        row = function((at - center + 0.5) * (1.0 / stretch))
        row = row / row.sum() * _ONE
        matrix[pixel, first:last] = np.trunc(row + np.copysign(0.5, row))
    matrix.setflags(write=False)
    return matrix


def resize(images: torch.Tensor, height: int, width: int, resample: int, crop: tuple[int, int] | None = None) -> torch.Tensor:
    """uint8 images of shape (..., h, w) resized to (..., height, width), as Pillow does it with filter number `resample`.

    `crop` gives only the middle (rows, columns) of that, where there are more, and does no work for the rest. The order of
    the passes is that of Pillow 13, found by trying; Pillow 12 always begins with the horizontal one, which moves some
    pixels by a level or two.
    """
    rows, columns = (middle(size, part) for size, part in zip((height, width), crop or (height, width), strict=True))
    less_height, less_width = images.shape[-2] - height, images.shape[-1] - width
    if less_height > 0 and less_height > 2 * less_width:
        return _horizontal(_vertical(images, height, resample, rows), width, resample, columns)
    return _vertical(_horizontal(images, width, resample, columns), height, resample, rows)


def middle(size: int, part: int) -> slice:
    """The middle `part` of `size` pixels, all of them where there are no more."""
    first = max(0, (size - part) // 2)
    return slice(first, min(size, first + part))


def _horizontal(images: torch.Tensor, width: int, resample: int, window: slice) -> torch.Tensor:
    return _vertical(images.transpose(-1, -2), width, resample, window).transpose(-1, -2)


def _vertical(images: torch.Tensor, height: int, resample: int, window: slice) -> torch.Tensor:
    """One pass over the rows: uint8 in, uint8 out. Rows side by side in memory make strips that need no copy."""
    import torch

    if height == images.shape[-2]:
        return images[..., window, :]
    exact = images.contiguous().to(torch.float64)
    if images.device.type == "cpu":
        summed = _in_strips(exact, weights(images.shape[-2], height, resample)[window])
    else:
        summed = _on_device(images.shape[-2], height, resample, window.start, window.stop, images.device) @ exact
    return summed.add_(_ONE // 2).div_(_ONE).floor_().clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _on_device(size: int, new_size: int, resample: int, first: int, last: int, device: torch.device) -> torch.Tensor:
    """Rows of the weights where a GPU has them: it is faster at zeros than at many small calls."""
    import torch

    return torch.tensor(weights(size, new_size, resample)[first:last], device=device)


def _in_strips(exact: torch.Tensor, matrix: Weights) -> torch.Tensor:
    import torch

    strips = []
    for start in range(0, len(matrix), _STRIP):
        rows = matrix[start : start + _STRIP]
        used = np.flatnonzero(rows.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        strips.append(torch.tensor(rows[:, first:last]) @ exact[..., first:last, :])
    return torch.cat(strips, dim=-2)
