"""`_current.json`: the fingerprints of the latest configuration, for readers and the view `annotations`."""

from __future__ import annotations

import json
from datetime import datetime

from pipeline.log import Log, timestamp

CURRENT = "_current.json"


def latest(log: Log) -> str | None:
    """The run opened last of those that have published something or have come to their own end."""
    for run, state in reversed(log.runs.items()):
        if (state.closed and "sums" in state.closed.body) or any(log.epochs[number].commit for number in state.epochs):
            return run
    return None


def name_current(log: Log, at: datetime) -> None:
    """Names the configuration of the latest run, whoever asks: one that woke up late must not bring an old one back.

    The log decides, and is read again after every write, so of several that name at once the last to write is right.
    """
    named, run = None, latest(log)
    while run is not None and run != named:
        body = {"run": run, "at": timestamp(at), **log.runs[run].opened.body["recipe"]}
        log.store.write(CURRENT, json.dumps(body, indent=1).encode())
        log.refresh()
        named, run = run, latest(log)
