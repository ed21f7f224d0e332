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


def fits(windows: np.ndarray) -> list[Fit | None]:
    """The best ramp in each window of coarse pictures, (windows, frames, blocks), about its frame number BEFORE; None where
    none fits.
    """
    centred = windows - windows[:, BEFORE : BEFORE + 1]
    # products that are each too small for BLAS to wake a second thread for
    products, sums = _FORMS @ centred, _MEMBERS @ centred
    ramp, line = np.moveaxis(np.einsum("wij,wij->wi", products, products).reshape(len(windows), 2, -1), 1, 0)
    total = np.einsum("wij,wij->wi", sums, sums)
    energy = np.einsum("wij,wij->wi", centred, centred)
    variance = energy @ _MEMBERS.T - total / _COUNTS + 1e-3
    quality = ramp / variance
    best = np.argmax(quality, axis=1)
    at = np.arange(len(windows)), best
    good = quality[at] >= _MIN_FIT
    good &= quality[at] - line[at] / variance[at] >= _MIN_GAIN
    good &= np.sqrt(ramp[at]) / _NORMS[best] >= _MIN_SIZE * np.sqrt(windows.shape[2])
    fitted = zip(best.tolist(), quality[at].tolist(), good.tolist(), strict=True)
    return [Fit(LENGTHS[form], value) if is_good else None for form, value, is_good in fitted]


def is_worth_a_fit(earlier: np.ndarray, middle: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Of coarse pictures _QUICK frames before centres, at them and after them, (centres, blocks): bool (centres,).

    A quick look that spares most centres the fit: there the picture hardly changes, or goes elsewhere in between.
    """
    change = np.abs(later - earlier).sum(axis=1)
    bend = np.abs(earlier + later - 2 * middle).sum(axis=1)
    worth: np.ndarray = (change >= _MIN_QUICK * middle.shape[1]) & (bend <= _MAX_BEND * change)
    return worth


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
    """Fits frames as the centres of dissolves, and judges the best fit of its surroundings."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._fits: deque[tuple[int, Fit]] = deque()  # centre and fit, of the last 2 * _PEAK + 1 centres and of those to come

    @property
    def is_idle(self) -> bool:
        """Whether no centre fits."""
        return not self._fits

    def look(self, first: int, end: int) -> None:
        """Fits the centres that frames first..end-1, the newest ones, complete. To be called before their steps."""
        start = max(first - AFTER, self._history.first + BEFORE)
        start += -start % _EVERY
        if start >= end - AFTER:
            return
        coarse = self._history.coarse(start - _QUICK, end - AFTER + _QUICK)
        count = end - AFTER - start
        places = (coarse[at : at + count : _EVERY] for at in (0, _QUICK, 2 * _QUICK))
        centres = (start + _EVERY * np.flatnonzero(is_worth_a_fit(*places))).tolist()
        self._fits.extend(self._fitting(centres))

    def step(self, newest: int) -> list[int]:
        """To be called for each frame in order. The middle frame of a dissolve, where one is certain with frame `newest`."""
        centre = newest - AFTER
        while self._fits and self._fits[0][0] < centre - 2 * _PEAK:
            self._fits.popleft()
        near = (item for item in self._fits if item[0] <= centre)
        best = max(near, key=lambda item: item[1].quality, default=None)
        return self._judged(best[0]) if best is not None and best[0] == centre - _PEAK else []

    def _fitting(self, centres: list[int]) -> list[tuple[int, Fit]]:
        """Those of the centres that fit; their windows are in the history."""
        if not centres:
            return []
        windows = np.stack([self._history.coarse(centre - BEFORE, centre + AFTER + 1) for centre in centres])
        return [(centre, found) for centre, found in zip(centres, fits(windows), strict=True) if found is not None]

    def _judged(self, centre: int) -> list[int]:
        near = self._fitting([n for n in range(centre - _EVERY + 1, centre + _EVERY) if n - BEFORE >= self._history.first])
        best, fitted = max(near, key=lambda item: item[1].quality)
        start = best - fitted.length // 2
        return [best] if is_dissolve(self._history.pictures(start, start + fitted.length + 1)) else []
