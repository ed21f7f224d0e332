"""Labels of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from schemas.entries import Entry
from schemas.errors import BadClip, ErrorCode
from stages.batches import Batches, Struct
from stages.models import catalogue
from stages.models.adapter import Infer, Ranked, not_finite

_ROUNDING = 1e-3  # by which probabilities may miss their sum of 1
Load = Callable[[Entry, str, str], Infer[list[Ranked]]]


class Classify:
    """Fills `labels`: one struct per label kept of a clip, the most probable first.

    `device` and `dtype` are torch's names; threads are left to the process (Ray sets them to an actor's CPUs). Raises
    BadRequest when the model cannot be had.
    """

    def __init__(
        self,
        entry: Entry,
        device: str = "cpu",
        dtype: str = "float32",
        batch_clips: int = 16,
        batch_bytes: int = 256 << 20,
        *,
        load: Load = catalogue.classifier,
    ) -> None:
        self._run = Batches(
            entry=entry,
            column="labels",
            infer=load(entry, device, dtype),
            structs=_structs,
            empty={"label": None, "score": None, "rank": None},
            batch_clips=batch_clips,
            batch_bytes=batch_bytes,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """CLIP_ROW to CLIP_ROW."""
        return self._run(table)


def _structs(best: Sequence[Ranked]) -> list[Struct]:
    labels, scores = [one.label for one in best], np.array([one.score for one in best], np.float64)
    if not np.isfinite(scores).all():
        raise not_finite("the scores")
    if not labels or len(set(labels)) < len(labels) or not all(isinstance(label, str) for label in labels):
        raise BadClip(ErrorCode.MODEL_FAILED, "the labels are none, doubled or no texts")
    if scores.min() < 0 or scores.sum() > 1 + _ROUNDING or (np.diff(scores) > 0).any():
        raise BadClip(ErrorCode.MODEL_FAILED, "the scores are no probabilities, the highest first")
    return [{"label": one.label, "score": one.score, "rank": place} for place, one in enumerate(best, start=1)]
