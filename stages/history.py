"""The last frames of a stream, by frame number: all that the finders of boundaries look at."""

from __future__ import annotations

from collections import deque

import numpy as np

from stages.picture import BLOCKS, Picture, distance, picture
from stages.planes import Planes


class History:
    """The last `kept` pictures, and how much each differs from the one before. Frames are numbered from 0."""

    def __init__(self, kept: int) -> None:
        self.count = 0  # frames so far: the newest is number count - 1
        self._kept = kept
        self._pictures: deque[Picture] = deque(maxlen=kept)
        self._changes: deque[float] = deque(maxlen=kept)
        self._coarse = np.zeros((4 * kept, BLOCKS), np.float32)
        self._end = 0  # rows of _coarse in use end here

    @property
    def first(self) -> int:
        """Number of the oldest frame that is kept."""
        return self.count - len(self._pictures)

    def push(self, planes: Planes, time_s: float) -> None:
        """Takes the next frame."""
        self._append(picture(planes, time_s, self._pictures[-1] if self._pictures else None))

    def repeat(self) -> None:
        """Takes the newest frame once more: what follows a stream's end."""
        self._append(self._pictures[-1])

    def _append(self, new: Picture) -> None:
        self._changes.append(distance(self._pictures[-1], new) if self._pictures else 0.0)
        self._pictures.append(new)
        if self._end == len(self._coarse):
            self._coarse[: self._kept] = self._coarse[self._end - self._kept :]
            self._end = self._kept
        self._coarse[self._end] = new.coarse
        self._end += 1
        self.count += 1

    def picture(self, number: int) -> Picture:
        """Frame `number`; the oldest or newest one kept where it lies beyond them."""
        return self._pictures[min(max(number - self.first, 0), len(self._pictures) - 1)]

    def pictures(self, start: int, end: int) -> list[Picture]:
        """Frames start..end-1, those of them that are kept."""
        return [self._pictures[n - self.first] for n in range(max(start, self.first), min(end, self.count))]

    def change(self, number: int) -> float:
        """How much frame `number` differs from the one before it, codes."""
        return self._changes[number - self.first]

    def changes(self, start: int, end: int) -> list[float]:
        """`change` of frames start..end-1, those of them that are kept; the stream's first frame has none."""
        return [self.change(n) for n in range(max(start, self.first, 1), min(end, self.count))]

    def coarse(self, start: int, end: int) -> np.ndarray:
        """Coarse pictures of frames start..end-1, all of them kept: a float32 view, (frames, blocks)."""
        offset = self._end - self.count
        return self._coarse[offset + start : offset + end]
