"""What a run computes, as it stands in the log: a closer can publish for a dead run without its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from schemas.entries import Entry
from schemas.tables import STAGE_TABLE


@dataclass(frozen=True)
class Ingredient:
    """One fingerprint of a run: its stage and, but for clips, the model behind it."""

    stage: str  # clips, classify, embed or caption
    fingerprint: str
    name: str | None = None
    model: str | None = None
    slug: str | None = None
    revision: str | None = None

    @property
    def table(self) -> str:
        """Name of the table that gets its rows."""
        return STAGE_TABLE[self.stage]

    def folder(self, run_date: str) -> str:
        """Partition of its rows, as a key prefix without a slash at its end."""
        model = "" if self.slug is None else f"model={self.slug}/"
        return f"{self.table}/{model}fingerprint={self.fingerprint}/run_date={run_date}"


@dataclass(frozen=True)
class Recipe:
    """The clips fingerprint, then one ingredient for each distinct fingerprint of the entries."""

    ingredients: tuple[Ingredient, ...]

    @classmethod
    def of(cls, clips_fingerprint: str, entries: Sequence[Entry]) -> Self:
        """From a configuration's fingerprint and its resolved entries; two entries of one fingerprint are one."""
        found = {clips_fingerprint: Ingredient("clips", clips_fingerprint)}
        for entry in entries:
            made = Ingredient(entry.stage, entry.fingerprint, entry.name, entry.model, entry.slug, entry.revision)
            found.setdefault(entry.fingerprint, made)
        return cls(tuple(found.values()))

    @property
    def clips(self) -> str:
        """The clips fingerprint."""
        return self.ingredients[0].fingerprint

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """All fingerprints, clips first."""
        return tuple(ingredient.fingerprint for ingredient in self.ingredients)

    def to_json(self) -> dict[str, Any]:
        """`{"clips": fingerprint, "entries": [{stage, name, model, slug, revision, fingerprint}, ...]}`."""
        return {"clips": self.clips, "entries": [asdict(ingredient) for ingredient in self.ingredients[1:]]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Reverse of `to_json`."""
        return cls((Ingredient("clips", data["clips"]), *(Ingredient(**entry) for entry in data["entries"])))
