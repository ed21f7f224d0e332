"""Stages that only sleep and make rows. A module of their own: Ray's workers import them from here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from benchmarks import made

DIM = 8  # of the embeddings
FLUSH_CLIPS = 16  # as decode does


class Decode:
    """Units to clip rows and their end rows, so many seconds each."""

    def __init__(self, clips: int, clips_fingerprint: str, sleep_s: float) -> None:
        self._clips, self._fingerprint, self._sleep_s = clips, clips_fingerprint, sleep_s

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """PART_ROW rows, a unit at a time."""
        for row in range(units.num_rows):
            time.sleep(self._sleep_s)
            rows = made.clip_rows(units.slice(row, 1), self._clips, self._fingerprint)
            for begin in range(0, rows.num_rows, FLUSH_CLIPS):
                yield rows.slice(begin, FLUSH_CLIPS)


class Embed:
    """Fills in vectors."""

    def __init__(self, entry: Any, dim: int) -> None:
        self._entry, self._dim = entry, dim

    def __call__(self, rows: pa.Table) -> pa.Table:
        """PART_ROW rows with embeddings."""
        is_clip = rows["clip_id"].is_valid().combine_chunks()
        found = made.answers(is_clip, [self._entry], self._dim)["embeddings"]
        place = rows.schema.get_field_index("embeddings")
        return rows.set_column(place, rows.schema.field(place), found)
