"""SmolVLM2: a chat model that sees a video as a series of frames with their times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from schemas.config import CaptionConfig
from schemas.errors import BadRequest
from stages.models.adapter import Answers, ClipFrames, Frames, Said, model_errors
from stages.models.chat import Chat
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

_MOST_SIDE = 4096  # transformers resizes to no longer side
_DEFAULTS: Mapping[str, Any] = {
    "resample": 1, "size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}, "do_resize": True,
    "do_rescale": True, "do_normalize": True, "do_pad": True, "rescale_factor": 1 / 255,
    "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5),
}  # fmt: skip
_NOT_FOR_VIDEO = {"do_image_splitting", "return_row_col_info"}  # frames of a video are never split
_TOKENS = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>", "global_image_token": "<global-img>"}
_INTRO = "You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = (
    "zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip


class SmolVlmCaptioner:
    """Prompt and pixels are those of transformers' SmolVLMProcessor given a video, without the packages that it needs."""

    @staticmethod
    def check(_config: CaptionConfig, model: Resolved) -> None:
        """BadRequest where the preprocessing is not known."""
        _Pixels(model)

    def __init__(self, config: CaptionConfig, model: Resolved, device: str, dtype: str) -> None:
        self._prompt, self._device, self._dtype = config.prompt, device, dtype_of(dtype)
        self._pixels = _Pixels(model)
        self._chat = Chat(model, device, dtype, config.prompt, config.max_tokens)
        fake, image, whole = (getattr(self._chat.tokenizer, name, default) for name, default in _TOKENS.items())
        patches = self._pixels.side // self._chat.net.config.vision_config.patch_size
        places = image * (patches // self._chat.net.config.scale_factor) ** 2
        self._frame = f"{fake}{whole}{places}{fake}"

    def __call__(self, clips: Sequence[ClipFrames]) -> Answers[Said]:
        """A caption per clip."""
        import torch

        with model_errors(), torch.inference_mode():
            inputs: dict[str, Any] = self._chat.tokenize([self.text(clip) for clip in clips])
            inputs["pixel_values"] = torch.stack([self._pixels(clip.frames, self._device, self._dtype) for clip in clips])
            return self._chat.answer(clips, inputs)

    def text(self, clip: ClipFrames) -> str:
        """What the model reads, the places of the frames filled in."""
        length = str(timedelta(seconds=int(clip.duration_s)))
        intro = _INTRO.format(count=number_words(len(clip.frames)), duration=length)
        frames = "".join(f"\nFrame from {int(s // 60):02d}:{int(s % 60):02d}:{self._frame}" for s in clip.times_s)
        return f"<|im_start|>User: {intro}{frames}\n\n{self._prompt}<end_of_utterance>\nAssistant:"


class _Pixels:
    """Frames to the longest edge, aspect kept, then to a square; both as Pillow resizes."""

    def __init__(self, model: Resolved) -> None:
        raw = settings(model, video=True)
        family = processor_family(model, raw, "SmolVLM")
        if family != "SmolVLM":
            raise BadRequest(f"model {model.model} (smolvlm): its processor {family} is not known here (known: SmolVLM)")
        sampling = raw.get("video_sampling") or {}
        size = raw.get("size") or sampling.get("video_size") or _DEFAULTS["size"]
        said = {**_DEFAULTS, **{key: value for key, value in raw.items() if value is not None}, "size": size}
        refuse_unknown(model, said, {*_DEFAULTS, *_NOT_FOR_VIDEO})
        if not said["do_resize"]:
            raise BadRequest(f"model {model.model} (smolvlm): its processor config has do_resize off, which is not known here")
        self.side = _longest(model, "max_image_size", said["max_image_size"])
        self._longest = min(_MOST_SIDE, _longest(model, "size", said["size"]))
        self._resample = resample_filter(model, said["resample"])
        self._scale = float(said["rescale_factor"]) if said["do_rescale"] else None
        self._mean = channels(model, "image_mean", said["image_mean"]) if said["do_normalize"] else None
        self._std = channels(model, "image_std", said["image_std"]) if said["do_normalize"] else None

    def __call__(self, frames: Frames, device: str, dtype: torch.dtype) -> torch.Tensor:
        """Frames (n, h, w, 3) -> tensor (n, 3, side, side). On a CPU one at a time: the step in between is large."""
        import torch

        images = to_device(frames, device).permute(0, 3, 1, 2)
        height, width = self._between(*images.shape[-2:])
        squares = []
        for some in torch.split(images, 1 if device == "cpu" else len(images)):
            larger = resize(some, height, width, self._resample)
            squares.append(resize(larger, self.side, self.side, self._resample))
        return normalise(torch.cat(squares).to(torch.float32), self._scale, 0.0, self._mean, self._std).to(dtype)

    def _between(self, height: int, width: int) -> tuple[int, int]:
        aspect = width / height
        if width >= height:
            short = int(self._longest / aspect)
            return max(short + short % 2, 1), self._longest
        short = int(self._longest * aspect)
        return self._longest, max(short + short % 2, 1)


def number_words(number: int) -> str:
    """0 to 999 in English, as the package num2words says it: "one hundred and twenty-eight"."""
    hundreds, rest = divmod(number, 100)
    small = _ONES[rest] if rest < 20 else _TENS[rest // 10] + (f"-{_ONES[rest % 10]}" if rest % 10 else "")
    if not hundreds:
        return small
    return f"{_ONES[hundreds]} hundred" + (f" and {small}" if rest else "")


def _longest(model: Resolved, key: str, value: Any) -> int:
    if isinstance(value, dict) and {name for name, number in value.items() if number} == {"longest_edge"}:
        return int(value["longest_edge"])
    raise BadRequest(f"model {model.model} (smolvlm): its processor config has {key} {value!r}, which is not known here")
