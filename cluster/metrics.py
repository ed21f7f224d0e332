"""Every metric of Clipmill, declared in one place, and their way into Ray's metrics.

Ray exports what a process records from an agent on each node, under the prefix `ray_`, with labels of its own (RAY_LABELS).
What the driver records carries `run_id`: a driver is one run, so the label costs no series that would not be there anyway.
What workers record does not: every worker has series of its own already, and a run more must not multiply them.

Three ways of Ray 2.60 that shape this module, all measured:
- A gauge that is not set again is forgotten after two report intervals (20 s), so gauges are set again every EXPORT_S. When a
  driver is gone, so are they.
- A process that ends in order sends its last figures, one that is ended does not, and Ray ends the workers of a run that is
  over. The driver's figures are exact; those of a worker lack what it measured in its last ten seconds.
- Of a histogram, buckets and count are exact, but the sum is made of the middles of the buckets.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import sys
import threading
from collections import Counter as Amounts
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from schemas.errors import BadRequest

PREFIX = "ray_"
RAY_LABELS = ("Component", "NodeAddress", "SessionName", "Version", "WorkerId")
EXPORT_S = 2.0
_LOG = logging.getLogger(__name__)
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_LAGS_S = (10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
_CLIPS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Kind(StrEnum):
    """Types of Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One declaration. `buckets` are the upper bounds of a histogram's buckets."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return PREFIX + self.name

    @property
    def series(self) -> tuple[str, ...]:
        """Names that a query may use."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.exported}{end}" for end in ("_bucket", "_count", "_sum"))
        return (self.exported,)

    @property
    def is_of_the_driver(self) -> bool:
        """Whether it says of which run it is."""
        return "run_id" in self.labels


def _of_run(name: str, kind: Kind, unit: str, text: str, *labels: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(f"clipmill_{name}", kind, unit, text, ("run_id", *labels), buckets)


def _of_workers(name: str, kind: Kind, unit: str, text: str, *labels: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(f"clipmill_{name}", kind, unit, text, labels, buckets)


_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

RUN_INFO = _of_run("run_info", _GAUGE, "1", "Always 1, while the run's driver lives", "output", "version")
DUE_VIDEOS = _of_run("due_videos", _GAUGE, "videos", "Videos to do in this run, once the input has been listed")
DUE_UNITS = _of_run("due_units", _GAUGE, "units", "The queue: units that are known to be due and have not come back complete")
RECEIVED_UNITS = _of_run("received_units_total", _COUNTER, "units", "Units that are over, complete or given up")
RETRIED_UNITS = _of_run("retried_units_total", _COUNTER, "units", "Units that run again because they came back incomplete")
COMPLETED_VIDEOS = _of_run(
    "completed_videos_total", _COUNTER, "videos",
    "Videos all of whose units are over: usable (with clips), failed (without), or deferred to the next run", "outcome",
)  # fmt: skip
RECEIVED_CLIPS = _of_run("received_clips_total", _COUNTER, "clips", "Clips of units that are over")
RECEIVED_VIDEO_S = _of_run("received_video_seconds_total", _COUNTER, "seconds", "Seconds of video in units that are over")
DECODED_FRAMES = _of_run("decoded_frames_total", _COUNTER, "frames", "Frames that were decoded, those of repeated units again")
DECODE_CPU_S = _of_run("decode_cpu_seconds_total", _COUNTER, "seconds", "CPU time that decoding took")
LAST_RECEIPT_AT = _of_run(
    "last_receipt_timestamp_seconds", _GAUGE, "seconds since 1970", "When workers last handed something in, or the run began"
)
PUBLISHED_VIDEOS = _of_run(
    "published_videos_total", _COUNTER, "videos", "Rows committed to the ledger, by the video's status", "status"
)
PUBLISHED_ERRORS = _of_run(
    "published_errors_total", _COUNTER, "videos", "Rows committed to the ledger with an error, by its code", "code"
)
PUBLISHED_CLIPS = _of_run("published_clips_total", _COUNTER, "clips", "Clips of videos committed to the ledger")
PUBLISHED_VIDEO_S = _of_run(
    "published_video_seconds_total", _COUNTER, "seconds", "Seconds of video decoded of videos committed to the ledger"
)
PUBLISH_S = _of_run("publish_seconds", _HISTOGRAM, "seconds", "From the plan of an epoch to its commit", buckets=_SECONDS)
PUBLISH_LAG_S = _of_run(
    "publish_lag_seconds", _HISTOGRAM, "seconds", "From the end of a video's last unit to its commit", buckets=_LAGS_S
)
UNPUBLISHED_VIDEOS = _of_run("unpublished_videos", _GAUGE, "videos", "Videos that are complete and not committed")
OLDEST_UNPUBLISHED_S = _of_run(
    "oldest_unpublished_seconds", _GAUGE, "seconds", "For how long the first of them has been complete; 0 where there is none"
)
PUBLISH_INTERVAL_S = _of_run("publish_interval_seconds", _GAUGE, "seconds", "How long that is by intention: resources.epoch_s")
EPOCHS_IN_FLIGHT = _of_run("epochs_in_flight", _GAUGE, "epochs", "Epochs that are planned and not committed")

STAGE_S = _of_workers(
    "stage_seconds", _HISTOGRAM, "seconds",
    "Of decode at one unit, and of stage_parts and each model (classify, embed, caption) at one table of up to 16 clips or so",
    "stage", "model", buckets=_SECONDS,
)  # fmt: skip
FORWARD_CLIPS = _of_workers(
    "forward_pass_clips", _HISTOGRAM, "clips", "Clips in one forward pass of a model", "stage", "model", buckets=_CLIPS
)
UNITS_IN_PROGRESS = _of_workers("units_in_progress", _GAUGE, "units", "Units that a worker holds right now, by step", "step")
STORAGE_RETRIES = _of_workers(
    "storage_retries_total", _COUNTER, "calls",
    "Calls to a store tried again, the driver's too: throttled, server_error, no_answer, broken_answer, nonsense (not S3)",
    "reason",
)  # fmt: skip

METRICS = (
    RUN_INFO, DUE_VIDEOS, DUE_UNITS, RECEIVED_UNITS, RETRIED_UNITS, COMPLETED_VIDEOS, RECEIVED_CLIPS, RECEIVED_VIDEO_S,
    DECODED_FRAMES, DECODE_CPU_S, LAST_RECEIPT_AT, PUBLISHED_VIDEOS, PUBLISHED_ERRORS, PUBLISHED_CLIPS, PUBLISHED_VIDEO_S,
    PUBLISH_S, PUBLISH_LAG_S, UNPUBLISHED_VIDEOS, OLDEST_UNPUBLISHED_S, PUBLISH_INTERVAL_S, EPOCHS_IN_FLIGHT, STAGE_S,
    FORWARD_CLIPS, UNITS_IN_PROGRESS, STORAGE_RETRIES,
)  # fmt: skip


class Sink(Protocol):
    """Where figures go."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes figures now."""

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """An amount for a counter (0 makes its series appear), a value for a gauge, an observation for a histogram."""


class ToRay:
    """Ray's metrics of this process. The first failure is logged and turns it off: no figure is worth a run."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._is_off = False

    @property
    def is_ready(self) -> bool:
        """Whether this process is connected to Ray."""
        # While another thread imports Ray, its module is there and what is in it is not.
        is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
        return not self._is_off and is_initialized is not None and bool(is_initialized())

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Takes a few microseconds."""
        if self._is_off:
            return
        try:
            # Ray takes ASCII alone.
            self._record(metric, value, {name: _ascii(text) for name, text in labels.items()})
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on without metrics
            self._is_off = True
            _LOG.warning("metrics are off from here on: %s: %s", type(error).__name__, error)

    def _record(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        made = self._made.get(metric.name) or self._make(metric)
        if metric.kind is Kind.COUNTER:
            # Ray refuses to add 0, but a series has to be there before it counts, or `increase()` misses its first step.
            # The smallest number there is vanishes in the first sum.
            made.inc(value or sys.float_info.min, tags)
        elif metric.kind is Kind.GAUGE:
            made.set(value, tags)
        else:
            made.observe(value, tags)

    def _make(self, metric: Metric) -> Any:
        from ray.util import metrics

        if metric.kind is Kind.HISTOGRAM:
            made = metrics.Histogram(metric.name, metric.help, list(metric.buckets), metric.labels)
        else:
            kinds = {Kind.COUNTER: metrics.Counter, Kind.GAUGE: metrics.Gauge}
            made = kinds[metric.kind](metric.name, metric.help, metric.labels)
        return self._made.setdefault(metric.name, made)


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


_Series = tuple[Metric, tuple[tuple[str, str], ...]]


def check_port(port: int | None) -> None:
    """BadRequest where metrics are wanted at a port and this machine could not export them there. Ray itself would not say."""
    if port is None:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise BadRequest("resources.metrics_port: Ray exports metrics with more packages only: pip install 'clipmill[cluster]'")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError as error:
            raise BadRequest(f"resources.metrics_port: {port} cannot be had ({error.strerror})") from error


class Board:
    """Figures of this process on their way out: adding to it is cheap and needs no Ray, `export` hands everything on.

    Safe to use from several threads. Raises ValueError for labels that a metric was not declared with.
    """

    def __init__(self, sink: Sink | None = None, **labels: str) -> None:
        self._sink, self._labels = sink or ToRay(), labels
        self._lock, self._export_lock = threading.Lock(), threading.Lock()
        self._amounts: dict[_Series, float] = {}
        self._values: dict[_Series, float] = {}
        self._observed: Amounts[tuple[_Series, float]] = Amounts()
        self._begun: set[_Series] = set()  # counters that are there

    def add(self, metric: Metric, amount: float, /, **labels: str) -> None:
        """Adds to a counter; 0 makes it appear."""
        series = self._series(metric, Kind.COUNTER, labels)
        with self._lock:
            if amount or series not in self._begun:
                self._begun.add(series)
                self._amounts[series] = self._amounts.get(series, 0) + amount

    def put(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Sets a gauge, from now on."""
        series = self._series(metric, Kind.GAUGE, labels)
        with self._lock:
            self._values[series] = value

    def observe(self, metric: Metric, value: float, times: int = 1, /, **labels: str) -> None:
        """Adds observations to a histogram."""
        series = self._series(metric, Kind.HISTOGRAM, labels)
        with self._lock:
            self._observed[series, value] += times

    def _series(self, metric: Metric, kind: Kind, labels: Mapping[str, str]) -> _Series:
        found = {**self._labels, **labels} if metric.is_of_the_driver else labels
        if metric.kind is not kind or set(found) != set(metric.labels):
            raise ValueError(
                f"{metric.name} is a {metric.kind} with the labels {metric.labels}, not a {kind} with {list(found)}"
            )
        return metric, tuple(sorted(found.items()))

    def export(self) -> None:
        """Hands on what was added since the last time, and all gauges. Where the sink takes nothing now, everything is kept."""
        with self._export_lock:
            if not self._sink.is_ready:
                return
            with self._lock:
                amounts, self._amounts = self._amounts, {}
                observed, self._observed = self._observed, Amounts()
                values = dict(self._values)
            for (metric, labels), value in (*amounts.items(), *values.items()):
                self._sink.record(metric, value, dict(labels))
            for ((metric, labels), value), times in observed.items():
                for _ in range(times):
                    self._sink.record(metric, value, dict(labels))
