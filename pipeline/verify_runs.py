"""Checks what runs leave beside the tables: their sums and records, what should be cleared away, and `_current.json`."""

from __future__ import annotations

import json
from typing import Any

from pipeline.current import CURRENT, latest
from pipeline.findings import Findings
from pipeline.log import Log, RunState
from pipeline.parallel import mapped
from pipeline.recovery import leftovers
from stages.storage import Store

_SETTLED = ("rows", "not_due", "given_up", "duplicates", "left_out")


def check_runs(store: Store, log: Log, found: Findings) -> None:
    """All of it; every run costs a listing of what it left."""
    for run, state in log.runs.items():
        sums = state.closed.body.get("sums") if state.closed else None
        if sums is not None:  # else alive, or closed by somebody else who could not know its sums
            _sums(log, run, state, sums, found)
            _record(store, run, sums, found)
    clean = [run for run, state in log.runs.items() if state.clean]
    for keys in mapped(lambda run: _left(store, log, run), clean):
        if keys:
            found.add("leftover", keys[0], f"and {len(keys) - 1} more of a run that is over; the next run clears them away")
    _current(store, log, found)


def _sums(log: Log, run: str, state: RunState, sums: Any, found: Findings) -> None:
    """Promise 1 from outside: what a run counted against the rows that its epochs put into the ledger."""
    try:
        listed, counts = int(sums["listed"]), {name: int(sums[name]) for name in _SETTLED}
        rows = sum(log.epochs[number].plan.body["videos"] for number in state.epochs if not log.epochs[number].void)
    except (KeyError, TypeError, ValueError) as error:
        found.add("sums", run, f"has no sums that make sense: {error!r}")
        return
    found.unless(rows == counts["rows"], "sums", run, f"counted {counts['rows']} rows of the ledger; it has {rows}")
    if state.closed and state.closed.body.get("complete"):
        settled = sum(counts.values())
        found.unless(listed == settled, "sums", run, f"listed {listed} sources and settled {settled}")


def _record(store: Store, run: str, sums: Any, found: Findings) -> None:
    key = f"_runs/{run}/run.json"
    try:
        record = json.loads(store.read(key))
        is_same = record["run"] == run and record["sums"] == sums
    except FileNotFoundError:
        found.add("record", key, "is gone")
    except (ValueError, KeyError, TypeError) as error:
        found.add("record", key, f"cannot be read: {error!r}")
    else:
        found.unless(is_same, "record", key, "does not say what the log says of its run")


def _left(store: Store, log: Log, run: str) -> list[str]:
    try:
        return list(leftovers(store, log, run))
    except (KeyError, TypeError):  # a plan that lacks its sidecars has been told already
        return []


def _current(store: Store, log: Log, found: Findings) -> None:
    """What readers take for the latest configuration is that of a run; and of the latest, unless a run is at work."""
    wanted = latest(log)
    try:
        named = json.loads(store.read(CURRENT))
        run = str(named["run"])
        recipe = {name: named[name] for name in ("clips", "entries")}
    except FileNotFoundError:
        if wanted is not None and all(state.closed for state in log.runs.values()):
            found.add("current", CURRENT, f"is missing; it should name the configuration of run {wanted}")
        return
    except (ValueError, KeyError, TypeError) as error:
        found.add("current", CURRENT, f"cannot be read: {error!r}")
        return
    if run not in log.runs or recipe != log.runs[run].opened.body.get("recipe"):
        found.add("current", CURRENT, f"names a configuration that run {run} does not have")
    elif run != wanted and all(state.closed for state in log.runs.values()):
        found.add("current", CURRENT, f"names the configuration of run {run}; the latest is {wanted}")
