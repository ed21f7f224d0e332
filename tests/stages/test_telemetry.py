"""What stages measure, and that it is bounded where nobody collects it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from stages.telemetry import MOST_KEPT, Figure, Measurement, collect, measured, timed
from tests.media import textured, write_video
from tests.stages.clips import end_row, table
from tests.stages.test_batches import batches, honest, rows
from tests.stages.units import decoded


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    collect()


def test_a_figure_is_handed_out_once() -> None:
    measured(Figure.FORWARD_CLIPS, 16, stage="embed", model="m")
    assert collect() == [Measurement(Figure.FORWARD_CLIPS, 16, {"stage": "embed", "model": "m"})]
    assert collect() == []


def test_where_nobody_collects_the_latest_are_kept() -> None:
    for number in range(MOST_KEPT + 3):
        measured(Figure.STAGE_S, number, stage="decode", model="")
    kept = collect()
    assert (len(kept), kept[0].value) == (MOST_KEPT, 3)


def test_figures_of_many_threads_are_all_there() -> None:
    def work() -> None:
        for _ in range(500):
            measured(Figure.STORAGE_RETRY, 1, reason="throttled")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    found = 0
    while any(thread.is_alive() for thread in threads):
        found += len(collect())
    assert found + len(collect()) == 2000


def test_what_fails_is_not_timed() -> None:
    with pytest.raises(ValueError, match="no"), timed(Figure.STAGE_S, stage="decode", model=""):
        raise ValueError("no")
    assert collect() == []
    with timed(Figure.STAGE_S, stage="decode", model=""):
        pass
    (kept,) = collect()
    assert kept.value >= 0


def test_decode_measures_each_unit_once(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        decoded(write_video(tmp_path / name, textured(30, 1) + textured(30, 2)))
    kept = collect()
    assert [(one.figure, one.labels) for one in kept] == [(Figure.STAGE_S, {"stage": "decode", "model": ""})] * 2
    assert all(one.value > 0 for one in kept)


def test_a_model_stage_measures_a_table_once_and_every_forward_pass() -> None:
    batches(honest, batch_clips=3)(table(rows(7)))
    labels = {"stage": "embed", "model": "here"}
    kept = collect()
    assert [one.value for one in kept if one.figure is Figure.FORWARD_CLIPS] == [3, 3, 1]
    assert [one.figure for one in kept].count(Figure.STAGE_S) == 1
    assert all(one.labels == labels for one in kept)


def test_a_table_without_due_rows_is_not_measured() -> None:
    batches(honest)(table([end_row(0)]))
    assert collect() == []
