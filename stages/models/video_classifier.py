"""Video classifiers with their own labels: TimeSformer, VideoMAE, ViViT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.config import ClassifyConfig
from schemas.errors import BadRequest
from stages.models.adapter import Answers, ClipFrames, Ranked, model_errors, not_finite
from stages.models.loading import dtype_of, load
from stages.models.preprocess import parse
from stages.models.ranking import rank
from stages.models.weights import Resolved


class VideoClassifier:
    """Softmax over the labels in config.json (`id2label`)."""

    @staticmethod
    def check(config: ClassifyConfig, model: Resolved) -> None:
        """BadRequest for labels of one's own, another number of frames than the model takes, or no classifier in it."""
        who = f"model {model.model} ({model.model_type})"
        if config.labels:
            raise BadRequest(f"{who}: has labels of its own; classify.labels needs an image-text model such as CLIP or SigLIP")
        architectures = [str(name) for name in model.config.get("architectures") or ()]
        if architectures and not any(name.endswith("ForVideoClassification") for name in architectures):
            raise BadRequest(f"{who}: is a {architectures[0]}, which has no classifier; take a fine-tuned checkpoint")
        takes = _frames(model)
        if config.frames != takes:
            raise BadRequest(f"{who}: takes {takes} frames, classify.frames is {config.frames}: set classify.frames to {takes}")
        parse(model, video=True)

    def __init__(self, config: ClassifyConfig, model: Resolved, device: str, dtype: str) -> None:
        self._top_k = config.top_k
        self._device, self._dtype = device, dtype_of(dtype)
        self._preprocess = parse(model, video=True)
        self._net = load("AutoModelForVideoClassification", model, device, dtype)
        self._labels = _unique([str(self._net.config.id2label[i]) for i in range(self._net.config.num_labels)])

    def __call__(self, clips: Sequence[ClipFrames]) -> Answers[list[Ranked]]:
        """The best labels of each clip, most probable first."""
        import torch

        with model_errors(), torch.inference_mode():
            pixels = torch.stack(self._preprocess([clip.frames for clip in clips], self._device, self._dtype))
            logits = self._net(pixel_values=pixels).logits.float()
            scores = logits.softmax(-1).cpu().numpy()
        return [
            (clip.id, rank(row, self._labels, self._top_k) if np.isfinite(row).all() else not_finite("the logits"))
            for clip, row in zip(clips, scores, strict=True)
        ]


def _frames(model: Resolved) -> int:
    """Frames that the architecture is built for; the defaults are transformers'."""
    default = {"timesformer": 8, "videomae": 16, "vivit": 32}[model.model_type]
    if model.model_type == "vivit" and "video_size" in model.config:
        return int(model.config["video_size"][0])
    return int(model.config.get("num_frames", default))


def _unique(labels: list[str]) -> list[str]:
    """Labels by which rows can be told apart: one that stands twice gets its number."""
    return [label if labels.count(label) == 1 else f"{label} #{i}" for i, label in enumerate(labels)]
