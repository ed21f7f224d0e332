"""What the steps of a run took, as its record keeps it, and what that lets a cluster expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cluster.machines import Machine, total_cpus
from pipeline.log import Log
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.plan import Step
    from stages.storage import Store

LOOKED_AT = 20  # records of runs, the newest first


@dataclass(frozen=True)
class Took:
    """Of all workers of one step together: CPU seconds, those of all threads, and seconds at work. Loading models is not in."""

    cpu_s: float = 0.0
    busy_s: float = 0.0

    def __add__(self, other: Took) -> Took:
        return Took(self.cpu_s + other.cpu_s, self.busy_s + other.busy_s)


@dataclass(frozen=True)
class Measured:
    """A run: its clips, and what each step took for them."""

    run_id: str
    clips: int
    steps: Mapping[str, Took]


@dataclass(frozen=True)
class Speed:
    """Clips per second that a cluster may reach: each step if the others cost nothing, and all together.

    `limit` is the step that is at fault, as the run `measured_in` found it.
    """

    steps: Mapping[str, float]
    total: float
    limit: str
    measured_in: str


def added(one: Mapping[str, Took], two: Mapping[str, Took]) -> dict[str, Took]:
    """Both, by step."""
    return {name: one.get(name, Took()) + two.get(name, Took()) for name in {**one, **two}}


def to_record(device: str, clips: int, steps: Mapping[str, Took]) -> dict[str, Any]:
    """For the record of a run; empty where nothing was measured. `device`: see `cluster.sizing.kind_of`."""
    measured = clips > 0 and bool(steps)
    return (
        {"measured": {"device": device, "clips": clips, "steps": {k: asdict(v) for k, v in steps.items()}}} if measured else {}
    )


def latest(store: Store, recipe: Recipe, device: str) -> Measured | None:
    """What the last run of the same recipe on the same kind of device measured; None where there is none."""
    log = Log(store)
    log.refresh()
    runs = sorted((run for run in log.runs.values() if run.closed), key=lambda run: run.opened.number, reverse=True)
    for run in runs[:LOOKED_AT]:
        try:
            record = json.loads(store.read(f"_runs/{run.opened.run}/run.json"))
        except FileNotFoundError:  # the run was closed by another one, which knew nothing of this
            continue
        found = record["summary"].get("measured")
        if found and found["device"] == device and Recipe.from_json(record["recipe"]).fingerprints == recipe.fingerprints:
            return Measured(
                run.opened.run, found["clips"], {name: Took(**took) for name, took in found["steps"].items()}
            )  # fmt: skip
    return None


def speed(measured: Measured, steps: Sequence[Step], machines: Mapping[Machine, int]) -> Speed | None:
    """What `steps` may reach on `machines` (by shape); None where one of them was not measured.

    A step is held up by the CPUs, which all steps share, and by its actors, of which none does more than it was seen to do.
    """
    if any(not measured.steps.get(step.name, Took()).cpu_s for step in steps):
        return None
    cpus, took = total_cpus(machines), {step.name: measured.steps[step.name] for step in steps}
    by_cpus = {name: cpus * measured.clips / one.cpu_s for name, one in took.items()}
    by_actors = {step.name: _by_actors(step, took[step.name], measured.clips) for step in steps if step.actors}
    together = cpus * measured.clips / sum(one.cpu_s for one in took.values())
    slowest = min(by_actors, key=lambda name: by_actors[name], default=None)
    if slowest is not None and by_actors[slowest] < together:
        limit, total = slowest, by_actors[slowest]
    else:
        limit, total = max(took, key=lambda name: took[name].cpu_s), together
    each = {name: min(rate, by_actors.get(name, rate)) for name, rate in by_cpus.items()}
    return Speed(each, total, limit, measured.run_id)


def _by_actors(step: Step, took: Took, clips: int) -> float:
    """Clips per second of all its actors. Beside a GPU an actor's time counts; on CPUs, where actors wait for a core much of
    their time, the CPU time that they can take: one core, or as many as its threads were seen to fill.
    """
    assert step.actors is not None
    if step.gpus:
        return step.actors[1] * clips / max(took.busy_s, took.cpu_s)
    threads = max(1.0, took.cpu_s / took.busy_s) if took.busy_s else 1.0
    return step.actors[1] * threads * clips / took.cpu_s
