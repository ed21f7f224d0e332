"""Long files in units by time: the same clips whoever decodes which of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from schemas.config import ClipsConfig
from schemas.errors import BadVideo, ErrorCode
from schemas.rows import SOURCE_ROW, UNIT_ROW
from stages.units import marks_s, units_of
from tests.media import flip_bits, number_of, numbered, packets, textured, truncate, write_video
from tests.stages.units import Row, decoder, frames_of, rows_of, run

UNIT_S = 2.0
LIMITS = {"unit_min_bytes": 1, "unit_s": UNIT_S}
CLIPS = ClipsConfig.model_validate({"min_s": 0.5, "max_s": 5.0, "short_side": 64, "limits": LIMITS})
CONTAINERS = ["a.mp4", "a.mkv", "a.ts", "a.webm", "a.flv"]
CODECS = {"a.webm": "libvpx", "a.mpg": "mpeg2video"}
DISORDER = {"preset": "veryfast", "crf": "12", "threads": "1", "bf": "3"}
OPEN_GOPS = {"x264-params": "open-gop=1:keyint=20:min-keyint=20"}


def sources(*paths: Path, **changes: Any) -> pa.Table:
    rows = [
        {"video_id": f"{n:032x}", "uri": str(path), "size_bytes": path.stat().st_size, "due": ["aaaaaaaa"], "supersedes": None}
        | changes
        for n, path in enumerate(paths)
    ]
    schema = pa.schema([*SOURCE_ROW, pa.field("supersedes", pa.string()), pa.field("due", pa.list_(pa.string()))])
    return pa.Table.from_pylist(rows, schema=schema)


def units_of_file(path: Path, clips: ClipsConfig = CLIPS) -> list[Row]:
    table = units_of(sources(path), clips)
    assert table.schema.equals(UNIT_ROW)
    return list(table.to_pylist())


def long_video(path: Path, **options: Any) -> Path:
    """6.4 s at 25 frames per second: shots of 1.2, 3.2 and 2.0 s; keyframes every 12 frames, not at the marks."""
    frames = textured(30, 1) + textured(80, 2) + textured(50, 3)
    return write_video(path, frames, codec=CODECS.get(path.name, "libx264"), **options)


def test_a_small_file_is_one_unit_and_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("not even a video")
    (row,) = units_of_file(path, ClipsConfig())
    assert (row["unit"], row["units"], row["unit_start_s"], row["unit_end_s"], row["origin_s"]) == (0, 1, None, None, None)
    assert row["due"] == ["aaaaaaaa"]


def test_a_large_file_that_is_short_is_one_unit(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(50, 1))
    assert len(units_of_file(path)) == 1


def test_a_long_file_is_cut_at_the_marks(tmp_path: Path) -> None:
    rows = units_of_file(long_video(tmp_path / "a.mp4"))
    assert [(r["unit"], r["units"], r["unit_start_s"], r["unit_end_s"]) for r in rows] == [
        (0, 3, None, 2.0),
        (1, 3, 2.0, 4.0),
        (2, 3, 4.0, None),  # the last 0.4 s are less than a clip: they join the unit before
    ]
    assert {r["origin_s"] for r in rows} == {0.0}


@pytest.mark.parametrize("name", ["a.mpg", "a.avi"])
def test_a_file_whose_frames_have_other_times_after_seeking_is_one_unit(tmp_path: Path, name: str) -> None:
    assert len(units_of_file(long_video(tmp_path / name))) == 1


def test_a_large_file_that_cannot_be_opened_is_one_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("not a video")
    assert len(units_of_file(path)) == 1


def test_a_source_that_went_away_is_one_unit() -> None:
    def gone(*_: object) -> Any:
        raise BadVideo(ErrorCode.VANISHED, "gone")

    table = pa.Table.from_pylist(
        [{"video_id": "0" * 32, "uri": "/gone.mp4", "size_bytes": 1 << 30, "due": []}],
        schema=sources().schema,
    )
    assert units_of(table, CLIPS, probe=gone).num_rows == 1


@pytest.mark.parametrize(
    ("duration_s", "count"),
    [(None, 1), (1.0, 1), (2.0, 1), (2.4, 1), (2.5, 1), (2.6, 2), (4.5, 2), (4.6, 3), (1e12, 43200)],
)
def test_marks_leave_no_unit_shorter_than_a_clip_and_do_not_believe_any_duration(duration_s: float | None, count: int) -> None:
    marks = marks_s(duration_s, CLIPS)
    assert len(marks) + 1 == count
    assert marks[:2] == [2.0, 4.0][: count - 1]


def clips_of(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["end"] is None]


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_frame_is_in_exactly_one_unit(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, numbered(160), codec=CODECS.get(name, "libx264"), gop=17)
    every = ClipsConfig.model_validate({"split": "none", "short_side": 45, "limits": LIMITS})
    units = units_of_file(path, every)
    assert len(units) == 3
    rows = rows_of(decoder(every, {"aaaaaaaa": 256}), *units)
    clips = clips_of(rows)
    ends = [row["end"] for row in rows if row["end"]]
    assert [clip["boundary"] for clip in clips] == ["start", "unit", "unit"]
    assert [end["frames"] for end in ends] == [50, 50, 60]
    assert [end["error_code"] for end in ends] == [None] * 3
    assert [end["lost_packets"] for end in ends] == [0] * 3
    seen = [number_of(frame) for clip in clips for frame in frames_of(clip)]
    assert seen == list(range(160))
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(clips))
    times = [time_s for clip in clips for time_s in clip["frame_times_s"]]
    assert times == pytest.approx([n / 25 for n in range(160)], abs=2e-3)
    assert sum(end["decoded_s"] for end in ends) == pytest.approx(6.4, abs=2e-3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv"])
@pytest.mark.parametrize("gops", [{}, OPEN_GOPS], ids=["closed", "open"])
def test_frames_that_decode_out_of_order_around_a_mark_are_not_damage(tmp_path: Path, name: str, gops: dict[str, str]) -> None:
    path = write_video(tmp_path / name, numbered(160), options=DISORDER | gops, gop=25)
    every = ClipsConfig.model_validate({"split": "none", "short_side": 45, "limits": LIMITS})
    rows = rows_of(decoder(every, {"aaaaaaaa": 256}), *units_of_file(path, every))
    assert [number_of(frame) for clip in clips_of(rows) for frame in frames_of(clip)] == list(range(160))
    assert [(r["end"]["lost_packets"], r["end"]["error_code"]) for r in rows if r["end"]] == [(0, None)] * 3


def without_attempt(tables: list[pa.Table]) -> list[Row]:
    """Clip rows, less what names the try."""
    return [{k: v for k, v in row.items() if k != "attempt"} for table in tables for row in table.to_pylist() if not row["end"]]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_units_clips_are_the_same_whichever_units_are_decoded_before(tmp_path: Path, name: str) -> None:
    units = units_of_file(long_video(tmp_path / name))
    together = without_attempt(run(decoder(CLIPS), *units))
    apart = [row for unit in reversed(units) for row in reversed(without_attempt(run(decoder(CLIPS), unit)))]
    assert together == apart[::-1]
    found = [(round(r["start_s"], 2), round(r["end_s"], 2), r["boundary"]) for r in together]
    assert found == [
        (0.0, 1.2, "start"),
        (1.2, 2.0, "cut"),
        (2.0, 4.0, "unit"),
        (4.0, 6.4, "unit"),  # the cut at 4.4 is nearer to the mark than the shortest clip
    ]
    assert len({r["clip_id"] for r in together}) == 4


def test_a_units_times_count_from_the_videos_first_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", numbered(160), times_s=[1000 + n / 25 for n in range(160)])
    units = units_of_file(path)
    assert units[1]["origin_s"] == pytest.approx(1000, abs=2)
    (first, *_), _ = clips_of(rows_of(decoder(CLIPS), units[1])), None
    assert first["start_s"] == pytest.approx(2.0, abs=1e-4)


def test_units_beyond_the_real_end_have_no_clips_and_no_error(tmp_path: Path) -> None:
    path = long_video(tmp_path / "a.mp4")
    late = units_of_file(path)[1] | {"unit": 9, "unit_start_s": 18.0, "unit_end_s": 20.0}
    (end,) = rows_of(decoder(CLIPS), late)
    assert (end["row"], end["end"]["clips"], end["end"]["error_code"], end["end"]["decoded_s"]) == (0, 0, None, 0.0)


def test_only_the_unit_in_which_a_file_ends_too_early_says_so(tmp_path: Path) -> None:
    path = long_video(tmp_path / "a.mp4", mux_options={"movflags": "faststart"})
    units = units_of_file(path)
    places = packets(path)
    truncate(path, (places[75][0] + 3) / path.stat().st_size)  # in the second unit
    size = path.stat().st_size
    rows = rows_of(decoder(CLIPS), *[unit | {"size_bytes": size} for unit in units])
    assert [row["end"]["error_code"] for row in rows if row["end"]] == [None, "truncated", None]
    assert clips_of(rows)[-1]["end_s"] == pytest.approx(3.0, abs=0.05)


def test_a_lost_packet_is_counted_in_its_own_unit_alone(tmp_path: Path) -> None:
    path = long_video(tmp_path / "a.mp4", mux_options={"movflags": "faststart"})
    units = units_of_file(path)
    places = packets(path)
    assert [n for n, place in enumerate(places) if place[2]][8] == 96
    for number in (52, 98):  # at 2.08 s, and at 3.92 s: after the keyframe from which the third unit decodes
        offset, size, _ = places[number]
        flip_bits(path, offset, size)
    ends = [row["end"] for row in rows_of(decoder(CLIPS), *units) if row["end"]]
    assert [(end["lost_packets"], end["error_code"]) for end in ends] == [(0, None), (2, "damaged"), (0, None)]


def test_a_unit_is_found_where_seeking_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mkv", numbered(160), gop=17)
    units = units_of_file(path)
    expected = without_attempt(run(decoder(CLIPS), units[1]))
    from stages.reader import Reader

    seek = Reader._seek

    def too_far(self: Reader, time_s: float) -> bool:
        return seek(self, time_s + 3.0) if time_s else seek(self, 0.0)

    monkeypatch.setattr(Reader, "_seek", too_far)
    assert without_attempt(run(decoder(CLIPS), units[1])) == expected
    monkeypatch.setattr(Reader, "_seek", lambda self, time_s: bool(not time_s and seek(self, 0.0)))
    assert without_attempt(run(decoder(CLIPS), units[1])) == expected
