from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.growth import START, archive, of_a_clip, recordings, tiny
from benchmarks.rounds import Results, Setup

SETUP = Setup("a machine", "3.11.7", {}, "c0de", {}, [START, "1 time"])


def test_what_starting_up_costs_is_taken_off() -> None:
    figures = {
        START: {0: {"cpu_s": 30.0, "clips": 8.0}, 1: {"cpu_s": 32.0, "clips": 8.0}},
        "1 time": {0: {"cpu_s": 40.0, "clips": 50.0}, 1: {"cpu_s": 47.0, "clips": 50.0}},
    }
    assert of_a_clip(Results(SETUP, "2026-11-26", figures, None), "1 time").median == pytest.approx((0.2 + 0.3) / 2)


def test_an_archive_is_every_recording_so_many_times(tmp_path: Path) -> None:
    originals = [tiny(tmp_path / "in" / f"{name}.mp4") for name in ("a", "b")]
    below = archive(tmp_path / "archives", originals, 3)
    assert sorted(path.name for path in below.iterdir()) == [f"{n:03d}-{name}.mp4" for n in range(3) for name in ("a", "b")]
    assert (below / "002-a.mp4").read_bytes() == originals[0].read_bytes()
    assert archive(tmp_path / "archives", originals, 3) == below


def test_recordings_that_are_too_few_are_refused(tmp_path: Path) -> None:
    tiny(tmp_path / "small.mp4")
    with pytest.raises(FileNotFoundError, match="has 0 small recordings, not 1"):
        recordings(tmp_path, 1)
