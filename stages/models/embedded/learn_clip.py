"""Trains the clip checkpoint: CLIPModel on the colour and the shape of single frames.

Instead of pairs within a batch, every frame is told from all objects at once: its embedding against the texts of all 35,
of all colours and of all shapes. The first steps are lessons on large shapes. Two heads are thrown away afterwards: one names
colour and shape (the texts of two shapes are too alike at first to pull the frames apart), one reads the shape's pose off
the patches, which GIT, whose vision tower begins as a copy of this one, needs to see motion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from stages.models.embedded import world
from stages.models.embedded.augment import Batch, batches
from stages.models.embedded.data import LOG_RADIUS_AT, PIXELS, Clips
from stages.models.embedded.fitting import Schedule, fit
from stages.models.embedded.lessons import Lessons, masks
from stages.models.embedded.processors import OPENAI, normalised, save_image_processor

FRAMES_AT = ((4, 11), (1, 13))  # of a clip's 16, in turn from round to round: far apart, so that they differ
LESSONS = Schedule(steps=1100, rate=1.5e-3, batch_clips=32)
ROUNDS = (
    Schedule(steps=1200, rate=1.2e-3, batch_clips=32, warmup=20),
    Schedule(steps=1100, rate=9e-4, batch_clips=32, warmup=20),
    Schedule(steps=700, rate=7e-4, batch_clips=32, warmup=20),
    Schedule(steps=1800, rate=1e-3, batch_clips=32, warmup=20),
)
_POSE_WEIGHT = 1.0
_MASK_WEIGHT = 2.0
_SMALLEST = 0.13  # radius of a shape that is learned from
_CELLS = 4  # along a patch's side, of the masks
_POSE_NUMBERS = 5
_VERBS = tuple(world.sentence("", "", action).removeprefix("a").strip() for action in world.ACTIONS)
_OBJECT_TEXTS = (world.TEMPLATE, world.TEMPLATE, "{}", "a photo of a {}", *(f"{world.TEMPLATE} {verb}" for verb in _VERBS))
_COLOR_TEXTS = ("{}", "a {} shape", "something {}")
_SHAPE_TEXTS = ("{}", "a {}", "a photo of a {}")
# Templates, what goes into them, and the weight of telling frames apart by them.
_QUESTIONS: tuple[tuple[Sequence[str], Sequence[str], float], ...] = (
    (_OBJECT_TEXTS, world.OBJECTS, 1.0),
    (_COLOR_TEXTS, tuple(world.COLORS), 0.3),
    (_SHAPE_TEXTS, world.SHAPES, 0.3),
)
VISION = {
    "hidden_size": 96,
    "intermediate_size": 288,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": PIXELS,
    "patch_size": 8,
    "initializer_range": 0.05,
}


def tokenizer() -> CLIPTokenizer:
    """CLIP's own kind of tokenizer, its pairs merged until every word of the little world is one token."""
    words = sorted({word for text in _all_texts() for word in text.split()})
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False, min_frequency=1
    )
    learner.train_from_iterator([*words, *letters], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokens = sorted({*learned["vocab"], *letters, *(f"{letter}</w>" for letter in letters)}, key=lambda t: (len(t), t))
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in learned["merges"]], model_max_length=16)


def _all_texts() -> list[str]:
    objects = [text.format(label) for text in _OBJECT_TEXTS for label in world.OBJECTS]
    return objects + [text.format("") for text in (*_COLOR_TEXTS, *_SHAPE_TEXTS)]


def config(tokens: CLIPTokenizer) -> CLIPConfig:
    """Half a million weights: patches of 8 pixels, width 96 and 4 layers for frames; width 64 and 2 layers for text."""
    text = {
        "vocab_size": len(tokens),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    return CLIPConfig(text_config=text, vision_config=VISION, projection_dim=64)


@torch.no_grad()
def spread(clip: CLIPModel) -> None:
    """Begins the vision tower with places that it can tell apart and layers that mix.

    CLIP's own beginning is made for widths of 512 and more: so narrow, its positions drown in what patches show, and for a
    thousand steps no shape is told from another.
    """
    tower = clip.vision_model
    for module in tower.encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    width, side = int(VISION["hidden_size"]), PIXELS // int(VISION["patch_size"])
    rates = 8.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, width / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    tower.embeddings.position_embedding.weight[1:] = torch.cat([rows, columns], 2).flatten(0, 1)


class Pupil(nn.Module):
    """CLIP together with the head that is thrown away."""

    def __init__(self, tokens: CLIPTokenizer, rng: np.random.Generator, understood: Callable[[float], None]) -> None:
        super().__init__()
        self._understood = understood
        self.clip = CLIPModel(config(tokens))
        spread(self.clip)
        width = int(VISION["hidden_size"])
        self.poses = nn.Linear(width, _POSE_NUMBERS)
        self.masks = nn.Linear(width, _CELLS**2)
        self.kinds = nn.Linear(2 * width, len(world.COLORS) + len(world.SHAPES))
        self._tokens, self._rng = tokens, rng

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropies over objects, colours and shapes, and the errors of the heads that are thrown away."""
        frames = batch.pixels.shape[1]
        pixels = normalised(batch.pixels.flatten(0, 1), OPENAI)
        tokens = self.clip.vision_model.post_layernorm(self.clip.vision_model(pixels).last_hidden_state)
        images = nn.functional.normalize(self.clip.visual_projection(tokens[:, 0]).float(), dim=1)
        colors, shapes = batch.colors.repeat_interleave(frames), batch.shapes.repeat_interleave(frames)
        objects = colors * len(world.SHAPES) + shapes
        loss = self._told_apart(images, (objects, colors, shapes))
        patches = tokens[:, 1:].mean(1)
        loss = loss + _POSE_WEIGHT * nn.functional.mse_loss(self.poses(patches).float(), batch.poses.flatten(0, 1))
        loss = loss + _MASK_WEIGHT * nn.functional.binary_cross_entropy_with_logits(
            self.masks(tokens[:, 1:]).float(), self._masks(batch)
        )
        kinds = self.kinds(torch.cat([tokens[:, 0], patches], 1)).float()
        named = kinds[:, len(world.COLORS) :].argmax(1)
        self._understood(float((named == shapes).float().mean()))
        loss = loss + nn.functional.cross_entropy(kinds[:, : len(world.COLORS)], colors)
        return loss + nn.functional.cross_entropy(kinds[:, len(world.COLORS) :], shapes)

    def _masks(self, batch: Batch) -> torch.Tensor:
        """What every patch shows of the shape: (n * t, patches, cells of a patch)."""
        side = PIXELS // int(VISION["patch_size"])
        drawn = masks(batch, side * _CELLS).reshape(-1, side, _CELLS, side, _CELLS)
        return drawn.transpose(2, 3).reshape(-1, side * side, _CELLS**2)

    def _told_apart(self, images: torch.Tensor, truths: Sequence[torch.Tensor]) -> torch.Tensor:
        """Cross-entropies of the frames against the texts of all objects, all colours and all shapes, one template each."""
        texts: list[list[str]] = []
        for templates, names, _ in _QUESTIONS:
            template = templates[int(self._rng.integers(len(templates)))]
            texts.append([template.format(name) for name in names])
        inputs = self._tokens([text for part in texts for text in part], padding=True, return_tensors="pt")
        embedded = nn.functional.normalize(self.clip.get_text_features(**inputs).pooler_output.float(), dim=1)
        logits = self.clip.logit_scale.exp().clamp(max=100) * images @ embedded.T
        parts = torch.split(logits, [len(part) for part in texts], dim=1)
        losses = [w * nn.functional.cross_entropy(p, t) for (_, _, w), p, t in zip(_QUESTIONS, parts, truths, strict=True)]
        return torch.stack(losses).sum()


def train(
    clips: Clips,
    folder: Path,
    seed: int,
    schedules: Sequence[Schedule] = (LESSONS, *ROUNDS),
    say: Callable[[str], None] = print,
) -> None:
    """Trains on lessons by the first schedule, on `clips` by the others, and writes the checkpoint to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokens = tokenizer()
    lessons = Lessons(schedules[0].batch_clips, rng)
    pupil: nn.Module = Pupil(tokens, rng, lessons.understood)
    say(f"clip: {sum(p.numel() for p in pupil.parameters()):,} weights, with the heads")
    for place, schedule in enumerate(schedules):
        assert isinstance(pupil, Pupil)
        at = FRAMES_AT[place % len(FRAMES_AT)]
        source = batches(suited(clips), at, schedule.batch_clips, rng, is_upright=True) if place else lessons
        pupil = fit(pupil, source, pupil.loss, schedule, say)
    assert isinstance(pupil, Pupil)
    pupil.clip.save_pretrained(folder)
    tokens.save_pretrained(folder)
    save_image_processor("CLIPImageProcessor", folder, OPENAI)


def suited(clips: Clips) -> Clips:
    """The clips whose shapes are not too small to be told apart, those of spinning shapes, the hardest, three times."""
    large = np.flatnonzero(
        clips.poses[:, [at for pair in FRAMES_AT for at in pair], 2].min(1) > np.log(_SMALLEST / LOG_RADIUS_AT)
    )
    spinning = large[clips.actions[large] == world.ACTIONS.index("spinning")]
    return clips.rows(np.concatenate([large, spinning, spinning]))
