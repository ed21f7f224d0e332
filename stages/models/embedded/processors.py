"""What turns frames into a checkpoint's input, in training and as files of the checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.models.embedded.data import PIXELS


@dataclass(frozen=True)
class Scale:
    """How pixels in 0..1 are normalised and which resampling makes them."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int  # as in PIL: 2 bilinear, 3 bicubic


IMAGENET = Scale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resample=2)
OPENAI = Scale((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), resample=3)


def normalised(pixels: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Pixels (..., 3, height, width) in 0..1 as the model wants them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (scale.mean, scale.std))
    return (pixels - mean) / std


def image_processor(kind: str, scale: Scale) -> dict[str, object]:
    """Configuration of a processor: short edge to 64, centre crop, normalise."""
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": PIXELS},
        "resample": scale.resample,
        "do_center_crop": True,
        "crop_size": {"height": PIXELS, "width": PIXELS},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(scale.mean),
        "image_std": list(scale.std),
    }


def save_image_processor(kind: str, folder: Path, scale: Scale) -> None:
    """Writes preprocessor_config.json, which AutoImageProcessor and AutoProcessor read."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(image_processor(kind, scale), indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text)
