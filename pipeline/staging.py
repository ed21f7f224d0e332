"""Staging: finished rows become immutable parts, each with a receipt. Runs in workers, as the last operator."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.outcome import Row
from pipeline.parallel import mapped
from pipeline.receipts import (
    FOOTER_KEY,
    BadPart,
    Described,
    part_name,
    parts_folder,
    read_receipt,
    receipts_table,
    to_footer,
)
from schemas.identity import unit_id
from schemas.rows import PART_ROW, RECEIPT, conform
from stages.storage import Store
from stages.telemetry import Figure, timed

WRITERS = 8
COMPRESSED_BYTES = 64 << 10  # smaller parts take longer to compress than to write
_ATTEMPT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ORDER = ("video_id", "unit", "attempt", "row")


class StageParts:
    """Writes `OUTPUT/_runs/RUN/parts/<unit>.<attempt>.<rows>.parquet` and returns the RECEIPT rows of what was written.

    A part is made create-only. Where a replay finds it there, the first one stands, and its receipt is what is returned:
    what a receipt says and what its part holds never differ.
    """

    def __init__(self, output: str | Store, run_id: str) -> None:
        self._store = output if isinstance(output, Store) else Store(output)
        self._folder = parts_folder(run_id)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """CLIP_ROW or PART_ROW rows of any mix of units -> RECEIPT rows. Raises BadPart for rows that contradict themselves."""
        if not rows.num_rows:
            return RECEIPT.empty_table()
        if "frames" in rows.column_names:
            rows = rows.drop_columns(["frames"])
        rows = conform(rows, PART_ROW).sort_by([(name, "ascending") for name in _ORDER])
        described = Described(rows)
        parts = [(rows.slice(begin, end - begin), described.receipt(begin, end)) for begin, end in pairwise(edges(rows))]
        with timed(Figure.STAGE_S, stage="stage_parts", model=""):
            return receipts_table(mapped(self._stage, parts, WRITERS))

    def _stage(self, part: tuple[pa.Table, Row]) -> Row:
        rows, receipt = part
        key = f"{self._folder}/{_name_of(receipt)}"
        try:
            self._store.create(key, _to_parquet(rows, receipt))
        except FileExistsError:
            return read_receipt(self._store, key)
        return receipt


def _name_of(receipt: Row) -> str:
    if not _ATTEMPT.fullmatch(receipt["attempt"]):
        raise BadPart(f"attempt {receipt['attempt']!r} cannot stand in a file name")
    unit = unit_id(receipt["video_id"], receipt["unit"])
    return part_name(unit, receipt["attempt"], receipt["first_row"], receipt["last_row"])


def edges(rows: pa.Table) -> list[int]:
    """Where parts begin in sorted PART_ROW rows, and their number: a part is of one attempt at one unit, without a gap."""
    starts = np.zeros(rows.num_rows, dtype=bool)
    starts[0] = True
    for name in _ORDER[:-1]:
        column = rows[name]
        starts[1:] |= pc.not_equal(column.slice(1), column.slice(0, rows.num_rows - 1)).to_numpy()
    row = rows["row"].to_numpy()
    starts[1:] |= row[1:] != row[:-1] + 1
    return [*np.flatnonzero(starts).tolist(), rows.num_rows]


def _to_parquet(part: pa.Table, receipt: Row) -> bytes:
    sink = pa.BufferOutputStream()
    compression = "zstd" if part.nbytes > COMPRESSED_BYTES else "none"
    part = part.replace_schema_metadata({FOOTER_KEY: to_footer(receipt)})
    pq.write_table(part, sink, compression=compression, use_dictionary=False, write_statistics=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data
