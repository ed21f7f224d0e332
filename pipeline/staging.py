"""Staging: finished rows become immutable parts, each with a receipt. Runs in workers, as the last operator."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.parallel import mapped
from pipeline.receipts import FOOTER_KEY, BadPart, part_name, parts_folder, read_receipt, receipt_of, to_footer
from schemas.identity import unit_id
from schemas.rows import PART_ROW, RECEIPT, conform
from stages.storage import Store

WRITERS = 8
_ATTEMPT = re.compile(r"[A-Za-z0-9_-]{1,64}")


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
        if "frames" in rows.column_names:
            rows = rows.drop_columns(["frames"])
        receipts = mapped(self._stage, split(conform(rows, PART_ROW)), WRITERS)
        return pa.concat_tables([RECEIPT.empty_table(), *receipts])

    def _stage(self, part: pa.Table) -> pa.Table:
        receipt = receipt_of(part)
        key = f"{self._folder}/{name_of(receipt)}"
        try:
            self._store.create(key, _to_parquet(part, receipt))
        except FileExistsError:
            return read_receipt(self._store, key)
        return receipt


def name_of(receipt: pa.Table) -> str:
    """File name of the part that a RECEIPT row is for."""
    row = receipt.select(["video_id", "unit", "attempt", "first_row", "last_row"]).to_pylist()[0]
    if not _ATTEMPT.fullmatch(row["attempt"]):
        raise BadPart(f"attempt {row['attempt']!r} cannot stand in a file name")
    return part_name(unit_id(row["video_id"], row["unit"]), row["attempt"], row["first_row"], row["last_row"])


def split(rows: pa.Table) -> Iterator[pa.Table]:
    """Slices of PART_ROW rows, each of one attempt at one unit, whose row numbers follow each other without a gap."""
    if not rows.num_rows:
        return
    rows = rows.sort_by([(name, "ascending") for name in ("video_id", "unit", "attempt", "row")])
    starts = np.zeros(rows.num_rows, dtype=bool)
    starts[0] = True
    for name in ("video_id", "unit", "attempt"):
        column = rows[name]
        starts[1:] |= pc.not_equal(column.slice(1), column.slice(0, rows.num_rows - 1)).to_numpy()
    row = rows["row"].to_numpy()
    starts[1:] |= row[1:] != row[:-1] + 1
    edges = [*np.flatnonzero(starts).tolist(), rows.num_rows]
    for begin, end in pairwise(edges):
        yield rows.slice(begin, end - begin)


def _to_parquet(part: pa.Table, receipt: pa.Table) -> bytes:
    sink = io.BytesIO()
    schema = part.schema.with_metadata({FOOTER_KEY: to_footer(receipt)})
    pq.write_table(
        part.replace_schema_metadata(schema.metadata), sink, compression="zstd", use_dictionary=False, write_statistics=False
    )
    return sink.getvalue()
