"""Many requests to a store at a time: it answers slower than it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

WORKERS = 16
AHEAD = 64
_FEW = 2
_T = TypeVar("_T")
_R = TypeVar("_R")


def mapped(function: Callable[[_T], _R], items: Iterable[_T], workers: int = WORKERS, ahead: int = AHEAD) -> Iterator[_R]:
    """`map` in threads: results in order, of at most `ahead` items at a time. A few items are not worth a thread."""
    items = iter(items)
    first = list(islice(items, _FEW + 1))
    if len(first) <= _FEW:
        yield from map(function, first)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_R]] = deque()
        for item in chain(first, items):
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
