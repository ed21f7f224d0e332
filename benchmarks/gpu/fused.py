"""Two stages in one actor, so that frames cross Ray's object store once, and in an actor each, so that they cross it twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.clips import clips, entry
from benchmarks.gpu.device import Device
from benchmarks.gpu.vision import DEFAULT_BATCH
from benchmarks.rounds import ROOT, Contestant, Figure
from stages.chain import Chain, Link
from stages.classify import Classify
from stages.embed import Embed

_TABLES_AT_A_TIME = 8


class Fused:
    """A classifier and an embedder on the same device. `ray` must be connected."""

    def __init__(self, classifier: Path, embedder: Path, frames: int, device: Device, *, tiny: bool, seconds: float) -> None:
        self._device, self._frames, self._tiny, self._seconds = device, frames, tiny, seconds
        entries = (entry("classify", classifier, frames), entry("embed", embedder, frames))
        self._batch = 2 if tiny else DEFAULT_BATCH
        settings = (device.name, device.dtype, self._batch)
        self._links = [Link(stage, (one, *settings)) for stage, one in zip((Classify, Embed), entries, strict=True)]

    def contestants(self) -> dict[str, Contestant]:
        """By the names that the report knows."""
        return {"fused": lambda: self._measured([self._actor(Chain, (self._links,), 1.0)]), "apart": self._apart}

    def _apart(self) -> Figure:
        first, second = self._links
        return self._measured([self._actor(first.stage, first.args, 0.5), self._actor(Chain, ([second],), 0.5)])

    def _actor(self, stage: Any, args: tuple[Any, ...], gpus: float) -> Any:
        import ray

        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        wanted = {"num_cpus": 0.1, "num_gpus": gpus if self._device.is_gpu else 0, "runtime_env": environment}
        return ray.remote(stage).options(**wanted).remote(*args)

    def _measured(self, actors: list[Any]) -> Figure:
        """Tables are put into the object store anew for every turn, and its answers waited for."""
        import ray

        table = clips(self._batch, self._frames, self._tiny, ("classify", "embed"))
        try:
            self._turn(actors, table, 1)
            done, began_s, took_s = 0, time.perf_counter(), 0.0
            while took_s < self._seconds or not done:
                done += self._turn(actors, table, _TABLES_AT_A_TIME)
                took_s = time.perf_counter() - began_s
        finally:
            for actor in actors:
                ray.kill(actor)
        return {"clips_per_s": done / took_s}

    def _turn(self, actors: list[Any], table: Any, tables: int) -> int:
        import ray

        answers = []
        for _ in range(tables):
            passed = ray.put(table)
            for actor in actors:
                passed = actor.__call__.remote(passed)
            answers.append(passed)
        return sum(answer.num_rows for answer in ray.get(answers))
