"""Streaming shot detector: where one shot ends and the next begins, from the small planes of each frame.

A cut is a change that stands out from the changes around it (the idea of PySceneDetect's AdaptiveDetector), after which
the picture does not come back, as it does after a flash, and is not the same scene in another light. Gradual transitions are
found by `stages.gradual` and `stages.fades`. All windows count frames, of those that `stages.looks` looks at, and not
seconds: what tells a cut from motion is how one frame differs from the next, whatever the time between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

import av
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stages import fades, gradual
from stages.history import History
from stages.looks import Cut, Kind, Looks, Seen
from stages.picture import LUMA_BLOCKS, Picture, distance, likeness, shifted_likeness
from stages.planes import HANDFUL, Planes

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

_SETTLED = gradual.LATENCY + 1  # frames after which all finders have had their say
LATENCY = _SETTLED + HANDFUL - 1
_KEPT = _SETTLED + HANDFUL + gradual.BEFORE + fades.LATENCY
_CLEAR = 8  # frames around a cut in which no gradual transition is believed


class ShotDetector:
    """Feed frames in order by `push`, end by `finish`. What a stream gives depends on nothing before its first frame.

    Frames come by the handful: the arithmetic is cheap, but each call into NumPy costs a microsecond or two.
    """

    def __init__(self) -> None:
        self._history = History(_KEPT)
        self._dissolves = gradual.DissolveFinder(self._history)
        self._fades = fades.FadeFinder(self._history)
        self._found: dict[int, Kind] = {}  # boundaries not yet reported, by frame number
        self._reported = -_CLEAR  # number of the last boundary reported

    @property
    def settled_s(self) -> float:
        """No cut will be reported any more at a time before this (seconds, -inf before the first frames)."""
        if not self._history.count:
            return float("-inf")
        return self._history.picture(self._history.count - _SETTLED).time_s

    def push(self, frames: Planes, times_s: Sequence[float]) -> list[Cut]:
        """Takes up to HANDFUL frames, planes `in_sequence`; boundaries that are certain now that these are known, in
        order, each at most LATENCY frames old.
        """
        first = self._history.count
        self._history.extend(frames, times_s)
        return self._look(first)

    def finish(self) -> list[Cut]:
        """The boundaries still open when the stream ends. Nothing may be pushed afterwards."""
        end = self._history.count
        if not end:
            return []
        self._history.repeat(_SETTLED)
        return self._look(end, ended=True)

    def _look(self, first: int, ended: bool = False) -> list[Cut]:
        """Asks all finders about the frames from `first` on. `ended`: they only repeat the stream's last frame."""
        history, end = self._history, self._history.count
        leaps = _leaping(history, first - _AROUND, end - _AROUND)
        self._dissolves.look(first, end)
        fades = not self._fades.is_idle or any(one.is_flat for one in history.pictures(first, end))
        if not (leaps or fades or self._found) and self._dissolves.is_idle:
            return []
        return [cut for newest in range(first, end) for cut in self._step(newest, leaps, fades, ended)]

    def _step(self, newest: int, leaps: set[int], fades: bool, ended: bool) -> list[Cut]:
        """What is certain with frame `newest`."""
        gradual_ones = self._fades.step(newest, ended) if fades else []
        if not self._dissolves.is_idle:
            gradual_ones += self._dissolves.step(newest)
        for number in gradual_ones:
            self._found.setdefault(number, "gradual")
        candidate = newest - _AROUND
        if candidate in leaps and is_cut(self._history, candidate):
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


def boundaries(frames: Iterable[tuple[float, av.VideoFrame]]) -> list[Cut]:
    """All boundaries of a stream of (time in seconds, frame)."""
    return [Cut(seen.time_s, seen.begins) for seen in _all_seen(iter(frames)) if seen.begins is not None]


def _all_seen(frames: Iterator[tuple[float, av.VideoFrame]]) -> Iterator[Seen]:
    looks = Looks(ShotDetector())
    while burst := list(islice(frames, HANDFUL)):
        yield from looks.push(burst)
    yield from looks.finish(float("inf"))


def _leaping(history: History, start: int, end: int) -> set[int]:
    """Which of frames start..end-1 differ so much from the one before, and so much more than those around them, that a shot
    may begin with them.
    """
    changes = history.changes(start, end)
    numbers = np.flatnonzero(changes >= _MIN_CHANGE)
    if not len(numbers):
        return set()
    return {start + n for n in numbers[_leaps(history, start, end)[numbers] >= _MIN_LEAP_UNLIKE].tolist() if start + n > 0}


def _leaps(history: History, start: int, end: int) -> np.ndarray:
    """The change of each of frames start..end-1, times the second largest of those around it (a flash may be near)."""
    around = sliding_window_view(history.changes(start - _AROUND, end + _AROUND), 2 * _AROUND + 1)
    others = np.sort(np.delete(around, _AROUND, axis=1), axis=1)[:, -2]
    leaps: np.ndarray = around[:, _AROUND] / np.maximum(others, 1e-6)
    return leaps


def is_cut(history: History, number: int) -> bool:
    """Whether a shot begins with frame `number`, one of `_leaping`; wants _AROUND frames after it."""
    if not _stands_out(history, number):
        return False
    change = history.picture(number).change
    before = history.pictures(number - _AROUND, number)
    after = history.pictures(number, number + 1 + _AROUND)
    if min(distance(a, b) for a in before for b in after) < _RETURN * change:
        return False
    return shifted_likeness(before[-1], after[0]) < _SAME_SCENE


def _stands_out(history: History, number: int) -> bool:
    """Whether the leap is one nearly everywhere in the picture.

    In fast motion a smaller leap is enough if the two frames are as unlike as those around them are alike.
    """
    start, end = max(history.first, number - _AROUND - 1), min(history.count, number + _AROUND + 1)
    at = number - start - 1
    if not _is_everywhere(history.coarse(start, end), at):
        return False
    return float(_leaps(history, number, number + 1)[0]) >= _MIN_LEAP or _is_unlike(history.pictures(start, end), at)


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


def _is_unlike(pictures: list[Picture], at: int) -> bool:
    alike = [likeness(a, b) for a, b in pairwise(pictures)]
    return alike.pop(at) < min(_UNLIKE, min(alike) - _UNLIKE)
