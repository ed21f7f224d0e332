"""Embeddings of clips."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa

from schemas.entries import Entry
from schemas.errors import BadClip, ErrorCode
from stages.batches import Batches, Struct
from stages.models import catalogue
from stages.models.adapter import Embedder, Vector, not_finite

_ROUNDING = 1e-3  # by which a length may differ from 1
Load = Callable[[Entry, str, str], Embedder]


class Embed:
    """Fills `embeddings`: one struct per clip, a unit vector. Arguments as for `Classify`."""

    def __init__(
        self,
        entry: Entry,
        device: str = "cpu",
        dtype: str = "float32",
        batch_clips: int = 16,
        batch_bytes: int = 256 << 20,
        *,
        load: Load = catalogue.embedder,
    ) -> None:
        embedder = load(entry, device, dtype)
        self._run = Batches(
            entry=entry,
            column="embeddings",
            infer=embedder,
            structs=partial(_structs, dim=embedder.dim),
            empty={"dim": None, "embedding": None},
            batch_clips=batch_clips,
            batch_bytes=batch_bytes,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """CLIP_ROW to CLIP_ROW."""
        return self._run(table)


def _structs(vector: Vector, dim: int) -> list[Struct]:
    values = np.asarray(vector)
    if values.dtype.kind != "f" or values.shape != (dim,):
        said = f"the embedding is {values.dtype} of shape {values.shape}, not {dim} floats"
        raise BadClip(ErrorCode.MODEL_FAILED, said)
    if not np.isfinite(values).all():
        raise not_finite("the embedding")
    length = float(np.linalg.norm(values.astype(np.float64)))
    if abs(length - 1) > _ROUNDING:
        raise BadClip(ErrorCode.MODEL_FAILED, f"the embedding has length {length:.4g}, not 1")
    return [{"dim": dim, "embedding": values.astype(np.float32).tolist()}]
