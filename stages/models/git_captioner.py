"""GIT: captions from a clip's frames, without a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.config import CaptionConfig
from schemas.errors import BadClip, BadRequest
from stages.models.adapter import Answers, ClipFrames, Said, model_errors
from stages.models.generation import Greedy
from stages.models.loading import dtype_of, load, load_tokenizer
from stages.models.preprocess import parse
from stages.models.weights import Resolved


class GitCaptioner:
    """Video checkpoints have an embedding per frame (`num_image_with_embedding`); image checkpoints take one frame."""

    @staticmethod
    def check(config: CaptionConfig, model: Resolved) -> None:
        """BadRequest for another number of frames than the model takes, or captions longer than it can write."""
        takes = int(model.config.get("num_image_with_embedding") or 1)
        if config.frames != takes:
            said = f"takes {takes} frames, caption.frames is {config.frames}: set caption.frames to {takes}"
            raise BadRequest(f"model {model.model} (git): {said}")
        longest = int(model.config.get("max_position_embeddings", 1024))  # the last token said is never read
        if config.max_tokens > longest:
            raise BadRequest(
                f"model {model.model} (git): writes {longest} tokens at most, caption.max_tokens is {config.max_tokens}"
            )
        parse(model)

    def __init__(self, config: CaptionConfig, model: Resolved, device: str, dtype: str) -> None:
        self._device, self._dtype = device, dtype_of(dtype)
        self._is_video = bool(model.config.get("num_image_with_embedding"))
        self._preprocess = parse(model)
        self._tokenizer = load_tokenizer(model)
        self._greedy = Greedy(load("AutoModelForCausalLM", model, device, dtype), self._tokenizer, config.max_tokens)
        if self._greedy.start is None:
            raise BadRequest(f"model {model.model} (git): names no token that a caption begins with (bos_token_id)")

    def __call__(self, clips: Sequence[ClipFrames]) -> Answers[Said]:
        """A caption per clip."""
        import torch

        with model_errors(), torch.inference_mode():
            pixels = torch.stack(self._preprocess([clip.frames for clip in clips], self._device, self._dtype))
            start = torch.full((len(clips), 1), self._greedy.start, device=self._device)
            rows = self._greedy(
                {
                    "pixel_values": pixels if self._is_video else pixels[:, 0],
                    "input_ids": start,
                    "attention_mask": torch.ones_like(start),
                }
            )
        return [(clip.id, self._said(row)) for clip, row in zip(clips, rows, strict=True)]

    def _said(self, row: list[int] | BadClip) -> Said | BadClip:
        if isinstance(row, BadClip):
            return row
        return Said(self._tokenizer.decode(row, skip_special_tokens=True).strip(), len(row), prompt=None)
