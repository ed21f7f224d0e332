"""Writes down what the tests of this folder tried, for the page that `python -m tests.faults.report` makes of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.damage import Damage


@dataclass
class Record:
    """What one part (a test module) tried and what became of it."""

    part: str
    tried: Counter[str] = field(default_factory=Counter)
    damage: dict[str, Damage] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    wall_s: float = 0.0

    def __call__(self, what: str, damage: Damage | None = None, count: int = 1) -> None:
        """Counts `count` cases of `what` ("kill points of publishing"), and what they did. Call it before asserting."""
        self.tried[what] += count
        self.damage[what] = self.damage.get(what, Damage()) + (damage or Damage())

    def figure(self, what: str, value: str) -> None:
        """A measured figure beside the counts, with its unit and its bound."""
        self.figures[what] = value

    def to_json(self) -> dict[str, Any]:
        """Reverse of `read`."""
        return {
            "part": self.part,
            "rows": [
                {"what": what, "tried": tried, **asdict(self.damage.get(what, Damage()))} for what, tried in self.tried.items()
            ],
            "figures": self.figures,
            "failures": self.failures,
            "wall_s": round(self.wall_s, 1),
        }

    def write(self, folder: Path) -> None:
        """One file a part, replaced by its next run."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.part}.json").write_text(json.dumps(self.to_json(), indent=1))
