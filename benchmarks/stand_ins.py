"""Stages that only sleep and make rows. A module of their own: Ray's workers import them from here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import made
from schemas.rows import CLIP_ROW, PART_ROW, conform

DIM = 8  # of the embeddings
UNITS = 16  # that are made at a time: made one by one, their rows cost more than all else on a machine that plays a cluster
FRAMES_BYTES = 16 << 10  # of a clip, where real ones are a hundred times as large


class Decode:
    """Units to clip rows and their end rows, so many seconds each."""

    def __init__(self, clips: int, clips_fingerprint: str, sleep_s: float) -> None:
        self._clips, self._fingerprint, self._sleep_s = clips, clips_fingerprint, sleep_s

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """CLIP_ROW rows, `UNITS` units at a time."""
        for first in range(0, units.num_rows, UNITS):
            some = units.slice(first, UNITS)
            time.sleep(self._sleep_s * some.num_rows)
            yield _with_frames(made.clip_rows(some, self._clips, self._fingerprint))


class Embed:
    """Fills in vectors."""

    def __init__(self, entry: Any, dim: int) -> None:
        self._entry, self._dim = entry, dim

    def __call__(self, rows: pa.Table) -> pa.Table:
        """CLIP_ROW rows to PART_ROW rows with embeddings."""
        is_clip = rows["clip_id"].is_valid().combine_chunks()
        found = made.answers(is_clip, [self._entry], self._dim)["embeddings"]
        place = rows.schema.get_field_index("embeddings")
        return conform(rows.set_column(place, rows.schema.field(place), found).drop_columns(["frames"]), PART_ROW)


def _with_frames(rows: pa.Table) -> pa.Table:
    is_clip = rows["clip_id"].is_valid().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(is_clip * FRAMES_BYTES)])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(bytes(offsets[-1]))]
    return conform(
        rows.append_column("frames", pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(is_clip), buffers)), CLIP_ROW
    )
