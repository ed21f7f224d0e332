"""Symmetries of the little world, free training data: mirrored, transposed, reversed, shifted, relit clips with new labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stages.models.embedded import world
from stages.models.embedded.data import Clips

_MIRROR_X = {"left": "right", "right": "left"}
_MIRROR_Y = {"up": "down", "down": "up"}
_TRANSPOSE = {"left": "up", "up": "left", "right": "down", "down": "right"}
_REVERSE = {**_MIRROR_X, **_MIRROR_Y, "growing": "shrinking", "shrinking": "growing"}
_SHIFT = 3  # pixels that a clip is moved at most
_GRAIN = torch.from_numpy(np.random.default_rng(0).standard_normal((256, 3, 64, 64), np.float32))  # drawing it anew is slow


@dataclass
class Batch:
    """Some clips as tensors. `pixels` (n, t, 3, 64, 64): uint8 as stored, or float32 in 0..1 when ready to learn from;
    `poses` (n, t, 5) as in Clips; `actions`, `colors` and `shapes` indices (n,)."""

    pixels: torch.Tensor
    poses: torch.Tensor
    actions: torch.Tensor
    colors: torch.Tensor
    shapes: torch.Tensor


def batches(
    clips: Clips, frames_at: tuple[int, ...], size: int, rng: np.random.Generator, *, is_upright: bool = False
) -> Iterator[Batch]:
    """Endless augmented batches of the frames `frames_at` of the clips; `is_upright` keeps up where it is.

    ValueError where there are fewer clips than a batch needs.
    """
    if len(clips) < size:
        raise ValueError(f"{len(clips)} clips do not make a batch of {size}")
    while True:
        order = rng.permutation(len(clips))
        for start in range(0, len(order) - size + 1, size):
            yield augmented(take(clips, np.sort(order[start : start + size]), frames_at), rng, is_upright=is_upright)


def take(clips: Clips, rows: NDArray[np.int64], frames_at: tuple[int, ...]) -> Batch:
    """The given rows, and of each the given frames, as they are."""
    at = list(frames_at)
    pixels = torch.from_numpy(clips.frames[rows[:, None], at]).permute(0, 1, 4, 2, 3)
    poses = torch.from_numpy(clips.poses[rows[:, None], at])
    actions, colors, shapes = (torch.from_numpy(a[rows]) for a in (clips.actions, clips.colors, clips.shapes))
    return Batch(pixels, poses, actions, colors, shapes)


def augmented(batch: Batch, rng: np.random.Generator, *, is_upright: bool = False) -> Batch:
    """One random symmetry and shift for the whole batch, light and noise clip by clip."""
    for change in (_mirrored_x, _reversed) if is_upright else (_mirrored_x, _mirrored_y, _transposed, _reversed):
        if rng.random() < 0.5:
            batch = change(batch)
    return _relit(_shifted(batch, rng), rng)


def _renamed(actions: torch.Tensor, names: dict[str, str]) -> torch.Tensor:
    return torch.tensor([world.ACTIONS.index(names.get(action, action)) for action in world.ACTIONS])[actions]


def _signed(poses: torch.Tensor, *signs: float) -> torch.Tensor:
    return poses * torch.tensor(signs)


def _mirrored_x(batch: Batch) -> Batch:
    poses = _signed(batch.poses, -1, 1, 1, 1, -1)
    return Batch(batch.pixels.flip(-1), poses, _renamed(batch.actions, _MIRROR_X), batch.colors, batch.shapes)


def _mirrored_y(batch: Batch) -> Batch:
    poses = _signed(batch.poses, 1, -1, 1, -1, 1)
    return Batch(batch.pixels.flip(-2), poses, _renamed(batch.actions, _MIRROR_Y), batch.colors, batch.shapes)


def _transposed(batch: Batch) -> Batch:
    # the mark points to (sin, -cos): swapping x and y makes that (-cos, sin)
    poses = _signed(batch.poses[..., [1, 0, 2, 4, 3]], 1, 1, 1, -1, -1)
    return Batch(batch.pixels.mT, poses, _renamed(batch.actions, _TRANSPOSE), batch.colors, batch.shapes)


def _reversed(batch: Batch) -> Batch:
    return Batch(batch.pixels.flip(1), batch.poses.flip(1), _renamed(batch.actions, _REVERSE), batch.colors, batch.shapes)


def _shifted(batch: Batch, rng: np.random.Generator) -> Batch:
    dx, dy = (int(d) for d in rng.integers(-_SHIFT, _SHIFT + 1, 2))
    height, width = batch.pixels.shape[-2:]
    rows = (torch.arange(height) - dy).clamp(0, height - 1)
    columns = (torch.arange(width) - dx).clamp(0, width - 1)
    moved = batch.pixels[..., rows[:, None], columns]
    poses = batch.poses + torch.tensor([2 * dx / width, 2 * dy / height, 0, 0, 0])
    return Batch(moved, poses, batch.actions, batch.colors, batch.shapes)


def _relit(batch: Batch, rng: np.random.Generator) -> Batch:
    n, t = batch.pixels.shape[:2]
    gain, offset, noise = (
        torch.from_numpy(rng.uniform(low, high, (n, 1, 1, 1, 1)).astype(np.float32))
        for low, high in ((0.93, 1.07), (-0.03, 0.03), (0, 0.02))
    )
    grain = _GRAIN[torch.from_numpy(rng.integers(0, len(_GRAIN), (n, t)))]
    pixels = (batch.pixels * (gain / 255)).add_(offset).addcmul_(grain, noise).clamp_(0, 1)
    return Batch(pixels, batch.poses, batch.actions, batch.colors, batch.shapes)
