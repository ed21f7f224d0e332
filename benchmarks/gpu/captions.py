"""Captioners: tokens per second of the stage, and of the same model's bare `generate` over inputs that are ready."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clips import clips, entry
from benchmarks.gpu.device import Device, best_batch, busy, rate
from benchmarks.gpu.vision import refuse_errors
from benchmarks.rounds import Contestant, Figure
from stages.caption import Caption

_MOST_CLIPS = 64
_UNBOUNDED = 1 << 40
_TOKENS = 64  # the default of `caption.max_tokens`; random weights hardly ever stop before


class Captioner:
    """One checkpoint on one device, loaded when first needed."""

    def __init__(self, folder: Path, frames: int, device: Device, *, tiny: bool, seconds: float) -> None:
        self._frames, self._device, self._tiny, self._seconds = frames, device, tiny, seconds
        self._entry = entry("caption", folder, frames, prompt="a b c d e f g h", max_tokens=4 if tiny else _TOKENS)
        self._most = 2 if tiny else _MOST_CLIPS

    def contestants(self) -> dict[str, Contestant]:
        """By the names that the report knows."""
        return {"stage": self.stage, "bare": self.bare}

    def stage(self) -> Figure:
        """The stage as a run calls it, on tables of its best batch."""
        step = self._stage_step(self._stage_batch)
        step()
        with busy(self._device) as found:
            tokens_per_s = rate(step, self._device, self._seconds)
        share = {} if found.share is None else {"busy": found.share}
        return {"tokens_per_s": tokens_per_s, "batch": self._stage_batch, **share}

    def bare(self) -> Figure:
        """`generate` with what the stage gives it, already on the device, at its own best batch."""
        tokens_per_s = rate(self._bare_step(self._bare_batch), self._device, self._seconds)
        return {"tokens_per_s": tokens_per_s, "batch": self._bare_batch}

    @cached_property
    def _stage_batch(self) -> int:
        return best_batch(lambda batch: rate(self._stage_step(batch), self._device, self._seconds / 4), self._most)

    @cached_property
    def _bare_batch(self) -> int:
        return best_batch(lambda batch: rate(self._bare_step(batch), self._device, self._seconds / 4), self._most)

    @cached_property
    def _stage(self) -> Caption:
        return Caption(self._entry, self._device.name, self._device.dtype, _UNBOUNDED, _UNBOUNDED)

    def _stage_step(self, batch: int) -> Callable[[], float]:
        stage, table = self._stage, clips(batch, self._frames, self._tiny, (self._entry.fingerprint,))

        def step() -> float:
            said = stage(table)
            refuse_errors(said, "captions")
            return float(sum(struct["tokens"] for structs in said["captions"].to_pylist() for struct in structs))

        return step

    def _bare_step(self, batch: int) -> Callable[[], float]:
        with generated() as calls:
            self._stage_step(batch)()
        net, inputs = calls[0]
        length = inputs["input_ids"].shape[1]
        ends = torch.tensor(net.generation_config.eos_token_id, device=self._device.name)

        def step() -> float:
            with torch.inference_mode():
                said = net.generate(**inputs)[:, length:]
            return float((torch.isin(said, ends).cumsum(1) == 0).sum())

        return step


@contextlib.contextmanager
def generated() -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Models and inputs of the calls of `generate` while it is entered; the processors of logits are left out."""
    from transformers import GenerationMixin

    calls: list[tuple[Any, dict[str, Any]]] = []
    original = GenerationMixin.generate

    def generate(net: Any, **inputs: Any) -> Any:
        calls.append((net, {name: value for name, value in inputs.items() if name != "logits_processor"}))
        return original(net, **inputs)

    GenerationMixin.generate = generate
    try:
        yield calls
    finally:
        GenerationMixin.generate = original
