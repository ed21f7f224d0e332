"""What `verify` finds wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

MOST_OF_A_KIND = 50


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. `kind` is a short name of the rule, `where` an object, entry or run."""

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.message}"


class Findings:
    """Collects findings, the first MOST_OF_A_KIND of each kind: a table of any size has room for any number of faults."""

    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, where: str, message: str) -> None:
        """Notes one."""
        self._counts[kind] += 1
        if self._counts[kind] <= MOST_OF_A_KIND:
            self._found.append(Finding(kind, where, message))

    def unless(self, is_right: bool, kind: str, where: str, message: str) -> bool:
        """Notes one unless `is_right`, which is returned."""
        if not is_right:
            self.add(kind, where, message)
        return is_right

    def all(self) -> list[Finding]:
        """All of them; where there were too many of a kind, one more says how many."""
        more = [
            Finding(kind, "...", f"{count - MOST_OF_A_KIND} more of this kind")
            for kind, count in self._counts.items()
            if count > MOST_OF_A_KIND
        ]
        return self._found + more
