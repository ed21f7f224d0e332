"""What a run would do, found out without starting anything: due videos, units, steps, actors, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.attach import ClusterSize, attached
from cluster.sizing import size, this_machine
from pipeline import plan
from pipeline.plan import Step, unit_bytes
from pipeline.session import Session
from schemas.config import JobConfig
from schemas.entries import Entry
from schemas.rows import UNIT_ROW
from stages.discover import Discovery
from stages.storage import Store
from stages.units import units_of

if TYPE_CHECKING:
    from pipeline.run import Request


@dataclass(frozen=True)
class StepForecast:
    """One operator: what it is, and what it asks Ray for."""

    name: str
    runs_as: str  # tasks, or actors with their number
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Forecast:
    """The answer of `clipmill plan`. Bytes are of sources; memory is the most that decode workers may take together."""

    input: str
    output: str
    listed: int
    duplicates: int
    due: int
    units: int
    source_bytes: int
    due_by_stage: dict[str, int]
    device: str
    dtype: str
    decode_memory_bytes: int
    steps: list[StepForecast]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        rows = [
            ("input", self.input),
            ("output", self.output),
            ("videos", f"{self.listed:,} listed, {self.due:,} due" + self._doubled()),
            ("work", f"{self.units:,} units, {self.source_bytes / 1e6:,.1f} MB of sources"),
            *((f"  {name}", f"{count:,} videos") for name, count in self.due_by_stage.items()),
            ("models on", f"{self.device}, {self.dtype}"),
            ("memory", f"up to {self.decode_memory_bytes / 2**30:.1f} GiB for decoding, beside Ray's object store"),
        ]
        width = max(len(name) for name, _ in rows)
        return [
            *(f"{name:<{width}}  {value}" for name, value in rows),
            "steps",
            *(f"  {_asks(number, step)}" for number, step in enumerate(self.steps, 1)),
        ]

    def _doubled(self) -> str:
        return f", {self.duplicates:,} doubled entries" if self.duplicates else ""


def _asks(number: int, step: StepForecast) -> str:
    gpus = f", {step.gpus:g} GPU" if step.gpus else ""
    return f"{number}. {step.name}: {step.runs_as}, {step.cpus:g} CPU{gpus} each"


def describe(config: JobConfig, entries: Sequence[Entry], request: Request) -> Forecast:
    """Lists the input, reads the ledger, sizes the steps. Attaches to Ray only where the request names an address."""
    cluster = _cluster_at(request.address)
    sizing = size(config.resources, cluster)
    store = Store(config.output)
    session = Session.look(store, config, entries, retry_failed=request.retry_failed)
    discovery = Discovery(config.input)
    units = pa.concat_tables([UNIT_ROW.empty_table(), *_units(config, session, discovery, request.limit)])
    steps = plan.steps(config, entries, sizing, store.root, "plan")
    decoders = max(1, int(cluster.cpus / sizing.decode_cpus))
    return Forecast(
        input=config.input.uri,
        output=store.root,
        listed=session.sums.listed + discovery.duplicates,
        duplicates=session.sums.duplicates + discovery.duplicates,
        due=len(pc.unique(units["video_id"])),
        units=units.num_rows,
        source_bytes=int(unit_bytes(units).sum()),
        due_by_stage=_due_by_stage(config, entries, units),
        device=sizing.device,
        dtype=sizing.dtype,
        decode_memory_bytes=decoders * config.resources.worker_memory_bytes,
        steps=[StepForecast(step.name, _runs_as(step, cluster), step.cpus, step.gpus) for step in steps],
    )


def _cluster_at(address: str | None) -> ClusterSize:
    if address is None:
        return this_machine()
    with attached(address) as cluster:
        return cluster


def _units(config: JobConfig, session: Session, discovery: Discovery, limit: int | None) -> Iterator[pa.Table]:
    left = limit
    for sources in discovery.batches():
        due = session.due(sources)
        if left is not None:
            due = due.slice(0, left)
            left -= due.num_rows
        yield units_of(due, config.clips, discovery.roots)


def _due_by_stage(config: JobConfig, entries: Sequence[Entry], units: pa.Table) -> dict[str, int]:
    first = units.filter(pc.equal(units["unit"], 0))
    due = Counter(pc.list_flatten(first["due"]).to_pylist())
    names = {"clips": config.clips.fingerprint()} | {f"{entry.stage} {entry.name}": entry.fingerprint for entry in entries}
    return {name: due[fingerprint] for name, fingerprint in names.items()}


def _runs_as(step: Step, cluster: ClusterSize) -> str:
    if step.actors is None:
        return f"tasks, up to {max(1, int(cluster.cpus / step.cpus))} at a time" if step.cpus >= 0.1 else "tasks beside them"
    fewest, most = step.actors
    return f"{most} actor{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} actors"
