"""What a run tells those who watch it: metrics, and the log of a run. Watching changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.gather import Tally
from pipeline.intake import Delta
from schemas.errors import ErrorCode, one_line

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """The run has begun."""

    run_id: str
    output: str


@dataclass(frozen=True)
class Listed:
    """The input has been listed."""

    videos: int  # to do in this run


@dataclass(frozen=True)
class Rejected:
    """Due sources that were bad when they were listed: SOURCE_ROW columns and more."""

    sources: pa.Table


@dataclass(frozen=True)
class Expected:
    """Units will be run."""

    new: int
    again: int = 0  # that came back incomplete


@dataclass(frozen=True)
class Received:
    """Receipts came in (RECEIPT rows)."""

    receipts: pa.Table
    delta: Delta  # what they completed


@dataclass(frozen=True)
class GivenUp:
    """Units that will not be tried again."""

    units: Sequence[str]
    code: ErrorCode
    message: str
    delta: Delta


@dataclass(frozen=True)
class Planned:
    """An epoch has been planned: everything that was complete is in it."""

    epoch: int


@dataclass(frozen=True)
class Committed:
    """An epoch of this run is in the tables, for good."""

    epoch: int
    tally: Tally
    rows: Callable[[Sequence[str]], Iterator[pa.Table]] = field(repr=False)  # columns -> the ledger's rows of it, in batches


Event = Opened | Listed | Rejected | Expected | Received | GivenUp | Planned | Committed
Observer = Callable[[Event], None]


def unobserved(event: Event) -> None:
    """Watches nothing."""
    del event


def told_to(observers: Sequence[Observer]) -> Observer:
    """Tells several. One that fails is told nothing more: no log and no figure is worth a run."""
    listening = list(observers)

    def tell(event: Event) -> None:
        for observer in tuple(listening):
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
                listening.remove(observer)
                _LOG.warning("%s", one_line(f"nobody watches this run any more: {type(error).__name__}: {error}"))

    return tell
