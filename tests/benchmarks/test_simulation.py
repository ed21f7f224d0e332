from __future__ import annotations

import pytest

from benchmarks import made
from benchmarks.simulation import PARTS, Costs
from benchmarks.stand_ins import DIM, Decode, Embed
from schemas.rows import PART_ROW, conform


def figure(working_s: float, working_cpu_s: float) -> dict[str, float]:
    others = {f"{part}_cpu_s": 1.0 for part in PARTS if part != "working"}
    return {"working_s": working_s, "working_cpu_s": working_cpu_s, "clips": 1000, **others}


def test_what_a_driver_takes_while_nothing_comes_is_told_from_what_a_clip_takes() -> None:
    idle, clip_s = 0.05, 0.002
    fast, slow = (figure(took_s, idle * took_s + 1000 * clip_s) for took_s in (10.0, 40.0))
    found = Costs.of(fast, slow)
    assert found.idle == pytest.approx(idle)
    assert found.clip_s == pytest.approx(clip_s + 0.003)  # listing, starting and ending belong to the clips, too
    assert found.limit_clips_s == pytest.approx((1 - idle) / 0.005)


def test_a_slow_run_that_was_not_slower_tells_nothing_of_idleness() -> None:
    assert Costs.of(figure(10.0, 2.0), figure(10.0, 2.5)).idle == 0.0


def test_stand_ins_make_the_rows_that_the_real_stages_make() -> None:
    config, entries = made.job("/out", "/footage", ["embed"])
    units = made.units(made.sources(0, 2).append_column("due", made.pa.array([[entries[0].fingerprint]] * 2)))
    tables = list(Decode(20, config.clips.fingerprint(), 0.0)(units))
    assert [table.num_rows for table in tables] == [16, 5, 16, 5]
    rows = conform(Embed(entries[0], DIM)(tables[1]), PART_ROW)
    assert [len(found or []) for found in rows["embeddings"].to_pylist()] == [1, 1, 1, 1, 0]
    assert rows["end"].to_pylist()[-1]["clips"] == 20
