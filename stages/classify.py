"""Labels of clips."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from schemas.entries import Entry
from stages.batches import Batches, Struct
from stages.models import catalogue
from stages.models.adapter import Ranked


class Classify:
    """Fills `labels`: one struct per label kept of a clip, the most probable first.

    `device` and `dtype` are torch's names; threads are left to the process (Ray sets them to an actor's CPUs). Raises
    BadRequest when the model cannot be had.
    """

    def __init__(
        self, entry: Entry, device: str = "cpu", dtype: str = "float32", batch_clips: int = 16, batch_bytes: int = 256 << 20
    ) -> None:
        self._run = Batches(
            entry=entry,
            column="labels",
            infer=catalogue.classifier(entry, device, dtype),
            structs=_structs,
            empty={"label": None, "score": None, "rank": None},
            batch_clips=batch_clips,
            batch_bytes=batch_bytes,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """CLIP_ROW to CLIP_ROW."""
        return self._run(table)


def _structs(best: Sequence[Ranked]) -> list[Struct]:
    return [{"label": one.label, "score": one.score, "rank": place} for place, one in enumerate(best, start=1)]
