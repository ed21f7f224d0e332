"""Frames as a checkpoint wants them, read from the checkpoint's own processor config and done in batch on its device.

Settings are parsed without torch, so that the preflight can refuse what is not known here by name. The steps and their
arithmetic are those of transformers' Pillow image processors: resize, centre crop, rescale, normalise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.errors import BadRequest
from stages.models.adapter import Frames
from stages.models.resample import FILTERS, middle, resize
from stages.models.weights import Resolved

if TYPE_CHECKING:
    import torch

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PIXELS_AT_A_TIME = 720_000  # float64 makes 24 bytes of each; more of them are slower on a CPU, too
_PIXELS_AT_A_TIME_ON_GPU = 32 * _PIXELS_AT_A_TIME  # 550 MB: there it is calls that cost

# What a processor does where its config says nothing, by the name of its class without its ending.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": {"resample": 3, "size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD},
    "Siglip": {"resample": 3, "size": {"height": 224, "width": 224}, "do_center_crop": False},
    "VideoMAE": {"size": {"shortest_edge": 224}, "crop_size": 224},
    "Timesformer": {
        "size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": _IMAGENET_MEAN, "image_std": _IMAGENET_STD,
    },
    "Vivit": {"size": {"shortest_edge": 256}, "crop_size": 224, "rescale_factor": 1 / 127.5, "offset": True},
}  # fmt: skip
_COMMON = {
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": 2,
    "rescale_factor": 1 / 255, "offset": False, "image_mean": _HALF, "image_std": _HALF,
}  # fmt: skip
# The processor of a model whose config does not name one.
PROCESSOR_OF = {
    "clip": "CLIP", "git": "CLIP", "siglip": "Siglip", "videomae": "VideoMAE", "timesformer": "VideoMAE", "vivit": "Vivit",
}  # fmt: skip
_ENDINGS = ("FeatureExtractor", "ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "VideoProcessor")
# Keys that change no pixel of an RGB frame: names, layouts, and how *other* code is to pick frames.
HARMLESS = frozenset({
    "image_processor_type", "feature_extractor_type", "video_processor_type", "processor_class", "_processor_class",
    "do_convert_rgb", "data_format", "input_data_format", "device", "return_tensors", "disable_grouping", "default_to_square",
    "do_sample_frames", "num_frames", "fps", "video_metadata", "return_metadata", "_valid_processor_keys", "use_fast",
    "model_input_names", "image_seq_length", "auto_map", "backend", "pad_size", "video_sampling",
})  # fmt: skip


@dataclass(frozen=True)
class Preprocess:
    """The steps of one checkpoint; None leaves a step out. Sizes are (height, width) in pixels."""

    shortest_edge: int | None
    size: tuple[int, int] | None
    resample: int
    crop: tuple[int, int] | None
    scale: float | None
    offset: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a frame of `height` x `width` pixels leaves with."""
        return self.crop or self.resized(height, width)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize, before the crop."""
        if self.shortest_edge is not None:
            longest = int(self.shortest_edge * max(height, width) / min(height, width))
            return (longest, self.shortest_edge) if width <= height else (self.shortest_edge, longest)
        return self.size or (height, width)

    def __call__(self, clips: Sequence[Frames], device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        """Clips' frames, uint8 of shape (n, h, w, 3) each, as tensors (n, 3, height, width); frames of equal size together."""
        import torch

        out: dict[int, torch.Tensor] = {}
        for group in _equal_sizes(clips):
            frames = np.concatenate([clips[i] for i in group]) if len(group) > 1 else clips[group[0]]
            most = _PIXELS_AT_A_TIME if device == "cpu" else _PIXELS_AT_A_TIME_ON_GPU
            at_a_time = max(1, most // max(1, frames.shape[1] * frames.shape[2]))
            parts = [self._some(frames[i : i + at_a_time], device, dtype) for i in range(0, len(frames), at_a_time)]
            out |= zip(group, torch.split(torch.cat(parts), [len(clips[i]) for i in group]), strict=True)
        return [out[i] for i in range(len(clips))]

    def _some(self, frames: Frames, device: str, dtype: torch.dtype) -> torch.Tensor:
        import torch

        images = to_device(frames, device).permute(0, 3, 1, 2)
        height, width = self.resized(*images.shape[-2:])
        images = resize(images, height, width, self.resample, self.crop)
        if self.crop is not None:
            images = centre_crop(images, *self.crop)
        return normalise(images.to(torch.float32), self.scale, self.offset, self.mean, self.std).to(dtype)


def to_device(frames: Frames, device: str) -> torch.Tensor:
    """Frames as a uint8 tensor on `device`. The copy frees us from Arrow's buffers, which are read-only.

    To a GPU by way of pinned memory, so that the copy neither waits for what is queued nor holds up what comes next.
    """
    import torch

    own = torch.tensor(frames)
    return own.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else own.to(device)


def normalise(
    images: torch.Tensor, scale: float | None, offset: float, mean: Sequence[float] | None, std: Sequence[float] | None
) -> torch.Tensor:
    """float32 images (n, 3, h, w), times `scale`, plus `offset`, less `mean`, by `std`."""
    import torch

    if scale is not None:
        images = images * scale + offset if offset else images * scale
    if mean is None or std is None:
        return images
    less, by = (torch.tensor(values, dtype=images.dtype, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images - less) / by


def centre_crop(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle `height` x `width` of images (..., h, w), black around images that are smaller."""
    from torch.nn.functional import pad

    images = images[..., middle(images.shape[-2], height), middle(images.shape[-1], width)]
    missing = [height - images.shape[-2], width - images.shape[-1]]
    top, left = (math.ceil(size / 2) for size in missing)
    return pad(images, (left, missing[1] - left, top, missing[0] - top)) if any(missing) else images


def _equal_sizes(clips: Sequence[Frames]) -> list[list[int]]:
    """Indices of clips in groups whose frames have the same size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, frames in enumerate(clips):
        groups.setdefault(frames.shape[1:3], []).append(i)
    return list(groups.values())


def parse(model: Resolved, video: bool = False) -> Preprocess:
    """The steps that `model`'s processor config asks for; BadRequest naming any setting that is not known here."""
    raw = settings(model, video)
    family = processor_family(model, raw, PROCESSOR_OF.get(model.model_type))
    if family not in DEFAULTS:
        raise BadRequest(f"model {model.model}: processor {family} is not known (known: {', '.join(sorted(DEFAULTS))})")
    said = {**_COMMON, **DEFAULTS[family], **{key: value for key, value in raw.items() if value is not None}}
    refuse_unknown(model, said, {*_COMMON, "size", "crop_size"})
    crop = _square_or_pair(model, "crop_size", said.get("crop_size")) if said["do_center_crop"] else None
    shortest, size = _size(model, said["size"]) if said["do_resize"] else (None, None)
    if said["do_rescale"] and said["offset"] and not isinstance(said["offset"], bool):
        raise BadRequest(f"model {model.model}: its processor config has offset {said['offset']!r}, not true or false")
    return Preprocess(
        shortest_edge=shortest,
        size=size,
        resample=resample_filter(model, said["resample"]),
        crop=crop,
        scale=float(said["rescale_factor"]) if said["do_rescale"] else None,
        offset=-1.0 if said["offset"] and said["do_rescale"] else 0.0,
        mean=channels(model, "image_mean", said["image_mean"]) if said["do_normalize"] else None,
        std=channels(model, "image_std", said["image_std"]) if said["do_normalize"] else None,
    )


def settings(model: Resolved, video: bool) -> dict[str, Any]:
    """The processor's settings as the checkpoint has them, from where transformers looks for them."""
    nested = model.read("processor_config.json") or {}
    places = [nested.get("image_processor"), model.read("preprocessor_config.json")]
    if video:
        places = [nested.get("video_processor"), model.read("video_preprocessor_config.json"), *places]
    for place in places:
        if place:
            return dict(place)
    raise BadRequest(f"model {model.model}: has no preprocessor_config.json, so how it wants its frames is not known")


def processor_family(model: Resolved, raw: Mapping[str, Any], default: str | None) -> str:
    """Name of the processor's class without its ending: CLIP, VideoMAE..."""
    for key in ("video_processor_type", "image_processor_type", "feature_extractor_type"):
        if raw.get(key):
            name = str(raw[key])
            ending = next((ending for ending in _ENDINGS if name.endswith(ending)), "")
            return name.removesuffix(ending)
    if default is None:
        raise BadRequest(f"model {model.model}: its processor config names no processor")
    return default


def refuse_unknown(model: Resolved, said: Mapping[str, Any], known: set[str]) -> None:
    """BadRequest for a setting that would change pixels in a way that is not known here."""
    unknown = sorted(key for key, value in said.items() if key not in known | HARMLESS and value not in (None, False))
    if unknown:
        raise BadRequest(f"model {model.model}: its processor config sets {', '.join(unknown)}, which is not known here")


def resample_filter(model: Resolved, number: Any) -> int:
    """The number of a filter of Pillow that is known here."""
    if number not in FILTERS:
        names = ", ".join(f"{key} {name}" for key, (name, _, _) in FILTERS.items())
        raise BadRequest(f"model {model.model}: its processor config has resample {number!r} (known: {names})")
    return int(number)


def channels(model: Resolved, key: str, value: Any) -> tuple[float, ...]:
    """One number per channel."""
    values = [value] * 3 if isinstance(value, int | float) else value
    if len(values) != 3 or (key == "image_std" and 0 in values):
        raise BadRequest(f"model {model.model}: its processor config has {key} {value!r}, not three usable numbers")
    return tuple(float(number) for number in values)


def _size(model: Resolved, value: Any) -> tuple[int | None, tuple[int, int] | None]:
    """(shortest edge, None) or (None, (height, width))."""
    if isinstance(value, int):
        return value, None
    if isinstance(value, dict) and {key for key, number in value.items() if number} == {"shortest_edge"}:
        return int(value["shortest_edge"]), None
    return None, _square_or_pair(model, "size", value)


def _square_or_pair(model: Resolved, key: str, value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, dict) and {key for key, number in value.items() if number} == {"height", "width"}:
        return int(value["height"]), int(value["width"])
    raise BadRequest(f"model {model.model}: its processor config has {key} {value!r}, which is not known here")
