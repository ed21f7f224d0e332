"""Fades through black, white or any one colour: flat stretches between two scenes."""

from __future__ import annotations

from stages.history import History
from stages.picture import likeness

_SHORT = 12  # frames: a flat stretch up to this long is one boundary, in its middle; a longer one is a shot of its own
_PAST = (1, 2, 4, 8)  # frames beyond a stretch's ends at which the scenes on both sides are compared
LATENCY = _SHORT + _PAST[-1]
_SAME_SCENE = 0.8  # likeness of both sides above which the flat stretch was a flash or a blink
_MIN_SPREAD = 8.0  # below, a frame is too faded to say what it shows


class FadeFinder:
    """Follows flat stretches as frames come in."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._start: int | None = None  # of the flat stretch that the newest frame is in
        self._ended: tuple[int, int] | None = None  # a short stretch, [first, past the last), still to be judged

    def step(self, ended: bool) -> list[int]:
        """To be called after each frame. Frames at which a shot begins that are certain now.

        `ended`: the frame only repeats the last one of the stream, whose flat tail is no shot of its own.
        """
        newest = self._history.count - 1
        found = []
        if self._ended is not None and newest == self._ended[1] + _PAST[-1] - 1:
            found += self._judged(*self._ended)
            self._ended = None
        if ended:
            return found
        flat = self._history.picture(newest).is_flat()
        if flat and self._start is None:
            self._start = newest
        elif flat and self._start is not None and newest - self._start == _SHORT and self._start > 0:
            found.append(self._start)
        elif not flat and self._start is not None:
            if newest - self._start > _SHORT:
                found.append(newest)
            elif self._start > 0:
                self._ended = (self._start, newest)
            self._start = None
        return found

    def _judged(self, start: int, end: int) -> list[int]:
        for past in _PAST:
            before, after = self._history.picture(start - past), self._history.picture(end + past - 1)
            if min(before.spread, after.spread) >= _MIN_SPREAD and likeness(before, after) > _SAME_SCENE:
                return []
        return [(start + end) // 2]
