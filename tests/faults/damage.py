"""What a fault did to the tables, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Damage:
    """Numbers that must all be 0, whatever breaks."""

    lost_rows: int = 0
    doubled_rows: int = 0
    partial_views: int = 0  # moments at which a reader saw some rows of a video and not the others, or fewer than before
    hangs: int = 0
    harmed: int = 0  # videos or clips with a wrong or missing answer because of another one's trouble

    def __add__(self, other: Self) -> Self:
        return type(self)(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def check(self, replay: str = "") -> None:
        """Fails where anything is damaged; `replay` says how to see it again (a seed, a command)."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}
        assert not found, f"{found} {replay}".rstrip()


def compared(expected: Mapping[str, Iterable[Any]], found: Mapping[str, Iterable[Any]]) -> Damage:
    """Rows of tables against those of an undisturbed run: what is missing is lost, what is too many is doubled.

    A row that came out different counts as both.
    """
    lost = doubled = 0
    for name in expected.keys() | found.keys():
        wanted, real = (Counter(map(repr, rows.get(name, ()))) for rows in (expected, found))
        lost += (wanted - real).total()
        doubled += (real - wanted).total()
    return Damage(lost_rows=lost, doubled_rows=doubled)
