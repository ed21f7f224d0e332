"""Rounds of the dataset: everything together, then whatever is missing, until each unit has reported or has been given up.

A unit at which a worker died or failed (its note says so, pipeline/worknotes.py) is a suspect and is tried alone from then
on: in a task of its own beside the other suspects, and if that ends badly too, once more with no other unit being decoded.
Only what happens to a unit there counts against it. Units that were lost with somebody else's worker, or with a node, just
run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cluster.attach import alive_nodes
from pipeline import plan, witness
from pipeline.flow import GATHER_S, Receipts, dataset
from pipeline.measured import Took, added
from pipeline.plan import Step
from pipeline.session import Session
from pipeline.summary import duration
from pipeline.worknotes import Note
from schemas.errors import ClipmillError, ErrorCode, one_line
from schemas.identity import unit_id

POLL_S = 0.5
LONE_DEATHS = 2  # of a unit alone in its task, the second one with no other unit at work, before the unit is quarantined
FEW = 64  # units that run alone at once, rather than in blocks first, where they are all that is left
FEW_TOLD = 10  # workers that are told of after one round
FRUITLESS_ROUNDS = 3  # rounds in a row that finish nothing and blame nobody, after which the run gives up


class StoppedEarly(ClipmillError):
    """The run cannot or may not go on. What is complete is published; the next run does the rest.

    `details`: more lines for whoever has to look into it.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class Stalled(StoppedEarly):
    """Nothing has come back for too long."""


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
            raise Stalled(f"stalled: no receipt for {duration(self.stall_s)}")


@dataclass(frozen=True)
class _Turn:
    """One round: its units, and how close together they are worked on."""

    units: pa.Table
    is_alone: bool = False  # each in a task of its own
    is_lonely: bool = False  # and one after the other

    def blocks(self, cpus: float, grain: int) -> Iterable[pa.Table]:
        if self.is_alone:
            return (self.units.slice(row, 1) for row in range(self.units.num_rows))
        return plan.blocks(self.units, cpus, grain)

    def steps(self, steps: Sequence[Step]) -> list[Step]:
        """A batch of rows never holds two units that are to be alone: a table by itself comes from one unit."""
        return [replace(step, batch_rows=1) if self.is_alone and step.batch_rows else step for step in steps]


class Rounds:
    """Runs units until each has reported or has been given up.

    `on_receipts` is called with each table of RECEIPT rows, `tick` every half second; both may raise to end the run. `tell`
    gets lines about workers that died.
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
        tell: Callable[[str], None],
        grain: int = 1,
    ) -> None:
        self._session, self._steps, self._root, self._cpus = session, steps, root, cpus
        self._deadlines, self._on_receipts, self._tick, self._tell = deadlines, on_receipts, tick, tell
        self._grain = grain
        self._number = 0
        self._deaths: dict[str, int] = {}  # of suspects, when they were alone
        self.took: dict[str, Took] = {}  # by step, of the rounds that came to their end

    def run(self) -> None:
        """Raises StoppedEarly when time is over, nothing moves, or the cluster loses nodes faster than it works."""
        fruitless = 0
        while (missing := self._session.missing()).num_rows:
            turn, nodes = self._next(missing), alive_nodes()
            failure = self._round(turn)
            still = set(unit_ids(self._session.missing()))
            if not still:
                return
            notes = {unit: note for unit, note in self._ask().troubled(self._number).items() if unit in still}
            is_blamed = self._blame(notes, turn)
            fruitless = 0 if is_blamed or len(still) < missing.num_rows else fruitless + 1
            if fruitless >= FRUITLESS_ROUNDS:
                raise StoppedEarly(_why(len(still), failure, notes.values(), lost_nodes=bool(nodes - alive_nodes())))

    def _next(self, missing: pa.Table) -> _Turn:
        if self._number:
            self._session.expect(missing)
        self._number += 1
        deaths = [self._deaths.get(unit) for unit in unit_ids(missing)]
        if self._number == 1 or deaths.count(None) > FEW:
            return _Turn(_where(missing, [number is None for number in deaths]))
        if any(not number for number in deaths):
            return _Turn(_where(missing, [not number for number in deaths]), is_alone=True)
        return _Turn(missing, is_alone=True, is_lonely=True)

    def _blame(self, notes: Mapping[str, Note], turn: _Turn) -> bool:
        """Makes suspects, or counts what happened to those that were alone; whether there was anybody to blame."""
        guilty = {unit: note for unit, note in notes.items() if not note.is_storage}
        for unit, note in guilty.items():
            deaths = self._deaths[unit] = self._deaths.get(unit, 0) + int(turn.is_alone)
            if deaths >= LONE_DEATHS:
                self._session.give_up([unit], ErrorCode.KILLED, _what(note))
        for note in list(dict.fromkeys(guilty.values()))[:FEW_TOLD]:
            self._tell(_told(note, given_up=any(self._deaths.get(unit.name, 0) >= LONE_DEATHS for unit in note.units)))
        return bool(guilty)

    def _ask(self) -> witness.Answers:
        return witness.ask(self._session.run_id)

    def _round(self, turn: _Turn) -> str | None:
        """Runs a round; what Ray said where it gave up after some of it had been done.

        Where nothing had, there is no way (an actor cannot be built, for example): StoppedEarly.
        """
        from ray.exceptions import RayError

        blocks, steps = turn.blocks(self._cpus, self._grain), turn.steps(self._steps)
        data = dataset(
            blocks, steps, self._root, self._session.run_id, self._number, one_by_one=turn.is_lonely, grain=self._grain
        )
        nodes, receipts, came = alive_nodes(), Receipts(data, gather_s=self._grain * GATHER_S), False
        last_receipt_s = time.monotonic()
        try:
            while True:
                try:
                    table = receipts.wait(POLL_S)
                except StopIteration:
                    self.took = added(self.took, receipts.took(steps))
                    return None
                except RayError as error:
                    if came or nodes - alive_nodes():
                        return one_line(str(error))
                    raise StoppedEarly(f"Ray gave up: {one_line(str(error))}") from error
                now_s = time.monotonic()
                if table is not None and table.num_rows:
                    last_receipt_s, came = now_s, True
                    self._on_receipts(table)
                self._tick()
                self._deadlines.check(now_s, last_receipt_s)
        except Stalled as stalled:
            where = witness.outstanding(self._ask(), unit_ids(self._session.missing()))
            raise Stalled(str(stalled), where) from None
        finally:
            receipts.stop()


def _where(units: pa.Table, chosen: Sequence[bool]) -> pa.Table:
    return units.filter(pa.array(chosen))


def _told(note: Note, *, given_up: bool) -> str:
    """Of a worker that died or failed, for the log of the run."""
    many = f" and {len(note.units) - 1} more" if len(note.units) > 1 else ""
    how = f"failed ({note.error})" if note.state == "failed" else "died"
    then = "given up" if given_up else "tried again alone"
    return f"a worker {how} in {note.step} at {one_line(note.units[0].uri)}{many}: {then}"


def _what(note: Note) -> str:
    if note.state == "failed":
        return f"the worker failed {LONE_DEATHS} times at it alone, in {note.step}: {note.error}"
    return f"ended its worker {LONE_DEATHS} times when it was alone, in {note.step}"


def _why(units: int, failure: str | None, notes: Iterable[Note], *, lost_nodes: bool) -> str:
    """Why nothing more can be done."""
    for note in notes:
        return f"{units} units wait for the storage: {note.error}"
    if lost_nodes:
        return f"cluster lost: {units} units finished nowhere while nodes went away"
    why = f"Ray says: {failure}" if failure else "see what their workers wrote down, and the logs of Ray"
    return f"{units} units finished nowhere in {FRUITLESS_ROUNDS} rounds; {why}"


def unit_ids(units: pa.Table) -> list[str]:
    """UNIT_ROW table -> the units' names."""
    return [unit_id(video, unit) for video, unit in zip(units["video_id"].to_pylist(), units["unit"].to_pylist(), strict=True)]
