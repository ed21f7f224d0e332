from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.clipmill import RowsDiffer, check_same, same
from schemas.rows import rows_table
from schemas.tables import TABLES

EMBEDDINGS = TABLES["embeddings"].schema


def published(work: Path, run: str, vectors: dict[str, list[float]]) -> Path:
    rows: list[dict[str, Any]] = [
        {"clip_id": clip, "video_id": "v", "dim": 2, "embedding": vector, "run_id": run} for clip, vector in vectors.items()
    ]
    path = work / "tables" / "embeddings" / "model=m" / f"part-{run}.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(rows_table(rows, EMBEDDINGS), path)
    return work


def test_runs_that_published_the_same_in_another_order_are_the_same(tmp_path: Path) -> None:
    ours = published(tmp_path / "a", "r1", {"c1": [0.6, 0.8], "c2": [1.0, 0.0]})
    theirs = published(tmp_path / "b", "r2", {"c2": [1.0, 0.0], "c1": [0.600001, 0.8]})
    check_same(ours, theirs, ["embeddings"])


@pytest.mark.parametrize("vectors", [{"c1": [0.61, 0.8]}, {"c2": [0.6, 0.8]}, {"c1": [0.6, 0.8], "c2": [1.0, 0.0]}])
def test_runs_that_published_something_else_are_not(tmp_path: Path, vectors: dict[str, list[float]]) -> None:
    ours = published(tmp_path / "a", "r1", {"c1": [0.6, 0.8]})
    with pytest.raises(RowsDiffer):
        check_same(ours, published(tmp_path / "b", "r2", vectors), ["embeddings"])


def test_nulls_and_lengths_of_lists_count() -> None:
    def column(*values: Any) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(values, pa.list_(pa.float32()))])

    assert same(column([1.0, 2.0], None), column([1.0, 2.0], None))
    assert not same(column([1.0, 2.0], [3.0]), column([1.0], [2.0, 3.0]))
    assert not same(column([1.0], None), column([1.0], []))
    assert not same(pa.chunked_array([pa.array([1.0, None])]), pa.chunked_array([pa.array([1.0, 2.0])]))
