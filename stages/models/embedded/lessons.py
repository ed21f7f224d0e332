"""Easy frames first: large shapes near the middle that shrink, stray and turn as the lessons go on.

A small vision transformer stays at guessing shapes for a thousand steps when its first shapes are as small as in the
clips; it tells large ones apart at once, and then follows them down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from stages.models.embedded import world
from stages.models.embedded.augment import Batch
from stages.models.embedded.data import LOG_RADIUS_AT, PIXELS, targets

_MID_SHOT = np.array([0.5], np.float32)
_LARGEST = 0.42  # radius of the first lesson's shapes
_UNDERSTOOD, _STEP = 0.6, 0.012  # share of shapes named rightly, and what that adds to the difficulty


def masks(batch: Batch, cells: int) -> torch.Tensor:
    """Share of each of `cells` x `cells` parts of a frame that the shape covers: float32 (n * t, cells, cells)."""
    centres = (np.arange(cells, dtype=np.float32) * 2 + 1) / cells - 1
    frames = batch.poses.shape[1]
    drawn = []
    for (x, y, size, cos, sin), shape in zip(
        batch.poses.flatten(0, 1).numpy(), batch.shapes.repeat_interleave(frames).numpy(), strict=True
    ):
        radius = 2 * LOG_RADIUS_AT * np.exp(size)
        dx, dy = (centres - x)[None, :] / radius, (centres - y)[:, None] / radius
        distance = world.distance(world.SHAPES[shape], dx * cos + dy * sin, dy * cos - dx * sin)
        drawn.append(np.clip(0.5 - distance * radius * cells / 2, 0, 1))
    return torch.from_numpy(np.stack(drawn))


class Lessons:
    """Endless batches of one clean frame a clip, made harder as fast as they are understood."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.difficulty = 0.0
        self._size, self._rng = size, rng

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return lesson(self.difficulty, self._size, self._rng)

    def understood(self, share: float) -> None:
        """Tells which share of the last batch's shapes was named rightly."""
        if share > _UNDERSTOOD:
            self.difficulty = min(1.0, self.difficulty + _STEP)


def lesson(difficulty: float, size: int, rng: np.random.Generator) -> Batch:
    """A batch of `size` frames; `difficulty` 0: large, upright and central, 1: as in the clips."""
    shots = [_shot(difficulty, rng) for _ in range(size)]
    frames = np.stack([world.render(shot, PIXELS, PIXELS, _MID_SHOT) for shot in shots])
    poses = np.stack([targets(world.poses(shot, _MID_SHOT)) for shot in shots])
    indices = [(world.ACTIONS.index(s.action), list(world.COLORS).index(s.color), world.SHAPES.index(s.shape)) for s in shots]
    actions, colors, shapes = torch.tensor(indices).T
    pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 255
    return Batch(pixels, torch.from_numpy(poses), actions, colors, shapes)


def _shot(difficulty: float, rng: np.random.Generator) -> world.Shot:
    shot = world.random_shot(rng, action="still")
    smallest = _LARGEST * (1 - difficulty) + 0.09 * difficulty
    radius = float(rng.uniform(smallest, _LARGEST * (1 - difficulty) + 0.28 * difficulty))
    room = 0.48 - radius
    turn = 0.1 + difficulty * rng.choice([0.25, np.pi], p=[0.85, 0.15])  # as in clips, where few shapes spin
    x, y, angle = (float(rng.uniform(-1, 1) * reach) for reach in (room, room, turn))
    return replace(shot, x=x, y=y, radius=radius, angle=angle)
