"""Trains the clip checkpoint: CLIPModel on the colour and the shape of single frames.

Instead of pairs within a batch, every frame is told from all objects at once: its embedding against the texts of all 35,
of all colours and of all shapes. A second head that is thrown away afterwards reads the shape's pose off the patches,
which GIT, whose vision tower begins as a copy of this one, needs to see motion.
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
from stages.models.embedded.data import PIXELS, Clips
from stages.models.embedded.fitting import Schedule, fit
from stages.models.embedded.processors import OPENAI, normalised, save_image_processor

FRAMES_AT = (1, 13)  # of a clip's 16: far apart, so that they differ
SCHEDULE = Schedule(steps=1000, rate=1.2e-3)
BATCH_CLIPS = 56
_POSE_WEIGHT = 1.0
_POSE_NUMBERS = 5
_VERBS = tuple(world.sentence("", "", action).removeprefix("a").strip() for action in world.ACTIONS)
_OBJECT_TEXTS = (world.TEMPLATE, world.TEMPLATE, "{}", "a photo of a {}", *(f"{world.TEMPLATE} {verb}" for verb in _VERBS))
_COLOR_TEXTS = ("{}", "a {} shape", "something {}")
_SHAPE_TEXTS = ("{}", "a {}", "a photo of a {}")
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


class Pupil(nn.Module):
    """CLIP together with the head that is thrown away."""

    def __init__(self, tokens: CLIPTokenizer, rng: np.random.Generator) -> None:
        super().__init__()
        self.clip = CLIPModel(config(tokens))
        self.poses = nn.Linear(int(VISION["hidden_size"]), _POSE_NUMBERS)
        self._tokens, self._rng = tokens, rng

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropies over objects, colours and shapes, and the error of the poses."""
        frames = batch.pixels.shape[1]
        pixels = normalised(batch.pixels.flatten(0, 1), OPENAI)
        tokens = self.clip.vision_model.post_layernorm(self.clip.vision_model(pixels).last_hidden_state)
        images = nn.functional.normalize(self.clip.visual_projection(tokens[:, 0]).float(), dim=1)
        colors, shapes = batch.colors.repeat_interleave(frames), batch.shapes.repeat_interleave(frames)
        loss = self._told_apart(images, _OBJECT_TEXTS, world.OBJECTS, colors * len(world.SHAPES) + shapes)
        loss = loss + 0.3 * self._told_apart(images, _COLOR_TEXTS, tuple(world.COLORS), colors)
        loss = loss + 0.3 * self._told_apart(images, _SHAPE_TEXTS, world.SHAPES, shapes)
        poses = self.poses(tokens[:, 1:].mean(1)).float()
        return loss + _POSE_WEIGHT * nn.functional.mse_loss(poses, batch.poses.flatten(0, 1))

    def _told_apart(
        self, images: torch.Tensor, templates: Sequence[str], names: Sequence[str], truth: torch.Tensor
    ) -> torch.Tensor:
        texts = [templates[int(self._rng.integers(len(templates)))].format(name) for name in names]
        inputs = self._tokens(texts, padding=True, return_tensors="pt")
        embedded = self.clip.get_text_features(**inputs).pooler_output
        cosines = images @ nn.functional.normalize(embedded.float(), dim=1).T
        scale = self.clip.logit_scale.exp().clamp(max=100)
        return nn.functional.cross_entropy(scale * cosines, truth)


def train(clips: Clips, folder: Path, seed: int, schedule: Schedule = SCHEDULE, say: Callable[[str], None] = print) -> None:
    """Trains on `clips` and writes the checkpoint to `folder`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokens = tokenizer()
    pupil = Pupil(tokens, rng)
    say(f"clip: {sum(p.numel() for p in pupil.clip.parameters()):,} weights")
    trained = fit(pupil, batches(clips, FRAMES_AT, BATCH_CLIPS, rng), pupil.loss, schedule, say)
    assert isinstance(trained, Pupil)
    trained.clip.save_pretrained(folder)
    tokens.save_pretrained(folder)
    save_image_processor("CLIPImageProcessor", folder, OPENAI)
