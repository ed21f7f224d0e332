"""The loop that all three checkpoints are trained with."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from stages.models.embedded.augment import Batch

AVERAGED_OVER_STEPS = 100  # of the weights that are kept


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: the rate rises over `warmup` steps and falls along a cosine."""

    steps: int
    rate: float
    batch_clips: int
    warmup: int = 60
    weight_decay: float = 0.02
    log_every: int = 50

    def factor(self, step: int) -> float:
        """Share of the full rate at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.02 + 0.98 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup))) / 2


def fit(
    model: nn.Module,
    batches: Iterator[Batch],
    loss_of: Callable[[Batch], torch.Tensor],
    schedule: Schedule,
    say: Callable[[str], None] = print,
) -> nn.Module:
    """Trains `model` in place by AdamW on `loss_of(batch)`; returns a copy with its averaged weights, in eval mode.

    Only parameters that ask for gradients are trained. bfloat16 where torch's autocast sees fit.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.rate, weight_decay=schedule.weight_decay, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
    averaged = copy.deepcopy(model).eval()
    model.train()
    recent, began_s = 0.0, time.monotonic()
    for step in range(schedule.steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(next(batches))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        _average(averaged, model, min(1 - 1 / AVERAGED_OVER_STEPS, step / (step + 10)))
        recent += float(loss.detach())
        if (step + 1) % schedule.log_every == 0:
            say(f"step {step + 1} loss {recent / schedule.log_every:.3f} {time.monotonic() - began_s:.0f} s")
            recent = 0.0
    return averaged


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, keep: float) -> None:
    for kept, new in zip(averaged.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - keep)
