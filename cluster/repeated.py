"""Work that is done now and then beside something else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def repeated(work: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Does `work` every so many seconds, in a thread called `name`, while the block runs; waits for it at the end."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(every_s):
            work()

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
