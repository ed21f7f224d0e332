"""How receipts get from a dataset to whoever waits for them; the dataset is a list, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipeline.flow import Receipts


class Yielding:
    """A dataset of some tables that ends, or fails; says when all tables were handed out."""

    def __init__(self, *tables: pa.Table, error: Exception | None = None) -> None:
        self.tables, self.error, self.is_done = tables, error, threading.Event()

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        yield from self.tables
        self.is_done.set()
        if self.error is not None:
            raise self.error


def table(*numbers: int) -> pa.Table:
    return pa.table({"row": list(numbers)})


def all_in(data: Yielding) -> Receipts:
    receipts = Receipts(data)
    assert data.is_done.wait(10)
    receipts._thread.join(10)
    return receipts


def test_what_came_in_together_is_told_together() -> None:
    receipts = all_in(Yielding(table(1, 2), table(3), table(4)))
    found = receipts.wait(10)
    assert found is not None
    assert found["row"].to_pylist() == [1, 2, 3, 4]
    with pytest.raises(StopIteration):
        receipts.wait(10)


def test_an_error_comes_after_the_receipts_that_came_before_it() -> None:
    receipts = all_in(Yielding(table(1), error=RuntimeError("lost")))
    found = receipts.wait(10)
    assert found is not None
    assert found["row"].to_pylist() == [1]
    with pytest.raises(RuntimeError, match="lost"):
        receipts.wait(10)


def test_empty_blocks_without_columns_are_left_out() -> None:
    found = all_in(Yielding(pa.table({}), table(1), pa.table({}), table(2))).wait(10)
    assert found is not None
    assert found["row"].to_pylist() == [1, 2]
    alone = all_in(Yielding(pa.table({}))).wait(10)
    assert alone is not None
    assert alone.num_rows == 0


def test_what_comes_one_by_one_is_gathered_until_the_end_at_most() -> None:
    class Trickling(Yielding):
        def iter_batches(self, **_: object) -> Iterator[pa.Table]:
            for number in range(3):
                yield table(number)
                time.sleep(0.05)

    receipts = Receipts(Trickling(), gather_s=200.0)
    found = receipts.wait(10)
    assert found is not None
    assert found["row"].to_pylist() == [0, 1, 2]


def test_nothing_is_told_while_nothing_comes() -> None:
    over = threading.Event()

    class Slow(Yielding):
        def iter_batches(self, **_: object) -> Iterator[pa.Table]:
            over.wait(10)
            yield table(1)

    receipts = Receipts(Slow())
    assert receipts.wait(0.01) is None
    over.set()
    found = receipts.wait(10)
    assert found is not None
    assert found.num_rows == 1
