"""Scores of checkpoints on clips that training never saw, through plain transformers classes and their own processors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.models.embedded import world
from stages.models.embedded.data import Frames, recoded

HERE = Path(__file__).parent
MOTION_FRAMES, CLIP_FRAMES, GIT_FRAMES = 8, 4, 4
_RENDERED = 24  # frames of a clip
_BATCH_CLIPS = 16


@dataclass(frozen=True)
class Shown:
    """Unseen clips as decode would keep them. `frames` of each: uint8 (24, height, width, 3), short side 224."""

    shots: list[world.Shot]
    frames: list[Frames]

    def at(self, count: int) -> list[Frames]:
        """Of each clip, the `count` frames (of 24) nearest to the mid-bins."""
        at = np.ceil((np.arange(count) + 0.5) * _RENDERED / count - 0.5).astype(int)
        return [frames[at] for frames in self.frames]


def shown(count: int, seed: int, crf: tuple[int, int] = (20, 34)) -> Shown:
    """`count` clips of actions in turn after H.264, of sequences that only evaluation uses."""
    shots, frames = [], []
    for index in range(count):
        rng = world.rng_of(seed, world.EVALUATION, index)
        shot = world.random_shot(rng, action=world.ACTIONS[index % len(world.ACTIONS)])
        phases = np.linspace(0, 1, _RENDERED, endpoint=False, dtype=np.float32)
        height, width = [(180, 240), (144, 256), (240, 180), (240, 320)][rng.integers(4)]
        frames.append(recoded(world.render(shot, height, width, phases), crf=int(rng.integers(*crf))))
        shots.append(shot)
    return Shown(shots, frames)


def pixel_values(folder: Path, clips: list[Frames], **changes: Any) -> torch.Tensor:
    """The clips through the processor in `folder`: float32 (n, t, 3, 64, 64)."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    frames = [frame for clip in clips for frame in clip]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, frame in enumerate(frames):
        by_shape.setdefault(frame.shape, []).append(index)
    made: dict[int, torch.Tensor] = {}
    for indices in by_shape.values():
        values = processor([frames[i] for i in indices], return_tensors="pt", **changes)["pixel_values"]
        made.update(zip(indices, values.reshape(-1, *values.shape[-3:]), strict=True))
    in_order = torch.stack([made[i] for i in range(len(frames))])
    return in_order.reshape(len(clips), -1, *in_order.shape[1:])


def _batched(values: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(torch.split(values, _BATCH_CLIPS))


@torch.no_grad()
def actions(values: torch.Tensor, folder: Path = HERE / "motion") -> list[str]:
    """What the motion checkpoint calls each clip; `values` (n, 8, 3, 64, 64)."""
    from transformers import AutoModelForVideoClassification

    model = AutoModelForVideoClassification.from_pretrained(folder).eval()
    best = torch.cat([model(pixel_values=part).logits.argmax(1) for part in _batched(values)])
    return [model.config.id2label[int(index)] for index in best]


@torch.no_grad()
def embedded(values: torch.Tensor, folder: Path = HERE / "clip") -> NDArray[np.float32]:
    """A unit vector per clip, the mean over its frames; `values` (n, t, 3, 64, 64)."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    parts = []
    for part in _batched(values):
        frames = torch.nn.functional.normalize(model.get_image_features(part.flatten(0, 1)).pooler_output, dim=1)
        parts.append(torch.nn.functional.normalize(frames.reshape(*part.shape[:2], -1).mean(1), dim=1))
    return torch.cat(parts).numpy()


@torch.no_grad()
def embedded_texts(texts: list[str], folder: Path = HERE / "clip") -> NDArray[np.float32]:
    """A unit vector per text."""
    from transformers import AutoTokenizer, CLIPModel

    model, tokens = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    features = model.get_text_features(**tokens(texts, padding=True, return_tensors="pt")).pooler_output
    return torch.nn.functional.normalize(features, dim=1).numpy()


@torch.no_grad()
def captions(values: torch.Tensor, folder: Path = HERE / "git") -> list[str]:
    """What the git checkpoint says of each clip; `values` (n, 4, 3, 64, 64)."""
    from transformers import AutoTokenizer, GitForCausalLM

    model, tokens = GitForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    said: list[str] = []
    for part in _batched(values):
        ids = model.generate(pixel_values=part, max_new_tokens=12, do_sample=False)
        said += tokens.batch_decode(ids, skip_special_tokens=True)
    return said


def objects(clips: NDArray[np.float32], folder: Path = HERE / "clip") -> list[str]:
    """The object ("red circle") whose text is nearest to each clip's vector."""
    texts = embedded_texts([world.TEMPLATE.format(name) for name in world.OBJECTS], folder)
    return [world.OBJECTS[index] for index in (clips @ texts.T).argmax(1)]


def scores(clips: Shown, root: Path = HERE) -> dict[str, float]:
    """Shares of the clips that each checkpoint in `root` gets right."""
    motion, clip, git = (root / name for name in ("motion", "clip", "git"))
    named = objects(embedded(pixel_values(clip, clips.at(CLIP_FRAMES)), clip), clip)
    return {
        "action_top1": agreement(
            actions(pixel_values(motion, clips.at(MOTION_FRAMES)), motion), [s.action for s in clips.shots]
        ),
        "object_top1": agreement(named, [f"{s.color} {s.shape}" for s in clips.shots]),
        "caption_exact": agreement(captions(pixel_values(git, clips.at(GIT_FRAMES)), git), [s.sentence for s in clips.shots]),
    }


def agreement(said: list[str], true: list[str]) -> float:
    """Share of places where the two agree."""
    return sum(a == b for a, b in zip(said, true, strict=True)) / len(true)
