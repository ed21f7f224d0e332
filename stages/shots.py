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
from stages.picture import Picture, distance, likeness, shifted_likeness
from stages.planes import Planes

_AROUND = 4  # frames on each side that say how much the picture changes anyway
_MIN_CHANGE = 3.0  # smallest change, in codes of 255, that can be a cut
_MIN_LEAP = 2.2  # times the second largest change around it
_MIN_LEAP_UNLIKE = 1.4  # the same, for frames that are
_UNLIKE = 0.25  # less like each other than this, and by this much less than those around them
_MIN_TYPICAL = 1.0  # smallest change of the median block
_RETURN = 0.75  # a frame soon after is nearer than this (part of the change) to one just before: a flash
_SAME_SCENE = 0.93  # likeness across the change above which only the light changed, or the camera was pushed
_MAYBE_SAME = 0.5  # likeness below which no push is looked for
_APART = 4  # frames: of two cuts closer than this the smaller one is none

LATENCY = 24  # frames after which no boundary is reported any more
_KEPT = LATENCY + gradual.BEFORE + fades.LATENCY
_CLEAR = 8  # frames around a cut in which no gradual transition is believed

Kind = Literal["cut", "gradual"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A boundary: `time_s` is the time of the first frame of the new shot (of a gradual one, of its middle)."""

    time_s: float
    kind: Kind


class ShotDetector:
    """Feed frames in order by `push`, end by `finish`. What a stream gives depends on nothing before its first frame."""

    def __init__(self) -> None:
        self._history = History(_KEPT)
        self._dissolves = gradual.DissolveFinder(self._history)
        self._fades = fades.FadeFinder(self._history)
        self._found: dict[int, Kind] = {}  # boundaries not yet reported, by frame number
        self._reported = -_CLEAR  # number of the last boundary reported

    @property
    def settled_s(self) -> float:
        """No cut will be reported any more at a time before this (seconds, -inf before the first frame)."""
        if not self._history.count:
            return float("-inf")
        return self._history.picture(self._history.count - LATENCY).time_s

    def push(self, planes: Planes, time_s: float) -> list[Cut]:
        """Boundaries that are certain now that this frame is known, in order, each at most LATENCY frames old."""
        self._history.push(planes, time_s)
        return self._step()

    def finish(self) -> list[Cut]:
        """The boundaries still open when the stream ends. Nothing may be pushed afterwards."""
        if not self._history.count:
            return []
        last = self._history.count
        cuts = []
        for _ in range(LATENCY):
            self._history.repeat()
            cuts += self._step(last)
        return cuts

    def _step(self, end: int | None = None) -> list[Cut]:
        """Asks all finders about the newest frame. `end`: the number of frames, where the stream has ended."""
        for number in [*self._fades.step(ended=end is not None), *self._dissolves.step()]:
            self._found.setdefault(number, "gradual")
        candidate = self._history.count - 1 - _AROUND
        if candidate > 0 and is_cut(self._history, candidate):
            self._add_cut(candidate)
        return self._report(end)

    def _add_cut(self, number: int) -> None:
        near = [n for n, kind in self._found.items() if kind == "cut" and number - n < _APART]
        if any(self._history.change(n) >= self._history.change(number) for n in near):
            return
        for n in near:
            del self._found[n]
        self._found[number] = "cut"

    def _report(self, end: int | None) -> list[Cut]:
        """What is LATENCY frames old; a gradual transition only where no cut, and no other transition, is near."""
        due = self._history.count - 1 - LATENCY
        out = []
        for number in sorted(n for n in self._found if n <= due):
            kind = self._found.pop(number)
            cuts = [n for n, other in self._found.items() if other == "cut"]
            if kind == "gradual" and any(abs(number - n) < _CLEAR for n in (*cuts, self._reported)):
                continue
            self._reported = number
            if end is None or number < end:
                out.append(Cut(self._history.picture(number).time_s, kind))
        return out


def is_cut(history: History, number: int) -> bool:
    """Whether a shot begins with frame `number`; wants _AROUND frames after it."""
    if history.change(number) < _MIN_CHANGE or not _stands_out(history, number):
        return False
    before = history.pictures(number - _AROUND, number)
    after = history.pictures(number, number + 1 + _AROUND)
    if min(distance(a, b) for a in before for b in after) < _RETURN * history.change(number):
        return False
    alike = likeness(before[-1], after[0])
    return alike < _MAYBE_SAME or shifted_likeness(before[-1], after[0]) < _SAME_SCENE


def _stands_out(history: History, number: int) -> bool:
    """Whether the change is a leap among those around it, in the mean and in the typical (median) block.

    The typical block does not leap where something moves before a still ground. In fast motion a smaller leap is enough if
    the two frames are as unlike as those around them are alike.
    """
    start, end = max(history.first, number - _AROUND - 1), min(history.count, number + _AROUND + 1)
    typical = np.median(np.abs(np.diff(history.coarse(start, end), axis=0)), axis=1)
    at = number - start - 1
    if typical[at] < _MIN_TYPICAL:
        return False
    leap = min(_leap(history.changes(start + 1, end), at), _leap(typical.tolist(), at))
    if leap >= _MIN_LEAP:
        return True
    return leap >= _MIN_LEAP_UNLIKE and _is_unlike(history.pictures(start, end), at)


def _leap(changes: list[float], at: int) -> float:
    """Change number `at`, times the second largest of the others (a flash may be near)."""
    around = sorted(changes[:at] + changes[at + 1 :])
    return changes[at] / max(around[-2], 1e-6) if len(around) > 1 else float("inf")


def _is_unlike(pictures: list[Picture], at: int) -> bool:
    alike = [likeness(a, b) for a, b in pairwise(pictures)]
    return alike.pop(at) < min(_UNLIKE, min(alike) - _UNLIKE)
