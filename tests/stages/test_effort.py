"""`clips.effort: fast`: frames that no other frame is made from are left out, others kept rough, and little else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from av.video.frame import PictureType

from schemas.config import ClipsConfig, Effort, LimitsConfig
from stages import reader
from stages.media import open_media
from stages.reader import Reader, Span
from tests.media import number_of, numbered, textured, write_video
from tests.stages.units import decoded, timed_frames

B_FRAMES = {"bf": "2", "b-pyramid": "none", "b_strategy": "0", "sc_threshold": "40"}


def read(path: Path, effort: Effort) -> list[tuple[float, int]]:
    """(time in seconds, number) of the frames that a video numbers by themselves."""
    limits = LimitsConfig()
    with path.open("rb") as file, open_media(file, limits) as media:
        frames = timed_frames(Reader(media, limits, Span(), lambda: None, effort))
        return [(round(time_s, 6), number_of(frame.to_ndarray(format="rgb24"))) for time_s, frame in frames]


def test_what_is_left_is_what_the_whole_has_at_the_same_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "b.mp4", numbered(60), options=B_FRAMES, gop=250)
    exact, fast = read(path, "exact"), read(path, "fast")
    assert [number for _, number in exact] == list(range(60))
    assert 15 <= len(fast) <= 25  # a third: of three frames two are B-frames
    assert set(fast) < set(exact)


@pytest.mark.parametrize(("pyramid", "passed_on"), [("strict", 0.0), ("normal", 0.02)])
def test_b_frames_that_are_left_keep_their_block_edges_and_hardly_pass_them_on(
    tmp_path: Path, pyramid: str, passed_on: float
) -> None:
    """In a normal pyramid P-frames may refer to B-frames, too, and seldom do."""
    options = {"bf": "7", "b-pyramid": pyramid, "b_strategy": "0", "crf": "32", "refs": "4"}
    path = write_video(tmp_path / "pyramid.mp4", textured(120), options=options, gop=250)
    exact, fast = pictures(path, "exact"), pictures(path, "fast")
    assert len(fast) == 31
    for time_s, (kind, picture) in fast.items():
        difference = np.abs(picture - exact[time_s][1]).mean()
        if kind == PictureType.B:
            assert 0.0 < difference < 0.5  # of 255
        else:
            assert difference <= passed_on
    assert [kind for kind, _ in fast.values()].count(PictureType.B) == 15


def pictures(path: Path, effort: Effort) -> dict[float, tuple[int, np.ndarray]]:
    """Kind and luma of each frame, by time in seconds."""
    limits = LimitsConfig()
    with path.open("rb") as file, open_media(file, limits) as media:
        frames = timed_frames(Reader(media, limits, Span(), lambda: None, effort))
        return {round(time_s, 6): (frame.pict_type, frame.to_ndarray(format="gray").astype(int)) for time_s, frame in frames}


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_video_without_such_frames_is_read_whole(tmp_path: Path, codec: str) -> None:
    path = write_video(tmp_path / "p.mp4", numbered(30), codec=codec, options={"bf": "0"})
    assert read(path, "fast") == read(path, "exact")


def test_where_nearly_all_frames_are_such_the_rest_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = B_FRAMES | {"bf": "15", "sc_threshold": "0"}
    path = write_video(tmp_path / "many.mp4", numbered(200), options=options, gop=250)
    sparse = read(path, "fast")
    assert len(sparse) < 20
    monkeypatch.setattr(reader, "MAX_SKIPPED_IN_A_ROW", 10)
    times = [number for _, number in read(path, "fast")]
    assert times[-150:] == list(range(50, 200))


def test_clips_are_cut_at_the_same_shots(tmp_path: Path) -> None:
    frames = [picture for seed in range(3) for picture in textured(50, seed=seed)]
    path = write_video(tmp_path / "shots.mp4", frames, options=B_FRAMES, gop=250)
    found = {}
    for effort in ("exact", "fast"):
        clip_rows, end = decoded(path, ClipsConfig.model_validate({"effort": effort}))
        found[effort] = [(round(row["start_s"] * 25), row["boundary"], row["frame_count"]) for row in clip_rows]
        assert end["error_code"] is None
    assert found["fast"] == found["exact"] == [(0, "start", 8), (50, "cut", 8), (100, "cut", 8)]


def test_it_is_another_way_of_making_clips() -> None:
    exact, fast = ClipsConfig(), ClipsConfig(effort="fast")
    assert fast.fingerprint() != exact.fingerprint()
    assert "fast" not in exact.identity()  # whose rows stay what they are when those of fast mode become others
