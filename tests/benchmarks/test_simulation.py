from __future__ import annotations

import pytest

from benchmarks import made
from benchmarks.simulation import PARTS, Costs
from benchmarks.stand_ins import DIM, Decode, Embed
from schemas.rows import PART_ROW, conform


def figure(working_s: float, working_cpu_s: float, clips: int = 1000) -> dict[str, float]:
    others = {f"{part}_cpu_s": 1.0 for part in PARTS if part != "working"}
    return {"working_s": working_s, "working_cpu_s": working_cpu_s, "clips": clips, **others}


def test_what_a_driver_takes_is_of_a_run_of_a_second_and_of_a_clip() -> None:
    idle, clip_s = 0.05, 0.002
    small, fast, slow = (
        figure(took_s, idle * took_s + clips * clip_s, clips) for took_s, clips in ((2.0, 100), (10.0, 1000), (40.0, 1000))
    )
    found = Costs.of(small, fast, slow)
    assert found.idle == pytest.approx(idle)
    assert found.clip_s == pytest.approx(clip_s)
    assert found.run_s == pytest.approx(3.0)  # listing, starting and ending
    assert found.limit_clips_s == pytest.approx((1 - idle) / clip_s)


def test_a_slow_run_that_was_not_slower_tells_nothing_of_idleness() -> None:
    assert Costs.of(figure(1.0, 0.2, 100), figure(10.0, 2.0), figure(10.0, 2.5)).idle == 0.0


def test_stand_ins_make_the_rows_that_the_real_stages_make() -> None:
    config, entries = made.job("/out", "/footage", ["embed"])
    units = made.units(made.sources(0, 2).append_column("due", made.pa.array([[entries[0].fingerprint]] * 2)))
    tables = list(Decode(20, config.clips.fingerprint(), 0.0)(units))
    assert [table.num_rows for table in tables] == [2 * 21]
    rows = conform(Embed(entries[0], DIM)(tables[0]), PART_ROW)
    assert [len(found or []) for found in rows["embeddings"].to_pylist()] == 2 * [*20 * [1], 0]
    assert rows["end"].to_pylist()[-1]["clips"] == 20
