"""Trains the motion checkpoint: VideoMAEForVideoClassification on the eight actions.

While it learns, a second head that is thrown away afterwards reads the shape's pose in every frame off the tokens of
that time; without it the model stays for hundreds of steps at telling nothing but moving from still.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from stages.models.embedded import world
from stages.models.embedded.augment import Batch, batches
from stages.models.embedded.data import MOTION_AT, PIXELS, Clips
from stages.models.embedded.fitting import Schedule, fit
from stages.models.embedded.processors import IMAGENET, normalised, save_image_processor

FRAMES = len(MOTION_AT)
SCHEDULE = Schedule(steps=1600, rate=1.2e-3, batch_clips=32)
_POSE_WEIGHT = 0.5
_POSE_NUMBERS = 5


def config() -> VideoMAEConfig:
    """Half a million weights: patches of 8 pixels and 4 frames, width 96, 4 layers."""
    return VideoMAEConfig(
        image_size=PIXELS,
        patch_size=8,
        num_frames=FRAMES,
        tubelet_size=4,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=288,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        use_mean_pooling=True,
        initializer_range=0.07,  # 0.02 suits a width of 768; so narrow a model would hardly mix its tokens at first
        decoder_num_hidden_layers=1,
        decoder_hidden_size=96,
        decoder_intermediate_size=96,
        decoder_num_attention_heads=4,
        id2label=dict(enumerate(world.ACTIONS)),
        label2id={action: index for index, action in enumerate(world.ACTIONS)},
    )


class Pupil(nn.Module):
    """The classifier together with the head that is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = VideoMAEForVideoClassification(config())
        tubelet = self.classifier.config.tubelet_size
        self.tubelets = FRAMES // tubelet
        self.poses = nn.Linear(self.classifier.config.hidden_size, tubelet * _POSE_NUMBERS)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the action plus the error of the poses."""
        tokens = self.classifier.videomae(normalised(batch.pixels, IMAGENET)).last_hidden_state
        logits = self.classifier.classifier(self.classifier.fc_norm(tokens.mean(1)))
        by_time = tokens.unflatten(1, (self.tubelets, -1)).mean(2)
        poses = self.poses(by_time).unflatten(2, (-1, _POSE_NUMBERS)).flatten(1, 2)
        return nn.functional.cross_entropy(logits, batch.actions) + _POSE_WEIGHT * nn.functional.mse_loss(
            poses.float(), batch.poses
        )


def train(clips: Clips, folder: Path, seed: int, schedule: Schedule = SCHEDULE, say: Callable[[str], None] = print) -> None:
    """Trains on `clips` and writes the checkpoint to `folder`."""
    torch.manual_seed(seed)
    pupil = Pupil()
    say(f"motion: {sum(p.numel() for p in pupil.classifier.parameters()):,} weights")
    source = batches(clips, MOTION_AT, schedule.batch_clips, np.random.default_rng(seed))
    trained = fit(pupil, source, pupil.loss, schedule, say)
    assert isinstance(trained, Pupil)
    trained.classifier.save_pretrained(folder)
    save_image_processor("VideoMAEImageProcessor", folder, IMAGENET)
