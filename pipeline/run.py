"""A run from beginning to end: what is due, rounds of the dataset, epochs, and the reckoning."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.attach import attached
from cluster.machines import ClusterSize, total_cpus
from cluster.metrics import check_port
from cluster.repeated import repeated
from cluster.sizing import Sizing, expected, kind_of, size, this_machine
from pipeline import lease, measured, plan
from pipeline.events import Listed, Observer, told_to
from pipeline.flow import faults_folder
from pipeline.gather import EpochPlan
from pipeline.intake import Delta
from pipeline.log import EpochAbandoned
from pipeline.metering import RunMeter
from pipeline.progress import Progress
from pipeline.publish import PartsMissing, publish_epoch
from pipeline.publisher import Here, InRayTasks, Publisher
from pipeline.rounds import Deadlines, Rounds, StoppedEarly
from pipeline.session import PromiseBroken, RunClosed, Session
from pipeline.summary import RunResult
from schemas.config import JobConfig
from schemas.entries import Entry
from stages.discover import Discovery
from stages.memory import return_freed_memory, trim_memory
from stages.storage import StorageUnavailable, Store
from stages.units import units_of

TRIM_S = 5.0  # from one return of freed memory to the next
UNIT_GRACE, UNIT_GRACE_S = 1.25, 15.0  # what becomes of a unit's deadline until its worker is really gone, and noticed


@dataclass(frozen=True)
class Request:
    """What a caller asks of one run beyond the job's configuration."""

    limit: int | None = None
    max_hours: float | None = None
    retry_failed: bool = False
    address: str | None = None


@dataclass(frozen=True)
class Parts:
    """What a run is made of; a test may put another part in the place of one."""

    open_store: Callable[[str], Store] = Store
    steps: Callable[[JobConfig, Sequence[Entry], Sizing, str, str], list[plan.Step]] = plan.steps
    publish: Callable[[str, EpochPlan], None] = publish_epoch


def run(
    config: JobConfig,
    entries: Sequence[Entry],
    request: Request,
    progress: Progress,
    parts: Parts = Parts(),
    observers: Sequence[Observer] = (),
) -> RunResult:
    """Annotates and publishes what is due; `observers` are told how it goes.

    Raises BadRequest where nothing was started, and KeyboardInterrupt after publishing what was complete.
    """
    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        if request.address is None:
            # Refused here, while nothing is written yet: what could never be scheduled, and metrics that nobody would get.
            size(config.resources, this_machine())
            check_port(config.resources.metrics_port)
            cluster = None
        else:
            cluster = expected(stack.enter_context(attached(request.address)), config.resources)
            size(config.resources, cluster)
        store = parts.open_store(config.output)
        meter = RunMeter(config.resources.epoch_s)
        observe = told_to((meter, *observers))
        session = Session.open(store, config, entries, retry_failed=request.retry_failed, observe=observe)
        stack.enter_context(_renewed(session))
        stack.enter_context(meter.exporting())
        return_freed_memory()
        stack.enter_context(repeated(trim_memory, TRIM_S, "memory"))
        return _Run(config, entries, request, progress, parts, store, session, cluster, began_s, observe, meter).result()


def _renewed(session: Session) -> AbstractContextManager[None]:
    """Renews the lease from a thread of its own, so that no wait of the driver lets it lapse."""

    def renew() -> None:
        # A store that does not answer now may answer in time for the next one; if not, the run was not alive either.
        with contextlib.suppress(StorageUnavailable):
            session.renew_lease()

    return repeated(renew, lease.RENEW_S, "lease")


class _Run:
    def __init__(
        self,
        config: JobConfig,
        entries: Sequence[Entry],
        request: Request,
        progress: Progress,
        parts: Parts,
        store: Store,
        session: Session,
        cluster: ClusterSize | None,
        began_s: float,
        observe: Observer,
        meter: RunMeter,
    ) -> None:
        self._observe, self._meter = observe, meter
        self._config, self._entries, self._request, self._progress = config, entries, request, progress
        self._parts, self._store, self._session, self._cluster, self._began_s = parts, store, session, cluster, began_s
        self._discovery = Discovery(config.input)
        self._first_receipt_s: float | None = None
        self._measured: dict[str, Any] = {}  # for the record
        self._clips = 0  # of all receipts

    def result(self) -> RunResult:
        """Finds, works, publishes, closes. After a Ctrl-C too, before it is raised again."""
        stopped = broken = None
        details: tuple[str, ...] = ()
        try:
            self._find()
            self._work()
        except (StoppedEarly, StorageUnavailable, RunClosed, EpochAbandoned, PartsMissing) as error:
            stopped, details = str(error), getattr(error, "details", ())
        except KeyboardInterrupt:
            self._close("interrupted")
            raise
        try:
            self._close(stopped, details)
        except PromiseBroken as error:
            broken = str(error)
        except (StorageUnavailable, RunClosed) as error:
            stopped = stopped or str(error)
        return self._told(stopped, details, broken)

    def _find(self) -> None:
        """Lists the input and tells the session which units are to do."""
        left = self._request.limit
        for sources in self._discovery.batches():
            due = self._session.due(sources)
            if left is not None:
                self._session.leave_out(max(0, due.num_rows - left))
                due = due.slice(0, left)
                left -= due.num_rows
            self._session.expect(units_of(due, self._config.clips, self._discovery.roots))
        sums = self._session.sums
        self._observe(Listed(sums.due - sums.left_out))
        if sums.due > sums.left_out:
            self._progress.start(sums.due - sums.left_out)
            self._progress.update(videos=sums.rejected, failures=sums.rejected)

    def _work(self) -> None:
        """Runs what is missing and publishes. Without anything missing, without Ray."""
        if not self._session.missing().num_rows:
            self._publisher(Here()).finish()
            return
        with contextlib.ExitStack() as stack:
            resources = self._config.resources
            own = attached(object_store_bytes=resources.object_store_bytes, metrics_port=resources.metrics_port)
            cluster = self._cluster or stack.enter_context(own)
            stack.callback(self._meter.export)  # before a Ray of its own goes
            publisher = self._publisher(InRayTasks(self._parts.publish))
            sizing = size(resources, cluster)
            steps = self._parts.steps(self._config, self._entries, sizing, self._store.root, self._session.run_id)

            def received(receipts: pa.Table) -> None:
                publisher.received(self._received(receipts).clips)

            root, limits, tell = self._store.root, self._deadlines(), self._progress.note
            # Blocks are cut for the cluster that may become of this one: few large ones would leave new machines nothing to do.
            cpus = total_cpus(cluster.at_most())
            rounds = Rounds(self._session, steps, root, cpus, limits, received, publisher.tick, tell, sizing.grain)
            try:
                rounds.run()
            except (StoppedEarly, KeyboardInterrupt):
                publisher.finish()
                raise
            else:
                publisher.finish()
            finally:
                self._measured = measured.to_record(kind_of(sizing, cluster), self._clips, rounds.took)
                self._tell_of_faults()

    def _publisher(self, launcher: Here | InRayTasks) -> Publisher:
        return Publisher(self._session, self._store.root, self._config.resources, launcher)

    def _deadlines(self) -> Deadlines:
        hours, resources = self._request.max_hours, self._config.resources
        # The last unit of a run may take all the time that a unit has before its worker is ended.
        stall_s = max(resources.stall_s, UNIT_GRACE * resources.unit_deadline_s + UNIT_GRACE_S)
        return Deadlines(None if hours is None else self._began_s + hours * 3600, stall_s)

    def _received(self, receipts: pa.Table) -> Delta:
        if self._first_receipt_s is None:
            self._first_receipt_s = time.monotonic() - self._began_s
        self._clips += pc.sum(receipts["clips"]).as_py() or 0
        delta = self._session.receive(receipts)
        self._progress.update(videos=delta.videos, clips=delta.clips, video_s=delta.decoded_s, failures=delta.failed)
        return delta

    def _tell_of_faults(self) -> None:
        folder = faults_folder(self._session.run_id)
        notes = [found.key for found in self._store.list(folder)]
        if notes:
            last_line = self._store.read(notes[0]).decode().rstrip().rpartition("\n")[2]
            self._progress.note(
                f"{len(notes)} unexpected errors in workers, see {self._store.uri(folder)}; one is: {last_line}"
            )

    def _close(self, stopped: str | None, details: Sequence[str] = ()) -> None:
        took = {"wall_s": time.monotonic() - self._began_s, "first_receipt_s": self._first_receipt_s, **self._measured}
        why = {"stopped": stopped, "details": list(details)} if stopped else {}
        self._session.close(took | why, complete=stopped is None)

    def _told(self, stopped: str | None, details: Sequence[str], broken: str | None) -> RunResult:
        sums = self._session.sums
        return RunResult(
            run_id=self._session.run_id,
            output=self._store.root,
            counts=dict(sums.statuses),
            not_due=sums.not_due + sums.given_up,
            left_out=sums.left_out,
            duplicates=sums.duplicates + self._discovery.duplicates,
            clips=sums.clips,
            unanswered=sums.unanswered,
            video_s=sums.decoded_s,
            wall_s=time.monotonic() - self._began_s,
            first_receipt_s=self._first_receipt_s,
            errors=dict(sums.errors),
            stopped_reason=stopped,
            stopped_details=tuple(details),
            promise_broken=broken,
        )
