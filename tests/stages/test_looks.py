"""Which frames are looked at, and that shots are found to the frame all the same."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
import pytest

from benchmarks.shots.scenes import picture
from stages.looks import Cut, Looks, Seen
from stages.planes import Planes
from stages.shots import LATENCY, ShotDetector, boundaries

SIZE = (90, 160)
Timed = tuple[float, av.VideoFrame]


def frame_of(rgb: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24").reformat(format="yuv420p")


def still(seed: int, frames: int) -> list[av.VideoFrame]:
    """A picture that stands, with a little noise."""
    rng = np.random.default_rng(seed)
    image = np.asarray(picture(rng, *SIZE), np.float32)
    return [frame_of(np.clip(image + rng.normal(0, 2, (*SIZE, 1)), 0, 255).astype(np.uint8)) for _ in range(frames)]


def flat(luma: int, u: int = 128, v: int = 128) -> av.VideoFrame:
    planes = (np.full(SIZE, luma), np.full((45, 80), u), np.full((45, 80), v))
    return av.VideoFrame.from_ndarray(np.concatenate([p.ravel() for p in planes]).astype(np.uint8).reshape(135, 160), "yuv420p")


def timed(frames: Sequence[av.VideoFrame], fps: float) -> list[Timed]:
    return [(number / fps, frame) for number, frame in enumerate(frames)]


def all_seen(looks: Looks, stream: Sequence[Timed], length: int = 32) -> list[Seen]:
    seen = [one for first in range(0, len(stream), length) for one in looks.push(stream[first : first + length])]
    return seen + list(looks.finish(stream[-1][0] + 1.0))


class Says:
    """A detector that reports cuts at the looks it is told, `late` looks after they pass."""

    def __init__(self, numbers: Sequence[int], late: int = 3) -> None:
        self._numbers, self._late = list(numbers), late
        self.times_s: list[float] = []

    @property
    def settled_s(self) -> float:
        return self.times_s[-self._late] if len(self.times_s) >= self._late else float("-inf")

    def push(self, _frames: Planes, times_s: Sequence[float]) -> list[Cut]:
        self.times_s += times_s
        return self._until(len(self.times_s) - self._late)

    def finish(self) -> list[Cut]:
        return self._until(len(self.times_s))

    def _until(self, end: int) -> list[Cut]:
        due = [number for number in self._numbers if number < end]
        self._numbers = self._numbers[len(due) :]
        return [Cut(self.times_s[number], "cut") for number in due]


@pytest.mark.parametrize(("fps", "every"), [(8, 1), (12, 1), (20, 1), (23.976, 2), (25, 2), (30, 2), (50, 2), (60, 2)])
def test_of_more_than_20_frames_a_second_every_second_one_is_looked_at(fps: float, every: int) -> None:
    looked = [one.look is not None for one in all_seen(Looks(None), timed([flat(20)] * 50, fps))]
    assert looked == [number % every == 0 for number in range(50)]


def test_how_frames_come_in_changes_nothing() -> None:
    stream = timed(still(1, 37) + still(2, 40), 25)
    wanted = all_seen(Looks(ShotDetector()), stream)
    assert [one.begins for one in wanted].count("cut") == 1
    for length in (1, 7, 77):
        assert all_seen(Looks(ShotDetector()), stream, length) == wanted


def test_every_frame_comes_out_once_in_order_with_the_time_of_the_next() -> None:
    stream = timed([flat(20)] * 100, 25)
    seen = all_seen(Looks(ShotDetector()), stream)
    assert [(one.time_s, one.frame) for one in seen] == stream
    assert [one.next_s for one in seen] == [*(time_s for time_s, _ in stream[1:]), stream[-1][0] + 1.0]


def test_frames_wait_no_longer_than_shots_are_open() -> None:
    looks, pushed, out = Looks(ShotDetector()), 0, 0
    for one in timed([flat(20)] * 300, 25):
        pushed, out = pushed + 1, out + len(looks.push([one]))
        assert pushed - out <= 2 * LATENCY
    assert out > 200


@pytest.mark.parametrize("fps", [12, 25, 30, 60])
@pytest.mark.parametrize("at", [36, 37, 38, 39, 40, 41])
def test_a_cut_is_found_to_the_frame_between_two_looks_too(fps: int, at: int) -> None:
    found = boundaries(timed(still(1, at) + still(2, 50), fps))
    assert [(round(cut.time_s * fps), cut.kind) for cut in found] == [(at, "cut")]


@pytest.mark.parametrize("at", [10, 11, 12])
def test_a_cut_between_two_looks_is_where_the_picture_changes_most(at: int) -> None:
    colours = [flat(100, u=90)] * at + [flat(100, u=150)] * (30 - at)
    for length in (1, 32):  # one by one, no frame may leave before it is certain
        seen = all_seen(Looks(Says([6])), timed(colours, 25), length)  # looks at frames 10 and 12
        assert [number for number, one in enumerate(seen) if one.begins] == [max(at, 11)]


def test_a_gradual_boundary_stays_where_it_was_seen() -> None:
    class Gradual(Says):
        def _until(self, end: int) -> list[Cut]:
            return [Cut(cut.time_s, "gradual") for cut in super()._until(end)]

    seen = all_seen(Looks(Gradual([6])), timed([flat(100)] * 11 + [flat(200)] * 19, 25))
    assert [(number, one.begins) for number, one in enumerate(seen) if one.begins] == [(12, "gradual")]


def test_a_stream_that_changes_its_size_between_two_looks_is_still_cut_to_the_frame() -> None:
    small = [frame.reformat(80, 45) for frame in still(1, 13)]
    (cut,) = boundaries(timed(still(1, 20) + small + still(2, 30), 25))
    assert round(cut.time_s * 25) == 33


def test_what_moves_is_measured_from_look_to_look() -> None:
    seen = all_seen(Looks(None), timed([flat(16), flat(235), flat(16), flat(16), flat(235), flat(16)], 25))
    assert [one.look and one.look.motion for one in seen] == [None, None, 0, None, 1 << 24, None]
