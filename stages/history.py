"""The last frames of a stream, by frame number: all that the finders of boundaries look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stages.picture import BLOCKS, Picture, pictures
from stages.planes import Planes


class History:
    """The last `kept` pictures. Frames are numbered from 0."""

    def __init__(self, kept: int) -> None:
        self.count = 0  # frames so far: the newest is number count - 1
        self._kept = kept
        self._pictures: deque[Picture] = deque(maxlen=kept)
        self._coarse = np.zeros((4 * kept, BLOCKS), np.float32)
        self._changes = np.zeros(4 * kept)
        self._end = 0  # rows of both in use end here

    @property
    def first(self) -> int:
        """Number of the oldest frame that is kept."""
        return self.count - len(self._pictures)

    def extend(self, frames: Planes, times_s: Sequence[float]) -> None:
        """Takes the next frames: planes along a first axis, and times in seconds."""
        self._append(pictures(frames, times_s, self._pictures[-1] if self._pictures else None))

    def repeat(self, times: int) -> None:
        """Takes the newest frame some times more: what follows a stream's end."""
        self._append([replace(self._pictures[-1], change=0.0)] * times)

    def _append(self, new: list[Picture]) -> None:
        if self._end + len(new) > len(self._coarse):
            for rows in (self._coarse, self._changes):
                rows[: self._kept] = rows[self._end - self._kept : self._end]
            self._end = self._kept
        self._coarse[self._end : self._end + len(new)] = [one.coarse for one in new]
        self._changes[self._end : self._end + len(new)] = [one.change for one in new]
        self._end += len(new)
        self._pictures.extend(new)
        self.count += len(new)

    def picture(self, number: int) -> Picture:
        """Frame `number`; the oldest or newest one kept where it lies beyond them."""
        return self._pictures[min(max(number - self.first, 0), len(self._pictures) - 1)]

    def pictures(self, start: int, end: int) -> list[Picture]:
        """Frames start..end-1, those of them that are kept."""
        return [self._pictures[n - self.first] for n in range(max(start, self.first), min(end, self.count))]

    def changes(self, start: int, end: int) -> np.ndarray:
        """By how many codes each of frames start..end-1 differs from the one before: float64. 0 for the first frame of the
        stream, and for frames that are not kept or not there yet.
        """
        out = np.zeros(end - start)
        low, high = max(start, self.first), min(end, self.count)
        if low < high:
            offset = self._end - self.count
            out[low - start : high - start] = self._changes[offset + low : offset + high]
        return out

    def coarse(self, start: int, end: int) -> np.ndarray:
        """Coarse pictures of frames start..end-1, all of them kept: a float32 view, (frames, blocks)."""
        offset = self._end - self.count
        return self._coarse[offset + start : offset + end]
