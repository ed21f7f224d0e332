"""`clips.effort: fast`: frames that no other frame is made from are left out, and little else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert ClipsConfig(effort="fast").fingerprint() != ClipsConfig().fingerprint()
