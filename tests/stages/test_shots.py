from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.shots.montage import Montage, Recipe, build, real_shots, synthetic_shots
from benchmarks.shots.scenes import picture, scene
from benchmarks.shots.score import Score, score
from stages import shots
from stages.looks import Cut
from stages.planes import HANDFUL, Planes, in_sequence
from stages.shots import LATENCY, ShotDetector

FPS = 25
SIZE = (90, 160)
REAL = Path(os.environ.get("CLIPMILL_REAL_VIDEOS", Path(__file__).parents[3] / "shared" / "videos"))


def small(rgb: np.ndarray) -> Planes:
    """Planes of an RGB frame, as those of a full-range 4:2:0 video."""
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    u, v = (np.clip(c + 128, 0, 255).astype(np.uint8)[::4, ::4].copy() for c in ((blue - luma) / 1.772, (red - luma) / 1.402))
    return Planes(luma.astype(np.uint8)[::2], u, v, 0, 255)


def shot(seed: int, frames: int = 60, camera: str = "still") -> np.ndarray:
    """A scene made in code: uint8 (frames, *SIZE, 3)."""
    return np.stack(list(scene(np.random.default_rng(seed), frames, SIZE, camera)))


def still(seed: int, frames: int = 60) -> np.ndarray:
    """A picture that stands, with a little noise."""
    rng = np.random.default_rng(seed)
    image = np.asarray(picture(rng, *SIZE), np.float32)
    return np.clip(image + rng.normal(0, 2, (frames, *SIZE, 1)), 0, 255).astype(np.uint8)


def detect(frames: Sequence[np.ndarray] | np.ndarray) -> list[tuple[int, str]]:
    """Frame numbers and kinds of the boundaries found."""
    return found([small(frame) for frame in frames])


def found(frames: Sequence[Planes]) -> list[tuple[int, str]]:
    detector = ShotDetector()
    cuts = [cut for small, times_s in bursts(frames) for cut in detector.push(small, [time_s / FPS for time_s in times_s])]
    return [(round(cut.time_s * FPS), cut.kind) for cut in cuts + detector.finish()]


def bursts(frames: Sequence[Planes], length: int = HANDFUL) -> Iterator[tuple[Planes, range]]:
    """`length` frames at a time, in sequence, with their numbers."""
    last: np.ndarray | None = None
    numbered = enumerate(frames)
    while burst := list(islice(numbered, length)):
        for _, run in groupby(burst, lambda item: item[1].luma.shape):
            numbers, some = zip(*run, strict=True)
            luma, u, v = (np.stack([getattr(one, name) for one in some]) for name in ("luma", "u", "v"))
            yield in_sequence(Planes(luma, u, v, some[0].black, some[0].white), last), range(numbers[0], numbers[-1] + 1)
            last = luma[-1]


def mixed(a: np.ndarray, b: np.ndarray, length: int) -> np.ndarray:
    """`a`, then `length` frames of a dissolve, then `b`."""
    share = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    middle = ((1 - share) * a[-length:] + share * b[:length]).astype(np.uint8)
    return np.concatenate([a[:-length], middle, b[length:]])


def boundaries(montage: Montage) -> list[int]:
    with av.open(io.BytesIO(montage.video)) as container:
        cuts = shots.boundaries((float(frame.time or 0), frame) for frame in container.decode(video=0))
    return [round(cut.time_s * montage.fps) for cut in cuts]


def scored(montage: Montage, tolerance: int = 1) -> Score:
    return score(boundaries(montage), montage.transitions, montage.flashes, tolerance)


# montages


@pytest.mark.parametrize(
    ("seed", "fps", "step", "shot_frames"), [(102, 25, 1.0, (30, 45)), (104, 12, 2.2, (30, 45)), (116, 60, 0.45, (72, 100))]
)
def test_cuts_of_a_montage_are_found_and_nothing_else_is(
    seed: int, fps: int, step: float, shot_frames: tuple[int, int]
) -> None:
    recipe = Recipe(shots=12, shot_frames=shot_frames, size=SIZE, fps=fps, kinds=("cut", "cut", "dissolve", "fade"))
    result = scored(build(synthetic_shots(SIZE, step), seed, recipe))
    assert result.cuts >= 4
    assert result.f1 >= 0.95


def test_most_ten_frame_dissolves_are_found() -> None:
    recipe = Recipe(shots=16, shot_frames=(30, 40), size=SIZE, kinds=("dissolve",), flash_chance=0)
    result = scored(build(synthetic_shots(SIZE), 108, recipe))
    assert result.dissolves == 15
    assert result.dissolves_found >= 0.6 * result.dissolves
    assert result.false == 0
    assert result.doubled == 0


def test_fades_through_black_are_one_boundary_each() -> None:
    recipe = Recipe(shots=10, shot_frames=(30, 40), size=SIZE, kinds=("fade",), flash_chance=0)
    result = scored(build(synthetic_shots(SIZE), 110, recipe))
    assert result.fades_found >= 8
    assert (result.false, result.doubled) == (0, 0)


def test_neither_flashes_nor_fast_pans_nor_shakes_are_cuts() -> None:
    recipe = Recipe(shots=8, shot_frames=(40, 60), size=SIZE, kinds=("cut",), flash_chance=1)
    result = scored(build(synthetic_shots(SIZE, cameras=("whip", "pan", "shake", "zoom")), 112, recipe))
    assert len(build(synthetic_shots(SIZE), 112, recipe).flashes) == 8
    assert result.found == result.cuts == 7
    assert result.false == 0


@pytest.mark.real
@pytest.mark.parametrize("seed", [202, 203])
def test_cuts_and_dissolves_of_a_montage_of_recordings_are_found(seed: int) -> None:
    if not REAL.is_dir():
        pytest.skip("the recordings are not here")
    size = (180, 320)
    shots = real_shots(REAL, size, part=seed % 2)
    result = scored(build(shots, seed, Recipe(shots=24, shot_frames=(30, 60), size=size)))
    assert result.f1 >= 0.95
    assert result.dissolves_found >= 0.6 * result.dissolves


# one thing at a time


@pytest.mark.parametrize("at", [5, 30, 55])
def test_a_cut_is_the_first_frame_of_the_new_shot(at: int) -> None:
    assert detect(np.concatenate([still(1)[:at], still(2)[at:]])) == [(at, "cut")]


def test_times_are_those_that_were_given_however_uneven() -> None:
    frames = [small(frame) for frame in np.concatenate([still(1, 30), still(2, 30)])]
    times_s = np.cumsum(np.random.default_rng(0).uniform(0.001, 0.2, len(frames))) - 7.0
    detector = ShotDetector()
    cuts = [cut for some, at in bursts(frames) for cut in detector.push(some, times_s[at.start : at.stop].tolist())]
    assert cuts + detector.finish() == [Cut(float(times_s[30]), "cut")]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_flash_is_no_boundary(length: int, strength: float) -> None:
    frames = shot(3, camera="pan")
    frames[30 : 30 + length] = frames[30 : 30 + length] + (255 - frames[30 : 30 + length]) * strength
    assert detect(frames) == []


def test_another_light_on_the_same_scene_is_no_boundary() -> None:
    frames = still(4).astype(np.float32)
    frames[30:] = frames[30:] * 0.7 + 40
    assert detect(frames.astype(np.uint8)) == []


def test_something_that_jumps_before_a_still_ground_is_no_boundary() -> None:
    frames, thing = still(5), np.asarray(picture(np.random.default_rng(6), 40, 40))
    frames[:30, 10:50, 10:50] = thing
    frames[30:, 40:80, 100:140] = thing
    assert detect(frames) == []


@pytest.mark.parametrize("seed", [30, 31, 35])
def test_something_that_jumps_before_a_panned_ground_is_no_boundary(seed: int) -> None:
    wide = np.asarray(picture(np.random.default_rng(seed), 90, 300))
    frames = np.stack([wide[:, 2 * i : 2 * i + 160] for i in range(60)])
    thing = np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((20, 20), np.uint8))[..., None]
    frames[:30, 5:45, 5:45] = thing
    frames[30:, 45:85, 110:150] = thing
    assert detect(frames) == []


def test_a_cut_of_a_narrow_picture_between_black_bars_is_found() -> None:
    frames = np.concatenate([still(1, 30), still(2, 30)])
    frames[:, :, :60] = frames[:, :, 100:] = 0
    assert detect(frames) == [(30, "cut")]


def test_a_pushed_camera_is_no_boundary() -> None:
    wide = np.asarray(picture(np.random.default_rng(7), 120, 200))
    frames = np.stack([wide[10:100, 10:170]] * 30 + [wide[18:108, 24:184]] * 30)
    assert detect(frames) == []


@pytest.mark.parametrize("ground", [40, 128, 220])
def test_a_cut_between_two_gray_grounds_alike_in_brightness_is_found(ground: int) -> None:
    rng = np.random.default_rng(8)
    textures = [np.kron(rng.normal(0, 5, (18, 32)), np.ones((5, 5)))[..., None] for _ in range(2)]
    frames = np.stack([textures[i // 30] + ground + rng.normal(0, 1.5, (*SIZE, 3)) for i in range(60)])
    assert detect(np.clip(frames, 0, 255).astype(np.uint8)) == [(30, "cut")]


def test_a_cut_that_only_changes_colour_is_found() -> None:
    frames = [Planes(np.full((45, 160), 120, np.uint8), np.full((22, 40), u, np.uint8), np.full((22, 40), 90, np.uint8), 0, 255)
              for u in [90] * 30 + [150] * 30]  # fmt: skip
    assert found(frames) == [(30, "cut")]


@pytest.mark.parametrize("length", [6, 10, 16, 20])
def test_a_dissolve_is_one_gradual_boundary_near_its_middle(length: int) -> None:
    ((at, kind),) = detect(mixed(shot(9, 50), shot(10, 50), length))
    assert kind == "gradual"
    assert abs(at - (50 - length / 2)) <= 2


def test_a_slow_pan_a_zoom_and_a_change_of_light_are_no_dissolves() -> None:
    for camera in ("pan", "zoom"):
        assert detect(shot(11, 90, camera)) == []
    ramp = np.clip((np.arange(60) - 25) / 10, 0, 1)[:, None, None, None]
    assert detect((still(12) * (0.5 + 0.5 * ramp)).astype(np.uint8)) == []


@pytest.mark.parametrize("colour", [0, 255, 90])
def test_a_fade_through_a_plain_colour_is_one_boundary(colour: int) -> None:
    plain = np.full((20, *SIZE, 3), colour, np.uint8)
    frames = mixed(mixed(still(13, 40), plain, 8), still(14, 40), 8)
    ((at, kind),) = detect(frames)
    assert kind == "gradual"
    assert 32 <= at <= 52


def test_a_long_black_stretch_is_a_shot_of_its_own() -> None:
    frames = np.concatenate([still(15, 40), np.zeros((40, *SIZE, 3), np.uint8), still(16, 40)])
    assert [at for at, _ in detect(frames)] == [40, 80]
    faded = mixed(mixed(still(15, 40), np.zeros((50, *SIZE, 3), np.uint8), 8), still(16, 40), 8)
    assert [kind for _, kind in detect(faded)] == ["gradual", "gradual"]


def test_black_at_the_end_of_a_stream_is_no_shot() -> None:
    assert detect(mixed(still(17, 40), np.zeros((12, *SIZE, 3), np.uint8), 8)) == []


def test_something_that_comes_before_a_plain_ground_is_no_boundary() -> None:
    frames = np.full((60, *SIZE, 3), 150, np.uint8)
    thing = np.asarray(picture(np.random.default_rng(18), 40, 40))
    for index in range(25, 50):
        frames[index, 20:60, 6 * (index - 25) : 6 * (index - 25) + 40] = thing[:, : 160 - 6 * (index - 25)]
    assert detect(frames) == []


@pytest.mark.parametrize("camera", ["still", "shake"])
def test_frames_shown_twice_change_nothing(camera: str) -> None:
    frames = np.repeat(np.concatenate([shot(19, 40, camera), shot(20, 40, camera)]), 2, axis=0)
    assert detect(frames) == [(80, "cut")]


def test_a_stream_that_changes_its_size_is_cut_only_where_the_picture_changes() -> None:
    one, other = still(21, 40), still(22, 40)
    frames = [small(f) for f in one[:20]] + [small(f[::2, ::2]) for f in one[20:]] + [small(f[::2, ::2]) for f in other]
    assert found(frames) == [(40, "cut")]


# streaming


def test_what_came_before_the_first_frame_changes_nothing() -> None:
    frames = [small(f) for f in np.concatenate([shot(23, 50, "pan"), mixed(shot(9, 50), shot(10, 50), 10)])]
    whole = found(frames)
    assert len(whole) == 2
    for first in (7, 14, 22):
        assert [(at + first, kind) for at, kind in found(frames[first:])] == whole


def test_every_cut_comes_in_time_in_order_and_never_before_what_is_settled() -> None:
    frames = np.concatenate([shot(26, 33), mixed(shot(27, 45), shot(28, 45), 10), shot(29, 21), shot(30, 41, "pan")])
    assert_settles([small(frame) for frame in frames], expected=4)


def assert_settles(frames: Sequence[Planes], expected: int | None = None, length: int = HANDFUL) -> None:
    detector = ShotDetector()
    settled_s = float("-inf")
    reported: list[float] = []
    for some, at in bursts(frames, length):
        cuts = detector.push(some, [float(number) for number in at])
        assert all(settled_s <= cut.time_s and at[-1] - cut.time_s <= LATENCY for cut in cuts)
        assert detector.settled_s >= settled_s
        settled_s = detector.settled_s
        assert at[-1] < LATENCY or at[-1] - settled_s <= LATENCY
        reported += [cut.time_s for cut in cuts]
    late = [cut.time_s for cut in detector.finish()]
    assert all(settled_s <= time_s < len(frames) for time_s in late)
    assert reported + late == sorted(set(reported + late))
    assert expected is None or len(reported + late) == expected


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 15)), max_size=9),
    st.sampled_from([(1, 1), (2, 3), (9, 16)]),
    st.integers(1, HANDFUL),
)
def test_whatever_is_pushed_settles(parts: list[tuple[int, int]], size: tuple[int, int], length: int) -> None:
    assert_settles(list(_noise(parts, size)), length=length)


def _noise(parts: list[tuple[int, int]], size: tuple[int, int]) -> Iterator[Planes]:
    for seed, frames in parts:
        level = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        for _ in range(frames):
            yield Planes(level, level[::2, ::2], level[::2, ::2], 16, 235)


def test_an_empty_stream_and_a_single_frame_have_no_cuts() -> None:
    assert ShotDetector().finish() == []
    assert ShotDetector().settled_s == float("-inf")
    assert detect(still(31, 1)) == []
