"""How clips look in numbers: black, frozen, blurred and moving clips can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stages.planes import strips
from stages.quality import _luma_place, look_at, mean_motion, motions
from tests.media import BLACK, GRAY, WHITE, Frames, solid, texture, textured, write_video
from tests.stages.units import Row, decoded


def clip_of(path: Path, frames: Frames, **options: Any) -> Row:
    (clip,), _ = decoded(write_video(path, frames, **options))
    return clip


def blurred(frame: np.ndarray) -> np.ndarray:
    out = frame.astype(float)
    for _ in range(6):
        for axis in (0, 1):
            out = (np.roll(out, 1, axis) + 2 * out + np.roll(out, -1, axis)) / 4
    return out.astype(np.uint8)


def test_a_black_clip_is_dark_flat_and_frozen(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "a.mp4", solid(BLACK, 30))
    assert [clip[name] for name in ("motion", "brightness", "contrast", "sharpness")] == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("full_range", [False, True])
def test_brightness_goes_from_black_to_white_in_both_ranges(tmp_path: Path, full_range: bool) -> None:
    found = [
        clip_of(tmp_path / f"{n}.mkv", solid(color, 5), full_range=full_range, pix_fmt="yuvj420p" if full_range else "yuv420p")
        for n, color in enumerate((BLACK, GRAY, WHITE))
    ]
    assert [clip["brightness"] for clip in found] == pytest.approx([0.0, 0.5, 1.0], abs=0.02)


def test_a_frozen_clip_has_contrast_and_no_motion(tmp_path: Path) -> None:
    clip = clip_of(tmp_path / "a.mp4", textured(30, 1, pan=0))
    assert clip["motion"] < 1e-3
    assert clip["contrast"] > 0.05


def test_faster_motion_is_more_motion(tmp_path: Path) -> None:
    slow, fast = (clip_of(tmp_path / f"{pan}.mp4", textured(30, 1, pan=pan))["motion"] for pan in (1, 4))
    assert 0.005 < slow < fast < 1


def test_a_sharp_clip_is_sharper_than_its_blurred_copy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grain = [(frame + rng.normal(0, 20, (90, 160, 1))).clip(0, 255).astype(np.uint8) for frame in textured(10, 1)]
    sharp, soft = clip_of(tmp_path / "a.mp4", grain), clip_of(tmp_path / "b.mp4", [blurred(frame) for frame in grain])
    assert sharp["sharpness"] > 3 * soft["sharpness"] > 0
    assert soft["brightness"] == pytest.approx(sharp["brightness"], abs=0.02)


def test_sharpness_sees_detail_that_the_small_planes_do_not(tmp_path: Path) -> None:
    # one-pixel stripes in a large picture: every n-th sample would show none of them, or only one kind
    stripes = np.zeros((720, 1280, 3), np.uint8)
    stripes[:, ::2] = 255
    sharp = clip_of(tmp_path / "a.mkv", [stripes] * 2)
    assert sharp["sharpness"] > 0.3


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray", "nv12", "rgb24", "yuv420p16be"])
def test_every_pixel_format_gives_the_same_numbers(pix_fmt: str) -> None:
    picture = texture(3, (320, 180))
    frames = [
        av.VideoFrame.from_ndarray(np.roll(picture, n, axis=1), format="rgb24").reformat(format=pix_fmt) for n in range(3)
    ]
    found = look_at([0.0, 0.1, 0.2], frames, 0.0, 0.3, None)
    expected = picture.astype(float) @ [0.299, 0.587, 0.114] / 255
    assert found.brightness == pytest.approx(expected.mean(), abs=0.02)
    assert found.contrast == pytest.approx(expected.std(), abs=0.02)
    if _luma_place(pix_fmt) is not None:
        edges = (np.abs(np.diff(expected, axis=0)).mean() + np.abs(np.diff(expected, axis=1)).mean()) / 2
        assert found.sharpness == pytest.approx(edges, rel=0.15)


def test_motion_is_the_mean_change_and_nothing_where_sizes_differ() -> None:
    frames = [av.VideoFrame.from_ndarray(np.full(shape, v, np.uint8), format="gray") for shape, v in
              [((32, 32), 0), ((32, 32), 255), ((32, 32), 255), ((64, 64), 255), ((64, 64), 0)]]  # fmt: skip
    changes = [change for *_, small in strips(enumerate(frames), None) for change in motions(small)]
    assert [None if c is None else round(c / (1 << 24), 3) for c in changes] == [None, 1.0, 0.0, None, 1.0]
    assert mean_motion(0, 0) is None
    assert mean_motion(3 << 24, 4) == 0.75


def test_motion_goes_on_from_burst_to_burst() -> None:
    frames = [(float(i), av.VideoFrame.from_ndarray(np.full((32, 32), 10 * i, np.uint8), format="gray")) for i in range(6)]
    ((_, _, first),) = strips(frames[:4], None)
    ((_, _, second),) = strips(frames[4:], first.luma[-1])
    ((_, _, whole),) = strips(frames, None)
    assert motions(first) + motions(second) == motions(whole)


@pytest.mark.parametrize("size", [(2, 2), (3, 200), (200, 3), (16, 1)])
def test_tiny_and_thin_pictures_have_numbers_too(size: tuple[int, int]) -> None:
    frame = av.VideoFrame.from_ndarray(texture(1, size), format="rgb24").reformat(format="yuv444p")
    found = look_at([0.0], [frame], 0.0, 1.0, None)
    assert np.isfinite([found.brightness, found.contrast, found.sharpness]).all()
