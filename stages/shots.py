"""Streaming shot detector: where one shot ends and the next begins, from the small planes of each frame.

A cut is a change that stands out from the changes around it (the idea of PySceneDetect's AdaptiveDetector), after which
the picture does not come back, as it does after a flash, and is not the same scene in another light. Gradual transitions are
found by `stages.gradual` and `stages.fades`. All windows count frames, not seconds: what tells a cut from motion is how
one frame differs from the next, whatever the time between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from stages import fades, gradual
from stages.history import History
from stages.picture import LUMA_BLOCKS, Picture, distance, likeness, shifted_likeness
from stages.planes import Planes

_AROUND = 4  # frames on each side that say how much the picture changes anyway
_MIN_CHANGE = 3.0  # smallest change, in codes of 255, that can be a cut
_MIN_LEAP = 2.2  # times the second largest change around it
_MIN_LEAP_UNLIKE = 1.4  # the same, for frames that are
_UNLIKE = 0.25  # less like each other than this, and by this much less than those around them
_MIN_BLOCK = 1.0  # smallest change of a block that is one, codes
_MIN_EVERYWHERE = 0.5  # part of the blocks that must leap
_BLACK = 24.0  # luma up to which a block may be a black bar
_RETURN = 0.75  # a frame soon after is nearer than this (part of the change) to one just before: a flash
_SAME_SCENE = 0.93  # likeness across the change above which only the light changed, or the camera was turned
_APART = 4  # frames: of two cuts closer than this the smaller one is none

_HANDFUL = 4  # frames looked at together
_SETTLED = gradual.LATENCY + 1  # frames after which all finders have had their say
LATENCY = _SETTLED + _HANDFUL - 1
_KEPT = _SETTLED + _HANDFUL + gradual.BEFORE + fades.LATENCY
_CLEAR = 8  # frames around a cut in which no gradual transition is believed

Kind = Literal["cut", "gradual"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A boundary: `time_s` is the time of the first frame of the new shot (of a gradual one, of its middle)."""

    time_s: float
    kind: Kind


class ShotDetector:
    """Feed frames in order by `push`, end by `finish`. What a stream gives depends on nothing before its first frame.

    Frames are looked at by the handful: the arithmetic is cheap, but each call into NumPy costs a microsecond or two.
    """

    def __init__(self) -> None:
        self._history = History(_KEPT)
        self._dissolves = gradual.DissolveFinder(self._history)
        self._fades = fades.FadeFinder(self._history)
        self._waiting: list[tuple[Planes, float]] = []  # frames not yet in the history
        self._found: dict[int, Kind] = {}  # boundaries not yet reported, by frame number
        self._reported = -_CLEAR  # number of the last boundary reported

    @property
    def settled_s(self) -> float:
        """No cut will be reported any more at a time before this (seconds, -inf before the first frames)."""
        if not self._history.count:
            return float("-inf")
        return self._history.picture(self._history.count - _SETTLED).time_s

    def push(self, planes: Planes, time_s: float) -> list[Cut]:
        """Boundaries that are certain now that this frame is known, in order, each at most LATENCY frames old."""
        self._waiting.append((planes, time_s))
        return self._look() if len(self._waiting) == _HANDFUL else []

    def finish(self) -> list[Cut]:
        """The boundaries still open when the stream ends. Nothing may be pushed afterwards."""
        cuts = self._look() if self._waiting else []
        end = self._history.count
        if end:
            self._history.repeat(_SETTLED)
            for number in range(end, self._history.count):
                cuts += self._step(number, ended=True)
        return cuts

    def _look(self) -> list[Cut]:
        self._history.extend(self._waiting)
        first = self._history.count - len(self._waiting)
        self._waiting = []
        return [cut for number in range(first, self._history.count) for cut in self._step(number)]

    def _step(self, newest: int, ended: bool = False) -> list[Cut]:
        """Asks all finders about frame `newest`. `ended`: it only repeats the stream's last frame."""
        for number in [*self._fades.step(newest, ended), *self._dissolves.step(newest)]:
            self._found.setdefault(number, "gradual")
        candidate = newest - _AROUND
        if candidate > 0 and is_cut(self._history, candidate):
            self._add_cut(candidate)
        return self._report(newest - _SETTLED) if self._found else []

    def _add_cut(self, number: int) -> None:
        near = [n for n, kind in self._found.items() if kind == "cut" and number - n < _APART]
        if any(self._history.picture(n).change >= self._history.picture(number).change for n in near):
            return
        for n in near:
            del self._found[n]
        self._found[number] = "cut"

    def _report(self, due: int) -> list[Cut]:
        """Boundaries up to frame `due`; a gradual transition only where no cut, and no other boundary, is near."""
        out = []
        for number in sorted(n for n in self._found if n <= due):
            kind = self._found.pop(number)
            cuts = [n for n, other in self._found.items() if other == "cut"]
            if kind == "gradual" and any(abs(number - n) < _CLEAR for n in (*cuts, self._reported)):
                continue
            self._reported = number
            out.append(Cut(self._history.picture(number).time_s, kind))
        return out


def is_cut(history: History, number: int) -> bool:
    """Whether a shot begins with frame `number`; wants _AROUND frames after it."""
    change = history.picture(number).change
    if change < _MIN_CHANGE or not _stands_out(history, number):
        return False
    before = history.pictures(number - _AROUND, number)
    after = history.pictures(number, number + 1 + _AROUND)
    if min(distance(a, b) for a in before for b in after) < _RETURN * change:
        return False
    return shifted_likeness(before[-1], after[0]) < _SAME_SCENE


def _stands_out(history: History, number: int) -> bool:
    """Whether the change is a leap among those around it, nearly everywhere in the picture.

    In fast motion a smaller leap is enough if the two frames are as unlike as those around them are alike.
    """
    start, end = max(history.first, number - _AROUND - 1), min(history.count, number + _AROUND + 1)
    at = number - start - 1
    leap = _leap(history.changes(start + 1, end), at)
    if leap < _MIN_LEAP_UNLIKE or not _is_everywhere(history.coarse(start, end), at):
        return False
    return leap >= _MIN_LEAP or _is_unlike(history.pictures(start, end), at)


def _is_everywhere(coarse: np.ndarray, at: int) -> bool:
    """Whether most blocks leap at step `at` of coarse pictures: they do not where something moves before a ground.

    Blocks that are black all along, as beside a narrow picture, have no say.
    """
    steps = np.abs(np.diff(coarse, axis=0))
    others = np.sort(np.delete(steps, at, axis=0), axis=0)
    leaps = steps[at] > np.maximum(_MIN_BLOCK, _MIN_LEAP_UNLIKE * others[-2] if len(others) > 1 else 0)
    lit = coarse[:, :LUMA_BLOCKS].max(axis=0) > _BLACK
    luma = leaps[:LUMA_BLOCKS][lit] if lit.any() else leaps[:LUMA_BLOCKS]
    return max(float(luma.mean()), float(leaps[LUMA_BLOCKS:].mean())) >= _MIN_EVERYWHERE


def _leap(changes: list[float], at: int) -> float:
    """Change number `at`, times the second largest of the others (a flash may be near)."""
    around = sorted(changes[:at] + changes[at + 1 :])
    return changes[at] / max(around[-2], 1e-6) if len(around) > 1 else float("inf")


def _is_unlike(pictures: list[Picture], at: int) -> bool:
    alike = [likeness(a, b) for a, b in pairwise(pictures)]
    return alike.pop(at) < min(_UNLIKE, min(alike) - _UNLIKE)
