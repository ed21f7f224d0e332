"""Qwen2.5-VL: a chat model that sees a video as patches over pairs of frames, with their distance in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.config import CaptionConfig
from schemas.errors import BadRequest
from stages.models.adapter import Answers, ClipFrames, Frames, Said, model_errors
from stages.models.chat import Chat, chat_template
from stages.models.loading import dtype_of
from stages.models.preprocess import (
    channels,
    normalise,
    processor_family,
    refuse_unknown,
    resample_filter,
    settings,
    to_device,
)
from stages.models.resample import resize
from stages.models.weights import Resolved

if TYPE_CHECKING:
    import torch

_VIDEO = 2  # in mm_token_type_ids; 0 is text
_FEWEST_PIXELS, _MOST_PIXELS = 128 * 28 * 28, 28 * 28 * 768
_DEFAULTS: Mapping[str, Any] = {
    "resample": 3, "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
    "image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711),
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
}  # fmt: skip
_ABOUT_SAMPLING = {"min_frames", "max_frames", "max_video_tokens"}  # which frames, is decided before we are called


class QwenVlCaptioner:
    """Prompt and pixels are those of transformers' Qwen2_5_VLProcessor given a video, without torchvision."""

    @staticmethod
    def check(_config: CaptionConfig, model: Resolved) -> None:
        """BadRequest where the preprocessing is not known."""
        _Pixels(model)

    def __init__(self, config: CaptionConfig, model: Resolved, device: str, dtype: str) -> None:
        self._device, self._dtype = device, dtype_of(dtype)
        self._pixels = _Pixels(model)
        self._chat = Chat(model, device, dtype, config.prompt, config.max_tokens)
        self._place_id = int(self._chat.net.config.video_token_id)
        self._place = str(self._chat.tokenizer.convert_ids_to_tokens(self._place_id))
        self._before, self._after = self._around_the_video(config.prompt, model)

    def __call__(self, clips: Sequence[ClipFrames]) -> Answers[Said]:
        """A caption per clip."""
        import torch

        with model_errors(), torch.inference_mode():
            return self._chat.answer(clips, self.inputs(clips))

    def inputs(self, clips: Sequence[ClipFrames]) -> dict[str, Any]:
        """What the model is given for `clips`, by the names of its arguments."""
        import torch

        videos = [self._pixels(clip.frames, self._device, self._dtype) for clip in clips]
        texts = [f"{self._before}{self._place * video.places}{self._after}" for video in videos]
        rows = self._chat.tokenize(texts)
        apart_s = [self._pixels.frames_in_patch * clip.duration_s / len(clip.frames) for clip in clips]
        return {
            **rows,
            "mm_token_type_ids": (rows["input_ids"] == self._place_id).int() * _VIDEO,
            "pixel_values_videos": torch.cat([video.patches for video in videos]),
            "video_grid_thw": torch.tensor([video.grid for video in videos], device=self._device),
            "second_per_grid_ts": apart_s,
        }

    def _around_the_video(self, prompt: str, model: Resolved) -> tuple[str, str]:
        message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}
        text = self._chat.tokenizer.apply_chat_template(
            [message],
            chat_template=chat_template(model, self._chat.tokenizer),
            tokenize=False,
            add_generation_prompt=True,
        )
        if text.count(self._place) != 1:
            raise BadRequest(
                f"model {model.model}: its chat template has no place for one video, or the prompt holds {self._place}"
            )
        before, _, after = text.partition(self._place)
        return before, after


@dataclass(frozen=True)
class _Video:
    """`patches` has shape (t * h * w, values of a patch) for a `grid` of t x h x w; `places` are its tokens in the text."""

    patches: torch.Tensor
    grid: tuple[int, int, int]
    places: int


class _Pixels:
    """Frames to sides that patches divide, then to patches over `frames_in_patch` frames, four neighbours after another."""

    def __init__(self, model: Resolved) -> None:
        raw = settings(model, video=True)
        family = processor_family(model, raw, "Qwen2VL")
        if family not in ("Qwen2VL", "Qwen2_5_VL"):
            raise BadRequest(f"model {model.model} (qwen2_5_vl): its processor {family} is not known here (known: Qwen2VL)")
        said = {**_DEFAULTS, **{key: value for key, value in raw.items() if value is not None}}
        refuse_unknown(model, said, {*_DEFAULTS, *_ABOUT_SAMPLING, "size", "min_pixels", "max_pixels"})
        size = said.get("size") or {"shortest_edge": _FEWEST_PIXELS, "longest_edge": _MOST_PIXELS}
        self._fewest = int(said.get("min_pixels") or size["shortest_edge"])
        self._most = int(said.get("max_pixels") or size["longest_edge"])
        self._resizes = bool(said["do_resize"])
        self._resample = resample_filter(model, said["resample"])
        self._scale = float(said["rescale_factor"]) if said["do_rescale"] else None
        self._mean = channels(model, "image_mean", said["image_mean"]) if said["do_normalize"] else None
        self._std = channels(model, "image_std", said["image_std"]) if said["do_normalize"] else None
        self._patch, self._merge = int(said["patch_size"]), int(said["merge_size"])
        self.frames_in_patch = int(said["temporal_patch_size"])

    def __call__(self, frames: Frames, device: str, dtype: torch.dtype) -> _Video:
        """Frames (n, h, w, 3) of one clip -> its patches."""
        import torch

        images = to_device(frames, device).permute(0, 3, 1, 2)
        if self._resizes:
            images = resize(images, *self._sides(*images.shape[-2:]), self._resample)
        images = normalise(images.to(torch.float32), self._scale, 0.0, self._mean, self._std).to(dtype)
        if missing := -len(images) % self.frames_in_patch:
            images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return self._patches(images)

    def _patches(self, images: torch.Tensor) -> _Video:
        n, channel, height, width = images.shape
        grid = (n // self.frames_in_patch, height // self._patch, width // self._patch)
        t, h, w = grid
        cut = images.reshape(
            t, self.frames_in_patch, channel,
            h // self._merge, self._merge, self._patch, w // self._merge, self._merge, self._patch,
        )  # fmt: skip
        flat = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)
        return _Video(flat, grid, t * h * w // self._merge**2)

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Nearest sides that are whole patches and whose area is within the limits (`smart_resize` of Qwen2-VL)."""
        factor = self._patch * self._merge
        if max(height, width) / min(height, width) > 200:
            raise ValueError(f"frames of {width}x{height} pixels are longer than 200 to 1")
        tall, wide = round(height / factor) * factor, round(width / factor) * factor
        if tall * wide > self._most:
            shrink = math.sqrt(height * width / self._most)
            return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))  # type: ignore[return-value]
        if tall * wide < self._fewest:
            grow = math.sqrt(self._fewest / (height * width))
            return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))  # type: ignore[return-value]
        return tall, wide
