"""A submitted run on its cluster: the request as it was sent, and what it tells whoever follows.

Every line that it prints is an event, EVENT and a JSON object with one key: `begin` (the request's token; from entry.py),
`figures` (progress.Figures), `note` (a line that stays), `result` (the summary's lines), `failed` or `refused` (why) and, last,
`exit` (the code). They go through the job's log, so they are there for whoever comes later.
"""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import summary
from pipeline.entry import EVENT
from pipeline.progress import Figures, Progress
from schemas.errors import BadRequest, ClipmillError
from schemas.secrets import hidden

if TYPE_CHECKING:
    from schemas.config import JobConfig

MANIFEST_NAME = "manifest.csv"
TICK_S, BEAT_S = 1.0, 10.0  # how often figures are looked at, and said although nothing has changed
INTERRUPTED_NOTE = "interrupted; the next run goes on from here"


def tell(kind: str, what: Any) -> None:
    """One event, on stdout."""
    print(hidden(f"{EVENT}{json.dumps({kind: what})}"), flush=True)


class Told(Progress):
    """Figures and notes as events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(io.StringIO(), live=False, every_s=TICK_S, clock=clock)
        self._said: Figures | None = None

    def note(self, text: str) -> None:
        """A line that stays."""
        tell("note", text)

    def _write(self, text: str) -> None:
        del text  # whoever follows puts the figures in words
        now = self.figures()
        said = self._said
        if said is None or replace(now, elapsed_s=said.elapsed_s) != said or now.elapsed_s >= said.elapsed_s + BEAT_S:
            self._said = now
            tell("figures", asdict(now))


def perform(folder: Path, request: Mapping[str, Any]) -> int:
    """Runs what pipeline/submit.py packed; the exit code, which is also the last event."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = _performed(folder, request)
    tell("exit", code)
    return code


def _performed(folder: Path, request: Mapping[str, Any]) -> int:
    from stages.filesystems import StorageUnavailable

    try:
        return _run(folder, request)
    except BadRequest as error:
        tell("refused", str(error))
        return summary.BAD_REQUEST
    except KeyboardInterrupt:
        tell("note", INTERRUPTED_NOTE)
        return summary.INTERRUPTED
    except ClipmillError as error:
        tell("failed", str(error))
        return summary.STOPPED if isinstance(error, StorageUnavailable) else summary.BROKEN


def _run(folder: Path, request: Mapping[str, Any]) -> int:
    from pipeline import run
    from pipeline.preflight import preflight

    config = settings_of(request["config"], folder)
    asked = run.Request(request["limit"], request["max_hours"], request["retry_failed"], "auto")
    with Told() as progress:
        result = run.run(config, preflight(config).entries, asked, progress)
    if not (result.videos or result.not_due or result.stopped_reason):
        tell("note", f"warning: no videos in {config.input.uri}")
    tell("result", summary.lines(result))
    return summary.exit_code(result, request["max_failed"])


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
