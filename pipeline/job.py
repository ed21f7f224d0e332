"""A submitted run on its cluster: the request as it was sent, and what it tells whoever follows.

Every line that it prints is an event, EVENT and a JSON object with one key: `begin` (the request's token; from entry.py),
`figures` (progress.Figures), `note` (a line that stays), `log` (a line of jsonlog.py, beside these, where it was asked for),
`result` (the lines of the summary), `failed` or `refused` (why) and, last, `exit` (the code). They go through the job's log, so
they are there for whoever comes later.
"""

from __future__ import annotations

import io
import json
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from pipeline import summary
from pipeline.entry import EVENT
from pipeline.jsonlog import JsonLog
from pipeline.progress import Figures, Progress
from schemas.errors import BadRequest, ClipmillError
from schemas.secrets import hidden

if TYPE_CHECKING:
    from schemas.config import JobConfig

MANIFEST_NAME = "manifest.csv"
TICK_S, BEAT_S = 1.0, 10.0  # how often figures are looked at, and said although nothing has changed
INTERRUPTED_NOTE = "interrupted; the next run goes on from here"


def tell(kind: str, what: Any) -> None:
    """One event, on stdout, without secrets."""
    shown = hidden(what) if isinstance(what, str) else [hidden(line) for line in what] if isinstance(what, list) else what
    print(f"{EVENT}{json.dumps({kind: shown})}", flush=True)


class Told(Progress):
    """Figures and notes as events, and as lines of `log`."""

    def __init__(self, log: JsonLog | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(io.StringIO(), live=False, every_s=TICK_S, clock=clock)
        self._said: Figures | None = None
        self._log = log

    def start(self, total_videos: int | None = None) -> None:
        """As Progress has it."""
        super().start(total_videos)
        if self._log is not None:
            self._log.start(total_videos)

    def update(self, **added: Any) -> None:
        """As Progress has it."""
        super().update(**added)
        if self._log is not None:
            self._log.update(**added)

    def stop(self) -> None:
        """As Progress has it."""
        super().stop()
        if self._log is not None:
            self._log.stop()

    def note(self, text: str) -> None:
        """A line that stays."""
        tell("note", text)
        if self._log is not None:
            self._log.note(text)

    def _tell(self, figures: Figures) -> None:
        now, said = figures, self._said
        if said is None or replace(now, elapsed_s=said.elapsed_s) != said or now.elapsed_s >= said.elapsed_s + BEAT_S:
            self._said = now
            tell("figures", asdict(now))


class _LogLines(io.TextIOBase):
    """A stream of lines, as events."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            tell("log", line)
        return len(text)


def perform(folder: Path, request: Mapping[str, Any]) -> int:
    """Runs what pipeline/submit.py packed; the exit code, which is also the last event."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = None
    if request["log_level"]:
        log = JsonLog(cast(IO[str], _LogLines()), level=getattr(logging, request["log_level"]))
        log.capture()
    code = _performed(folder, request, log)
    tell("exit", code)
    return code


def _performed(folder: Path, request: Mapping[str, Any], log: JsonLog | None) -> int:
    from stages.filesystems import StorageUnavailable

    kind, code, message = "failed", summary.BROKEN, ""
    try:
        return _run(folder, request, log)
    except BadRequest as error:
        kind, code, message = "refused", summary.BAD_REQUEST, str(error)
    except KeyboardInterrupt:
        kind, code, message = "note", summary.INTERRUPTED, INTERRUPTED_NOTE
    except ClipmillError as error:
        code, message = summary.STOPPED if isinstance(error, StorageUnavailable) else summary.BROKEN, str(error)
    tell(kind, message)
    if log is not None:
        log.failed(message, code)
    return code


def _run(folder: Path, request: Mapping[str, Any], log: JsonLog | None) -> int:
    from pipeline import run
    from pipeline.preflight import preflight

    config = settings_of(request["config"], folder)
    asked = run.Request(request["limit"], request["max_hours"], request["retry_failed"], "auto")
    with Told(log) as progress:
        result = run.run(config, preflight(config).entries, asked, progress, observers=[log] if log else [])
    if not (result.videos or result.not_due or result.stopped_reason):
        progress.note(f"warning: no videos in {config.input.uri}")
    tell("result", summary.lines(result))
    code = summary.exit_code(result, request["max_failed"])
    if log is not None:
        log.ended(result, code)
    return code


def settings_of(config: Mapping[str, Any], folder: Path) -> JobConfig:
    """The configuration that was sent, with the manifest that came along in `folder`.

    Raises BadRequest, naming the key, where the Clipmill of the sender knew settings that this one does not.
    """
    from pydantic import ValidationError

    from pipeline.settings import entry_names
    from schemas.config import JobConfig

    raw = dict(config)
    if (folder / MANIFEST_NAME).exists():
        raw["input"] = {**raw["input"], "uri": str(folder / MANIFEST_NAME)}
    try:
        found = JobConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{where}: the clipmill of the cluster does not take it ({first['msg'].lower()})") from error
    entry_names(found)
    return found
