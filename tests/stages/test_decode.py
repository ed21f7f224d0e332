"""From a file to rows: times, damage, limits, what changes underneath, and what hangs."""

from __future__ import annotations

import gc
import io
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import av
import numpy as np
import pytest

from schemas.config import ClipsConfig, LimitsConfig
from schemas.errors import BadVideo, ErrorCode
from schemas.rows import UNIT_ROW, rows_table
from stages.clipper import Clipper, Draft
from stages.decode import FLUSH_CLIPS
from stages.media import Facts
from stages.planes import HANDFUL
from stages.reader import Reader, Span, Timed
from stages.sample import choose
from stages.watchdog import EXIT_DEADLINE, EXIT_LOCKED, Watchdog
from tests.media import (
    BLUE,
    RED,
    Frames,
    flip_bits,
    number_of,
    numbered,
    packets,
    rotate,
    solid,
    textured,
    truncate,
    write_audio,
    write_video,
)
from tests.stages.units import ENTRY, Row, decoded, decoder, frames_of, rows_of, run, spans, timed_frames, unit

FIXED = ClipsConfig(split="fixed")


def test_a_video_of_two_shots_becomes_two_clips_and_an_end_row(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(50, 1) + textured(40, 2), audio=True)
    clips, end = decoded(path)
    assert spans(clips) == [(0.0, 2.0, "start"), (2.0, 3.6, "cut")]
    assert [c["clip_id"] for c in clips] == [f"{'0' * 32}-{ClipsConfig().fingerprint()}-{ms:09d}" for ms in (0, 2000)]
    assert all((c["width"], c["height"], c["fps"]) == (160, 90, pytest.approx(25)) for c in clips)
    assert all(c["error_code"] is None and c["labels"] is None for c in clips)
    known = {"error_code": None, "container": "mov,mp4,m4a,3gp,3g2,mj2", "codec": "h264", "width": 160, "height": 90}
    known |= {"rotation_deg": 0, "has_audio": True, "frames": 90, "lost_packets": 0, "clips": 2}
    assert {key: end[key] for key in known} == known
    assert end["decoded_s"] == pytest.approx(3.6)
    assert end["duration_s"] == pytest.approx(3.6)
    assert end["decode_cpu_s"] > 0
    assert abs((datetime.now(UTC) - end["started_at"]).total_seconds()) < 300


def test_kept_frames_stand_in_order_at_their_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(80), fps=20)
    (clip,), _ = decoded(path, FIXED)
    numbers = [number_of(frame) for frame in frames_of(clip)]
    assert numbers == [4, 14, 24, 34, 44, 54, 64, 74]  # middles at 5, 15...; of 80 frames every second one is a candidate
    assert clip["frame_times_s"] == pytest.approx([n / 20 for n in numbers])


def test_frames_are_red_green_blue_in_this_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", solid(RED, 20))
    (clip,), _ = decoded(path)
    assert np.abs(frames_of(clip).reshape(-1, 3).astype(int) - RED).max() <= 4


def test_kept_frames_have_the_configured_short_side(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(20, size=(160, 90)))
    (clip,), _ = decoded(path, ClipsConfig(short_side=45))
    assert frames_of(clip).shape == (8, 45, 80, 3)


def test_a_turned_video_stands_upright(tmp_path: Path) -> None:
    path = rotate(write_video(tmp_path / "a.mp4", textured(20)), 90)
    (clip,), end = decoded(path)
    assert (end["width"], end["height"], end["rotation_deg"]) == (90, 160, 90)
    assert (clip["width"], clip["height"]) == (90, 160)
    assert (clip["frame_width"], clip["frame_height"]) == (224, 398)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.avi", "a.webm", "a.flv"])
def test_every_container_gives_the_same_clips(tmp_path: Path, name: str) -> None:
    codec = {"a.webm": "libvpx"}.get(name, "libx264")
    clips, end = decoded(write_video(tmp_path / name, textured(50, 1) + textured(40, 2), codec=codec))
    assert spans(clips) == [(0.0, 2.0, "start"), (2.0, 3.6, "cut")]
    assert (end["frames"], end["error_code"]) == (90, None)


@pytest.mark.parametrize(("pix_fmt", "size"), [("yuv420p10le", (160, 90)), ("yuv444p", (160, 90)), ("yuv444p", (161, 91))])
def test_depths_samplings_and_odd_sizes_find_the_same_cut(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mkv", textured(40, 1, size) + textured(40, 2, size), pix_fmt=pix_fmt)
    clips, end = decoded(path)
    assert spans(clips) == [(0.0, 1.6, "start"), (1.6, 3.2, "cut")]
    assert (end["width"], end["height"]) == size


# Times


def test_with_a_variable_frame_rate_times_are_those_of_the_frames(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.54, 1.5, 1.6, 3.0]
    (clip,), end = decoded(write_video(tmp_path / "a.mkv", numbered(7), times_s=times), FIXED)
    chosen = sorted(set(choose(np.array(times), 0.0, clip["end_s"], 8)))
    assert clip["frame_times_s"] == pytest.approx([times[n] for n in chosen], abs=2e-3)
    assert [number_of(frame) for frame in frames_of(clip)] == chosen == [1, 3, 4, 5, 6]
    assert end["decoded_s"] == clip["end_s"] > 3.0


@pytest.mark.parametrize("first_s", [0.5, 1000.0, 2**33 / 90000 - 1])
def test_times_count_from_the_first_frame_wherever_that_is(tmp_path: Path, first_s: float) -> None:
    # the last one is a second before MPEG's clock starts again from zero: FFmpeg calls its first frame's time -1 s
    path = write_video(tmp_path / "a.ts", numbered(60), times_s=[first_s + i / 25 for i in range(60)])
    (clip,), end = decoded(path)
    assert (clip["start_s"], clip["end_s"]) == (0.0, pytest.approx(2.4))
    assert end["frames"] == 60


class Frame:
    """What a reader needs of a decoded frame; its times in seconds."""

    width = height = 16
    planes = ()
    is_corrupt = False

    def __init__(self, pts: float | None, dts: float | None = None, duration: float = 0.0) -> None:
        self.pts = None if pts is None else round(pts * 1000)
        self.dts = None if dts is None else round(dts * 1000)
        self.duration = round(duration * 1000)


def reader_of(
    frames: list[Frame],
    source_error: Callable[[], None] = lambda: None,
    span: Span | None = None,
    limits: LimitsConfig | None = None,
) -> Reader:
    """A reader of frames that decode in this order, at 10 frames per second."""
    facts = Facts("fake", "fake", 16, 16, None, False, Fraction(1, 1000), 0.1, 0)
    codec = SimpleNamespace(decode=lambda _none: [])
    packets = [SimpleNamespace(size=1, is_corrupt=False, pts=f.pts, dts=f.dts, decode=lambda f=f: [f]) for f in frames]
    stream = SimpleNamespace(codec_context=codec)
    container = SimpleNamespace(demux=lambda _stream: iter(packets))
    media: Any = SimpleNamespace(
        facts=facts, stream=stream, container=container, raise_source_error=source_error, missing_bytes=lambda: 0
    )
    return Reader(media, limits or ClipsConfig().limits, span or Span(), lambda: None)


def times_of(frames: list[Frame]) -> tuple[list[float], float]:
    """(times that these frames get, end of the last one)"""
    reader = reader_of(frames)
    return [round(time_s, 6) for time_s, _ in timed_frames(reader)], round(reader.end_s, 6)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([Frame(0.0), Frame(0.1), Frame(0.2)], [0.0, 0.1, 0.2]),
        ([Frame(-0.5), Frame(-0.4), Frame(0.0)], [0.0, 0.1, 0.5]),
        ([Frame(None, 2.0), Frame(None, 2.1), Frame(2.3)], [0.0, 0.1, 0.3]),
        ([Frame(None), Frame(None), Frame(None)], [0.0, 0.1, 0.2]),
        ([Frame(1.0), Frame(None), Frame(1.3)], [0.0, 0.1, 0.3]),
        ([Frame(0.0), Frame(0.2), Frame(0.1), Frame(0.3)], [0.0, 0.05, 0.1, 0.3]),
        ([Frame(0.0), Frame(0.1), Frame(9000.0), Frame(0.3), Frame(0.4)], [0.0, 0.1, 0.2, 0.3, 0.4]),
        ([Frame(0.0), Frame(0.1), Frame(0.1), Frame(0.3)], [0.0, 0.1, 0.2, 0.3]),
        ([Frame(5.0), Frame(0.1), Frame(0.2)], [0.0, 0.1, 0.2]),
        ([Frame(0.0), Frame(0.1), Frame(0.0), Frame(0.1), Frame(0.2)], [0.0, 0.1, 0.2, 0.3, 0.4]),
    ],
    ids=["plain", "negative", "decoding times", "none", "one missing", "swapped", "spike", "doubled", "first wrong", "restart"],
)
def test_times_only_grow_whatever_the_file_says(frames: list[Frame], expected: list[float]) -> None:
    times, end_s = times_of(frames)
    assert times == expected
    assert end_s == pytest.approx(expected[-1] + 0.1)


def test_a_last_frame_that_says_how_long_it_lasts_is_believed() -> None:
    assert times_of([Frame(0.0), Frame(0.1, duration=0.7)])[1] == pytest.approx(0.8)


def test_a_last_frame_that_says_it_lasts_for_years_ends_with_the_limit() -> None:
    assert times_of([Frame(0.0), Frame(0.1, duration=4e7)])[1] == ClipsConfig().limits.max_duration_s


def test_streams_that_appear_on_the_way_do_not_matter_at_the_end() -> None:
    """PyAV asks for the last packets of every stream, also of those that it does not know, and trips over them."""

    def demux(_stream: object) -> Iterator[Any]:
        for time_s in (0.0, 0.1):
            yield SimpleNamespace(size=1, is_corrupt=False, decode=lambda at=time_s: [Frame(at)])
        raise IndexError("list index out of range")

    reader = reader_of([])
    reader._media.container.demux = demux
    assert [time_s for time_s, _ in timed_frames(reader)] == [0.0, 0.1]
    assert reader.trouble() is None


@pytest.mark.parametrize(("broken", "frames", "lost"), [(25, 20, 0), (10, 19, 1)], ids=["after the mark", "before it"])
def test_a_failed_read_is_blamed_on_the_unit_that_it_belongs_to(broken: int, frames: int, lost: int) -> None:
    """Frames are read by the burst, beyond a unit's mark."""
    reader = reader_of([Frame(number / 10) for number in range(60)], span=Span(None, 2.0, 0.0))
    packets = enumerate(list(reader._media.container.demux(None)))

    def demux(_stream: object) -> Iterator[Any]:
        for number, packet in packets:
            if number == broken:
                raise av.error.InvalidDataError(1, "damaged")
            yield packet

    reader._media.container.demux = demux
    assert len(timed_frames(reader)) == frames
    assert reader.lost_packets == lost
    assert (reader.trouble() is None) == (not lost)


def test_a_limit_that_is_met_beyond_a_unit_s_end_is_not_the_unit_s() -> None:
    limits = ClipsConfig().limits.model_copy(update={"max_packets": 25})
    reader = reader_of([Frame(number / 10) for number in range(60)], span=Span(None, 2.0, 0.0), limits=limits)
    assert len(timed_frames(reader)) == 20
    assert reader.trouble() is None


def test_a_unit_that_begins_at_a_mark_does_not_keep_its_first_frames() -> None:
    seen: list[weakref.ref[Frame]] = []

    def packet(time_s: float) -> SimpleNamespace:
        frame = Frame(time_s)
        seen.append(weakref.ref(frame))
        return SimpleNamespace(size=1, is_corrupt=False, decode=lambda: [frame])

    reader = reader_of([], span=Span(5.0, None, 0.0))
    reader._media.container.seek = lambda *_at, **_how: None
    reader._media.container.demux = lambda _stream: (packet(5.0 + number / 10) for number in range(6 * HANDFUL))
    bursts = reader.bursts()
    for _ in range(4):
        next(bursts)
    assert [one() for one in seen[:HANDFUL]] == [None] * HANDFUL


def test_a_demuxer_that_gives_nothing_for_ever_meets_the_deadline() -> None:
    def demux(_stream: object) -> Iterator[Any]:
        while True:
            yield SimpleNamespace(size=0)

    def late() -> None:
        raise BadVideo(ErrorCode.DEADLINE, "late")

    reader = reader_of([])
    reader._media.container.demux, reader._check = demux, late
    with pytest.raises(BadVideo, match="late"):
        timed_frames(reader)


# Damage


def test_one_damaged_packet_costs_a_few_frames_and_not_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(120, 1), mux_options={"movflags": "faststart"})
    offset, size, _ = packets(path)[50]
    flip_bits(path, offset, size)
    clips, end = decoded(path)
    assert end["error_code"] == "damaged"
    assert end["lost_packets"] == 1
    assert "packets lost: 1" in end["error_message"]
    assert end["frames"] >= 118
    assert clips[-1]["end_s"] == pytest.approx(4.8)


def test_a_frame_that_the_decoder_patches_is_damage_too(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(60, 1), mux_options={"movflags": "faststart"})
    offset, _, _ = packets(path)[30]
    flip_bits(path, offset + 20, 3)
    clips, end = decoded(path)
    assert (end["error_code"], end["lost_packets"]) == ("damaged", 0)
    assert "patched" in end["error_message"]
    assert clips


@pytest.mark.parametrize("name", ["a.mp4", "fragmented.mp4", "a.mkv", "a.avi", "a.flv"])
def test_a_truncated_file_keeps_its_good_clips(tmp_path: Path, name: str) -> None:
    flags = {"a.mp4": "faststart", "fragmented.mp4": "frag_keyframe+empty_moov"}.get(name)
    path = write_video(tmp_path / name, textured(50, 1) + textured(50, 2), mux_options={"movflags": flags} if flags else {})
    truncate(path, 0.8)
    clips, end = decoded(path)
    assert end["error_code"] == "truncated"
    assert spans(clips)[0] == (0.0, 2.0, "start")
    assert 50 < end["frames"] < 100
    assert clips[-1]["end_s"] == pytest.approx(end["decoded_s"])


def test_an_intact_file_has_no_error_at_its_end(tmp_path: Path) -> None:
    # frames in disorder: many still stand in the decoder when the file ends
    options = {"preset": "veryfast", "bf": "4", "threads": "1"}
    _, end = decoded(write_video(tmp_path / "a.mp4", textured(50, 1), options=options))
    assert (end["frames"], end["lost_packets"], end["error_code"]) == (50, 0, None)


def test_packets_before_the_first_keyframe_are_no_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", textured(60, 1), gop=20)
    data = path.read_bytes()
    path.write_bytes(data[packets(path)[5][0] // 188 * 188 :])  # a recording that begins in the middle
    _, end = decoded(path)
    assert (end["lost_packets"], end["error_code"]) == (0, None)
    assert end["frames"] == 40


def test_a_video_of_which_nothing_decodes_is_said_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(20, 1), mux_options={"movflags": "faststart"})
    for offset, size, _ in packets(path):
        flip_bits(path, offset, size, seed=offset)
    clips, end = decoded(path)
    assert clips == []
    assert (end["error_code"], end["frames"]) == ("no_frames", 0)
    assert end["codec"] == "h264"


def test_after_a_thousand_lost_packets_in_a_row_the_rest_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.reader.MAX_LOST_IN_A_ROW", 10)
    path = write_video(tmp_path / "a.mp4", textured(100, 1), gop=1, mux_options={"movflags": "faststart"})
    for offset, size, _ in packets(path)[40:60]:
        flip_bits(path, offset, size, seed=offset)
    _, end = decoded(path)
    assert (end["error_code"], end["lost_packets"]) == ("damaged", 10)
    assert end["frames"] == 40


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_text("not a video\n" * 100), "unreadable"),
        (lambda p: p.write_text("ffconcat version 1.0\nfile other.mp4\n"), "unsupported_container"),
        (lambda p: shutil.copy(write_audio(p.with_name("x.m4a")), p), "no_video"),
        (lambda p: shutil.copy(write_audio(p.with_name("x.m4a"), cover=True), p), "cover_art"),
        (lambda p: truncate(write_video(p, textured(20)), 0.5), "truncated"),
        (Path.exists, "vanished"),
        (lambda p: p.mkdir(), "unreadable"),
    ],
    ids=["empty", "text", "concat", "audio", "cover", "truncated", "vanished", "folder"],
)
def test_promise_4_a_bad_file_is_one_end_row_and_costs_its_neighbours_nothing(tmp_path: Path, make: Any, code: str) -> None:
    good = write_video(tmp_path / "good.mp4", textured(30, 1))
    make(tmp_path / "bad.mp4")
    bad = unit(tmp_path / "bad.mp4", video_id="b" * 32)
    rows = rows_of(decoder(), unit(good, video_id="a" * 32), bad, unit(good, video_id="c" * 32))
    assert [(r["video_id"][0], r["row"], r["end"] is not None) for r in rows] == [
        ("a", 0, False),
        ("a", 1, True),
        ("b", 0, True),
        ("c", 0, False),
        ("c", 1, True),
    ]
    end = rows[2]["end"]
    assert (end["error_code"], end["clips"], end["frames"]) == (code, 0, 0)
    assert end["error_message"]
    assert rows[0]["frames"] == rows[3]["frames"]


def test_every_try_at_a_unit_has_its_own_token(tmp_path: Path) -> None:
    one = unit(write_video(tmp_path / "a.mp4", textured(30, 1) + textured(30, 2)))
    decode = decoder()
    tokens = [{row["attempt"] for row in rows_of(decode, one)} for _ in range(2)]
    assert [len(t) for t in tokens] == [1, 1]
    assert tokens[0] != tokens[1]


# Limits


def limited(**limits: Any) -> ClipsConfig:
    return ClipsConfig.model_validate({"limits": limits})


def test_a_video_longer_than_the_limit_keeps_what_comes_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(50, 1) + textured(50, 2))
    clips, end = decoded(path, limited(max_duration_s=3.2))
    assert spans(clips) == [(0.0, 2.0, "start"), (2.0, 3.2, "cut")]
    assert (end["error_code"], end["frames"], end["decoded_s"]) == ("too_long", 80, pytest.approx(3.2))


def test_a_video_of_more_packets_than_the_limit_keeps_what_comes_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(50, 1) + textured(50, 2))
    clips, end = decoded(path, limited(max_packets=80))
    assert (end["error_code"], end["frames"]) == ("too_many_packets", 80)
    assert clips[-1]["end_s"] == pytest.approx(3.2)


def test_a_video_of_more_pixels_than_the_limit_is_refused(tmp_path: Path) -> None:
    clips, end = decoded(write_video(tmp_path / "a.mp4", textured(10)), limited(max_pixels=1000))
    assert (clips, end["error_code"]) == ([], "too_large")


# The union of frames over what is due


def test_a_clip_carries_the_frames_of_every_model_that_is_due_and_of_no_other(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(60))
    decode = decoder(FIXED, {"aaaaaaaa": 8, "bbbbbbbb": 3, "cccccccc": 5})

    def times(*due: str) -> list[float]:
        rows = rows_of(decode, unit(path, due=[FIXED.fingerprint(), *due]))
        assert rows[0]["frame_count"] == len(rows[0]["frame_times_s"])
        return list(rows[0]["frame_times_s"])

    assert times("bbbbbbbb", "aaaaaaaa") == sorted({*times("aaaaaaaa"), *times("bbbbbbbb")})
    assert len(times("cccccccc")) == 5
    assert times("aaaaaaaa", "bbbbbbbb", "cccccccc") != times("aaaaaaaa")


def test_promise_6_a_models_frames_are_the_same_whatever_else_is_due(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(150), fps=20)
    decode = decoder(FIXED, {"aaaaaaaa": 8, "bbbbbbbb": 64})
    alone = rows_of(decode, unit(path, due=["aaaaaaaa"]))[0]
    both = rows_of(decode, unit(path, due=["aaaaaaaa", "bbbbbbbb"]))[0]
    places = [both["frame_times_s"].index(time_s) for time_s in alone["frame_times_s"]]
    assert np.array_equal(frames_of(both)[places], frames_of(alone))
    assert both["clip_id"] == alone["clip_id"]


def test_where_no_model_is_due_no_frame_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(30))
    rows = rows_of(decoder(), unit(path, due=[ClipsConfig().fingerprint()]))
    assert (rows[0]["frames"], rows[0]["frame_count"], rows[0]["frame_times_s"]) == (None, 0, [])
    assert rows[0]["brightness"] > 0


def scenes() -> tuple[Frames, Frames, Frames]:
    return textured(60, 1), textured(200, 2), textured(45, 3)


def test_a_clip_has_the_same_frames_alone_and_in_a_longer_video(tmp_path: Path) -> None:
    lossless = {"preset": "ultrafast", "qp": "0", "threads": "1"}
    before, clip, after = scenes()
    alone = write_video(tmp_path / "alone.mkv", clip, pix_fmt="yuv444p", options=lossless)
    whole = write_video(tmp_path / "whole.mkv", before + clip + after, pix_fmt="yuv444p", options=lossless)
    (one,), _ = decoded(alone)
    inside = decoded(whole)[0][1]
    assert (inside["start_s"], inside["end_s"]) == (2.4, 10.4)
    assert np.array_equal(frames_of(one), frames_of(inside))
    assert [t + 2.4 for t in one["frame_times_s"]] == pytest.approx(inside["frame_times_s"])
    for name in ("motion", "brightness", "contrast", "sharpness", "fps"):
        assert one[name] == pytest.approx(inside[name], rel=1e-6)


# Flushing


def test_tables_leave_every_few_clips_and_the_last_ones_with_the_end_row(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(25 * 18, 1, size=(32, 32)))
    tables = run(decoder(ClipsConfig(split="fixed", max_s=1.0, min_s=0.5, short_side=16)), unit(path))
    assert [table.num_rows for table in tables] == [FLUSH_CLIPS, 18 - FLUSH_CLIPS + 1]


def test_tables_leave_when_their_frames_are_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.decode.FLUSH_BYTES", 1_000_000)
    path = write_video(tmp_path / "a.mp4", textured(150, 1, size=(64, 48)))
    tables = run(decoder(ClipsConfig(split="fixed", max_s=2.0)), unit(path))
    assert [table.num_rows for table in tables] == [1, 1, 1, 1]


def test_what_has_left_does_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of clips and tables of them hold many frames: none of them while the frames of the next ones gather."""
    left: list[weakref.ref[Any]] = []
    kept: list[Any] = []

    class Watched(Clipper):
        def push(self, burst: Sequence[Timed]) -> list[Draft]:
            kept.extend(thing for thing in (one() for one in left) if thing is not None)
            drafts = super().push(burst)
            left.extend(map(weakref.ref, drafts))
            return drafts

    monkeypatch.setattr("stages.decode.Clipper", Watched)
    path = write_video(tmp_path / "a.mp4", textured(25 * 40, 1, size=(32, 32)))
    decode = decoder(ClipsConfig(split="fixed", max_s=1.0, min_s=0.5, short_side=16))
    tables = decode(rows_table([unit(path)], UNIT_ROW))
    for _ in range(2):
        left.append(weakref.ref(next(tables)))
    next(tables)
    assert len(left) > 2 * FLUSH_CLIPS
    assert not kept


@pytest.mark.parametrize(("units", "times"), [(1, 0), (2, 2)])
def test_memory_goes_back_after_a_unit_of_a_long_file_and_stays_for_the_next_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: int, times: int
) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr("stages.decode.trim_memory", lambda: trimmed.append(len(left)))
    path = write_video(tmp_path / "a.mp4", textured(50, size=(32, 32)))
    left: list[str] = []
    for table in decoder()(rows_table([unit(path, unit=number, units=units) for number in range(2)], UNIT_ROW)):
        left.extend(row["uri"] for row in table.to_pylist() if row["end"])
    assert len(left) == 2
    assert trimmed == [1, 2][:times]


# What changes underneath


def test_a_file_that_changes_while_it_is_read_is_deferred(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(25 * 20, 1, size=(32, 32)))
    decode = decoder(ClipsConfig(split="fixed", max_s=1.0, min_s=0.5, short_side=16))
    tables = decode(rows_table([unit(path)], UNIT_ROW))
    first = next(tables)
    assert first.num_rows == FLUSH_CLIPS
    path.write_bytes(path.read_bytes() + b"more")
    *_, last = tables
    end = last.to_pylist()[-1]
    assert end["end"]["error_code"] == "changed"
    assert end["row"] == end["end"]["clips"] == 20


def test_a_file_that_is_not_the_one_that_was_listed_is_not_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(30, 1))
    _, end = decoded(path, size_bytes=7)
    assert (end["error_code"], end["clips"], end["container"]) == ("changed", 0, None)


class Broken(io.BytesIO):
    """A file whose store fails from some place on."""

    def __init__(self, data: bytes, first_bad: int) -> None:
        super().__init__(data)
        self._first_bad = first_bad

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= self._first_bad:
            raise BadVideo(ErrorCode.STORAGE, "the store went away")
        return super().read(min(4096 if size is None or size < 0 else size, 4096))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_store_that_fails_in_the_middle_is_not_taken_for_the_end_of_the_file(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, textured(200, 1), mux_options={"movflags": "faststart"} if name == "a.mp4" else {})
    data = path.read_bytes()
    decode = decoder(open_file=lambda *_: Broken(data, len(data) // 2), check_file=lambda *_: None)
    *_, end = rows_of(decode, unit(path))
    assert (end["end"]["error_code"], end["end"]["error_message"]) == ("storage", "the store went away")


def test_an_error_of_the_store_that_ffmpeg_takes_for_the_end_is_raised() -> None:
    def fail() -> None:
        raise BadVideo(ErrorCode.STORAGE, "the store went away")

    with pytest.raises(BadVideo, match="the store went away"):
        timed_frames(reader_of([Frame(0.0)], fail))


def test_our_own_mistakes_are_loud(tmp_path: Path) -> None:
    def broken(*_: object) -> BinaryIO:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        rows_of(decoder(open_file=broken), unit(tmp_path / "a.mp4"))


# Time and memory


class Slow(io.BytesIO):
    """A file that takes its time over every read."""

    def read(self, size: int | None = -1, /) -> bytes:
        time.sleep(0.02)
        return super().read(min(2048 if size is None or size < 0 else size, 2048))


def test_a_unit_past_its_deadline_ends_in_order_and_the_next_has_its_own_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", textured(300, 1))
    data = path.read_bytes()
    files: list[BinaryIO] = [Slow(data), io.BytesIO(data)]
    decode = decoder(unit_deadline_s=2.0, open_file=lambda *_: files.pop(0), check_file=lambda *_: None)
    ends = [row["end"] for row in rows_of(decode, unit(path), unit(path)) if row["end"]]
    assert [end["error_code"] for end in ends] == ["deadline", None]
    assert "2 s" in ends[0]["error_message"]


def test_the_deadline_does_not_run_while_a_table_is_with_its_consumer(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(25 * 3, 1, size=(32, 32)))
    ended: list[int] = []
    watchdog = Watchdog(5.0, grace_s=0.0, end=ended.append)
    decode = decoder(ClipsConfig(split="fixed", max_s=1.0, min_s=0.5, short_side=16), watchdog=watchdog)
    end: Row = {}
    for table in decode(rows_table([unit(path)], UNIT_ROW)):
        since = watchdog._running_since
        assert since is None  # stands still
        end = table.to_pylist()[-1]
    assert end["end"]["error_code"] is None
    assert ended == []


def test_the_watchdog_ends_what_hangs_and_nothing_else() -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    watchdog = Watchdog(0.05, grace_s=0.05, end=end)
    watchdog.start("a quick unit")
    watchdog.resume()
    watchdog.pause()
    assert not ended.wait(0.3)
    watchdog.start("a unit that hangs")
    watchdog.resume()
    assert ended.wait(10)
    assert codes == [EXIT_DEADLINE]


def test_an_idle_watchdog_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.watchdog._IDLE_S", 0.01)
    watchdog = Watchdog(5.0, end=lambda _code: None)
    for _ in range(2):
        watchdog.resume()
        thread = watchdog._thread
        assert thread is not None
        watchdog.pause()
        thread.join(10)
        assert not thread.is_alive()


def test_a_watching_thread_that_died_is_replaced() -> None:
    watchdog = Watchdog(5.0, end=lambda _code: None)
    dead = watchdog._thread = threading.Thread(target=lambda: None)
    dead.start()
    dead.join()
    watchdog.resume()
    assert watchdog._thread is not dead
    watchdog.pause()


def run_python(code: str, *args: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """A fresh Python that runs `code`; it may end itself or cap its memory."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
        check=False,
    )


def test_promise_5_a_read_that_never_returns_ends_the_worker_with_its_own_status(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", textured(100, 1))
    code = """
        import sys, io, time
        from stages.watchdog import Watchdog
        from tests.stages.units import decoder, rows_of, unit

        class Hanging(io.BytesIO):
            def read(self, size=-1, /):
                if self.tell() > 20000:
                    print("hangs now", flush=True)
                    time.sleep(1000)
                return super().read(min(size, 4096))

        data = open(sys.argv[1], "rb").read()
        decode = decoder(open_file=lambda *_: Hanging(data), check_file=lambda *_: None, watchdog=Watchdog(0.5, grace_s=0.5))
        rows_of(decode, unit(sys.argv[1]))
        print("came back")
    """
    done = run_python(code, str(path))
    assert done.returncode == EXIT_DEADLINE, done.stderr
    assert "hangs now" in done.stdout
    assert "came back" not in done.stdout


def test_promise_5_a_decoder_that_hangs_in_c_ends_too() -> None:
    code = """
        import ctypes
        from stages.watchdog import Watchdog

        watchdog = Watchdog(0.3, grace_s=0.3)
        watchdog.start("hangs in C, with the interpreter's lock released, as FFmpeg does")
        watchdog.resume()
        ctypes.CDLL(None).sleep(1000)
    """
    done = run_python(code)
    assert done.returncode == EXIT_DEADLINE
    assert "hangs in C" in done.stderr


def test_promise_5_a_decoder_that_hangs_with_the_interpreters_lock_ends_too() -> None:
    code = """
        import ctypes
        from stages.watchdog import Watchdog

        watchdog = Watchdog(0.2, grace_s=0.2)
        watchdog.start("a quick one")
        watchdog.resume()
        watchdog.pause()
        watchdog.start("no thread of Python's gets a turn while this sleeps")
        watchdog.resume()
        ctypes.PyDLL(None).sleep(1000)
    """
    done = run_python(code)
    assert done.returncode == EXIT_LOCKED
    assert "Timeout" in done.stderr


def test_promise_5_a_video_that_wants_too_much_memory_is_one_end_row(tmp_path: Path) -> None:
    large = write_video(tmp_path / "large.mp4", textured(40, 1, size=(1920, 1080)))
    small = write_video(tmp_path / "small.mp4", textured(20, 1))
    code = """
        import sys
        from tests.stages.units import decoder, rows_of, unit

        units = [unit(path) for path in sys.argv[1:]]
        rows_of(decoder(), units[1])  # what libraries allocate once
        decode = decoder(worker_memory_bytes=48 << 20)
        print([row["end"]["error_code"] for row in rows_of(decode, *units) if row["end"]])
    """
    done = run_python(code, str(large), str(small))
    assert done.stdout.strip() == "['memory', None]", done.stderr


def test_promise_4_a_worker_does_not_grow_with_the_clips_it_has_made(tmp_path: Path) -> None:
    """A megabyte that stays behind of every clip makes of all later videos some that want too much memory."""
    path = write_video(tmp_path / "a.mp4", textured(12, 1))
    decode = decoder()

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    rows_of(decode, unit(path))
    before = resident_bytes()
    frame_bytes = sum(len(row["frames"] or b"") for _ in range(60) for row in rows_of(decode, unit(path)))
    assert frame_bytes > 100 << 20
    assert resident_bytes() - before < 20 << 20


def test_a_video_that_broke_off_holds_no_frames_until_somebody_collects_garbage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", textured(60, 1))
    alive: weakref.WeakSet[Reader] = weakref.WeakSet()

    def too_late() -> None:
        for reader in [found for found in gc.get_objects() if type(found) is Reader]:
            alive.add(reader)
            if reader.frames_read > 20:
                raise BadVideo(ErrorCode.DEADLINE, "too late")

    watchdog = Watchdog(60.0)
    watchdog.check = too_late  # type: ignore[method-assign]
    gc.collect()
    gc.disable()
    try:
        *_, end = rows_of(decoder(watchdog=watchdog), unit(path))
        assert end["end"]["error_code"] == "deadline"
        assert len(alive) == 0
    finally:
        gc.enable()


def test_what_arrow_sets_aside_is_not_the_decoders_memory(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", textured(40, 1, size=(640, 360)))
    code = """
        import sys
        from tests.stages.units import decoder, rows_of, unit

        rows = rows_of(decoder(worker_memory_bytes=900 << 20), unit(sys.argv[1]))
        import resource
        print(rows[-1]["end"]["error_code"], resource.getrlimit(resource.RLIMIT_DATA)[0] > 1900 << 20)
    """
    done = run_python(code, str(path))
    assert done.stdout.strip() == "None True", done.stderr


def test_the_cap_on_memory_is_set_once_a_process_and_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.memory._capped_process", None)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    decoder()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    try:
        decoder(worker_memory_bytes=1 << 40)
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        assert 1 << 40 < soft < 1 << 42
        assert hard == before[1]
        decoder(worker_memory_bytes=1 << 41)
        assert resource.getrlimit(resource.RLIMIT_DATA) == (soft, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


# Streams that change on the way


def test_a_stream_that_changes_its_size_goes_on(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / f"{n}.ts", textured(40, n, size), codec="mpeg2video")
        for n, size in enumerate([(160, 90), (320, 180)])
    ]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clips, end = decoded(path)
    assert end["frames"] >= 79  # the decoder drops one where it starts anew
    assert all(clip["frame_height"] == 224 for clip in clips)
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(clips))


def test_a_still_picture_that_lasts_is_one_frozen_clip(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", solid(BLUE, 75))
    (clip,), _ = decoded(path)
    assert clip["motion"] == 0.0
    assert ENTRY in clip["due"]
