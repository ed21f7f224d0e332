"""Trains the git checkpoint: GitForCausalLM that says what a clip's four frames show.

Its vision tower begins as a copy of the clip checkpoint's, which already knows colour, shape and pose, so that the decoder only
has to learn to compare the frames (told apart by GIT's temporal embeddings) and to speak. First it learns alone, then both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertTokenizer, CLIPModel, GitConfig, GitForCausalLM

from stages.models.embedded import world
from stages.models.embedded.augment import Batch, batches
from stages.models.embedded.data import SPARSE_AT, Clips
from stages.models.embedded.fitting import Schedule, fit
from stages.models.embedded.learn_clip import VISION, suited
from stages.models.embedded.processors import OPENAI, normalised, save_image_processor

FRAMES = len(SPARSE_AT)
DECODER_ALONE = Schedule(steps=500, rate=1.5e-3, batch_clips=24)
ROUNDS = (
    Schedule(steps=600, rate=6e-4, batch_clips=24, warmup=30),
    Schedule(steps=700, rate=6e-4, batch_clips=24, warmup=30),
    Schedule(steps=700, rate=6e-4, batch_clips=24, warmup=30),
    Schedule(steps=1300, rate=8e-4, batch_clips=24, warmup=30),
)
_IGNORED = -100  # label of a token that the loss leaves out
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer() -> BertTokenizer:
    """BERT's kind of tokenizer, as GIT's; a word is a token."""
    words = sorted({word for text in _sentences() for word in text.split()})
    return BertTokenizer(vocab={word: index for index, word in enumerate((*_SPECIAL, *words))}, model_max_length=16)


def _sentences() -> list[str]:
    """Every sentence, by colour, shape and action."""
    return [world.sentence(c, s, a) for c in world.COLORS for s in world.SHAPES for a in world.ACTIONS]


def config(tokens: BertTokenizer) -> GitConfig:
    """Six tenths of a million weights: the clip checkpoint's vision tower and a decoder of width 96 and 2 layers."""
    return GitConfig(
        vision_config=VISION,
        vocab_size=len(tokens),
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.07,  # 0.02 suits a width of 768
        max_position_embeddings=16,
        num_image_with_embedding=FRAMES,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.cls_token_id,
        eos_token_id=tokens.sep_token_id,
    )


def begun(tokens: BertTokenizer, clip_folder: Path) -> GitForCausalLM:
    """An untrained GIT with the trained vision tower of the clip checkpoint."""
    git = GitForCausalLM(config(tokens))
    clip = CLIPModel.from_pretrained(clip_folder)
    git.git.image_encoder.vision_model.load_state_dict(clip.vision_model.state_dict())
    for embedding in git.git.img_temporal_embedding:
        nn.init.normal_(embedding, std=0.3)  # zeros, as made, would leave the frames' order unknown for long
    return git


class Pupil(nn.Module):
    """GIT and the tokens of every sentence."""

    def __init__(self, git: GitForCausalLM, tokens: BertTokenizer) -> None:
        super().__init__()
        self.git = git
        self._inputs = tokens(_sentences(), padding=True, return_tensors="pt")

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the sentence's tokens."""
        rows = (batch.colors * len(world.SHAPES) + batch.shapes) * len(world.ACTIONS) + batch.actions
        ids, mask = self._inputs["input_ids"][rows], self._inputs["attention_mask"][rows]
        labels = ids.masked_fill(mask == 0, _IGNORED)
        loss: torch.Tensor = self.git(
            input_ids=ids, attention_mask=mask, pixel_values=normalised(batch.pixels, OPENAI), labels=labels
        ).loss
        return loss


def train(
    clips: Clips,
    folder: Path,
    clip_folder: Path,
    seed: int,
    schedules: Sequence[Schedule] = (DECODER_ALONE, *ROUNDS),
    say: Callable[[str], None] = print,
) -> None:
    """Trains on `clips`, beginning from the clip checkpoint in `clip_folder`, and writes the checkpoint to `folder`.

    The first of `schedules` is of the decoder alone, the others are of everything.
    """
    torch.manual_seed(seed)
    tokens = tokenizer()
    pupil: nn.Module = Pupil(begun(tokens, clip_folder), tokens)
    say(f"git: {sum(p.numel() for p in pupil.parameters()):,} weights")
    rng = np.random.default_rng(seed)
    for place, schedule in enumerate(schedules):
        assert isinstance(pupil, Pupil)
        pupil.git.git.image_encoder.requires_grad_(place > 0)
        pupil = fit(
            pupil, batches(suited(clips), SPARSE_AT, schedule.batch_clips, rng, is_upright=True), pupil.loss, schedule, say
        )
    assert isinstance(pupil, Pupil)
    pupil.git.save_pretrained(folder)
    tokens.save_pretrained(folder)
    save_image_processor("CLIPImageProcessor", folder, OPENAI)
