"""Streaming shot detector: where one shot ends and the next begins, from the small planes of each frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.planes import Planes

_AROUND = 3  # frames on each side that say how much the picture changes anyway
_AHEAD = 5  # frames after a change that are looked at before it is called a cut
_FLOOR = 5.0  # smallest change, in codes of 255, that can be a cut
_RATIO = 3.0  # times the change around it
_RETURN = 0.5  # a frame after the change this near (part of the change) to the last one before it: a flash


@dataclass(frozen=True, slots=True)
class Cut:
    """A boundary: `time_s` is the time of the first frame of the new shot (of a gradual one, of its middle)."""

    time_s: float
    kind: Literal["cut", "gradual"]


@dataclass(slots=True)
class _Seen:
    time_s: float
    luma: np.ndarray
    u: np.ndarray
    v: np.ndarray
    change: float


class ShotDetector:
    """Feed frames in order by `push`, end by `finish`. What a stream gives depends on nothing before its first frame."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []

    @property
    def settled_s(self) -> float:
        """No cut will be reported any more at a time before this (seconds, -inf before the first frame)."""
        return self._seen[max(0, len(self._seen) - _AHEAD - 1)].time_s if self._seen else float("-inf")

    def push(self, planes: Planes, time_s: float) -> list[Cut]:
        """Cuts that are certain now that this frame is known."""
        frame = _Seen(time_s, planes.luma[::2, ::2].astype(np.int16), planes.u[::2, ::2].astype(np.int16),
                      planes.v[::2, ::2].astype(np.int16), 0.0)  # fmt: skip
        if self._seen:
            frame.change = _distance(self._seen[-1], frame)
        self._seen.append(frame)
        if len(self._seen) > _AROUND + _AHEAD + 2:
            del self._seen[0]
        return self._decide(len(self._seen) - 1 - _AHEAD)

    def finish(self) -> list[Cut]:
        """The cuts still open when the stream ends."""
        cuts = [cut for at in range(max(1, len(self._seen) - _AHEAD), len(self._seen)) for cut in self._decide(at)]
        self._seen = []
        return cuts

    def _decide(self, at: int) -> list[Cut]:
        seen = self._seen
        if at < 1 or seen[at].change < _FLOOR:
            return []
        around = [seen[i].change for i in range(max(1, at - _AROUND), min(len(seen), at + _AROUND + 1)) if i != at]
        if around and seen[at].change < _RATIO * float(np.mean(around)):
            return []
        after = [_distance(seen[at - 1], frame) for frame in seen[at + 1 : at + _AHEAD]]
        if after and min(after) < _RETURN * seen[at].change:
            return []
        return [Cut(seen[at].time_s, "cut")]


def _distance(a: _Seen, b: _Seen) -> float:
    """Mean absolute difference of luma plus that of each colour plane, in codes; infinite where the sizes differ."""
    if a.luma.shape != b.luma.shape or a.u.shape != b.u.shape:
        return float("inf")
    return sum(float(np.abs(x - y).mean()) for x, y in ((a.luma, b.luma), (a.u, b.u), (a.v, b.v)))
