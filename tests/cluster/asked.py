"""What a run asks a cluster for, held against the machines that a description of a cluster has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.machines import ClusterSize, Machine
from cluster.sizing import size
from pipeline import plan, settings
from schemas.config import JobConfig
from schemas.entries import Entry

MODEL_STAGES = ("classify", "embed", "caption")
# Largest resident sizes of a process that decodes: 0.37 GB for 480p, 0.58 GB for 1080p, 1.17 GB for 2160p (docs/cluster.md).
DECODER_BYTES = 1.17 * 2**30
# The standard preset's weights in float32, as they may pass through main memory, and what torch takes beside them.
MODELS_BYTES = 4e9
OBJECT_STORE = 0.3  # of a node's memory, unless Ray is told otherwise


@dataclass(frozen=True)
class Node:
    """One machine or pod as Ray counts it: CPUs, GPUs, bytes of memory."""

    cpus: float
    gpus: float
    memory_bytes: float


def standard_config() -> JobConfig:
    """`--preset standard`, as the manifests run it."""
    return settings.load(preset="standard", sets=["resources.device=cuda"], input_uri="s3://archive/", output="s3://tables/x")


def does_not_fit(config: JobConfig, there: Sequence[Node], nodes: Sequence[Node]) -> list[str]:
    """What of a run could never be scheduled where the nodes `there` are there, and all are like `nodes`; one line each."""
    cluster = ClusterSize.of([Machine(0), *(Machine(node.cpus, node.gpus) for node in there)])
    sizing = size(config.resources, cluster)
    entries = [
        Entry(stage, entry, "0" * 40, f"f{stage}{index}", entry.name or stage)
        for stage in MODEL_STAGES
        for index, entry in enumerate(getattr(config, stage))
    ]
    steps = plan.steps(config, entries, sizing, config.output, "run")
    assert [step.name for step in steps] == ["decode", "classify + embed + caption", "stage parts"]
    found = [
        f"{step.name}: {step.cpus:g} CPUs and {step.gpus:g} GPUs are on no node"
        for step in steps
        if not any(step.cpus <= node.cpus and step.gpus <= node.gpus for node in nodes)
    ]
    for step in steps:
        actors = step.actors[1] if step.actors else 0
        if actors != (cluster.gpus if step.gpus else 0):
            found.append(f"{step.name}: {actors} actors for {cluster.gpus:g} GPUs")
        if step.cpus * actors > cluster.cpus - steps[0].cpus:
            found.append(f"{step.name}: {actors} actors leave decode no CPU")
    return found + [
        f"{node}: {need / 2**30:.1f} GiB wanted" for node in nodes if (need := memory(node, steps)) > node.memory_bytes
    ]


def memory(node: Node, steps: Sequence[plan.Step]) -> float:
    """Bytes that a node needs while it is full of decoders of 2160p video, beside its object store and its actors."""
    decode, models, _ = steps
    actors = int(node.gpus / models.gpus) if models.gpus else 0
    decoders = int((node.cpus - actors * models.cpus) / decode.cpus)
    return decoders * DECODER_BYTES + actors * MODELS_BYTES + OBJECT_STORE * node.memory_bytes
