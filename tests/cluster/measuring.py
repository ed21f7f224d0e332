"""What a test lets a worker of Ray do."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pyarrow as pa

from pipeline.metering import worker_meter
from stages.telemetry import Figure, measured, timed


class Worker:
    """Holds two units of a table until it is told that the step is over."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def work(self, retries: int) -> None:
        rows = pa.table({"video_id": ["a", "a", "b"], "unit": [0, 0, 0]})
        self._open.enter_context(worker_meter().holding("a step", rows))
        with timed(Figure.STAGE_S, stage="embed", model="a-model-of-this-test"):
            for _ in range(retries):
                measured(Figure.STORAGE_RETRY, 1, reason="a reason of this test")

    def end(self) -> None:
        self._open.close()


class Hold:
    """A stage that measures something and then holds its table until a file appears."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, units: pa.Table) -> pa.Table:
        measured(Figure.STAGE_S, 2.5, stage="held", model="")
        while not self._file.exists():
            time.sleep(0.05)
        return units
