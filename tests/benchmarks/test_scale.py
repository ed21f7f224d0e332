from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import publishing
from benchmarks.rounds import Results, Section, Setup
from benchmarks.scale import MARKS, Amounts, Assumed, Measured, main, needs, replaced, requests_of, wall_hours, words

ASSUMED = Assumed(
    hours=1000, clips_an_hour=360, video_minutes=10, gb_an_hour=1.0, nodes=2, gpus=4, cores=50, gbit_s=10, captions_s=10,
    vision_s=90, writes_s=100, epoch_clips=36_000,
)  # fmt: skip
EACH = {"list": 0.0, "get": 2.0, "put": 1.0, "delete": 1.0}
MEASURED = Measured(
    decode_s=0.1, driver_s=0.001, part_published_s=0.01, clip_published_s=0.001, clip_bytes=1000, due_bytes=1000,
    task_bytes=1e9, model_bytes=2e9, driver_bytes=1e9, video_requests=EACH, block_requests=1.0, part_requests=EACH,
    epoch_requests=EACH,
)  # fmt: skip


def test_an_archive_is_counted_in_whole_parts_and_blocks() -> None:
    archive = Amounts.of(ASSUMED)
    assert (archive.clips, archive.videos, archive.epochs) == (360_000, 6000, 10)
    assert archive.parts == 6000 + 360_000 / 32
    assert Amounts.of(replace(ASSUMED, nodes=64, gpus=8)).parts == 6000 + 360_000 / 512  # batches grow with the cluster
    assert Amounts.of(replace(ASSUMED, video_minutes=30)).parts == 2000 * 3 + 360_000 / 32  # of three units each
    assert archive.blocks == 6000 * 39  # 167 MB of a video are 40 blocks of 4 MB


def test_what_takes_longest_comes_first() -> None:
    found = needs(ASSUMED, MEASURED)
    hours = {need.what: need.hours for need in found}
    assert [need.hours for need in found] == sorted(hours.values(), reverse=True)
    assert hours["GPUs"] == pytest.approx(360_000 * (0.1 + 1 / 90) / 8 / 3600)
    assert hours["cores that decode"] == pytest.approx(1000 * 3600 * 0.1 / 100 / 3600)
    assert hours["the driver"] == pytest.approx(0.1)
    assert hours["publishing"] == pytest.approx((17_250 * 0.01 + 360_000 * 0.001) / 2 / 3600)
    assert hours["the network"] == pytest.approx(1000 * 8 / 20 / 3600)
    assert hours["the store, staging parts"] == hours["clearing away parts"] == pytest.approx(17_250 / 100 / 3600)
    assert wall_hours(found) == pytest.approx(hours["GPUs"] + hours["clearing away parts"])


def test_publishing_costs_something_of_a_part_and_something_of_a_clip() -> None:
    figures = {
        name: {0: {"clips": 1000.0, "published_s": 1000 * (0.002 + 0.03 / size)}} for name, size in publishing.PARTS.items()
    }
    setup = Setup("a machine", "3.11.7", {}, "c0de", {}, [*publishing.PARTS])
    assert publishing.costs(Results(setup, "2026-11-26", figures, None)) == pytest.approx((0.03, 0.002))


def test_a_faster_captioner_leaves_the_cores_to_hold_it_up() -> None:
    assert needs(replace(ASSUMED, captions_s=1000, vision_s=1000), MEASURED)[0].what == "cores that decode"


def test_requests_follow_videos_parts_and_epochs() -> None:
    found = dict(requests_of(ASSUMED, MEASURED))
    assert found["reading sources"]["get"] == 6000 * 2 + 6000 * 39
    assert found["staged parts"] == {"list": 17.25, "get": 34_500, "put": 17_267.25, "delete": 17_250}
    assert found["reading sources"]["list"] == 6
    assert found["epochs, log and tables"]["put"] == pytest.approx(10 + 360_000 * 1000 / (16 << 20))


def test_what_is_not_measured_yet_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"scale: .*memory\.jsonl: nothing measured yet"):
        main(["--records", str(tmp_path), "--print"])
    section = Section("memory", folder=tmp_path)
    with pytest.raises(RuntimeError):
        section.run({"1 min": _fails}, rounds=1)
    with pytest.raises(SystemExit, match="nothing measured yet"):
        main(["--records", str(tmp_path), "--print"])


def _fails() -> dict[str, float]:
    raise RuntimeError("the machine went away")


def test_only_the_part_between_the_marks_is_replaced() -> None:
    page = f"# Scale\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nBy hand.\n"
    once = replaced(page, words(ASSUMED, MEASURED))
    assert once.startswith(f"# Scale\n\n{MARKS[0]}\n1,000 hours of video")
    assert once.endswith(f"{MARKS[1]}\n\nBy hand.\n")
    assert replaced(once, "old") == page
    with pytest.raises(ValueError, match="reckoning"):
        replaced("# Scale\n", "new")
