"""What the shot detector remembers of a frame, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stages.planes import Planes, sums_of_differences

COARSE_LUMA = (9, 16)  # blocks
COARSE_CHROMA = (5, 8)
LUMA_BLOCKS = COARSE_LUMA[0] * COARSE_LUMA[1]  # come first in `Picture.coarse`
BLOCKS = LUMA_BLOCKS + 2 * COARSE_CHROMA[0] * COARSE_CHROMA[1]
_CHROMA_WEIGHT = 1.5  # colour differences are smaller in codes than they look
_SHIFTS = 3  # likeliest ones that are measured
_FLAT_RANGE, _FLAT_SPREAD = 8.0, 3.0  # codes: range of the blocks, standard deviation of the samples


@dataclass(frozen=True, slots=True)
class Picture:
    """`luma` uint8 (about 32, 113), `chroma` uint8 (2, about 22, 40), `coarse` float32 (blocks,): means of blocks of both.

    `change` is the distance to the picture before, codes; 0 for the first of a stream. `is_flat`: it is of one plain colour,
    as black, white, or what stands between two scenes.
    """

    time_s: float
    luma: np.ndarray
    chroma: np.ndarray
    coarse: np.ndarray
    change: float
    is_flat: bool


def pictures(frames: Planes, times_s: Sequence[float], before: Picture | None) -> list[Picture]:
    """The pictures of consecutive frames, all at once: many small steps on one cost most of the time.

    They are on the grid of `before`, the picture of the frame before them: a stream may change its size on the way.
    """
    assert frames.change is not None
    luma, chroma = frames.luma, np.stack([frames.u, frames.v], axis=1)
    if before is not None:
        luma, chroma = _on_grid(luma, before.luma.shape), _on_grid(chroma, before.chroma.shape)
    coarse = np.empty((len(times_s), BLOCKS), np.float32)
    coarse[:, :LUMA_BLOCKS] = _block_means(luma, COARSE_LUMA).reshape(len(times_s), -1)
    coarse[:, LUMA_BLOCKS:] = _CHROMA_WEIGHT * _block_means(chroma, COARSE_CHROMA).reshape(len(times_s), -1)
    change = frames.change / frames.luma[0].size
    if np.isnan(change[0]):
        change[0] = 0 if before is None else _difference(before.luma, luma[0])
    change += 2 * _differences(chroma[0] if before is None else before.chroma, chroma)
    changes = change.tolist()
    blocks = coarse[:, :LUMA_BLOCKS]
    plain = (blocks.max(axis=1) - blocks.min(axis=1) <= _FLAT_RANGE).tolist()
    return [
        Picture(time_s, luma[i], chroma[i], coarse[i], changes[i], plain[i] and _is_flat(luma[i], chroma[i]))
        for i, time_s in enumerate(times_s)
    ]


def distance(a: Picture, b: Picture) -> float:
    """Mean absolute difference of luma, plus those of the two colour planes: codes of 255."""
    return _difference(a.luma, b.luma) + 2 * _difference(a.chroma, b.chroma)


def likeness(a: Picture, b: Picture) -> float:
    """Correlation of the lumas, -1 to 1: blind to brightness and contrast, so a flash or a fade leaves it high."""
    return _correlation(a.luma, b.luma)


def shifted_likeness(a: Picture, b: Picture) -> float:
    """The best likeness of what both show when one is shifted against the other; at least half of the picture is in both.

    Shifts are proposed by phase correlation (Kuglin and Hines 1975), then measured.
    """
    x, y = (p.luma.astype(np.float32) for p in (a, b))
    rows, columns = x.shape
    window = _window(rows, columns)
    spectrum = np.fft.rfft2((x - x.mean()) * window) * np.conj(np.fft.rfft2((y - y.mean()) * window))
    size = np.abs(spectrum)
    peaks = np.fft.irfft2(spectrum / (size + 1e-3 * size.max() + 1e-6), s=(rows, columns)).ravel()
    best = likeness(a, b)
    for at in np.argpartition(peaks, -_SHIFTS)[-_SHIFTS:] if peaks.size > _SHIFTS else ():
        down, right = _signed(int(at) // columns, rows), _signed(int(at) % columns, columns)
        if 2 * (rows - abs(down)) * (columns - abs(right)) >= rows * columns:
            part = x[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)]
            other = y[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
            best = max(best, _correlation(part, other))
    return best


def _signed(shift: int, side: int) -> int:
    return shift - side if shift > side // 2 else shift


@lru_cache(maxsize=16)
def _window(rows: int, columns: int) -> np.ndarray:
    """Hann window, float32 (rows, columns): a picture's opposite edges do not meet."""
    down, across = (np.hanning(side + 2)[1:-1].astype(np.float32) for side in (rows, columns))
    return np.outer(down, across)


def _is_flat(luma: np.ndarray, chroma: np.ndarray) -> bool:
    return float(luma.std()) < _FLAT_SPREAD and float(chroma.std(axis=(1, 2)).max()) < _FLAT_SPREAD


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (values.astype(np.float32).ravel() for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    return float(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y) + 1e-3))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return int(np.subtract(np.maximum(a, b), np.minimum(a, b)).sum(dtype=np.uint32)) / a.size


def _differences(before: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each of `frames` to the one ahead of it, the first one to `before`: float64 (frames,)."""
    pairs = (np.concatenate([before[None], frames[:-1]]), frames)
    old, new = (values.reshape(len(values), -1, values.shape[-1]) for values in pairs)
    means: np.ndarray = sums_of_differences(old, new) / frames[0].size
    return means


def _on_grid(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`values` (..., rows, columns) with the nearest samples on a grid whose last two sides are those of `shape`."""
    if values.shape[-2:] == shape[-2:]:
        return values
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape[-2:], values.shape[-2:], strict=True))
    return np.ascontiguousarray(values[..., rows[:, None], columns])


def _block_means(values: np.ndarray, blocks: tuple[int, int]) -> np.ndarray:
    """Means over a grid of blocks, float32 (..., *blocks). The sums are whole numbers, hence exact on any machine."""
    down, across, counts = _pooling(values.shape[-2], values.shape[-1], blocks)
    means: np.ndarray = ((down @ values.astype(np.float32)) @ across) / counts
    return means


@lru_cache(maxsize=64)
def _pooling(rows: int, columns: int, blocks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    down, across = _members(rows, blocks[0]), _members(columns, blocks[1]).T
    return down, np.ascontiguousarray(across), down.sum(axis=1)[:, None] * across.sum(axis=0)


def _members(samples: int, blocks: int) -> np.ndarray:
    """Which samples belong to each block, 0 or 1: float32 (blocks, samples). Fewer samples than blocks are shared."""
    out = np.zeros((blocks, samples), np.float32)
    for block in range(blocks):
        first = block * samples // blocks
        out[block, first : max(first + 1, (block + 1) * samples // blocks)] = 1
    return out
