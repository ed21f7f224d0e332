"""What the stages measure while they work, kept in this process until whoever runs them collects it.

A stage knows neither metrics nor Ray. Where nobody collects, the latest figures are kept and the oldest are forgotten.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

MOST_KEPT = 10_000


class Figure(StrEnum):
    """What is measured, with its labels. A label has few values, and none that a file or a server chooses."""

    STAGE_S = "stage_s"  # seconds of a stage at one unit (decode) or one table of rows (others); stage, model
    FORWARD_CLIPS = "forward_clips"  # clips of one forward pass; stage, model
    STORAGE_RETRY = "storage_retry"  # 1 for a call to a store that will be tried again; reason


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure."""

    figure: Figure
    value: float
    labels: Mapping[str, str]


_kept: deque[Measurement] = deque(maxlen=MOST_KEPT)


def measured(figure: Figure, value: float, **labels: str) -> None:
    """Keeps a figure. From any thread."""
    _kept.append(Measurement(figure, value, labels))


@contextmanager
def timed(figure: Figure, **labels: str) -> Iterator[None]:
    """Keeps the seconds that the block takes, if it ends without an exception."""
    began_s = time.monotonic()
    yield
    measured(figure, time.monotonic() - began_s, **labels)


def collect() -> list[Measurement]:
    """Hands out what was kept; each figure is handed out once."""
    found = []
    while True:
        try:
            found.append(_kept.popleft())
        except IndexError:
            return found
