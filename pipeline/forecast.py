"""What a run would do, found out without starting anything: due videos, units, steps, actors, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.attach import attached
from cluster.machines import ClusterSize, Machine, multiplies_bfloat16
from cluster.sizing import Sizing, decoders, expected, kind_of, size, this_machine
from pipeline import measured, plan
from pipeline.measured import Speed
from pipeline.plan import Step, unit_bytes
from pipeline.recipe import Recipe
from pipeline.session import Session
from schemas.config import JobConfig, ResourcesConfig
from schemas.entries import Entry
from schemas.rows import UNIT_ROW
from stages.discover import Discovery
from stages.storage import Store
from stages.units import units_of

if TYPE_CHECKING:
    from pipeline.run import Request


BFLOAT16 = "in bfloat16 this CPU is several times faster at large models, to three digits: --set resources.dtype=bfloat16"


@dataclass(frozen=True)
class StepForecast:
    """One operator: what it is, what it asks Ray for, and the clips per second that it may reach, where that was measured."""

    name: str
    runs_as: str  # tasks, or actors with their number
    cpus: float
    gpus: float
    accelerator_type: str | None = None
    clips_per_s: float | None = None


@dataclass(frozen=True)
class Forecast:
    """The answer of `clipmill plan`. Bytes are of sources; memory is the most that decode workers may take together.

    `machines` are those that are there, `may_come` those that an autoscaler may bring beside them; numbers of actors, memory
    and speed are of all of them. `speed` is None until a run has measured these models on this kind of device.
    """

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
    machines: list[str]
    may_come: list[str]
    steps: list[StepForecast]
    speed: Speed | None
    hint: str | None = None  # what would make it faster

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
            ("machines", ", ".join(self.machines) or "none yet"),
            *([("may come", ", ".join(self.may_come))] if self.may_come else []),
            ("models on", f"{self.device}, {self.dtype}"),
            ("memory", f"up to {self.decode_memory_bytes / 2**30:.1f} GiB for decoding, beside Ray's object store"),
        ]
        width = max(len(name) for name, _ in rows)
        return [
            *(f"{name:<{width}}  {value}" for name, value in rows),
            "steps",
            *(f"  {_asks(number, step)}" for number, step in enumerate(self.steps, 1)),
            *_speed_lines(self.speed),
            *([f"hint: {self.hint}"] if self.hint else []),
        ]

    def _doubled(self) -> str:
        return f", {self.duplicates:,} doubled entries" if self.duplicates else ""


def _asks(number: int, step: StepForecast) -> str:
    gpus = f", {step.gpus:g} {step.accelerator_type or 'GPU'}" if step.gpus else ""
    speed = f"; up to {_rate(step.clips_per_s)} clips/s" if step.clips_per_s else ""
    return f"{number}. {step.name}: {step.runs_as}, {step.cpus:g} CPU{gpus} each{speed}"


def _rate(clips_per_s: float) -> str:
    return f"{clips_per_s:,.0f}" if clips_per_s >= 10 else f"{clips_per_s:.2g}"


def _speed_lines(speed: Speed | None) -> list[str]:
    if speed is None:
        return ["speed: not known until a run has measured it"]
    return [f"speed: about {_rate(speed.total)} clips/s, limited by {speed.limit}; measured by run {speed.measured_in}"]


def describe(config: JobConfig, entries: Sequence[Entry], request: Request, cluster: ClusterSize | None = None) -> Forecast:
    """Lists the input, reads the ledger, sizes the steps. Attaches to Ray only where the request names an address.

    `cluster` stands in for what is there.
    """
    cluster = cluster or _cluster_at(request.address, config.resources)
    sizing = size(config.resources, cluster)
    store = Store(config.output)
    session = Session.look(store, config, entries, retry_failed=request.retry_failed)
    discovery = Discovery(config.input)
    units = pa.concat_tables([UNIT_ROW.empty_table(), *_units(config, session, discovery, request.limit)])
    steps = plan.steps(config, entries, sizing, store.root, "plan")
    found = measured.latest(store, Recipe.of(config.clips.fingerprint(), entries), kind_of(sizing, cluster))
    speed = measured.speed(found, steps, cluster.at_most()) if found else None
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
        decode_memory_bytes=max(1, decoders(sizing, cluster.at_most())) * config.resources.worker_memory_bytes,
        machines=_shapes(cluster.there()),
        may_come=_shapes(cluster.at_most() - cluster.there()),
        steps=[_step(step, sizing, cluster, speed) for step in steps],
        speed=speed,
        hint=BFLOAT16 if entries and request.address is None and _is_slow(config.resources, sizing) else None,
    )


def _is_slow(resources: ResourcesConfig, sizing: Sizing) -> bool:
    """Whether models run on this machine's CPUs in float32 because nobody said otherwise, and need not."""
    return resources.dtype == "auto" and sizing.device == "cpu" and multiplies_bfloat16()


def _cluster_at(address: str | None, resources: ResourcesConfig) -> ClusterSize:
    if address is None:
        return this_machine()
    with attached(address) as cluster:
        return expected(cluster, resources)


def _shapes(machines: Counter[Machine]) -> list[str]:
    """`3 of 8 CPUs and 1 L4`, the largest first; machines without CPUs do no work, and are left out."""
    found = sorted((machine for machine in machines if machine.cpus), key=lambda one: (-one.gpus, -one.cpus))
    return [f"{machines[machine]:,} of {_shape(machine)}" for machine in found]


def _shape(machine: Machine) -> str:
    gpus = f" and {machine.gpus:g} {machine.accelerator_type or 'GPU'}" if machine.gpus else ""
    return f"{machine.cpus:g} CPU{'' if machine.cpus == 1 else 's'}{gpus}"


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


def _step(step: Step, sizing: Sizing, cluster: ClusterSize, speed: Speed | None) -> StepForecast:
    rate = speed.steps[step.name] if speed else None
    return StepForecast(step.name, _runs_as(step, sizing, cluster), step.cpus, step.gpus, step.accelerator_type, rate)


def _runs_as(step: Step, sizing: Sizing, cluster: ClusterSize) -> str:
    if step.actors is not None:
        fewest, most = step.actors
        return f"{most} actor{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} actors"
    return f"tasks, up to {step.tasks or max(1, decoders(sizing, cluster.at_most()))} at a time"
