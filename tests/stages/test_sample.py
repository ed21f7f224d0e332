"""Which frames are kept, and what they look like as RGB."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sample import (
    MAX_ASPECT,
    RgbConverter,
    Sampler,
    candidates_of,
    choose,
    frame_times_s,
    kept_size,
    rotation_of,
    union,
)
from tests.media import BLUE, GRAY, GREEN, RED, WHITE, rotate, solid, write_video


def test_frame_times_are_the_middles_of_equal_parts() -> None:
    assert frame_times_s(10.0, 18.0, 4).tolist() == [11.0, 13.0, 15.0, 17.0]
    assert frame_times_s(1.0, 2.0, 1).tolist() == [1.5]


def test_the_nearest_frame_is_chosen_and_the_earlier_one_of_two_equally_near() -> None:
    kept = np.array([0.0, 1.0, 2.0, 3.0])
    assert choose(kept, 0.0, 4.0, 4).tolist() == [0, 1, 2, 3]  # middles 0.5, 1.5...: half-way, the earlier one
    assert choose(kept, 0.2, 4.2, 4).tolist() == [1, 2, 3, 3]


@given(
    times=st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=60, unique=True).map(sorted),
    count=st.integers(1, 40),
)
def test_no_other_frame_is_nearer_than_the_chosen_one(times: list[float], count: int) -> None:
    kept = np.array(times)
    chosen = choose(kept, 0.0, 100.0, count)
    middles = frame_times_s(0.0, 100.0, count)
    assert (np.diff(chosen) >= 0).all()
    for middle, index in zip(middles, chosen, strict=True):
        assert abs(kept[index] - middle) == pytest.approx(np.abs(kept - middle).min())


def test_the_union_holds_what_each_model_would_get_alone() -> None:
    times = [i / 25 for i in range(100)]
    both = union(times, 0.0, 4.0, [8, 5, 8])
    assert both == sorted({*choose(np.array(times), 0.0, 4.0, 8), *choose(np.array(times), 0.0, 4.0, 5)})
    assert union(times, 0.0, 4.0, []) == []


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 129, 1000])
def test_a_sampler_holds_evenly_spaced_frames_in_bounded_memory(count: int) -> None:
    sampler = Sampler(64)
    frame = av.VideoFrame(16, 16)
    for index in range(count):
        sampler.push(float(index), frame)
        assert len(sampler.frames) <= 64
    steps = set(np.diff(sampler.times_s))
    assert len(steps) <= 1
    assert sampler.times_s[0] == 0.0
    assert len(sampler.times_s) == len(sampler.frames) >= min(count, 32)
    # every frame of the clip is at most a step from one that is held
    assert count - 1 - sampler.times_s[-1] < (steps.pop() if steps else 1)


def test_how_many_candidates_are_held_depends_on_the_size_of_a_frame() -> None:
    counts = [candidates_of(av.VideoFrame(w, h)) for w, h in ((320, 180), (1280, 720), (1920, 1080), (7680, 4320))]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 64
    assert counts[-1] == 16


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1280, 720), (398, 224)),
        ((720, 1280), (224, 398)),
        ((50, 50), (224, 224)),
        ((854, 480), (399, 224)),
        ((100, 5000), (224, round(224 * MAX_ASPECT))),
    ],
)
def test_the_short_side_is_set_and_the_aspect_kept(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert kept_size(*size, 224) == expected


def first_rgb(path: Path, short_side: int = 64) -> np.ndarray:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return RgbConverter(short_side).convert([frame], rotation_of(frame))[0]


@pytest.mark.parametrize("color", [RED, GREEN, BLUE, GRAY, WHITE])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"bt709": True},
        {"full_range": True},
        {"bt709": True, "full_range": True},
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuv420p10le"},
        {"pix_fmt": "yuvj420p", "full_range": True, "codec": "mjpeg"},
    ],
    ids=lambda how: "-".join(str(v) for pair in how.items() for v in pair) or "plain",
)
def test_colours_survive_every_matrix_range_and_depth(
    tmp_path: Path, color: tuple[int, int, int], how: dict[str, object]
) -> None:
    path = write_video(tmp_path / "color.mkv", solid(color, 2, (64, 48)), **how)  # type: ignore[arg-type]
    rgb = first_rgb(path)
    assert np.abs(rgb.reshape(-1, 3).astype(int) - color).max() <= 4


def untagged(color: tuple[int, int, int], size: tuple[int, int], bt709: bool) -> np.ndarray:
    """What a frame becomes that is encoded with a matrix and does not say with which."""
    import tests.media as media

    scaler = media.VideoReformatter()
    frame = media._frame(solid(color, 1, size)[0], "yuv420p", scaler, full_range=False, bt709=bt709)
    frame.colorspace = 2
    return RgbConverter(64).convert([frame], 0)[0].reshape(-1, 3).mean(0)


def test_a_picture_that_does_not_name_its_matrix_is_taken_for_hd_from_720_rows_on() -> None:
    assert np.abs(untagged(GREEN, (128, 720), bt709=True) - GREEN).max() < 4
    assert np.abs(untagged(GREEN, (128, 480), bt709=False) - GREEN).max() < 4
    assert np.abs(untagged(GREEN, (128, 480), bt709=True) - GREEN).max() > 8  # the two matrices do differ


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (63, 47)])
def test_sharp_colour_edges_stay_where_they_are_at_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    frame = solid(RED, 1, size)[0]
    frame[:, width // 2 :] = BLUE
    path = write_video(tmp_path / "halves.mkv", [frame], pix_fmt="yuv444p")
    rgb = first_rgb(path, short_side=height)
    assert rgb.shape == (height, width, 3)
    assert np.abs(rgb[:, : width // 2 - 2].reshape(-1, 3).astype(int) - RED).max() <= 6
    assert np.abs(rgb[:, width // 2 + 2 :].reshape(-1, 3).astype(int) - BLUE).max() <= 6


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_frames_stand_upright(tmp_path: Path, clockwise: int) -> None:
    upright = np.full((90, 160, 3), GRAY, np.uint8)
    upright[:30, :60] = RED  # top left
    upright[60:, 100:] = BLUE  # bottom right
    stored = np.ascontiguousarray(np.rot90(upright, clockwise // 90))  # turned against the clock, players turn it back
    path = rotate(write_video(tmp_path / "turned.mp4", [stored] * 2), clockwise)
    rgb = first_rgb(path, short_side=90)
    assert rgb.shape == (90, 160, 3)
    assert np.abs(rgb[10, 20].astype(int) - RED).max() < 20
    assert np.abs(rgb[80, 140].astype(int) - BLUE).max() < 20
    assert np.abs(rgb[80, 20].astype(int) - GRAY).max() < 20


def test_a_turn_that_is_no_turn_is_none() -> None:
    frame = SimpleNamespace(rotation=-(1 << 31))  # what FFmpeg's "not a number" becomes
    assert rotation_of(frame) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("declared", [3, 8, 10, 14, 255])
def test_a_matrix_that_the_scaler_does_not_know_costs_no_frame(declared: int) -> None:
    frame = av.VideoFrame.from_ndarray(solid(RED, 1)[0], format="rgb24").reformat(format="yuv420p")
    frame.colorspace = declared
    kept = RgbConverter(32).convert([frame], 0)
    assert np.abs(kept.mean((0, 1, 2)) - RED).max() < 30


def test_frames_of_one_clip_have_one_size_even_where_the_stream_changes_its_size() -> None:
    frames = [av.VideoFrame.from_ndarray(solid(GREEN, 1, size)[0], format="rgb24") for size in ((80, 60), (160, 60))]
    rgb = RgbConverter(30).convert(frames, 0)
    assert rgb.shape == (2, 30, 40, 3)
    assert np.abs(rgb.reshape(-1, 3).astype(int) - GREEN).max() <= 2
