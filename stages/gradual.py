"""Dissolves, by a matched filter over the coarse history.

In a dissolve every block of the picture goes linearly, and at the same time, from what it was to what it will be. Against the
blocks' values around a frame, ramps of several lengths with level ends are fitted by least squares. What no motion of one
scene does is judged on the finer pictures: the middle is the mean of both ends, which do not look alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.history import History
from stages.picture import LUMA_BLOCKS, Picture, likeness

LENGTHS = (6, 11, 16, 21)  # frames from the last of the old scene to the first of the new one
_LEVEL = 5  # level frames wanted on both sides
BEFORE = LENGTHS[-1] // 2 + _LEVEL  # frames that a fit wants before its centre
AFTER = LENGTHS[-1] - LENGTHS[-1] // 2 + _LEVEL  # and after it
_WINDOW = BEFORE + 1 + AFTER

_EVERY = 2  # frames from one centre that is tried to the next
_PEAK = 5  # frames on both sides within which the best fit is taken
LATENCY = AFTER + _PEAK

_MIN_SIZE = 6.0  # root mean square change of the blocks, codes
_QUICK, _MIN_QUICK = 7, 2.0  # frames on both sides of the centre, and codes: less change than this is not looked at closer
_MAX_BEND = 0.8  # twice the middle's distance from the mean of those two, part of their difference
_MIN_FIT = 0.8  # part of the blocks' variance that the ramp explains
_MIN_GAIN = 0.0  # more than a straight line explains
_MAX_MIX = 0.33  # mean difference of the middle to the mean of the ends, part of the ends' difference
_MAX_LIKENESS = 0.85  # of the ends
_MIN_CHANGED = 0.4  # part of the blocks that change
_CHANGED = 4.0  # codes that make a block a changed one


@dataclass(frozen=True, slots=True)
class Fit:
    """The best ramp around a centre: frames from old to new, and the part of the variance that it explains."""

    length: int
    quality: float


def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows over the window: ramps (unit norm, mean 0), lines (same), members (0 or 1), each (lengths, window)."""
    ramps, lines, members = (np.zeros((len(LENGTHS), _WINDOW), np.float32) for _ in range(3))
    for row, length in enumerate(LENGTHS):
        first, last = BEFORE - length // 2 - _LEVEL, BEFORE + length - length // 2 + _LEVEL
        at = np.arange(last - first + 1, dtype=np.float64)
        for out, values in ((ramps, np.clip((at - _LEVEL) / length, 0, 1)), (lines, at)):
            centred = values - values.mean()
            out[row, first : last + 1] = centred / np.linalg.norm(centred)
        members[row, first : last + 1] = 1
    return ramps, lines, members


_RAMPS, _LINES, _MEMBERS = _templates()
_COUNTS = _MEMBERS.sum(axis=1)
_FORMS = np.concatenate([_RAMPS, _LINES])
# norm of each ramp before it was scaled: a change of size s explains s^2 times its square
_NORMS = np.array([1 / (r.max() - r.min()) for r in _RAMPS])


def fit(coarse: np.ndarray) -> Fit | None:
    """The best ramp in a window of coarse pictures, (window, blocks), about its frame number BEFORE; None if none fits."""
    blocks = coarse.shape[1]
    earlier, middle, later = coarse[BEFORE - _QUICK], coarse[BEFORE], coarse[BEFORE + _QUICK]
    change = float(np.abs(later - earlier).sum())
    if change < _MIN_QUICK * blocks or float(np.abs(earlier + later - 2 * middle).sum()) > _MAX_BEND * change:
        return None
    centred = coarse - coarse[BEFORE]
    # two products, each too small for BLAS to wake a second thread for
    products, sums = _FORMS @ centred, _MEMBERS @ centred
    ramp, line = np.einsum("ij,ij->i", products, products).reshape(2, -1)
    total = np.einsum("ij,ij->i", sums, sums)
    energy = np.einsum("ij,ij->i", centred, centred)
    variance = _MEMBERS @ energy - total / _COUNTS + 1e-3
    quality = ramp / variance
    sizes = np.sqrt(ramp) / _NORMS
    best = int(np.argmax(quality))
    if quality[best] < _MIN_FIT or quality[best] - line[best] / variance[best] < _MIN_GAIN:
        return None
    if sizes[best] < _MIN_SIZE * np.sqrt(blocks):
        return None
    return Fit(LENGTHS[best], float(quality[best]))


def is_dissolve(pictures: Sequence[Picture]) -> bool:
    """Whether `pictures`, from the last of the old scene to the first of the new, go from one scene to another by mixing."""
    old, new, middle = pictures[0], pictures[-1], pictures[len(pictures) // 2]
    share = (len(pictures) // 2) / (len(pictures) - 1)
    a, b, m = (p.luma.astype(np.float32) for p in (old, new, middle))
    change = np.abs(a - b).mean()
    if np.abs(m - (1 - share) * a - share * b).mean() > _MAX_MIX * change:
        return False
    blocks = new.coarse - old.coarse
    blocks[:LUMA_BLOCKS] -= np.median(blocks[:LUMA_BLOCKS])  # a change of light is none
    if float((np.abs(blocks) > _CHANGED).mean()) < _MIN_CHANGED:
        return False
    return likeness(old, new) < _MAX_LIKENESS and not old.is_flat and not new.is_flat


class DissolveFinder:
    """Fits every frame as the centre of a dissolve, and judges the best fit of its surroundings."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._fits: deque[tuple[int, Fit]] = deque()  # centre and fit, of the last 2 * _PEAK + 1 centres

    def step(self, newest: int) -> list[int]:
        """To be called for each frame in order. The middle frame of a dissolve, where one is certain with frame `newest`."""
        centre = newest - AFTER
        if centre % _EVERY == 0:
            fitted = self._fit(centre)
            if fitted is not None:
                self._fits.append((centre, fitted))
        while self._fits and self._fits[0][0] < centre - 2 * _PEAK:
            self._fits.popleft()
        best = max(self._fits, key=lambda item: item[1].quality, default=None)
        return self._judged(best[0]) if best is not None and best[0] == centre - _PEAK else []

    def _fit(self, centre: int) -> Fit | None:
        start, end = centre - BEFORE, centre + AFTER + 1
        return fit(self._history.coarse(start, end)) if start >= self._history.first else None

    def _judged(self, centre: int) -> list[int]:
        near = [(n, fitted) for n in range(centre - _EVERY + 1, centre + _EVERY) if (fitted := self._fit(n)) is not None]
        best, fitted = max(near, key=lambda item: item[1].quality)
        start = best - fitted.length // 2
        return [best] if is_dissolve(self._history.pictures(start, start + fitted.length + 1)) else []
