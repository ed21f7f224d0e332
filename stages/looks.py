"""What is seen of a stream of frames: how much the picture moves, and at which frame a shot begins.

Of more than 20 frames a second only every second one is looked at, which tells shots and motion as well. Where a cut lies
between two looks, the frame between them is compared with both, so that it is found to the frame. No more frames are passed
over, since frames wait until it is certain whether a shot begins with them, and that takes a number of looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import av
import numpy as np

from stages.picture import Picture, pictures
from stages.planes import HANDFUL, Planes, strips
from stages.quality import motions

LOOK_S = 0.049  # least time between two looks, unless a frame was passed over since
_TOLERANCE_S = 1e-6

Kind = Literal["cut", "gradual"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A boundary: `time_s` is the time of the first frame of the new shot (of a gradual one, of its middle)."""

    time_s: float
    kind: Kind


class Detector(Protocol):
    """What finds shots: see `stages.shots.ShotDetector`."""

    @property
    def settled_s(self) -> float:
        """No cut will be reported at a time before this."""

    def push(self, frames: Planes, times_s: Sequence[float]) -> list[Cut]:
        """Takes up to HANDFUL frames of one kind, in sequence; cuts that are certain now."""

    def finish(self) -> list[Cut]:
        """Cuts still open at the end."""


@dataclass(frozen=True, slots=True)
class Look:
    """At a frame: how much it differs from the one looked at before, see `quality.motions`; None where there is none."""

    motion: int | None


class Seen(NamedTuple):
    """A frame of which it is certain whether a shot begins with it. `look` is None where it was not looked at."""

    time_s: float
    frame: av.VideoFrame
    look: Look | None
    begins: Kind | None  # a shot, and how
    next_s: float  # time of the frame after it, or the stream's end


class Looks:
    """Bursts of frames in, frames with what is seen of them out, in order, later. Without a detector no shot is found."""

    def __init__(self, detector: Detector | None) -> None:
        self._detector = detector
        self._looked_s = float("-inf")  # time of the last look
        self._passed_over = False  # the frame after it
        self._luma: np.ndarray | None = None  # what it saw
        self._waiting: deque[tuple[float, av.VideoFrame, Look | None]] = deque()
        self._cuts: deque[Cut] = deque()

    def push(self, burst: Sequence[tuple[float, av.VideoFrame]]) -> list[Seen]:
        """Takes the next frames, with their times in seconds; those that are certain now. BadVideo as `planes.planes_of`."""
        looks, cuts = self._look(self._due(burst))
        self._waiting.extend((time_s, frame, looks.get(time_s)) for time_s, frame in burst)
        self._cuts.extend(self._placed(cut) for cut in cuts)
        return [self._next(self._waiting[1][0]) for _ in range(self._certain())]

    def finish(self, end_s: float) -> Iterator[Seen]:
        """The rest, where the stream ends at `end_s`. Nothing may be pushed afterwards."""
        if self._detector is not None:
            self._cuts.extend(self._placed(cut) for cut in self._detector.finish())
        while self._waiting:
            yield self._next(self._waiting[1][0] if len(self._waiting) > 1 else end_s)

    def _due(self, burst: Sequence[tuple[float, av.VideoFrame]]) -> list[tuple[float, av.VideoFrame]]:
        due = []
        for timed in burst:
            self._passed_over = not self._passed_over and timed[0] - self._looked_s < LOOK_S
            if not self._passed_over:
                self._looked_s = timed[0]
                due.append(timed)
        return due

    def _look(self, due: Sequence[tuple[float, av.VideoFrame]]) -> tuple[dict[float, Look], list[Cut]]:
        """Looks at the frames, all at once: looks by time, and the cuts that are certain then."""
        looks: dict[float, Look] = {}
        cuts: list[Cut] = []
        for first in range(0, len(due), HANDFUL):
            for times_s, _, small in strips(due[first : first + HANDFUL], self._luma):
                looks.update(zip(times_s, map(Look, motions(small)), strict=True))
                self._luma = small.luma[-1]
                if self._detector is not None:
                    cuts += self._detector.push(small, times_s)
        return looks, cuts

    def _placed(self, cut: Cut) -> Cut:
        """The cut, at that frame since the look before it which differs most from the frame before."""
        if cut.kind != "cut":
            return cut
        between: list[tuple[float, av.VideoFrame]] = []
        for time_s, frame, look in self._waiting:
            if time_s > cut.time_s:
                break
            if look is not None and time_s < cut.time_s:
                between.clear()
            between.append((time_s, frame))
        if len(between) < 3:
            return cut
        seen: list[Picture] = []
        for times_s, _, small in strips(between, None):
            seen += pictures(small, times_s, seen[-1] if seen else None)
        return Cut(max(seen[1:], key=lambda one: one.change).time_s, cut.kind)

    def _certain(self) -> int:
        """How many of the frames that wait are certain.

        Those before the last look at which no cut is open any more: one at the next look may turn out to be at any frame after
        that, and is placed by what that look saw.
        """
        if self._detector is None:
            return max(0, len(self._waiting) - 1)
        settled_s, certain = self._detector.settled_s, 0
        for number, (time_s, _, look) in enumerate(self._waiting):
            if time_s >= settled_s:
                break
            if look is not None:
                certain = number
        return certain

    def _next(self, next_s: float) -> Seen:
        time_s, frame, look = self._waiting.popleft()
        kind: Kind | None = None
        while self._cuts and self._cuts[0].time_s <= time_s + _TOLERANCE_S:
            kind = self._cuts.popleft().kind
        return Seen(time_s, frame, look, kind, next_s)
