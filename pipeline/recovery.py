"""Recovery: what dead runs left is finished or taken back. Every step can be interrupted, repeated, and done by two at once."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

import numpy as np
import pyarrow as pa

from pipeline import lease
from pipeline.current import name_current
from pipeline.gather import Batch, EpochPlan, Gatherer
from pipeline.idtable import IdTable, packed
from pipeline.intake import Intake
from pipeline.ledger import Known, Reader, rows_of
from pipeline.log import Body, EpochAbandoned, Log, timestamp
from pipeline.objects import Written
from pipeline.outcome import Outcome, Row
from pipeline.parallel import mapped
from pipeline.publish import PartsMissing, clear, publish
from pipeline.receipts import BadPart, parts_folder, read_receipt, receipts_table
from pipeline.recipe import Recipe
from schemas.tables import VideoStatus
from stages.storage import Store

BATCH_PARTS = 2_000
POLL_S = 1.0
_PART = re.compile(r"/[0-9a-f]{32}-\d{4,}\.[^/]+\.parquet$")


@dataclass(frozen=True)
class Clock:
    """What comes from outside: time, waiting, and words that nobody else has."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    token: Callable[[], str] = lambda: secrets.token_hex(8)


@dataclass
class Recovered:
    """What a recovery did: runs that it closed, epochs that it finished and epochs that it took back."""

    closed: list[str] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    voided: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.closed or self.committed or self.voided)


class Recovery:
    """Recovers an output, on behalf of `me` (a run, or whoever asks)."""

    def __init__(self, store: Store, log: Log, clock: Clock, me: str) -> None:
        self._store, self._log, self._clock, self._me = store, log, clock, me

    def recover(self, force: Collection[str] = ()) -> Recovered:
        """Closes dead runs (and those in `force`), settles the epochs of all closed runs, and clears away what they staged.

        Live runs are left alone. Raises StorageUnavailable; what was done until then stands.
        """
        done = Recovered()
        self._log.refresh()
        dead = [run for run in self.live_runs() if run in force or self.lease_of(run).is_dead(self._clock.now())]
        # All are settled before anything is planned: an epoch that cannot be finished would hold on to its videos, and one
        # whose sidecar is gone would stop whoever reads the ledger in order to plan.
        for run in [*dead, *self._unclean()]:
            self.settle(run, done)
        for run in dead:
            self._take_over(run)
            done.closed.append(run)
        for run in self._unclean():
            self.settle(run, done)
            self.clean(run)
        if done:
            name_current(self._log, self._clock.now())  # in case they died before they did
        return done

    def _unclean(self) -> list[str]:
        return [run for run, state in self._log.runs.items() if state.closed and not state.clean]

    def live_runs(self) -> list[str]:
        """Runs that nobody has closed."""
        return [run for run, state in self._log.runs.items() if not state.closed]

    def lease_of(self, run: str) -> lease.Lease:
        """A run's lease as it stands."""
        return lease.read(self._store, self._log.runs[run])

    def wait_for_unclear(self) -> None:
        """Waits while a run elsewhere may be dead with an epoch half published: until it renews its lease, or lets it lapse.

        Only so can whoever starts right after another machine has failed finish what that one began.
        """
        for run in self.live_runs():
            first = self.lease_of(run)
            if first.owner.is_gone() is not None or not any(
                self._log.epochs[number].is_pending for number in self._log.runs[run].epochs
            ):
                continue
            while (found := self.lease_of(run)) == first and not found.is_dead(self._clock.now()):
                self._clock.sleep(POLL_S)

    def settle(self, run: str, done: Recovered) -> None:
        """Commits or voids every epoch of a run that is neither."""
        for number in list(self._log.runs[run].epochs):
            epoch = self._log.epochs[number]
            if epoch.is_pending:
                self._finish(EpochPlan.of(epoch.plan), done)
            if epoch.abandoned and not epoch.void:
                self._void(EpochPlan.of(epoch.plan))
                done.voided.append(number)

    def _finish(self, plan: EpochPlan, done: Recovered) -> None:
        try:
            self.commit(plan, publish(self._store, plan))
            done.committed.append(plan.epoch)
        except EpochAbandoned:
            self._log.refresh()
        except PartsMissing:
            self._append_for(plan, "abandon", lambda: self._log.epochs[plan.epoch].is_pending)

    def commit(self, plan: EpochPlan, written: Sequence[Written]) -> None:
        """Says that every object of an epoch is there. Nothing happens where it was said before.

        Raises EpochAbandoned where somebody else has given the epoch up.
        """

        def is_wanted() -> bool:
            epoch = self._log.epochs[plan.epoch]
            if epoch.abandoned:
                raise EpochAbandoned(f"epoch {plan.epoch} was given up")
            return epoch.is_pending

        self._append_for(plan, "commit", is_wanted, {"objects": [item.to_json() for item in written]})

    def _void(self, plan: EpochPlan) -> None:
        clear(self._store, plan)
        self._append_for(plan, "void", lambda: not self._log.epochs[plan.epoch].void)

    def _append_for(self, plan: EpochPlan, kind: str, is_wanted: Callable[[], bool], more: Body | None = None) -> None:
        body = {"epoch": plan.epoch, **self._signed(), **(more or {})}
        self._log.append(kind, plan.run, lambda _: body if is_wanted() else None)

    def _signed(self) -> Body:
        return {"token": self._clock.token(), "at": timestamp(self._clock.now()), "by": self._me}

    def _take_over(self, run: str) -> None:
        """Plans what a dead run had staged completely, then closes it. In this order: a closed run has nothing left to plan."""
        recipe = Recipe.from_json(self._log.runs[run].opened.body["recipe"])
        intake = self._staged(run)
        if intake.ready:
            reader = Reader(self._log, Known(recipe.fingerprints))
            gatherer = Gatherer(self._store, run, recipe)

            def make(number: int) -> Body | None:
                if self._log.runs[run].closed:
                    return None
                reader.read_on()
                # Again with every try: somebody else who took the run over, or the run itself, may have planned them meanwhile,
                # and of a video that failed no fingerprint is taken.
                videos = self._unplanned(run, intake.ready)
                batch = Batch(intake, videos, taken=Taken(reader.known), keeps=_is_worth_a_row)
                found = gatherer.plan(batch, number, self._clock.token(), self._clock.now())
                return {**found[0].body(), "by": self._me} if found else None

            self._log.append("plan", run, make)
        self.close(run)

    def close(self, run: str, more: Callable[[], Body] = dict) -> None:
        """Closes a run, unless somebody else has done so. `more` is what the entry says, made knowing all earlier ones."""
        signed = self._signed()
        self._log.append("close", run, lambda _: None if self._log.runs[run].closed else {**signed, **more()})

    def _staged(self, run: str) -> Intake:
        """What the parts of a run make up, but for videos that it has planned already."""
        intake = Intake(accept_unknown=True)
        planned = self._planned(run)
        keys = (info.key for info in self._store.list(parts_folder(run)) if _PART.search(info.key))
        for batch in _batched(keys):
            is_planned, _ = planned.get(packed(pa.array([key.rpartition("/")[2][:32] for key in batch])))
            wanted = [key for key, skip in zip(batch, is_planned.tolist(), strict=True) if not skip]
            receipts = [receipt for receipt in mapped(self._receipt, wanted) if receipt is not None]
            intake.receive(receipts_table(receipts))
        return intake

    def _receipt(self, key: str) -> Row | None:
        """What a part says of itself; a part that is gone or no part counts as never staged, so its unit is done again."""
        try:
            return read_receipt(self._store, key)
        except (FileNotFoundError, BadPart):
            return None

    def _unplanned(self, run: str, videos: Sequence[str]) -> list[str]:
        is_planned, _ = self._planned(run).get(packed(pa.array(videos, pa.string())))
        return [video for video, skip in zip(videos, is_planned.tolist(), strict=True) if not skip]

    def _planned(self, run: str) -> IdTable:
        """The videos of a run that are in an epoch."""
        planned = IdTable("S16", "u1")
        for epoch in (self._log.epochs[number] for number in self._log.runs[run].epochs):
            for rows in rows_of(self._store, epoch, ["video_id"]) if not epoch.void else ():
                planned.put(packed(rows["video_id"]), np.ones(rows.num_rows, dtype="u1"))
        return planned

    def clean(self, run: str) -> None:
        """Clears away the parts of a closed run once every epoch of it is committed or void."""
        state = self._log.runs[run]
        epochs = [self._log.epochs[number] for number in state.epochs]
        if state.clean or not state.closed or any(not (epoch.commit or epoch.void) for epoch in epochs):
            return
        keys = leftovers(self._store, self._log, run)
        for _ in mapped(self._store.delete_all, _batched(keys, self._store.deletes_together)):
            pass
        body = self._signed()
        self._log.append("clean", run, lambda _: None if self._log.runs[run].clean else body)

    def sweep(self) -> None:
        """Clears away what late workers, or a run that did not know that it was over, have left since their run was clean; and
        leases of runs that died before they were opened.
        """
        runs = [run for run, state in self._log.runs.items() if state.clean]
        for keys in mapped(lambda run: list(leftovers(self._store, self._log, run)), runs):
            for key in keys:
                self._store.delete(key)
        for run in [run for run in self._store.folders("_runs") if run not in self._log.runs]:
            found = lease.find(self._store, run)  # of a run that died, or is about to be opened
            if found is not None and found.is_dead(self._clock.now()):
                self._store.delete(lease.key_of(run))


def leftovers(store: Store, log: Log, run: str) -> Iterator[str]:
    """Keys of what a clean run needs no more: its parts, its lease, and sidecars of plans that never were."""
    epochs = [log.epochs[number].plan.body for number in log.runs[run].epochs]
    used = {body[name][key] for body in epochs for name, key in (("ledger", "planned"), ("parts", "key"))}
    for info in store.list(f"_runs/{run}"):
        is_staged = info.key.startswith((f"{parts_folder(run)}/", f"_runs/{run}/epochs/"))
        if info.key == lease.key_of(run) or (is_staged and info.key not in used):
            yield info.key


class Taken:
    """Of each video the fingerprints that the ledger, or somebody's plan, has already."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def __call__(self, videos: Sequence[str]) -> Iterable[list[str]]:
        """Lists of fingerprints, in the order of `videos`."""
        names = self._known.names(self._known.done(packed(pa.array(videos, pa.string()))))
        lists: list[list[str]] = names.to_pylist()
        return lists


def _is_worth_a_row(found: Outcome) -> bool:
    """Whether a dead run's video gets a row: a deferred one is due again anyway, as is one that others have done."""
    return found.status != VideoStatus.DEFERRED and bool(found.row["stages"])


def _batched(keys: Iterator[str], size: int = BATCH_PARTS) -> Iterator[list[str]]:
    while batch := list(islice(keys, size)):
        yield batch


def unlock(store: Store, runs: Collection[str] | None = None, clock: Clock | None = None) -> Recovered:
    """Closes runs (None: all that are open) whether their leases have lapsed or not, and recovers what they left."""
    log = Log(store)
    log.refresh()
    recovery = Recovery(store, log, clock or Clock(), me="unlock")
    return recovery.recover(force=recovery.live_runs() if runs is None else runs)
