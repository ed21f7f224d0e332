"""The log: `OUTPUT/_log/<n>.json`, the one order of events of an output, each made create-only and kept for ever.

Kinds of events, and who may add them:
- `open RUN`: a run begins (configuration, versions).
- `plan RUN`: claims what an epoch publishes. The epoch is called after the entry's number. By the run itself, or by whoever
  found it dead, before they close it.
- `commit EPOCH`: every object of the epoch is there.
- `abandon EPOCH`, then `void EPOCH`: its parts are gone. Once abandoned it can never be committed; once void, its objects
  hold no rows and what it claimed is free again. Until then its claims stand.
- `close RUN`: the run plans nothing more. By itself or by whoever found it dead.
- `clean RUN`: nothing of it is left but its record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.parallel import mapped
from schemas.errors import ClipmillError
from stages.storage import Store

FOLDER = "_log"
NAME = re.compile(r"_log/(\d{8})\.json")
Body = dict[str, Any]


class PromiseBroken(ClipmillError):
    """What is published contradicts itself, or a run's sums do not add up (exit code 1)."""


class RunClosed(ClipmillError):
    """This run was found dead and closed by another one; it may plan nothing more."""


class EpochAbandoned(ClipmillError):
    """Another run has given the epoch up, so it cannot be committed any more."""


@dataclass(frozen=True)
class Event:
    """One entry of the log."""

    number: int
    kind: str
    run: str
    body: Body

    @property
    def at(self) -> datetime:
        """When it was made, by the clock of its maker."""
        return datetime.fromisoformat(self.body["at"])


@dataclass
class EpochState:
    """An epoch as the log has it."""

    plan: Event
    commit: Event | None = None
    abandoned: bool = False
    void: bool = False

    @property
    def is_pending(self) -> bool:
        """Whether it still can be committed."""
        return self.commit is None and not self.abandoned


@dataclass
class RunState:
    """A run as the log has it."""

    opened: Event
    closed: Event | None = None
    clean: bool = False
    epochs: list[int] = field(default_factory=list)


def key_of(number: int) -> str:
    """Key of event `number`."""
    return f"{FOLDER}/{number:08d}.json"


def timestamp(at: datetime) -> str:
    """How times stand in JSON: ISO 8601, UTC."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


class Log:
    """The log as far as it was read, folded into runs and epochs. `refresh` before leaning on it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.length = 0
        self.runs: dict[str, RunState] = {}
        self.epochs: dict[int, EpochState] = {}

    def refresh(self) -> None:
        """Reads what was added. Raises PromiseBroken at an entry that contradicts the ones before it."""
        if self.length == 0:
            self._read_all()
        while (body := self._read(self.length)) is not None:
            self._fold(parse(self.length, body))

    def append(self, kind: str, run: str, make: Callable[[int], Body | None]) -> Event | None:
        """Adds an event that `make` has decided on knowing all earlier ones; None where it decided against it.

        `make(number)` is asked again, with the log read anew, whenever somebody else took the number. Its body needs a `token`
        that nobody else has: by it a writer knows its own entry where the store's answer was lost.
        """
        while True:
            self.refresh()
            number = self.length
            body = make(number)
            if body is None:
                return None
            data = json.dumps({"kind": kind, "run": run, **body}, indent=1).encode()
            try:
                self.store.create(key_of(number), data)
            except FileExistsError:
                continue
            self._fold(parse(number, data))
            return Event(number, kind, run, body)

    def has_still(self, event: Event) -> bool:
        """Whether an entry stands as it was made; on a store without conditional writes another may have taken its place."""
        body = self._read(event.number)
        return body is not None and parse(event.number, body) == event

    def _read(self, number: int) -> bytes | None:
        try:
            return self.store.read(key_of(number))
        except FileNotFoundError:
            return None

    def _read_all(self) -> None:
        # Entries that are made while a folder is listed may show in any order, so what a listing leaves out is asked for.
        last = max((int(match[1]) for info in self.store.list(FOLDER) if (match := NAME.fullmatch(info.key))), default=-1)
        for number, body in enumerate(mapped(self._read_known, range(last + 1))):
            self._fold(parse(number, body))

    def _read_known(self, number: int) -> bytes:
        try:
            with self.store.known(key_of(number)):
                return self.store.read(key_of(number))
        except FileNotFoundError:
            missing = self.store.uri(key_of(number))
            raise PromiseBroken(f"{missing} is missing, but later entries of the log are there") from None

    def _fold(self, event: Event) -> None:
        problem = self.apply(event)
        if problem:
            raise PromiseBroken(f"{self.store.uri(key_of(event.number))}: {problem}")

    def apply(self, event: Event) -> str | None:
        """Takes one event in; what is wrong with it, if anything."""
        self.length = event.number + 1
        run = self.runs.get(event.run)
        if event.kind == "open":
            self.runs[event.run] = RunState(event)
            return f"run {event.run} is opened twice" if run else None
        if run is None:
            return f"run {event.run} was never opened"
        if event.kind == "plan":
            run.epochs.append(event.number)
            self.epochs[event.number] = EpochState(event)
            return f"run {event.run} is closed and plans" if run.closed else None
        if event.kind in ("close", "clean"):
            if event.kind == "close":
                run.closed, twice = event, run.closed is not None
            else:
                run.clean, twice = True, run.clean or run.closed is None
            return f"{event.kind} of run {event.run} is out of place" if twice else None
        return self._settle(event)

    def _settle(self, event: Event) -> str | None:
        epoch = self.epochs.get(event.body.get("epoch", -1))
        if epoch is None:
            return "names no planned epoch"
        fits = epoch.abandoned and not epoch.void if event.kind == "void" else epoch.is_pending
        if event.kind == "commit":
            epoch.commit = event
        elif event.kind == "abandon":
            epoch.abandoned = True
        elif event.kind == "void":
            epoch.void = True
        else:
            return f"is of unknown kind {event.kind!r}"
        return None if fits else f"{event.kind} of epoch {epoch.plan.number} is out of place"


def parse(number: int, data: bytes) -> Event:
    """An event from the bytes of its entry. Raises PromiseBroken."""
    try:
        body = json.loads(data)
        return Event(number, str(body["kind"]), str(body["run"]), {k: v for k, v in body.items() if k not in ("kind", "run")})
    except (ValueError, KeyError, TypeError) as error:
        raise PromiseBroken(f"{key_of(number)} is no entry of the log: {error}") from error
