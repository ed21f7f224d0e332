"""Where every listed source went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.gather import Tally


@dataclass
class Sums:
    """Where every listed source went. Promise 1: listed = rows + not_due + given_up + duplicates + left_out."""

    listed: int = 0
    not_due: int = 0  # all of it is published, or about to be
    given_up: int = 0  # failed for good in an earlier run
    duplicates: int = 0  # named twice in this run
    due: int = 0
    rejected: int = 0  # of the due ones, those that were bad when they were listed
    left_out: int = 0  # of the due ones, those that the caller left for another run
    rows: int = 0  # planned into the ledger
    clips: int = 0
    decoded_s: float = 0.0
    unanswered: int = 0  # of the rows, those with clips, to none of which one of the models had an answer
    statuses: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, tally: Tally) -> None:
        """Counts what was planned."""
        self.rows += tally.videos
        self.clips += tally.clips
        self.decoded_s += tally.decoded_s
        self.unanswered += tally.unanswered
        self.statuses += tally.statuses
        self.errors += tally.errors

    def take_back(self, tally: Tally) -> None:
        """Reverse of `add`."""
        self.rows -= tally.videos
        self.clips -= tally.clips
        self.decoded_s -= tally.decoded_s
        self.unanswered -= tally.unanswered
        self.statuses -= tally.statuses
        self.errors -= tally.errors

    @property
    def open(self) -> int:
        """Due sources that have no row in the ledger."""
        return self.due - self.left_out - self.rows

    @property
    def problem(self) -> str | None:
        """What does not add up once nothing is open any more."""
        settled = self.rows + self.not_due + self.given_up + self.duplicates + self.left_out
        if self.listed == settled:
            return None
        return f"{self.listed} sources were listed, but {settled} are accounted for: {self.to_json()}"

    def to_json(self) -> dict[str, Any]:
        """As it stands in the run's record."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
