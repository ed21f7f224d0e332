"""Reads what a run published, in a form that two runs can be compared by."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.tables import TABLES
from stages.storage import Store

OF_THE_RUN = {"run_id", "started_at", "finished_at", "attempts"}
OF_THE_STORE = {"uri", "etag", "modified_at", "video_id", "clip_id", "supersedes"}


def table(output: str, name: str) -> list[dict[str, Any]]:
    """All rows of a table, partition columns but for the date included."""
    store = Store(output)
    rows: list[dict[str, Any]] = []
    for found in store.list(name):
        if found.key.endswith(".parquet"):
            partitions = dict(re.findall(r"(model|fingerprint)=([^/]+)/", found.key))
            with store.open_read(found.key) as file:
                read: pa.Table = pq.ParquetFile(file).read()
            rows += [{**row, **partitions} for row in read.to_pylist()]
    return rows


def comparable(output: str, *, without: set[str] = OF_THE_RUN) -> dict[str, list[dict[str, Any]]]:
    """All tables, columns of time and run aside, in an order that does not depend on files."""
    found = {}
    for name in TABLES:
        rows = [{key: value for key, value in row.items() if key not in without} for row in table(output, name)]
        found[name] = sorted((_rounded(row) for row in rows), key=repr)
    return found


def _rounded(value: Any) -> Any:
    """Floats to five digits: batches of another size may differ in the seventh."""
    if isinstance(value, float):
        return round(value, 4) + 0.0
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
