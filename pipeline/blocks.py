"""Blocks of units as what a Ray dataset reads.

`ray.data.from_arrow` asks a task about every block and keeps its answer: 48 KB of the driver's memory a block, or 3 KB a
video where a block holds sixteen. Here a task carries its block, and says itself what there is to know about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata


class Blocks(Datasource):  # type: ignore[misc]
    """One read task for each table."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._tables = list(tables)

    def get_name(self) -> str:
        """As it stands in Ray's names of operators."""
        return "Units"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table in self._tables)

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        """As many as there are tables, whatever Ray would like."""
        del parallelism
        return [_task(table) for table in self._tables]


def _task(table: pa.Table) -> ReadTask:
    def read() -> Iterator[pa.Table]:
        yield table

    metadata = BlockMetadata(num_rows=table.num_rows, size_bytes=table.nbytes, input_files=None, exec_stats=None)
    return ReadTask(read, metadata, schema=table.schema)
