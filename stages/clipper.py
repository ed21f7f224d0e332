"""Cutting a stream of frames into clips, one pass, bounded memory.

The rules, for min_s and max_s of the configuration (frames are whole, so lengths are up to one frame off):

- A clip begins where the unit does ("start" or "unit"), at a shot's first frame ("cut" or "gradual") unless the clip so far is
  shorter than min_s, or where a shot is longer than max_s ("length").
- A shot is cut after max_s. Where less than min_s would then remain of it, the last two pieces are cut at max_s / 2 instead.
  With effort fast the frame that such a cut falls on may not have been decoded: the cut is made at its time all the same, or
  pieces would become shorter from one to the next.
- What is left at a unit's end, shorter than min_s, joins the clip before; where both together are longer than max_s, they are
  cut at max_s / 2 instead. A unit shorter than min_s is one clip.

So where a clip ends may show only min_s after its end. Until then all the clips that may come true are built side by side:
`_Growing` is a clip from its first frame on, `Draft` is what it was at one moment. Frames are shared references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import av

from schemas.config import ClipsConfig
from stages.looks import Detector, Look, Looks, Seen
from stages.quality import mean_motion
from stages.sample import Sampler, candidates_of
from stages.shots import ShotDetector

Boundary = Literal["start", "cut", "gradual", "length", "unit"]
_TOLERANCE_S = 1e-6
_SKIPPED_S = 0.5  # between decoded frames, at most, if it is frames left out that lie between


@dataclass(frozen=True)
class Draft:
    """A finished clip: [start_s, end_s), its candidate frames with their times, how many frames it had."""

    start_s: float
    end_s: float
    boundary: Boundary
    times_s: list[float]
    frames: list[av.VideoFrame]
    frames_seen: int
    motion: float | None

    @property
    def fps(self) -> float | None:
        """Mean frames per second."""
        return self.frames_seen / (self.end_s - self.start_s) if self.end_s > self.start_s else None


class _Growing:
    """A clip from its first frame on."""

    __slots__ = ("_looked", "_motion_pairs", "_motion_total", "_sampler", "boundary", "frames_seen", "start_s")

    def __init__(self, start_s: float, boundary: Boundary, capacity: int) -> None:
        self.start_s = start_s
        self.boundary = boundary
        self.frames_seen = 0
        self._sampler = Sampler(capacity)
        self._looked = False  # at any of its frames
        self._motion_total = 0
        self._motion_pairs = 0

    def push(self, time_s: float, frame: av.VideoFrame, look: Look | None) -> None:
        if look is not None:
            if look.motion is not None and self._looked:  # the first change is that of the cut
                self._motion_total += look.motion
                self._motion_pairs += 1
            self._looked = True
        self.frames_seen += 1
        self._sampler.push(time_s, frame)

    def draft(self, end_s: float) -> Draft:
        """The clip as it is now."""
        return Draft(
            self.start_s,
            end_s,
            self.boundary,
            self._sampler.times_s.copy(),
            self._sampler.frames.copy(),
            self.frames_seen,
            mean_motion(self._motion_total, self._motion_pairs),
        )


class _Shot:
    """A shot (or piece of one) and the places where it may be cut: `half` from max_s / 2 on, `full` from max_s on.

    `to_half`, `to_full`, `half_to_full`: the clips that would end there.
    """

    def __init__(self, whole: _Growing, half: _Growing | None = None, to_half: Draft | None = None) -> None:
        self.whole = whole
        self.half = half
        self.to_half = to_half
        self.due_s: float | None = None  # where the next frame is to find it cut by its length
        self.full: _Growing | None = None
        self.to_full: Draft | None = None
        self.half_to_full: Draft | None = None

    @property
    def start_s(self) -> float:
        return self.whole.start_s

    def push(self, time_s: float, frame: av.VideoFrame, look: Look | None) -> None:
        if self.full is None or self.half is None:  # with both, the shot is cut at one of them
            self.whole.push(time_s, frame, look)
        if self.half is not None:
            self.half.push(time_s, frame, look)
        if self.full is not None:
            self.full.push(time_s, frame, look)

    def second_half(self) -> _Shot:
        """What is left when the shot is cut at `half`; where that is still too long, it is cut at `full`."""
        assert self.half is not None
        return _Shot(self.half, self.full, self.half_to_full)

    def drafts(self, end_s: float, max_s: float) -> list[Draft]:
        """The shot as it ends at `end_s`: one clip, or two where it is longer than max_s and can be cut."""
        if end_s - self.start_s <= max_s + _TOLERANCE_S or self.half is None or self.to_half is None:
            return [self.whole.draft(end_s)]
        return [self.to_half, self.half.draft(end_s)]


class Clipper:
    """Frames in, clips out: `push` all frames of a unit in order, then `finish`. Both give the clips that are certain."""

    def __init__(self, config: ClipsConfig, first: Boundary, detector: Detector | None = None) -> None:
        self._min_s = 0.0 if config.split == "none" else config.min_s
        self._max_s = float("inf") if config.split == "none" else config.max_s
        self._leaves_out = config.effort == "fast"
        self._first = first
        self._looks = Looks(None if config.split != "shots" else ShotDetector() if detector is None else detector)
        self._capacity = 0
        self._before: _Shot | None = None  # ended by a cut, but the rest may turn out too short to stand alone
        self._before_drafts: list[Draft] = []  # what it is if they do
        self._shot: _Shot | None = None

    def push(self, burst: Sequence[tuple[float, av.VideoFrame]]) -> list[Draft]:
        """Takes the next frames, with their times in seconds; clips in order."""
        return [draft for seen in self._looks.push(burst) for draft in self._advance(seen)]

    def finish(self, end_s: float) -> Iterator[Draft]:
        """The unit's end, after which nothing may be pushed: the clips still open, the last one ending at `end_s`."""
        for seen in self._looks.finish(end_s):
            yield from self._advance(seen)
        yield from self._finish_shot(end_s)

    def _advance(self, seen: Seen) -> list[Draft]:
        """Takes a frame; the clips that are certain with it."""
        time_s, frame, look, begins, next_s = seen
        shot = self._shot
        drafts: list[Draft] = []
        if shot is None:
            self._capacity = candidates_of(frame)
            shot = self._shot = self._new(time_s, self._first)
        else:
            drafts += self._settle(shot, time_s)
            shot = self._shot or shot
            if begins is not None and time_s - shot.start_s >= self._min_s - _TOLERANCE_S:
                drafts += self._end_shot(shot, time_s)
                shot = self._shot = self._new(time_s, begins)
            else:
                self._mark(shot, time_s, next_s)
        shot.push(time_s, frame, look)
        if self._before is not None:
            self._before.push(time_s, frame, look)
        return drafts

    def _new(self, time_s: float, boundary: Boundary) -> _Shot:
        return _Shot(_Growing(time_s, boundary, self._capacity))

    def _settle(self, shot: _Shot, time_s: float) -> list[Draft]:
        """What is certain now that the unit goes on to `time_s`."""
        drafts: list[Draft] = []
        if self._before is not None and time_s - shot.start_s >= self._min_s - _TOLERANCE_S:
            drafts, self._before, self._before_drafts = self._before_drafts, None, []
        if shot.full is not None and shot.to_full is not None and time_s - shot.full.start_s >= self._min_s - _TOLERANCE_S:
            drafts.append(shot.to_full)
            self._shot = _Shot(shot.full)
        return drafts

    def _end_shot(self, shot: _Shot, end_s: float) -> list[Draft]:
        """A cut: the shot waits until the next one is long enough. If it was about to be cut by length, its half is certain."""
        drafts: list[Draft] = []
        if shot.full is not None and shot.to_half is not None:
            drafts.append(shot.to_half)
            shot = shot.second_half()
        self._before = shot
        self._before_drafts = shot.drafts(end_s, self._max_s)
        return drafts

    def _mark(self, shot: _Shot, time_s: float, next_s: float) -> None:
        """Notes the places where the shot may be cut by its length, as they pass."""
        if shot.full is not None:
            return
        limit_s = shot.start_s + self._max_s
        if shot.due_s is not None:
            self._cut_by_length(shot, shot.due_s)
        elif next_s > limit_s + _TOLERANCE_S:
            if self._leaves_out and time_s < limit_s - _TOLERANCE_S and next_s - time_s <= _SKIPPED_S:
                shot.due_s = limit_s
            else:
                self._cut_by_length(shot, time_s)
        elif shot.half is None and time_s - shot.start_s >= self._max_s / 2 - _TOLERANCE_S:
            shot.to_half = shot.whole.draft(time_s)
            shot.half = _Growing(time_s, "length", self._capacity)

    def _cut_by_length(self, shot: _Shot, time_s: float) -> None:
        shot.to_full = shot.whole.draft(time_s)
        shot.half_to_full = None if shot.half is None else shot.half.draft(time_s)
        shot.full = _Growing(time_s, "length", self._capacity)

    def _finish_shot(self, end_s: float) -> list[Draft]:
        shot, before = self._shot, self._before
        if shot is None:
            return []
        if before is not None:
            if end_s - shot.start_s < self._min_s - _TOLERANCE_S:
                return before.drafts(end_s, self._max_s)
            return self._before_drafts + shot.drafts(end_s, self._max_s)
        if shot.full is not None and shot.to_full is not None and end_s - shot.full.start_s >= self._min_s - _TOLERANCE_S:
            return [shot.to_full, *_Shot(shot.full).drafts(end_s, self._max_s)]
        return shot.drafts(end_s, self._max_s)
