"""From what happens in a run, and in its workers, to metrics."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc

from cluster import metrics
from cluster.metrics import Board, Metric, Sink
from cluster.repeated import repeated
from pipeline.events import Committed, Event, Expected, GivenUp, Listed, Opened, Planned, Received, Rejected
from pipeline.intake import Delta
from schemas.errors import DEFERRING
from schemas.tables import VideoStatus
from stages.telemetry import Figure, collect

OUTCOMES = ("usable", "failed", "deferred")
SAME_MOMENT_S = 1.0  # within which videos count as having become complete together
_METRIC_OF = {
    Figure.STAGE_S: metrics.STAGE_S,
    Figure.FORWARD_CLIPS: metrics.FORWARD_CLIPS,
    Figure.STORAGE_RETRY: metrics.STORAGE_RETRIES,
}


def put_up(board: Board) -> None:
    """What the stages of this process have measured since the last time, on the board."""
    for one in collect():
        metric: Metric = _METRIC_OF[one.figure]
        if metric.kind is metrics.Kind.COUNTER:
            board.add(metric, one.value, **one.labels)
        else:
            board.observe(metric, one.value, **one.labels)


# --- the driver ---


class RunMeter:
    """Watches a run. Figures begin with the event Opened."""

    def __init__(
        self,
        epoch_s: float,
        sink: Sink | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._epoch_s, self._sink, self._clock, self._now = epoch_s, sink, clock, now
        self._board: Board | None = None
        self._lock = threading.Lock()  # events come from the run, exports from a thread
        self._due_units = 0
        self._waiting: list[tuple[float, int]] = []  # when videos became complete, and how many; not planned yet
        self._in_flight: dict[int, tuple[float, list[tuple[float, int]]]] = {}  # epoch: when it was planned, and of what

    def __call__(self, event: Event) -> None:
        """Takes note."""
        with self._lock:
            if isinstance(event, Opened):
                self._begin(event)
            if self._board is not None:
                self._note(self._board, event)

    def _note(self, board: Board, event: Event) -> None:
        match event:
            case Listed(videos):
                board.put(metrics.DUE_VIDEOS, videos)
            case Rejected(sources):
                self._reject(board, sources)
            case Expected(new, again):
                self._due_units += new
                board.add(metrics.RETRIED_UNITS, again)
            case Received(receipts, delta):
                board.put(metrics.LAST_RECEIPT_AT, self._now())
                self._decoded(board, receipts)
                self._complete(board, delta)
            case GivenUp(delta=delta):
                self._complete(board, delta)
            case Planned(epoch):
                self._in_flight[epoch] = (self._clock(), self._waiting)
                self._waiting = []
            case Committed():
                self._commit(board, event)

    def _begin(self, event: Opened) -> None:
        board = self._board = Board(self._sink, run_id=event.run_id)
        board.put(metrics.RUN_INFO, 1, output=event.output, version=version("clipmill"))
        board.put(metrics.PUBLISH_INTERVAL_S, self._epoch_s)
        board.put(metrics.LAST_RECEIPT_AT, self._now())
        for metric in metrics.METRICS:
            if metric.kind is metrics.Kind.COUNTER and metric.labels == ("run_id",):
                board.add(metric, 0)
        for outcome in OUTCOMES:
            board.add(metrics.COMPLETED_VIDEOS, 0, outcome=outcome)
        for status in VideoStatus:
            board.add(metrics.PUBLISHED_VIDEOS, 0, status=status.value)

    def _reject(self, board: Board, sources: pa.Table) -> None:
        deferred = sum(code in DEFERRING for code in sources["error_code"].to_pylist())
        failed = sources.num_rows - deferred
        self._complete(board, Delta(videos=sources.num_rows, failed=failed, deferred=deferred))

    def _complete(self, board: Board, delta: Delta) -> None:
        self._due_units -= delta.units
        board.add(metrics.RECEIVED_UNITS, delta.units)
        board.add(metrics.RECEIVED_CLIPS, delta.clips)
        board.add(metrics.RECEIVED_VIDEO_S, delta.decoded_s)
        usable = delta.videos - delta.failed - delta.deferred
        for outcome, videos in zip(OUTCOMES, (usable, delta.failed, delta.deferred), strict=True):
            board.add(metrics.COMPLETED_VIDEOS, videos, outcome=outcome)
        if delta.videos:
            self._wait(delta.videos)

    def _wait(self, videos: int) -> None:
        now_s = self._clock()
        if self._waiting and now_s - self._waiting[-1][0] < SAME_MOMENT_S:
            since_s, others = self._waiting.pop()
            self._waiting.append((since_s, others + videos))
        else:
            self._waiting.append((now_s, videos))

    def _decoded(self, board: Board, receipts: pa.Table) -> None:
        ends = receipts["end"].combine_chunks()
        board.add(metrics.DECODED_FRAMES, pc.sum(ends.field("frames").filter(ends.is_valid())).as_py() or 0)
        board.add(metrics.DECODE_CPU_S, pc.sum(ends.field("decode_cpu_s").filter(ends.is_valid())).as_py() or 0.0)

    def _commit(self, board: Board, event: Committed) -> None:
        tally, now_s = event.tally, self._clock()
        for status, videos in tally.statuses.items():
            board.add(metrics.PUBLISHED_VIDEOS, videos, status=status)
        for code, videos in tally.errors.items():
            board.add(metrics.PUBLISHED_ERRORS, videos, code=code)
        board.add(metrics.PUBLISHED_CLIPS, tally.clips)
        board.add(metrics.PUBLISHED_VIDEO_S, tally.decoded_s)
        planned_s, groups = self._in_flight.pop(event.epoch, (None, []))
        if planned_s is not None:
            board.observe(metrics.PUBLISH_S, now_s - planned_s)
        for since_s, videos in groups:
            board.observe(metrics.PUBLISH_LAG_S, now_s - since_s, videos)

    def export(self) -> None:
        """Hands everything on now, as before Ray goes."""
        board = self._board
        if board is not None:
            with self._lock:
                self._refresh(board)
            board.export()

    def _refresh(self, board: Board) -> None:
        """Brings up to date what changes by itself, and what the stages of this process measured."""
        put_up(board)
        groups = [*self._waiting, *(group for _, of_epoch in self._in_flight.values() for group in of_epoch)]
        board.put(metrics.DUE_UNITS, self._due_units)
        board.put(metrics.EPOCHS_IN_FLIGHT, len(self._in_flight))
        board.put(metrics.UNPUBLISHED_VIDEOS, sum(videos for _, videos in groups))
        now_s = self._clock()
        board.put(metrics.OLDEST_UNPUBLISHED_S, now_s - min((since_s for since_s, _ in groups), default=now_s))

    @contextlib.contextmanager
    def exporting(self, every_s: float = metrics.EXPORT_S) -> Iterator[None]:
        """Exports now and then, and at the end."""
        try:
            with repeated(self.export, every_s, "metrics"):
                yield
        finally:
            self.export()


# --- workers ---


class WorkerMeter:
    """Of one worker process, in which several steps may run. Exports for as long as the process lives."""

    def __init__(self, sink: Sink | None = None, every_s: float = metrics.EXPORT_S) -> None:
        self._board = Board(sink)
        self._exporting = repeated(self.export, every_s, "metrics")
        self._exporting.__enter__()  # never left: Ray ends its workers without asking

    @contextlib.contextmanager
    def holding(self, step: str, rows: pa.Table) -> Iterator[None]:
        """For as long as a step works on a table (`video_id`, `unit`)."""
        units = len(set(zip(rows["video_id"].to_pylist(), rows["unit"].to_pylist(), strict=True)))
        self._board.put(metrics.UNITS_IN_PROGRESS, units, step=step)
        try:
            yield
        finally:
            self._board.put(metrics.UNITS_IN_PROGRESS, 0, step=step)
            self.export()

    def export(self) -> None:
        """Hands on what the stages measured and what the process holds."""
        put_up(self._board)
        self._board.export()


worker_meter = cache(WorkerMeter)  # the one of this process
