"""From what happens in a run to figures: every one against the ledger, or against a clock that stands."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from cluster import metrics
from cluster.metrics import METRICS
from pipeline.events import Committed, Event, Expected, Opened, Planned, Received, told_to
from pipeline.gather import Tally
from pipeline.intake import Delta
from pipeline.metering import _METRIC_OF, RunMeter, WorkerMeter
from schemas.errors import ErrorCode
from schemas.rows import RECEIPT
from stages import telemetry
from stages.storage import Store
from stages.telemetry import Figure
from tests.metrics import Recorded
from tests.pipeline.faults import memory
from tests.pipeline.rows import Steps, Video, World
from tests.pipeline.test_recovery import ledger

VIDEOS = (
    Video("a", (2, 1)),
    Video("b", (3,), error="damaged"),
    Video("c", (0,), error="unreadable"),
    Video("d", (0,), error="memory"),
    Video("e", (0,), error="vanished"),
    Video("f", (2,)),
    Video("g", (1,), missing=True),
)


class Watch:
    """A meter, the clock that it looks at, and what it recorded."""

    def __init__(self, epoch_s: float = 3600.0) -> None:
        self.now_s, self.sink = 1000.0, Recorded()
        self.meter = RunMeter(epoch_s, self.sink, clock=lambda: self.now_s, now=lambda: 1.7e9 + self.now_s)

    def tell(self, *events: Event) -> None:
        for event in events:
            self.meter(event)

    def figure(self, metric: metrics.Metric, **labels: str) -> float:
        self.meter.export()
        return self.sink.value(metric, **labels)

    def counts(self, metric: metrics.Metric, label: str) -> dict[str, float]:
        self.meter.export()
        found = {dict(own)[label]: value for (name, own), value in self.sink.values.items() if name == metric.name}
        return {key: value for key, value in found.items() if value}


def received(videos: int = 0, **delta: Any) -> Received:
    return Received(RECEIPT.empty_table(), Delta(videos=videos, **delta))


def no_rows(columns: object) -> Any:
    raise AssertionError("a meter reads no rows")


def committed(epoch: int, tally: Tally | None = None) -> Committed:
    return Committed(epoch, tally or Tally(), no_rows)


def run(*videos: Video, **kwargs: Any) -> tuple[World, Watch]:
    watch = Watch()
    w = World(Store(memory()), videos, Steps("1"), observe=watch.meter, **kwargs)
    w.run()
    return w, watch


def test_what_is_published_is_counted_as_the_ledger_has_it() -> None:
    w, watch = run(*VIDEOS)
    rows = ledger(w.store)
    assert watch.counts(metrics.PUBLISHED_VIDEOS, "status") == Counter(row["status"] for row in rows)
    assert watch.counts(metrics.PUBLISHED_ERRORS, "code") == Counter(row["error_code"] for row in rows if row["error_code"])
    assert watch.figure(metrics.PUBLISHED_CLIPS) == sum(row["clips"] or 0 for row in rows) == 8
    assert watch.figure(metrics.PUBLISHED_VIDEO_S) == sum(row["decoded_s"] or 0 for row in rows)


def test_what_comes_in_is_counted_by_what_can_be_done_with_it() -> None:
    _, watch = run(*VIDEOS)
    assert watch.counts(metrics.COMPLETED_VIDEOS, "outcome") == {"usable": 3, "failed": 3, "deferred": 1}
    assert watch.figure(metrics.RECEIVED_UNITS) == 7
    assert watch.figure(metrics.RECEIVED_CLIPS) == 8
    assert watch.figure(metrics.RECEIVED_VIDEO_S) == 16
    assert watch.figure(metrics.DECODED_FRAMES) == 50 * 8
    assert watch.figure(metrics.DECODE_CPU_S) == pytest.approx(0.7)
    assert watch.figure(metrics.DUE_UNITS) == 0


def test_every_status_and_outcome_is_there_from_the_beginning() -> None:
    watch = Watch()
    watch.tell(Opened("r", "/out"))
    watch.meter.export()
    assert len(watch.sink.by_label(metrics.PUBLISHED_VIDEOS, run_id="r")) == 5
    assert len(watch.sink.by_label(metrics.COMPLETED_VIDEOS, run_id="r")) == 3
    unlabelled = [metric for metric in METRICS if metric.kind == "counter" and metric.labels == ("run_id",)]
    assert all(watch.sink.value(metric) == 0 for metric in unlabelled)
    assert watch.figure(metrics.RUN_INFO, run_id="r", output="/out") == 1


def test_every_video_lags_from_its_end_to_the_commit_of_its_epoch() -> None:
    watch = Watch()
    watch.tell(Opened("r", "/out"), Expected(6), received(2, units=2))
    watch.now_s += 0.5
    watch.tell(received(1, units=1))  # as good as together
    watch.now_s += 100
    watch.tell(received(1, units=1), Planned(7))
    watch.now_s += 10
    watch.tell(received(2, units=2))
    assert (watch.figure(metrics.UNPUBLISHED_VIDEOS), watch.figure(metrics.EPOCHS_IN_FLIGHT)) == (6, 1)
    assert watch.figure(metrics.OLDEST_UNPUBLISHED_S) == 110.5
    watch.tell(committed(7))
    assert (watch.figure(metrics.UNPUBLISHED_VIDEOS), watch.figure(metrics.EPOCHS_IN_FLIGHT)) == (2, 0)
    assert watch.figure(metrics.OLDEST_UNPUBLISHED_S) == 0
    assert watch.sink.observations(metrics.PUBLISH_LAG_S) == [10, 110.5, 110.5, 110.5]
    assert watch.sink.observations(metrics.PUBLISH_S) == [10]
    watch.tell(Planned(8), committed(8))
    assert watch.figure(metrics.OLDEST_UNPUBLISHED_S) == 0


def test_the_queue_is_what_is_expected_and_not_over_and_repetitions_count_apart() -> None:
    watch = Watch()
    watch.tell(Opened("r", "/out"), Expected(5), received(2, units=2), Expected(0, again=3))
    assert (watch.figure(metrics.DUE_UNITS), watch.figure(metrics.RETRIED_UNITS)) == (3, 3)


def test_the_last_receipt_is_the_beginning_until_there_is_one() -> None:
    watch = Watch(epoch_s=60)
    watch.tell(Opened("r", "/out"))
    assert watch.figure(metrics.LAST_RECEIPT_AT) == 1.7e9 + 1000
    watch.now_s += 50
    watch.tell(Expected(1))
    assert watch.figure(metrics.LAST_RECEIPT_AT) == 1.7e9 + 1000
    watch.tell(received())
    assert watch.figure(metrics.LAST_RECEIPT_AT) == 1.7e9 + 1050
    assert watch.figure(metrics.PUBLISH_INTERVAL_S) == 60


def test_units_given_up_are_no_queue_any_more() -> None:
    w, watch = World(Store(memory()), VIDEOS[:1], Steps("1")), Watch()
    w.observe = watch.meter
    session = w.open()
    found = w.expect(session)
    assert watch.figure(metrics.DUE_UNITS) == 2
    names = [f"{row['video_id']}-{row['unit']:04d}" for row in found.to_pylist()]
    session.give_up(names, ErrorCode.KILLED, "it killed")
    assert watch.figure(metrics.DUE_UNITS) == 0
    assert watch.counts(metrics.COMPLETED_VIDEOS, "outcome") == {"failed": 1}
    session.close()
    assert watch.counts(metrics.PUBLISHED_VIDEOS, "status") == {"quarantined": 1}


def test_an_epoch_that_is_committed_when_the_run_closes_counts_too_and_once() -> None:
    w, watch = World(Store(memory()), VIDEOS[:2], Steps("1")), Watch()
    w.observe = watch.meter
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    assert session.plan_epoch() is not None  # never published by its publisher
    assert watch.counts(metrics.PUBLISHED_VIDEOS, "status") == {}
    session.close()
    assert watch.counts(metrics.PUBLISHED_VIDEOS, "status") == {"ok": 1, "partial": 1}
    assert watch.sink.observations(metrics.PUBLISH_LAG_S) == [0, 0]


def test_an_observer_that_fails_is_left_out_and_the_others_hear_everything(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def failing(event: Event) -> None:
        raise RuntimeError("no")

    tell = told_to([failing, heard.append])
    with caplog.at_level(logging.WARNING):
        tell(Expected(1))
        tell(Expected(2))
    assert heard == [Expected(1), Expected(2)]
    assert [record.message for record in caplog.records] == ["nobody watches this run any more: RuntimeError: no"]


# --- workers ---


def test_every_figure_of_the_stages_has_a_metric_with_its_labels() -> None:
    assert set(_METRIC_OF) == set(Figure)
    labels = {
        Figure.STAGE_S: {"stage", "model"}, Figure.FORWARD_CLIPS: {"stage", "model"}, Figure.STORAGE_RETRY: {"reason"}
    }  # fmt: skip
    assert {figure: set(metric.labels) for figure, metric in _METRIC_OF.items()} == labels


def test_a_worker_says_what_it_holds_and_hands_on_what_its_stages_measured() -> None:
    telemetry.collect()
    sink = Recorded()
    meter = WorkerMeter(sink, every_s=1000)
    rows = pa.table({"video_id": ["a", "a", "b"], "unit": [0, 1, 0]})
    with meter.holding("decode", rows.slice(0, 0)), meter.holding("models", rows):
        telemetry.measured(Figure.FORWARD_CLIPS, 3, stage="embed", model="m")
        meter.export()
        held = {dict(labels)["step"]: value for (_, labels), value in sink.values.items()}
        assert held == {"decode": 0, "models": 3}
    assert sink.value(metrics.UNITS_IN_PROGRESS, step="models") == 0
    assert sink.observations(metrics.FORWARD_CLIPS, stage="embed") == [3]
