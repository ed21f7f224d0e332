"""Fades through black, white or any one colour: flat stretches between two scenes."""

from __future__ import annotations

import numpy as np

from stages.history import History
from stages.picture import distance

_SHORT = 12  # frames: a flat stretch up to this long is one boundary, in its middle; a longer one is a shot of its own
_PAST = 8  # frames beyond a stretch's ends at which a scene is expected
LATENCY = _SHORT + _PAST
_REACH = 3  # frames within which a flash is reached, and left
_LEAP = 25.0  # least change to the flat colour that is a flash, codes
_RETURN = 0.3  # largest difference of the pictures on both sides of a flash, part of the leap
_CHANGED = 4.0  # codes that make a block another one
_MIN_CHANGED = 0.3  # part of the blocks


class FadeFinder:
    """Follows flat stretches as frames come in."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._start: int | None = None  # of the flat stretch that the newest frame is in
        self._ended: tuple[int, int] | None = None  # a short stretch, [first, past the last), still to be judged

    @property
    def is_idle(self) -> bool:
        """Whether frames matter only from the next flat one on."""
        return self._start is None and self._ended is None

    def step(self, newest: int, ended: bool) -> list[int]:
        """To be called for each frame in order. Frames at which a shot begins that are certain with frame `newest`.

        `ended`: the frame only repeats the last one of the stream, whose flat tail is no shot of its own.
        """
        found = []
        if self._ended is not None and newest == self._ended[1] + _PAST - 1:
            found += self._judged(*self._ended)
            self._ended = None
        if ended:
            return found
        flat = self._history.picture(newest).is_flat
        if flat and self._start is None:
            self._start = newest
        elif flat and self._start is not None and newest - self._start == _SHORT:
            found += self._began(self._start)
        elif not flat and self._start is not None:
            self._ended = (self._start, newest)
            self._start = None
        return found

    def _began(self, start: int) -> list[int]:
        """A long stretch begins a shot, unless the stream does."""
        return [start] if start > 0 and self._is_gone(start, start - _PAST) else []

    def _judged(self, start: int, end: int) -> list[int]:
        """A long stretch ends with a new shot; a short one is a boundary, unless the same scene comes back."""
        if not self._is_gone(end - 1, end + _PAST - 1):
            return []
        if end - start > _SHORT:
            return [end]
        if start == 0 or not self._is_gone(start, start - _PAST) or self._is_flash(start, end):
            return []
        return [(start + end) // 2]

    def _is_flash(self, start: int, end: int) -> bool:
        """Whether the picture leaps, mostly in one frame, to the flat colour and, within _REACH frames, back to what it was."""
        flat = self._history.picture(start)
        depth = min(distance(self._history.picture(at), flat) for at in (start - _PAST, end + _PAST - 1))
        if 2 * self._history.changes(start - _REACH + 1, end + _REACH).max() < depth:
            return False
        for a in self._history.pictures(start - _REACH, start):
            for b in self._history.pictures(end, end + _REACH):
                leap = min(distance(a, flat), distance(b, flat))
                if leap > _LEAP and distance(a, b) < _RETURN * leap:
                    return True
        return False

    def _is_gone(self, flat: int, other: int) -> bool:
        """Whether the colour of frame `flat` is gone nearly everywhere in frame `other`: no object before a plain ground."""
        change = np.abs(self._history.picture(flat).coarse - self._history.picture(other).coarse)
        return float((change > _CHANGED).mean()) >= _MIN_CHANGED
