"""From what a cluster has to what each step asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from cluster.attach import ClusterSize
from schemas.config import ResourcesConfig
from schemas.errors import BadRequest

# Small requests, because on CPUs the operating system shares cores between decoding and models better than Ray's
# whole-number bookkeeping does: with 0.45 two cores stay busy, with 0.95 a quarter of the time is lost (docs/decisions.md).
DECODE_CPUS = 0.45
CPU_ACTOR_CPUS = 0.05
STAGING_CPUS = 0.01


@dataclass(frozen=True)
class Sizing:
    """What the steps of a run ask Ray for."""

    device: str  # cpu or cuda
    dtype: str
    decode_cpus: float
    actor_cpus: float
    actor_gpus: float
    actors_min: int
    actors_max: int
    staging_cpus: float = STAGING_CPUS


def size(resources: ResourcesConfig, cluster: ClusterSize) -> Sizing:
    """Sizing of a run with `resources` on `cluster`. Raises BadRequest, naming the setting, for what can never be scheduled."""
    device = resources.device
    if device == "auto":
        device = "cuda" if cluster.gpus > 0 else "cpu"
    if device == "cuda" and cluster.gpus < resources.gpus_per_actor:
        raise BadRequest(
            f"resources.device: cuda wants {resources.gpus_per_actor:g} GPU for an actor (resources.gpus_per_actor), "
            f"the cluster has {cluster.gpus:g}"
        )
    on_gpu = device == "cuda"
    dtype = resources.dtype if resources.dtype != "auto" else ("bfloat16" if on_gpu else "float32")
    decode_cpus = resources.decode_cpus or DECODE_CPUS
    if decode_cpus > cluster.cpus:
        raise BadRequest(f"resources.decode_cpus: {decode_cpus:g} CPUs for one decode task, the cluster has {cluster.cpus:g}")
    most = int(cluster.gpus / resources.gpus_per_actor) if on_gpu else max(1, int(cluster.cpus) // 2)
    actors_max = resources.actors or most
    if on_gpu and actors_max > most:
        raise BadRequest(f"resources.actors: {actors_max} actors want {actors_max * resources.gpus_per_actor:g} GPUs, "
                         f"the cluster has {cluster.gpus:g}")  # fmt: skip
    return Sizing(
        device=device,
        dtype=dtype,
        decode_cpus=decode_cpus,
        actor_cpus=min(resources.cpus_per_actor, cluster.cpus / 2) if on_gpu else CPU_ACTOR_CPUS,
        actor_gpus=resources.gpus_per_actor if on_gpu else 0.0,
        actors_min=actors_max if on_gpu else 1,
        actors_max=actors_max,
    )


def this_machine() -> ClusterSize:
    """What Ray would find if it were started here, without starting it."""
    return ClusterSize(float(len(os.sched_getaffinity(0))), float(_gpus_of_this_machine()), 1)


def _gpus_of_this_machine() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
