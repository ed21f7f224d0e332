"""Real recordings, as they come: each ends with the right status, upright, its clips within what decoded."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from schemas.config import ClipsConfig
from stages.media import open_media
from stages.reader import Reader, Span
from tests.stages.units import decoded, frames_of, timed_frames

pytestmark = pytest.mark.real
FOLDER = Path(os.environ.get("CLIPMILL_REAL_VIDEOS") or Path(__file__).parents[3] / "shared" / "videos")
FRAMES = {
    "02_cups.mp4": 300, "04_coffee.mp4": 287, "again.mkv": 77, "av1_video.mkv": 125, "bedroom.mp4": 200,
    "big-buck-bunny-480p-30sec.mp4": 720, "bikes.mp4": 250, "bird.mkv": 63, "book.mkv": 109, "bottle-detection.mp4": 1189,
    "brother.mkv": 65, "bt709_full_range.mp4": 30, "car-detection.mp4": 377, "carphone_pristine.mp4": 120, "chroma1.mp4": 132,
    "cockatoo.mp4": 280, "corrupted.mp4": 49, "eat.mkv": 47, "echo-hereweare.webm": 836, "flipping_a_pancake.mkv": 310,
    "h264_10bits.mp4": 30, "h265_video.mp4": 10, "help.mkv": 58, "hungry.mkv": 49, "learn.mkv": 61, "milk.mkv": 51,
    "nasa_13013.mp4": 325, "night.mkv": 68, "realshort.mp4": 36, "test_clip_10s.mp4": 240, "unordered.mov": 4, "vid1.mp4": 56,
    "video_180.mov": 3, "video_90.mov": 3,
}  # fmt: skip
TURNED = {"video_180.mov": 180, "video_90.mov": 90}


def recording(name: str) -> Path:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"no recordings in {FOLDER}")
    return path


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_a_recording_ends_as_it_should(name: str) -> None:
    clips, end = decoded(recording(name))
    assert end["frames"] == FRAMES[name]
    assert end["error_code"] == ("damaged" if name == "corrupted.mp4" else None), end["error_message"]
    assert end["rotation_deg"] == TURNED.get(name, 0)
    assert clips[0]["start_s"] == 0.0
    assert clips[-1]["end_s"] == end["decoded_s"]
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(clips))
    assert all(end["decoded_s"] < 1 or 1 <= clip["end_s"] - clip["start_s"] <= 10 + 1e-6 for clip in clips)
    for clip in clips:
        assert all(clip["start_s"] <= time_s < clip["end_s"] for time_s in clip["frame_times_s"])
        frames = frames_of(clip)
        assert min(frames.shape[1:3]) == 224
        assert frames.shape[2] / frames.shape[1] == pytest.approx(clip["width"] / clip["height"], rel=0.01)


@pytest.mark.parametrize("name", ["video_90.mov", "video_180.mov"])
def test_the_turned_recordings_stand_upright(name: str) -> None:
    """Both show the same kind of scene as their turned pictures: compared with a turn made here, by hand."""
    path = recording(name)
    (clip,), end = decoded(path)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    upright = np.rot90(stored, -TURNED[name] // 90)
    assert (end["height"], end["width"]) == upright.shape[:2]
    kept = frames_of(clip)[0]
    rows = np.linspace(0, upright.shape[0] - 1, kept.shape[0]).round().astype(int)
    columns = np.linspace(0, upright.shape[1] - 1, kept.shape[1]).round().astype(int)
    sampled = upright[rows][:, columns].astype(float)

    def error(picture: np.ndarray) -> float:
        return float(np.abs(sampled - picture).mean())

    assert error(kept) < 12
    assert error(kept) < 0.5 * min(error(kept[::-1]), error(kept[:, ::-1]), error(kept[::-1, ::-1]))


@pytest.mark.parametrize("name", ["car-detection.mp4", "cockatoo.mp4", "bt709_full_range.mp4", "h264_10bits.mp4", "again.mkv"])
def test_kept_frames_have_the_colours_of_the_recording(name: str) -> None:
    """Mean colours against the textbook's formula on the decoded planes."""
    path = recording(name)
    (clip, *_), _ = decoded(path, ClipsConfig(short_side=128))
    with path.open("rb") as file, open_media(file, ClipsConfig().limits) as media:
        reader = Reader(media, ClipsConfig().limits, Span(), lambda: None)
        by_time = {time_s: _mean_rgb(frame) for time_s, frame in timed_frames(reader) if time_s in clip["frame_times_s"]}
    for time_s, frame in zip(clip["frame_times_s"], frames_of(clip), strict=True):
        assert np.abs(frame.reshape(-1, 3).mean(0) - by_time[time_s]).max() < 4


def _mean_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Mean colour by the definition of YCbCr, from a full-resolution 4:4:4 copy of the decoded frame in its own range."""
    wide = frame.format.components[0].bits > 8
    name = "yuv444p10le" if wide else ("yuvj444p" if frame.format.name.startswith("yuvj") else "yuv444p")
    same = frame.reformat(format=name)
    dtype, scale = (np.dtype("<u2"), 4) if wide else (np.dtype("u1"), 1)
    y, u, v = (np.frombuffer(p, dtype).reshape(p.height, -1)[:, : p.width].astype(float) / scale for p in same.planes)
    full = frame.format.name.startswith("yuvj") or frame.color_range == 2
    luma = y if full else (y - 16) * 255 / 219
    blue, red = ((c - 128) * (1 if full else 255 / 224) for c in (u, v))
    kr, kb = (0.2126, 0.0722) if frame.colorspace == 1 or (frame.colorspace == 2 and frame.height >= 720) else (0.299, 0.114)
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.array([c.clip(0, 255).mean() for c in (r, g, b)])
