"""Where clips begin and end: the rules of lengths, on streams of frames whose cuts are given."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import ClipsConfig
from stages.clipper import Boundary, Clipper, Draft
from stages.looks import Cut
from stages.planes import HANDFUL, Planes

FPS = 10
FRAME = av.VideoFrame.from_ndarray(np.zeros((32, 32), np.uint8), format="gray")


class Given:
    """A detector that reports the cuts it was given, `late` frames after they pass."""

    def __init__(self, cuts_s: list[float], late: int, kind: str = "cut") -> None:
        self._cuts = [Cut(time_s, kind) for time_s in cuts_s]  # type: ignore[arg-type]
        self._late = late
        self._times: list[float] = []

    @property
    def settled_s(self) -> float:
        return self._times[-1 - self._late] if len(self._times) > self._late else float("-inf")

    def push(self, frames: Planes, times_s: Sequence[float]) -> list[Cut]:
        assert frames.luma.shape == (len(times_s), 16, 32)
        self._times += times_s
        return self._until(self.settled_s)

    def finish(self) -> list[Cut]:
        return self._until(float("inf"))

    def _until(self, time_s: float) -> list[Cut]:
        done = [cut for cut in self._cuts if cut.time_s < time_s]
        self._cuts = self._cuts[len(done) :]
        return done


def drafts(
    times_s: list[float],
    end_s: float,
    cuts_s: tuple[float, ...] | list[float] = (),
    *,
    late: int = 5,
    kind: str = "cut",
    first: Boundary = "start",
    **config: object,
) -> list[Draft]:
    clipper = Clipper(ClipsConfig.model_validate(config), first, Given(list(cuts_s), late, kind))
    out = [draft for time_s in times_s for draft in clipper.push([(time_s, FRAME)])]
    return [*out, *clipper.finish(end_s)]


@pytest.mark.parametrize("missing", [{300}, {300, 600}, {299, 300, 301, 599, 600}])
def test_frames_that_fast_mode_leaves_out_move_no_cut_by_length(missing: set[int]) -> None:
    times_s = [number / 30 for number in range(900) if number not in missing]
    found = drafts(times_s, 30.0, split="fixed", effort="fast")
    assert [(draft.start_s, draft.end_s) for draft in found] == [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]
    for draft in found:
        inside = [time_s for time_s in times_s if draft.start_s <= time_s < draft.end_s]
        assert draft.frames_seen == len(inside)
        assert set(draft.times_s) <= set(inside)


def test_fast_mode_cuts_a_long_pause_where_exact_mode_does() -> None:
    times_s = [number / 10 for number in [*range(95), *range(130, 250)]]
    exact, fast = (drafts(times_s, 25.0, split="fixed", effort=effort) for effort in ("exact", "fast"))
    assert [(draft.start_s, draft.end_s) for draft in fast] == [(draft.start_s, draft.end_s) for draft in exact]


def clips(seconds: float, cuts_s: tuple[float, ...] | list[float] = (), **options: object) -> list[tuple[float, float, str]]:
    """Clips of a video of `seconds` at 10 frames per second."""
    times_s = [i / FPS for i in range(round(seconds * FPS))]
    return [(d.start_s, d.end_s, d.boundary) for d in drafts(times_s, seconds, cuts_s, **options)]  # type: ignore[arg-type]


def test_a_clip_for_each_shot() -> None:
    assert clips(9.0, [3.0, 5.0]) == [(0.0, 3.0, "start"), (3.0, 5.0, "cut"), (5.0, 9.0, "cut")]


def test_a_boundary_says_how_the_shot_began() -> None:
    assert [c[2] for c in clips(6.0, [3.0], kind="gradual", first="unit")] == ["unit", "gradual"]


def test_a_cut_that_would_leave_too_short_a_clip_is_ignored_and_the_piece_joins_what_follows() -> None:
    assert clips(6.0, [0.5, 3.0, 3.9]) == [(0.0, 3.0, "start"), (3.0, 6.0, "cut")]


def test_a_clip_of_exactly_the_shortest_length_stands() -> None:
    assert clips(6.0, [1.0, 2.0]) == [(0.0, 1.0, "start"), (1.0, 2.0, "cut"), (2.0, 6.0, "cut")]


def test_a_video_shorter_than_the_shortest_length_is_one_clip() -> None:
    assert clips(0.5, [0.2]) == [(0.0, 0.5, "start")]


def test_one_frame_is_one_clip() -> None:
    assert clips(0.1) == [(0.0, 0.1, "start")]


def test_no_frame_is_no_clip() -> None:
    assert clips(0.0) == []


def test_a_short_tail_joins_the_clip_before() -> None:
    assert clips(6.0, [3.0, 5.5]) == [(0.0, 3.0, "start"), (3.0, 6.0, "cut")]


def test_a_short_tail_of_a_clip_that_is_full_moves_the_cut() -> None:
    assert clips(10.4, [9.8]) == [(0.0, 5.0, "start"), (5.0, 10.4, "length")]


def test_a_long_shot_is_cut_by_its_length() -> None:
    assert clips(25.0) == [(0.0, 10.0, "start"), (10.0, 20.0, "length"), (20.0, 25.0, "length")]


@pytest.mark.parametrize("end_s", [10.1, 10.5, 10.9])
def test_a_long_shot_of_which_too_little_would_remain_is_cut_in_the_middle(end_s: float) -> None:
    assert clips(end_s) == [(0.0, 5.0, "start"), (5.0, end_s, "length")]
    assert clips(end_s + 4, [end_s]) == [(0.0, 5.0, "start"), (5.0, end_s, "length"), (end_s, end_s + 4, "cut")]


def test_a_long_shot_of_which_enough_remains_is_cut_at_its_full_length() -> None:
    assert clips(11.0) == [(0.0, 10.0, "start"), (10.0, 11.0, "length")]
    assert clips(14.0, [11.0]) == [(0.0, 10.0, "start"), (10.0, 11.0, "length"), (11.0, 14.0, "cut")]


def test_a_shot_of_exactly_the_full_length_is_one_clip() -> None:
    assert clips(10.0) == [(0.0, 10.0, "start")]
    assert clips(13.0, [10.0]) == [(0.0, 10.0, "start"), (10.0, 13.0, "cut")]


def test_fixed_cuts_by_length_alone() -> None:
    assert clips(7.0, [1.5], split="fixed", max_s=3.0) == [(0.0, 3.0, "start"), (3.0, 6.0, "length"), (6.0, 7.0, "length")]


def test_none_is_one_clip_whatever_its_length() -> None:
    assert clips(100.0, [1.5, 50.0], split="none", max_s=3.0) == [(0.0, 100.0, "start")]


def test_a_tail_after_a_shot_that_was_cut_in_the_middle_still_fits() -> None:
    found = clips(7.3, [6.4], min_s=1.0, max_s=6.0)
    assert found == [(0.0, 3.0, "start"), (3.0, 7.3, "length")]
    assert [c[0] for c in clips(6.0, [5.2], min_s=2.0, max_s=4.0)] == [0.0, 2.0]
    assert [c[0] for c in clips(6.1, [5.2], min_s=2.0, max_s=4.0)] == [0.0, 2.0, 4.0]


@given(
    cuts=st.sets(st.integers(1, 399), max_size=40),
    frames=st.integers(1, 400),
    lengths=st.sampled_from([(1.0, 10.0), (1.0, 2.0), (0.0, 5.0), (2.0, 5.0), (0.5, 3.3)]),
    late=st.integers(0, 24),
)
@settings(max_examples=150, deadline=None)
def test_clips_tile_the_video_and_keep_the_lengths(
    cuts: set[int], frames: int, lengths: tuple[float, float], late: int
) -> None:
    min_s, max_s = lengths
    times_s = [i / FPS for i in range(frames)]
    end_s = frames / FPS
    found = drafts(times_s, end_s, sorted(c / FPS for c in cuts if c < frames), late=late, min_s=min_s, max_s=max_s)
    assert found[0].start_s == 0.0
    assert found[-1].end_s == end_s
    assert all(a.end_s == b.start_s for a, b in pairwise(found))
    assert sum(d.frames_seen for d in found) == frames
    for draft in found:
        length_s = draft.end_s - draft.start_s
        assert 0 < length_s <= max_s + 1e-6
        assert length_s >= min(min_s, end_s) - 1 / FPS - 1e-6
        assert [t for t in times_s if draft.start_s <= t < draft.end_s][:: _step(draft)] == draft.times_s


def _step(draft: Draft) -> int:
    """The power of two by which a clip of so many frames is thinned."""
    step = 1
    while -(-draft.frames_seen // step) > 64:
        step *= 2
    return step


@given(late=st.integers(0, 24), cuts=st.sets(st.integers(1, 299), max_size=12))
@settings(max_examples=30, deadline=None)
def test_how_late_the_detector_is_changes_nothing(late: int, cuts: set[int]) -> None:
    times_s = [i / FPS for i in range(300)]
    cuts_s = sorted(c / FPS for c in cuts)
    assert drafts(times_s, 30.0, cuts_s, late=late) == drafts(times_s, 30.0, cuts_s, late=0)


def test_clips_leave_soon_after_they_are_certain() -> None:
    clipper = Clipper(ClipsConfig(split="fixed", max_s=2.0), "start")
    pushed_at_s = [i / FPS for i in range(100) for _ in clipper.push([(i / FPS, FRAME)])]
    certain_s = [3.1, 5.1, 7.1, 9.1]  # a clip's end, what has to remain after it, and one frame
    assert all(0 <= pushed - certain < HANDFUL / FPS for pushed, certain in zip(pushed_at_s, certain_s, strict=True))


@pytest.mark.parametrize("split", ["shots", "fixed", "none"])
def test_memory_does_not_grow_with_the_length_of_a_clip(split: str) -> None:
    clipper = Clipper(ClipsConfig.model_validate({"split": split, "max_s": 3600.0}), "start", Given([], 24))
    most = 0
    for index in range(1500):
        frame = av.VideoFrame(32, 32, "gray")
        clipper.push([(index / FPS, frame)])
        del frame
        if index % 300 == 299:
            most = max(most, live_frames())
    assert most < 64 * 3 + 24 + HANDFUL


def test_a_clip_that_was_given_away_is_not_kept() -> None:
    clipper = Clipper(ClipsConfig(), "start", Given([3.0], 5))
    given = [weakref.ref(draft) for number in range(60) for draft in clipper.push([(number / FPS, FRAME)])]
    assert [one() for one in given] == [None]


def live_frames() -> int:
    """Frames that any list or tuple holds."""
    holders = [thing for thing in gc.get_objects() if isinstance(thing, list | tuple)]
    return len({id(item) for holder in holders for item in holder if isinstance(item, av.VideoFrame)})


def test_sparse_frames_are_cut_where_there_are_any() -> None:
    times_s = [0.0, 6.0, 12.0, 18.0]
    found = [(d.start_s, d.end_s) for d in drafts(times_s, 24.0)]
    assert found == [(0.0, 6.0), (6.0, 12.0), (12.0, 18.0), (18.0, 24.0)]


def test_a_gap_that_is_longer_than_a_clip_may_be_stays_in_one_clip() -> None:
    times_s = [0.0, 0.1, 0.2, 50.0, 50.1, 52.0]
    found = [(d.start_s, d.end_s) for d in drafts(times_s, 52.1)]
    assert found[0][0] == 0.0
    assert found[-1][1] == 52.1
    assert all(a[1] == b[0] for a, b in pairwise(found))


def test_the_first_frame_of_a_clip_brings_no_motion_from_before_the_cut() -> None:
    black, white = (av.VideoFrame.from_ndarray(np.full((32, 32), v, np.uint8), format="gray") for v in (0, 255))
    clipper = Clipper(ClipsConfig(), "start", Given([2.0], 0))
    found = [d for i in range(40) for d in clipper.push([(i / FPS, black if i < 20 else white)])]
    found += clipper.finish(4.0)
    assert [d.motion for d in found] == [0.0, 0.0]


def test_nor_does_its_first_look_where_that_is_not_at_its_first_frame() -> None:
    black, white = (av.VideoFrame.from_ndarray(np.full((32, 32), v, np.uint8), format="gray") for v in (0, 255))
    clipper = Clipper(ClipsConfig(), "start", Given([52 / 25], 0))  # a look, the one after frame 50's
    found = [d for i in range(100) for d in clipper.push([(i / 25, black if i < 51 else white)])]
    found += clipper.finish(4.0)
    assert [(round(d.start_s * 25), d.motion) for d in found] == [(0, 0.0), (51, 0.0)]
