"""What a run does, as a plain list of steps, and how its work is dealt out in blocks. Nothing in here starts anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.sizing import Sizing
from schemas.config import JobConfig
from schemas.entries import Entry

BLOCK_BYTES = 64 << 20
BLOCK_FILES = 16
BLOCKS_PER_CPU = 8
STAGED_ROWS = 32  # of a batch to stage, times the grain, where the grain is not 1: else each block as it comes


@dataclass(frozen=True)
class Step:
    """One operator of the dataset: a stage, what builds it, and what it asks Ray for.

    `actors` (fewest, most) makes it a pool of actors that build the stage once; None makes it tasks, `tasks` at a time at most.
    """

    name: str
    stage: Callable[..., Any]
    args: tuple[Any, ...]
    cpus: float
    gpus: float = 0.0
    actors: tuple[int, int] | None = None
    tasks: int | None = None
    batch_rows: int | None = None
    accelerator_type: str | None = None  # kind of GPU, where it matters


def steps(config: JobConfig, entries: Sequence[Entry], sizing: Sizing, output: str, run_id: str) -> list[Step]:
    """Decode, the model stages as one step where there are any, and staging; entries run in the order given.

    Without GPUs the actors stage what they have made: a process for it would cost more than it does, and parts are written
    while others decode. Beside a GPU it is a step of its own, so that the GPU never waits for the storage.
    """
    from stages.decode import Decode
    from stages.roots import Roots

    resources = config.resources
    frame_counts = {entry.fingerprint: entry.config.frames for entry in entries}
    roots = Roots.of(config.input.allow)
    decode = (config.clips, frame_counts, resources.unit_deadline_s, resources.worker_memory_bytes, roots)
    plan = [Step("decode", Decode, decode, cpus=sizing.decode_cpus)]
    last = staging(sizing, output, run_id)
    if entries:
        models = _model_step(config, entries, sizing)
        if not models.gpus:
            return [*plan, _with(models, last)]
        plan.append(models)
    return [*plan, last]


def _with(models: Step, last: Step) -> Step:
    from stages.chain import Joined, Link

    links = tuple(Link(step.stage, step.args) for step in (models, last))
    return replace(models, name=f"{models.name} + {last.name}", stage=Joined, args=(links,))


def staging(sizing: Sizing, output: str, run_id: str) -> Step:
    """The last step. Small batches at a small cluster, whose receipts would be long in coming otherwise."""
    from pipeline.staging import StageParts

    rows = STAGED_ROWS * sizing.grain if sizing.grain > 1 else None
    return Step(
        "stage parts", StageParts, (output, run_id), cpus=sizing.staging_cpus, tasks=sizing.staging_tasks, batch_rows=rows
    )


def _model_step(config: JobConfig, entries: Sequence[Entry], sizing: Sizing) -> Step:
    from stages.caption import Caption
    from stages.chain import Chain, Link
    from stages.classify import Classify
    from stages.embed import Embed

    stages: dict[str, Callable[..., Any]] = {"classify": Classify, "embed": Embed, "caption": Caption}
    batch = (config.resources.batch_clips, config.resources.batch_bytes)
    links = [Link(stages[entry.stage], (entry, sizing.device, sizing.dtype, *batch)) for entry in entries]
    return Step(
        " + ".join(dict.fromkeys(entry.stage for entry in entries)),
        Chain,
        (tuple(links),),
        cpus=sizing.actor_cpus,
        gpus=sizing.actor_gpus,
        actors=(sizing.actors_min, sizing.actors_max),
        # Ray Data wants a number of rows where it lends GPUs; without one a batch is what decode flushed at a time.
        batch_rows=config.resources.batch_clips * sizing.grain if sizing.actor_gpus else None,
        accelerator_type=sizing.accelerator_type,
    )


def blocks(units: pa.Table, cpus: float, grain: int = 1) -> Iterator[pa.Table]:
    """UNIT_ROW table -> blocks of it: at most `grain` times 64 MB of sources and 16 files, and 1/(8 x CPUs) of all bytes each,
    largest first.

    Largest first, so that what is left at the end is small and all cores end together.
    """
    if not units.num_rows:
        return
    weights = unit_bytes(units)
    order = np.argsort(-weights, kind="stable")
    units, weights = units.take(pa.array(order)).combine_chunks(), weights[order]
    limit = min(grain * BLOCK_BYTES, max(1.0, weights.sum() / (BLOCKS_PER_CPU * max(1.0, cpus))))
    begin, held = 0, 0.0
    for row, weight in enumerate(weights):
        if row > begin and (held + weight > limit or row - begin >= grain * BLOCK_FILES):
            yield units.slice(begin, row - begin)
            begin, held = row, 0.0
        held += weight
    yield units.slice(begin)


def unit_bytes(units: pa.Table) -> np.ndarray:
    """Share of its file that each unit stands for: float64, bytes."""
    sizes = np.asarray(units["size_bytes"].fill_null(0).to_numpy(), np.float64)
    return np.asarray(sizes / units["units"].to_numpy())
