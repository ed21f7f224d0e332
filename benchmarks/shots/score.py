"""Scores detected boundaries against a montage's truth: the same rules for every detector.

- A cut is found by a boundary at most `tolerance` frames from the new shot's first frame; one boundary finds one cut
  (largest one-to-one matching). Precision, recall and F1 are those of cuts.
- A dissolve or fade is found by a boundary within it, or `tolerance` frames from its ends. Boundaries there that found no
  cut are not false, however many; `doubled` counts those beyond the first.
- Every other boundary is false; those within three frames of a flash's first frame are also counted as `at_flash`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.shots.montage import Transition

_FLASH_REACH = 3


@dataclass(frozen=True)
class Score:
    """Counts of one montage, or by `+` of several."""

    cuts: int = 0
    found: int = 0
    false: int = 0
    at_flash: int = 0
    doubled: int = 0
    dissolves: int = 0
    dissolves_found: int = 0
    fades: int = 0
    fades_found: int = 0

    @property
    def precision(self) -> float:
        return self.found / (self.found + self.false) if self.found + self.false else 1.0

    @property
    def recall(self) -> float:
        return self.found / self.cuts if self.cuts else 1.0

    @property
    def f1(self) -> float:
        total = self.cuts + self.found + self.false
        return 2 * self.found / total if total else 1.0

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def score(boundaries: Iterable[int], transitions: Sequence[Transition], flashes: Sequence[int], tolerance: int) -> Score:
    """Counts for detected `boundaries` (frame numbers) at `tolerance` frames."""
    cuts = [t.start for t in transitions if t.kind == "cut"]
    rest, found = _match(sorted(boundaries), sorted(cuts), tolerance)
    hits = {t: 0 for t in transitions if t.kind != "cut"}
    false = []
    for at in rest:
        inside = [t for t in hits if t.start - tolerance <= at <= t.end + tolerance]
        if inside:
            hits[inside[0]] += 1
        else:
            false.append(at)
    counts = {kind: [n for t, n in hits.items() if t.kind == kind] for kind in ("dissolve", "fade")}
    return Score(
        cuts=len(cuts),
        found=found,
        false=len(false),
        at_flash=sum(any(-_FLASH_REACH <= at - flash <= 2 * _FLASH_REACH for flash in flashes) for at in false),
        doubled=sum(n - 1 for n in hits.values() if n > 1),
        dissolves=len(counts["dissolve"]),
        dissolves_found=sum(n > 0 for n in counts["dissolve"]),
        fades=len(counts["fade"]),
        fades_found=sum(n > 0 for n in counts["fade"]),
    )


def _match(boundaries: list[int], cuts: list[int], tolerance: int) -> tuple[list[int], int]:
    """Largest matching of two sorted lists; the boundaries left over, and how many matched.

    Taking each cut in order with the earliest boundary that still reaches it is optimal, as all reaches are equally long.
    """
    rest: list[int] = []
    at = found = 0
    for boundary in boundaries:
        while at < len(cuts) and cuts[at] < boundary - tolerance:
            at += 1
        if at < len(cuts) and cuts[at] <= boundary + tolerance:
            at, found = at + 1, found + 1
        else:
            rest.append(boundary)
    return rest, found
