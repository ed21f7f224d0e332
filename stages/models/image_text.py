"""CLIP and SigLIP: the two towers that zero-shot classification, embedding and search share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.errors import BadRequest
from stages.models.adapter import Frames, Vector, model_errors
from stages.models.loading import dtype_of, load, load_tokenizer
from stages.models.preprocess import parse
from stages.models.weights import Resolved

if TYPE_CHECKING:
    import torch

_TEXTS_AT_A_TIME = 256


def check_towers(model: Resolved) -> None:
    """BadRequest for a checkpoint that is one tower only, or whose preprocessing is not known."""
    architectures = [str(name) for name in model.config.get("architectures") or ()]
    if architectures and not any(name in ("CLIPModel", "SiglipModel") for name in architectures):
        raise BadRequest(f"model {model.model} ({model.model_type}): is a {architectures[0]}, not both towers")
    parse(model)


class Towers:
    """Both towers. Vectors are of unit length, float32 whatever the model's dtype."""

    def __init__(self, model: Resolved, device: str, dtype: str) -> None:
        self._model = model
        self._device, self._dtype = device, dtype_of(dtype)
        self._preprocess = parse(model)
        self._net = load("AutoModel", model, device, dtype)
        self._tokenizer: Any = None  # embedding needs none

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied with before softmax."""
        return float(self._net.logit_scale.float().exp())

    @property
    def dim(self) -> int:
        """Length of every vector."""
        config = self._net.config
        return int(config.projection_dim if self._model.model_type == "clip" else config.text_config.projection_size)

    def clips(self, clips: Sequence[Frames]) -> Vector:
        """Clips' frames -> their embeddings, shape (clips, dim): unit vectors of frames, averaged, again of unit length.

        A row is NaN where the model gave something that is not finite.
        """
        import torch

        with model_errors(), torch.inference_mode():
            pixels = self._preprocess(clips, self._device, self._dtype)
            frames = _unit(_pooled(self._net.get_image_features(pixel_values=torch.cat(pixels))))
            means = torch.stack([part.mean(0) for part in torch.split(frames, [len(part) for part in pixels])])
            return np.asarray(_unit(means).cpu().numpy(), dtype=np.float32)

    def texts(self, texts: Sequence[str]) -> Vector:
        """Sentences -> their embeddings, shape (texts, dim). What is longer than the model reads is cut."""
        import torch

        self._tokenizer = self._tokenizer or load_tokenizer(self._model)
        length = int(self._net.config.text_config.max_position_embeddings)
        padding = "max_length" if self._model.model_type == "siglip" else True  # SigLIP was trained on full rows only
        parts = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            rows = self._tokenizer(
                list(texts[start : start + _TEXTS_AT_A_TIME]),
                padding=padding, truncation=True, max_length=length, return_tensors="pt",
            )  # fmt: skip
            inputs = {"input_ids": rows["input_ids"].to(self._device)}
            if self._model.model_type != "siglip":  # SigLIP reads its padding too
                inputs["attention_mask"] = rows["attention_mask"].to(self._device)
            with torch.inference_mode():
                parts.append(_unit(_pooled(self._net.get_text_features(**inputs))).cpu().numpy())
        return np.concatenate(parts)


def _pooled(output: Any) -> torch.Tensor:
    """get_*_features gave a tensor before transformers 5 and gives an output object since."""
    tensor: torch.Tensor = getattr(output, "pooler_output", output)
    return tensor.float()


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit
