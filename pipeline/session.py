"""A run as its driver sees it: what is due, what is complete, what gets published. No Ray."""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import lease
from pipeline.compact import refuse_half_made
from pipeline.current import name_current
from pipeline.events import Committed, Expected, GivenUp, Observer, Opened, Planned, Received, Rejected, unobserved
from pipeline.gather import Batch, EpochPlan, Gatherer, Tally
from pipeline.idtable import IdTable, first_of_each, packed
from pipeline.intake import Delta, Intake
from pipeline.ledger import Known, Reader, rows_of
from pipeline.log import Body, Log, PromiseBroken, RunClosed, timestamp
from pipeline.outcome import Row
from pipeline.publish import written_for
from pipeline.recipe import Recipe
from pipeline.recovery import POLL_S, Clock, Recovered, Recovery, Taken
from pipeline.sums import Sums
from schemas.config import JobConfig
from schemas.entries import Entry
from schemas.errors import BadRequest, ErrorCode
from schemas.rows import SOURCE_ROW, UNIT_FIELDS, conform
from stages.storage import Store

__all__ = ["Busy", "EpochPlan", "PromiseBroken", "RunClosed", "Session", "Sums"]

DUE = pa.schema([*SOURCE_ROW, *(f for f in UNIT_FIELDS if f.name in ("supersedes", "due"))])
_PACKAGES = ("clipmill", "av", "numpy", "pyarrow", "ray", "torch", "transformers")


class Busy(BadRequest):
    """Another run works on the output, and the store cannot keep the two apart."""


class Session:
    """One run over one output, from its opening to its close. Made by `Session.open`; not safe to share between threads,
    but for `renew_lease`.
    """

    def __init__(
        self,
        store: Store,
        log: Log,
        run_id: str,
        recipe: Recipe,
        config: JobConfig,
        retry_failed: bool,
        clock: Clock,
        owner: lease.Owner,
        observe: Observer = unobserved,
    ) -> None:
        self.run_id = run_id
        self.sums = Sums()
        self.recovered = Recovered()
        self._store, self._log, self._recipe, self._config = store, log, recipe, config
        self._retry_failed, self._clock, self._owner, self._observe = retry_failed, clock, owner, observe
        self._recovery = Recovery(store, log, clock, me=run_id)
        self._reader = Reader(log, Known(recipe.fingerprints))
        self._intake = Intake()
        self._rejects: list[Row] = []
        self._listed = IdTable("S16", "u1")  # due in this run
        self._is_closing, self._lease_lock = False, threading.Lock()
        self._mine: set[int] = set()  # epochs that were planned here
        self._tallies: dict[int, Tally] = {}  # what they come to
        self._told: set[int] = set()  # of those epochs, the ones whose commit was told
        self._elsewhere: set[str] = set()  # videos of this run that were planned without our knowing

    @classmethod
    def open(
        cls,
        store: Store,
        config: JobConfig,
        entries: Sequence[Entry],
        *,
        retry_failed: bool = False,
        clock: Clock | None = None,
        owner: lease.Owner | None = None,
        observe: Observer = unobserved,
    ) -> Session:
        """Recovers what dead runs left, then begins a run.

        Raises Busy (a BadRequest) where another run may be alive and the store has no conditional writes, PromiseBroken where
        the log contradicts itself, StorageUnavailable.
        """
        clock = clock or Clock()
        log = Log(store)
        log.refresh()
        began_at = clock.now()
        recipe = Recipe.of(config.clips.fingerprint(), entries)
        run_id = f"{began_at:%Y%m%dT%H%M%S}-{clock.token()[:6]}"
        session = cls(store, log, run_id, recipe, config, retry_failed, clock, owner or lease.Owner.here(), observe)
        session._begin(began_at)
        return session

    @classmethod
    def look(cls, store: Store, config: JobConfig, entries: Sequence[Entry], *, retry_failed: bool = False) -> Session:
        """A session that only answers `due`: it opens no run, recovers nothing and writes nothing."""
        log = Log(store)
        log.refresh()
        recipe = Recipe.of(config.clips.fingerprint(), entries)
        session = cls(store, log, "none", recipe, config, retry_failed, Clock(), lease.Owner.here())
        session._reader.read_on()
        return session

    def _begin(self, began_at: datetime) -> None:
        refuse_half_made(self._store)
        is_shared = self._store.conditional_writes()
        if not is_shared:
            self._refuse_company()
        self._recovery.wait_for_unclear()
        self.recovered = self._recovery.recover()
        self.renew_lease()
        body = {
            "token": self._clock.token(), "at": timestamp(began_at), "conditional_writes": is_shared,
            "recipe": self._recipe.to_json(), "config": self._config.model_dump(mode="json"), "versions": versions(),
        }  # fmt: skip
        if self._log.append("open", self.run_id, lambda _: None if self.run_id in self._log.runs else body) is None:
            raise Busy(f"a run {self.run_id} was begun in this very second; try again")
        if not is_shared:
            self._refuse_company()
            self._refuse_collision()
        self._observe(Opened(self.run_id, self._store.root))
        self._recovery.sweep()
        self._reader.read_on()

    def _refuse_company(self) -> None:
        self._log.refresh()
        for run in self._recovery.live_runs():
            found = self._recovery.lease_of(run)
            if run != self.run_id and not found.is_dead(self._clock.now()):
                if self.run_id in self._log.runs:
                    self._recovery.close(self.run_id)
                raise Busy(
                    f"run {run} works on {self._store.root} until {found.expires_at:%H:%M:%S} UTC or longer, and this store"
                    " has no conditional writes: one run at a time (clipmill unlock closes a run that is known to be dead)"
                )

    def _refuse_collision(self) -> None:
        """Where writes have no conditions, two that begin at the same instant take the same place in the log, and only the
        later one stands there. Each looks whether it does, once the other's write must have shown.
        """
        self._clock.sleep(POLL_S)
        if not self._log.has_still(self._log.runs[self.run_id].opened):
            self._store.delete(lease.key_of(self.run_id))
            raise Busy(f"another run began on {self._store.root} in this very moment, and this store has no conditional writes")

    def renew_lease(self) -> None:
        """Says that the run lives. Call it every lease.RENEW_S seconds, from any thread, also while it publishes what is left.
        Once everything of it is published and it closes, nothing happens: no lease comes back after it was cleared away.
        """
        with self._lease_lock:
            if not self._is_closing:
                until = self._clock.now() + timedelta(seconds=lease.LEASE_S)
                lease.write(self._store, lease.Lease(self.run_id, self._owner, until))

    def due(self, sources: pa.Table) -> pa.Table:
        """SOURCE_ROW rows -> those still due, with `supersedes` and `due` (list<string>). Counts the others.

        Sources that carry an error_code are settled here, with a row in the next epoch; they are not returned.
        """
        sources = conform(sources, SOURCE_ROW)
        ids = packed(sources["video_id"])
        known = self._reader.known
        done = known.done(ids)
        settled = done if self._retry_failed else done | known.given_up(ids)
        everything = np.uint64((1 << len(self._recipe.fingerprints)) - 1)
        is_due = settled != everything
        is_new = first_of_each(ids) & ~self._listed.get(ids)[0]
        self.sums.listed += len(ids)
        self.sums.not_due += int((done == everything).sum())
        self.sums.given_up += int((~is_due & (done != everything)).sum())
        self.sums.duplicates += int((is_due & ~is_new).sum())
        chosen = is_due & is_new
        self.sums.due += int(chosen.sum())
        self._listed.put(ids[chosen], np.ones(int(chosen.sum()), dtype="u1"))
        found = sources.filter(pa.array(chosen))
        found = found.append_column("supersedes", known.supersedes(ids[chosen], found["uri"].to_pylist()))
        found = found.append_column("due", known.names(~settled[chosen] & everything))
        found = conform(found, DUE)
        is_bad = found["error_code"].is_valid()
        self.reject(found.filter(is_bad))
        return found.filter(pc.invert(is_bad))

    def reject(self, sources: pa.Table) -> None:
        """Rows of `due` whose error_code settles them without decoding: a row each in the next epoch."""
        self._rejects += sources.to_pylist()
        self.sums.rejected += sources.num_rows
        if sources.num_rows:
            self._observe(Rejected(sources))

    def leave_out(self, videos: int) -> None:
        """Counts due sources that the caller leaves for another run."""
        self.sums.left_out += videos

    def expect(self, units: pa.Table) -> None:
        """UNIT_ROW rows that will be run now; naming a unit again counts another try."""
        new = self._intake.expect(units)
        self._observe(Expected(new, units.num_rows - new))

    def receive(self, receipts: pa.Table) -> Delta:
        """RECEIPT rows -> what they completed."""
        delta = self._intake.receive(receipts)
        self._observe(Received(receipts, delta))
        return delta

    def missing(self) -> pa.Table:
        """UNIT_ROW rows of the units that are not complete."""
        return self._intake.missing()

    def give_up(self, unit_ids: Iterable[str], code: ErrorCode, message: str) -> Delta:
        """Ends units that will not be tried again."""
        names = list(unit_ids)
        delta = self._intake.give_up(names, code, message)
        self._observe(GivenUp(names, code, message, delta))
        return delta

    def plan_epoch(self) -> EpochPlan | None:
        """Claims all complete videos for an epoch; None where there are none.

        Raises RunClosed where another run has taken this one for dead, StorageUnavailable.
        """
        planned: list[tuple[EpochPlan, Tally, list[str], int]] = []

        def make(number: int) -> Body | None:
            self._take_note()
            videos, rejects = self._complete()
            batch = Batch(self._intake, videos, rejects, Taken(self._reader.known))
            found = Gatherer(self._store, self.run_id, self._recipe).plan(batch, number, self._clock.token(), self._clock.now())
            planned[:] = [(*found, videos, len(rejects))] if found else []
            return found[0].body() if found else None

        event = self._log.append("plan", self.run_id, make)
        if event is None:
            return None
        plan, tally, videos, rejects = planned[0]
        self._mine.add(event.number)
        self._tallies[event.number] = tally
        self._intake.drop(videos)
        del self._rejects[:rejects]
        self.sums.add(tally)
        self._observe(Planned(event.number))
        return plan

    def _complete(self) -> tuple[list[str], list[Row]]:
        videos = [video for video in self._intake.ready if video not in self._elsewhere]
        self._intake.drop(set(self._intake.ready) & self._elsewhere)
        self._rejects = [row for row in self._rejects if row["video_id"] not in self._elsewhere]
        return videos, sorted(self._rejects, key=lambda row: str(row["video_id"]))

    def _take_note(self) -> None:
        """Learns from the log what others have claimed since, and what was planned for this run without our knowing."""
        state = self._log.runs[self.run_id]
        if state.closed:
            raise RunClosed(f"run {self.run_id} was taken for dead and closed by {state.closed.body.get('by')}")
        self._reader.read_on(without=self._mine)
        for number in set(state.epochs) - self._mine:
            if self._log.epochs[number].void:
                continue  # its videos are ours to plan again; the sidecar may be gone with the parts
            # A plan whose answer was lost, or one by somebody who took us for dead and did not get to close us.
            tally = Tally()
            for rows in rows_of(self._store, self._log.epochs[number], ["video_id", "status"]):
                self._elsewhere.update(rows["video_id"].to_pylist())
                tally.statuses.update(rows["status"].to_pylist())
            self._mine.add(number)
            self._tallies[number] = tally
            self.sums.add(tally)

    def commit(self, plan: EpochPlan) -> None:
        """Makes an epoch final that `publish_epoch` has published. Raises EpochAbandoned, StorageUnavailable."""
        self._recovery.commit(plan, written_for(self._store, plan))
        self._tell_committed()
        name_current(self._log, self._clock.now())

    def close(self, summary: Mapping[str, Any] | None = None, *, complete: bool = True) -> Sums:
        """Publishes what is complete and not published yet, records the run, closes it and clears away what it staged.

        With `complete`, raises PromiseBroken (after closing) where the sums do not add up. Raises RunClosed.
        """
        self.plan_epoch()
        self._recovery.settle(self.run_id, Recovered())
        with self._lease_lock:
            self._is_closing = True
        self._recovery.close(self.run_id, lambda: self._last_words(summary or {}, complete))
        self._tell_committed()
        name_current(self._log, self._clock.now())
        self._recovery.clean(self.run_id)
        self._recovery.recover()
        if complete and self.sums.problem:
            raise PromiseBroken(self.sums.problem)
        return self.sums

    def _last_words(self, summary: Mapping[str, Any], complete: bool) -> Body:
        """What the log says of the end of this run, all earlier entries known; the run's record says the same, and more."""
        self._take_note()
        body = {"complete": not self._take_back() and complete, "sums": self.sums.to_json()}
        record = {
            "run": self.run_id, "closed_at": timestamp(self._clock.now()), **body, "summary": dict(summary),
            "recipe": self._recipe.to_json(), "config": self._config.model_dump(mode="json"), "versions": versions(),
        }  # fmt: skip
        self._store.write(f"_runs/{self.run_id}/run.json", json.dumps(record, indent=1, default=str).encode())
        return body

    def _tell_committed(self) -> None:
        """Of epochs that this run planned, or that were planned for it, those whose commit was not told yet."""
        for number in sorted(self._tallies.keys() - self._told):
            epoch = self._log.epochs[number]
            if epoch.commit is not None:
                self._told.add(number)
                self._observe(Committed(number, self._tallies[number], partial(rows_of, self._store, epoch)))

    def _take_back(self) -> bool:
        """Counts no rows of epochs that were given up: their videos have none, and are due again. Whether there are any."""
        for number in [number for number in self._tallies if self._log.epochs[number].void]:
            self.sums.take_back(self._tallies.pop(number))
        return any(self._log.epochs[number].void for number in self._mine)


@cache
def versions() -> dict[str, str]:
    """Versions of what may change a row."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
