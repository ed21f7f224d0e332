"""A run as JSON lines on stderr, for whoever collects the logs of nightly jobs: one object a line, ASCII, nothing else between.

Every line has `time` (UTC), `level`, `event` and, once the run has begun, `run_id`; lines about a video or a unit of one have
`video_id` and `unit`. A video has one line, when it is in the tables for good: at INFO, or at WARNING where it failed. Units
are told at DEBUG.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any

from pipeline.events import Committed, Event, Expected, GivenUp, Listed, Opened, Planned, Received
from pipeline.progress import Figures, Progress
from pipeline.summary import RunResult
from schemas.identity import unit_id
from schemas.secrets import hidden
from schemas.tables import VideoStatus

EVERY_S = 60.0  # between lines about progress
# Of the ledger's columns, what a line about a video has.
COLUMNS = ("video_id", "uri", "status", "error_code", "error_stage", "error_message", "clips", "decoded_s", "attempts")
_BAD = frozenset({VideoStatus.FAILED.value, VideoStatus.QUARANTINED.value})
# Words of our own making: looking for secrets in them would take most of the time.
_OURS = frozenset({"time", "level", "event", "run_id", "unit", "video_id", "status", "error_code", "error_stage"})


class JsonLog(Progress):
    """Takes the place of the progress bar, and watches a run. Safe to use from several threads."""

    def __init__(
        self,
        stream: IO[str] | None = None,
        *,
        level: int = logging.INFO,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(stream, live=False, every_s=every_s, clock=clock)
        self._level, self._now = level, now
        self._run_id: str | None = None
        self._line_lock = threading.Lock()
        self._handler, self._hooks_before = _Handler(self), (sys.excepthook, threading.excepthook)

    def line(self, level: int, event: str, **fields: Any) -> None:
        """Writes a line, without secrets, unless it is below the level."""
        if level < self._level:
            return
        head = {"time": self._now().isoformat(timespec="milliseconds"), "level": logging.getLevelName(level), "event": event}
        run = {} if self._run_id is None else {"run_id": self._run_id}
        text = json.dumps(_clean({**head, **run, **fields}), allow_nan=False)
        with self._line_lock:
            print(text, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Lines that stay are warnings: of workers that died, of errors that nobody expected."""
        self.line(logging.WARNING, "note", message=text)

    def failed(self, message: str, code: int) -> None:
        """The command ends here."""
        self.line(logging.ERROR, "error", message=message, exit_code=code)

    def ended(self, result: RunResult, code: int) -> None:
        """How the run ended."""
        self.line(
            logging.INFO if code == 0 else logging.ERROR,
            "run_ended",
            exit_code=code, videos=dict(result.counts), not_due=result.not_due, left_out=result.left_out,
            duplicates=result.duplicates, unanswered=result.unanswered, clips=result.clips, video_s=result.video_s,
            wall_s=result.wall_s, first_receipt_s=result.first_receipt_s, errors=dict(result.errors),
            stopped=result.stopped_reason, details=list(result.stopped_details), promise_broken=result.promise_broken,
        )  # fmt: skip

    def _tell(self, figures: Figures) -> None:
        self.line(
            logging.INFO, "progress", videos=figures.videos, of_videos=figures.total_videos, clips=figures.clips,
            video_s=figures.video_s, failed=figures.failures, elapsed_s=figures.elapsed_s, left_s=figures.left_s,
        )  # fmt: skip

    def __call__(self, event: Event) -> None:
        """A run's event as lines."""
        match event:
            case Opened(run_id, output):
                self._run_id = run_id
                self.line(logging.INFO, "run_opened", output=output)
            case Listed(videos):
                self.line(logging.INFO, "run_listed", videos=videos)
            case Expected(again=again) if again:
                self.line(logging.WARNING, "units_retried", units=again)
            case GivenUp(units, code, message):
                for unit in units:
                    at = {"video_id": unit.rpartition("-")[0], "unit": unit}
                    self.line(logging.DEBUG, "unit_given_up", **at, error_code=code.value, error_message=message)
            case Received():
                self._units(event)
            case Planned(epoch):
                self.line(logging.DEBUG, "epoch_planned", epoch=epoch)
            case Committed():
                self._videos(event)

    def _units(self, event: Received) -> None:
        """Units that came to an end; one that runs again comes to several."""
        if self._level > logging.DEBUG:
            return
        columns = event.receipts.select(["video_id", "unit", "attempt", "end"])
        for row in columns.filter(columns["end"].is_valid()).to_pylist():
            name, end = unit_id(row["video_id"], row["unit"]), row["end"]
            figures = {key: end[key] for key in ("clips", "error_code", "error_message", "decoded_s", "decode_cpu_s")}
            self.line(logging.DEBUG, "unit", video_id=row["video_id"], unit=name, attempt=row["attempt"], **figures)

    def _videos(self, event: Committed) -> None:
        for rows in event.rows(COLUMNS):
            for row in rows.to_pylist():
                self.line(logging.WARNING if row["status"] in _BAD else logging.INFO, "video", epoch=event.epoch, **row)
        tally = event.tally
        self.line(logging.INFO, "epoch_committed", epoch=event.epoch, videos=dict(tally.statuses), clips=tally.clips)

    # --- what others print ---

    def capture(self) -> None:
        """From now on, warnings, what libraries log, and what ends the program are lines too."""
        logging.captureWarnings(True)
        logging.getLogger().addHandler(self._handler)
        self._hooks_before = sys.excepthook, threading.excepthook
        sys.excepthook, threading.excepthook = self._crashed, self._thread_crashed

    def release(self) -> None:
        """Reverse of `capture`."""
        sys.excepthook, threading.excepthook = self._hooks_before
        logging.getLogger().removeHandler(self._handler)
        logging.captureWarnings(False)

    def _crashed(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        del trace
        self.line(
            logging.CRITICAL, "crash", message=f"{kind.__name__}: {error}", traceback="".join(traceback.format_exception(error))
        )

    def _thread_crashed(self, crash: threading.ExceptHookArgs) -> None:
        if crash.exc_value is not None:
            self._crashed(crash.exc_type, crash.exc_value, crash.exc_traceback)


class _Handler(logging.Handler):
    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.line(record.levelno, "log", logger=record.name, message=record.getMessage())
        except (OSError, TypeError, ValueError):  # stderr has gone, or the record's arguments do not fit
            self.handleError(record)


def _clean(value: Any, key: str | None = None) -> Any:
    """As JSON has it: no secrets, no NaN."""
    if isinstance(value, str):
        return value if key in _OURS else hidden(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _clean(one, name) for name, one in value.items()}
    if isinstance(value, Sequence):
        return [_clean(one, key) for one in value]
    return value
