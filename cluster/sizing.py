"""From what a cluster has to what each step asks for.

Sized for the machines that are there and those that the cluster's autoscaler may bring. What could be scheduled on none of
them is refused before anything starts: Ray would wait for it for ever.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.machines import ClusterSize, Group, Machine, this_machine, total_cpus
from schemas.config import ResourcesConfig
from schemas.errors import BadRequest

__all__ = ["Sizing", "decoders", "expected", "size", "this_machine"]

DECODE_CPUS = 0.45  # beside GPUs: two decoders on a core, so that one can wait for its storage
# Where models share the cores, one on each: the operating system, which knows of no requests, lets them have what models leave.
CPU_DECODE_CPUS = 0.9
CPU_ACTOR_CPUS = 0.05
STAGING_CPUS = 0.01
# A task that stages is a process of 200 MB that asks for next to no CPU: unless they are counted, Ray starts one for each batch
# that waits, and batches wait the longer the more processes start. A part is written within a second or so, and a core decodes
# enough for one in a minute or so.
FEWEST_STAGING, CPUS_PER_STAGING = 8, 8
# Ray Data's driver takes some milliseconds for every task and block, on one core, whatever they hold. Up to so many actors, or
# CPUs of a cluster without GPUs, it has time enough; beyond, blocks and batches grow with the cluster.
FINE_ACTORS = 8
FINE_CPUS = 128
COARSEST = 16
GPU_ACTOR_CPUS = 1.0  # beside a GPU, unless that were more than half of the machine's CPUs
_GROWTH_HINT = "; where an autoscaler brings machines, say which in resources.machines"


@dataclass(frozen=True)
class Sizing:
    """What the steps of a run ask Ray for. Ray starts with `actors_min` actors and adds more, up to `actors_max`, while
    batches wait for them and there is room.
    """

    device: str  # cpu or cuda
    dtype: str
    decode_cpus: float
    actor_cpus: float
    actor_gpus: float
    actors_min: int
    actors_max: int
    staging_cpus: float = STAGING_CPUS
    staging_tasks: int = FEWEST_STAGING  # at a time, at most
    accelerator_type: str | None = None  # the kind of GPU that actors insist on
    grain: int = 1  # times as much in a block or a task as on one machine


def expected(cluster: ClusterSize, resources: ResourcesConfig) -> ClusterSize:
    """`cluster` with the machines that, by the configuration, its autoscaler may bring."""
    shapes = ((Machine(one.cpus, one.gpus, one.accelerator_type), one.most) for one in resources.machines)
    return cluster.growing(Group(machine, most) for machine, most in shapes)


def size(resources: ResourcesConfig, cluster: ClusterSize) -> Sizing:
    """Sizing of a run with `resources` on `cluster`. Raises BadRequest, naming the setting, for what can never be scheduled."""
    machines = cluster.at_most()
    is_alone = cluster.nodes == 1 and cluster.cpus > 0
    hint = "" if cluster.groups or is_alone else _GROWTH_HINT
    wanted, most_cpus = resources.decode_cpus or DECODE_CPUS, max(machine.cpus for machine in machines)
    if wanted > most_cpus:
        raise BadRequest(
            f"resources.decode_cpus: {wanted:g} CPUs for one decode task, and no machine has more than {most_cpus:g}{hint}"
        )
    sizing = (_on_gpus if _wants_gpus(resources, machines) else _on_cpus)(resources, cluster, hint)
    sizing = replace(sizing, staging_tasks=max(FEWEST_STAGING, math.ceil(total_cpus(machines) / CPUS_PER_STAGING)))
    if resources.min_actors and sizing.actors_min > sizing.actors_max:
        raise BadRequest(f"resources.min_actors: {sizing.actors_min} actors at least, and {sizing.actors_max} at most")
    return sizing


def kind_of(sizing: Sizing, cluster: ClusterSize) -> str:
    """What a run's speeds hold for: `cpu`, or `cuda` with the kinds of GPU that its actors may have come to."""
    if sizing.device == "cpu":
        return "cpu"
    kinds = {machine.accelerator_type or "unknown" for machine in cluster.at_most() if machine.gpus}
    return " ".join(["cuda", *([sizing.accelerator_type] if sizing.accelerator_type else sorted(kinds))])


def _wants_gpus(resources: ResourcesConfig, machines: Mapping[Machine, int]) -> bool:
    if resources.device == "auto":
        return resources.accelerator_type is not None or any(machine.gpus for machine in machines)
    return resources.device == "cuda"


def _on_cpus(resources: ResourcesConfig, cluster: ClusterSize, hint: str) -> Sizing:
    """Actors ask for next to nothing: they and decoding share the cores as the operating system sees fit."""
    if resources.accelerator_type:
        raise BadRequest(
            f"resources.accelerator_type: {resources.accelerator_type} is a kind of GPU, and resources.device is cpu"
        )
    cpus = total_cpus(cluster.at_most())
    fewest = resources.min_actors or 1
    left = cpus - fewest * CPU_ACTOR_CPUS
    decode_cpus = resources.decode_cpus or (CPU_DECODE_CPUS if left >= CPU_DECODE_CPUS else DECODE_CPUS)
    if decode_cpus > left:
        raise BadRequest(f"resources.min_actors: {fewest} actors leave decoding nothing of {cpus:g} CPUs{hint}")
    return Sizing(
        device="cpu",
        dtype="float32" if resources.dtype == "auto" else resources.dtype,
        decode_cpus=decode_cpus,
        actor_cpus=CPU_ACTOR_CPUS,
        actor_gpus=0.0,
        actors_min=fewest,
        actors_max=resources.actors or max(1, fewest, int(cpus) // 2),
        grain=_grain(cpus / FINE_CPUS),
    )


def _on_gpus(resources: ResourcesConfig, cluster: ClusterSize, hint: str) -> Sizing:
    decode_cpus = resources.decode_cpus or DECODE_CPUS
    machines, share = cluster.at_most(), resources.gpus_per_actor
    fitting = _with_gpus(resources, machines, hint)
    actor_cpus = _actor_cpus(resources, fitting, hint)
    now, most = (_actors(resources, fitting, actor_cpus, counted) for counted in (cluster.there(), machines))
    actors_max = resources.actors or most
    if actors_max > most:
        raise BadRequest(
            f"resources.actors: {actors_max} actors want {actors_max * share:g} GPUs, and there is room for {most}{hint}"
        )
    sizing = Sizing(
        device="cuda",
        dtype="bfloat16" if resources.dtype == "auto" else resources.dtype,
        decode_cpus=decode_cpus,
        actor_cpus=actor_cpus,
        actor_gpus=share,
        actors_min=resources.min_actors or max(1, min(now, actors_max)),
        actors_max=actors_max,
        accelerator_type=resources.accelerator_type,
        grain=_grain(actors_max / FINE_ACTORS),
    )
    if actors_max == most and not decoders(sizing, machines):
        raise BadRequest(
            f"resources.cpus_per_actor: {actors_max} actors with {actor_cpus:g} CPUs each leave no machine the {decode_cpus:g} "
            f"CPUs of a decode task{hint}"
        )
    return sizing


def _grain(times: float) -> int:
    return max(1, min(COARSEST, math.ceil(times)))


def _with_gpus(resources: ResourcesConfig, machines: Mapping[Machine, int], hint: str) -> list[Machine]:
    """Shapes of machines on which an actor finds its GPUs."""
    share, kind = resources.gpus_per_actor, resources.accelerator_type
    if share > 1 and share != int(share):
        raise BadRequest(f"resources.gpus_per_actor: {share:g}: Ray lends a part of one GPU, or whole ones")
    equipped = [machine for machine in machines if machine.gpus]
    if not equipped:
        key, wish = ("accelerator_type", kind) if kind else ("device", "cuda")
        raise BadRequest(
            f"resources.{key}: {wish} wants {share:g} GPU for an actor (resources.gpus_per_actor), and there is none{hint}"
        )
    if kind is not None:
        kinds = sorted({machine.accelerator_type or "an unknown kind" for machine in equipped})
        equipped = [machine for machine in equipped if machine.accelerator_type == kind]
        if not equipped:
            raise BadRequest(f"resources.accelerator_type: no machine has {kind}; GPUs are {', '.join(kinds)}{hint}")
    if not any(_lent(machine, share) for machine in equipped):
        most = max(machine.gpus for machine in equipped)
        raise BadRequest(f"resources.gpus_per_actor: {share:g} GPUs for one actor, and no machine has more than {most:g}{hint}")
    return [machine for machine in equipped if _lent(machine, share)]


def _lent(machine: Machine, share: float) -> int:
    """Actors with `share` GPUs each that a machine's GPUs carry. A part of a GPU never spans two."""
    return int(machine.gpus) * int(1 / share + 1e-6) if share < 1 else int(machine.gpus // share)


def _actor_cpus(resources: ResourcesConfig, fitting: list[Machine], hint: str) -> float:
    """CPUs of an actor beside a GPU; unset, actors leave at least half of every machine to decoding."""
    most_cpus = max(machine.cpus for machine in fitting)
    if resources.cpus_per_actor is None:
        halves = [machine.cpus / 2 / _lent(machine, resources.gpus_per_actor) for machine in fitting if machine.cpus]
        return min([GPU_ACTOR_CPUS, *(math.floor(half * 100) / 100 for half in halves)])
    if resources.cpus_per_actor > most_cpus:
        raise BadRequest(
            f"resources.cpus_per_actor: {resources.cpus_per_actor:g} CPUs for one actor, and no machine with such GPUs has "
            f"more than {most_cpus:g}{hint}"
        )
    return resources.cpus_per_actor


def _actors(resources: ResourcesConfig, fitting: list[Machine], cpus: float, machines: Counter[Machine]) -> int:
    """Actors that have room on `machines`, of which those of the shapes `fitting` count."""
    return sum(_room(machine, resources.gpus_per_actor, cpus) * machines[machine] for machine in fitting)


def _room(machine: Machine, gpus: float, cpus: float) -> int:
    return min(_lent(machine, gpus), int(machine.cpus / cpus + 1e-6) if cpus else _lent(machine, gpus))


def decoders(sizing: Sizing, machines: Mapping[Machine, int]) -> int:
    """Decode tasks that run at a time on `machines`, by shape, each of which has all actors that it has room for."""
    left = {machine: machine.cpus - _actors_on(sizing, machine) * sizing.actor_cpus for machine in machines}
    return sum(count * int(left[machine] / sizing.decode_cpus + 1e-6) for machine, count in machines.items())


def _actors_on(sizing: Sizing, machine: Machine) -> int:
    if not sizing.actor_gpus:
        return min(sizing.actors_max, math.ceil(machine.cpus / 2))
    if sizing.accelerator_type not in (None, machine.accelerator_type):
        return 0
    return min(sizing.actors_max, _room(machine, sizing.actor_gpus, sizing.actor_cpus))
