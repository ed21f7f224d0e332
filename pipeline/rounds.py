"""Rounds of the dataset: everything once, then what is missing, each unit in a task of its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.attach import alive_nodes
from pipeline import plan
from pipeline.flow import Receipts, dataset
from pipeline.plan import Step
from pipeline.session import Session
from schemas.errors import ClipmillError, ErrorCode, one_line
from schemas.identity import unit_id

POLL_S = 0.5
LONE_DEATHS = 2  # of a unit alone in its task, on nodes that all stayed up, before the unit is quarantined
FRUITLESS_ROUNDS = 3  # rounds in a row that lose nodes and finish nothing, after which the cluster counts as lost


class StoppedEarly(ClipmillError):
    """The run cannot or may not go on. What is complete is published; the next run does the rest."""


@dataclass(frozen=True)
class Deadlines:
    """Monotonic times: when the run must stop, and how long it may be without a receipt."""

    stop_at_s: float | None
    stall_s: float

    def check(self, now_s: float, last_receipt_s: float) -> None:
        """Raises StoppedEarly past either."""
        if self.stop_at_s is not None and now_s >= self.stop_at_s:
            raise StoppedEarly("--max-hours is over")
        if now_s - last_receipt_s > self.stall_s:
            raise StoppedEarly(f"stalled: no receipt for {self.stall_s / 60:.0f} minutes")


class Rounds:
    """Runs units until each has reported or has been given up.

    `on_receipts` is called with each table of RECEIPT rows, `tick` every half second; both may raise to end the run.
    """

    def __init__(
        self,
        session: Session,
        steps: Sequence[Step],
        root: str,
        cpus: float,
        deadlines: Deadlines,
        on_receipts: Callable[[pa.Table], None],
        tick: Callable[[], None],
    ) -> None:
        self._session, self._steps, self._root, self._cpus = session, steps, root, cpus
        self._deadlines, self._on_receipts, self._tick = deadlines, on_receipts, tick

    def run(self) -> None:
        """Raises StoppedEarly when time is over, nothing moves, or the cluster loses nodes faster than it works."""
        self._round(plan.blocks(self._session.missing(), self._cpus), retries=1)
        deaths: Counter[str] = Counter()
        fruitless = 0
        while (missing := self._session.missing()).num_rows:
            nodes = alive_nodes()
            self._session.expect(missing)
            self._round((missing.slice(row, 1) for row in range(missing.num_rows)), retries=0)
            still = self._session.missing()
            lost_a_node = bool(nodes - alive_nodes())
            fruitless = fruitless + 1 if lost_a_node and still.num_rows == missing.num_rows else 0
            if fruitless >= FRUITLESS_ROUNDS:
                raise StoppedEarly(f"cluster lost: {still.num_rows} units finished nowhere while nodes went away")
            if not lost_a_node:
                deaths.update(unit_ids(still))
                self._give_up([unit for unit in unit_ids(still) if deaths[unit] >= LONE_DEATHS])

    def _give_up(self, units: list[str]) -> None:
        if units:
            self._session.give_up(units, ErrorCode.KILLED, f"ended its worker {LONE_DEATHS} times when it decoded alone")

    def _round(self, blocks: Iterable[pa.Table], *, retries: int) -> None:
        from ray.exceptions import RayError

        receipts = Receipts(dataset(blocks, self._steps, self._root, self._session.run_id, retries=retries))
        last_receipt_s = time.monotonic()
        try:
            while True:
                try:
                    table = receipts.wait(POLL_S)
                except StopIteration:
                    return
                except RayError as error:
                    raise StoppedEarly(f"Ray gave up: {one_line(str(error))}") from error
                now_s = time.monotonic()
                if table is not None and table.num_rows:
                    last_receipt_s = now_s
                    self._on_receipts(table)
                self._tick()
                self._deadlines.check(now_s, last_receipt_s)
        finally:
            receipts.stop()


def unit_ids(units: pa.Table) -> list[str]:
    """UNIT_ROW table -> the units' names."""
    return [unit_id(video, unit) for video, unit in zip(units["video_id"].to_pylist(), units["unit"].to_pylist(), strict=True)]
