"""Zero-shot classification with the user's own labels by an image-text model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.config import ClassifyConfig
from schemas.errors import BadRequest
from stages.models.adapter import Answers, ClipFrames, Ranked, not_finite
from stages.models.image_text import Towers, check_towers
from stages.models.loading import check_tokenizer
from stages.models.ranking import rank
from stages.models.weights import Resolved


class ZeroShotClassifier:
    """Softmax over the labels of the cosines between a clip's embedding and the labels' sentences, times the model's scale.

    SigLIP was trained to score each label by itself (a sigmoid, with a bias). The tables hold "probability among all
    labels", so that scores of the two families mean the same; the order of labels is the same under both.
    """

    @staticmethod
    def check(config: ClassifyConfig, model: Resolved) -> None:
        """BadRequest where labels are missing or the checkpoint is not usable."""
        if not config.labels:
            raise BadRequest(
                f"model {model.model} ({model.model_type}): has no labels of its own; give yours as classify.labels"
            )
        check_towers(model)
        check_tokenizer(model)

    def __init__(self, config: ClassifyConfig, model: Resolved, device: str, dtype: str) -> None:
        self._labels, self._top_k = config.labels, config.top_k
        self._towers = Towers(model, device, dtype)
        sentences = self._towers.texts([config.template.replace("{}", label) for label in config.labels])
        if not np.isfinite(sentences).all():
            raise BadRequest(f"model {model.model}: gives NaN or infinity for the labels in {dtype}")
        self._directions = sentences * np.float32(self._towers.logit_scale)

    def __call__(self, clips: Sequence[ClipFrames]) -> Answers[list[Ranked]]:
        """The best labels of each clip, most probable first."""
        vectors = self._towers.clips([clip.frames for clip in clips])
        scores = _softmax(vectors @ self._directions.T)
        return [
            (clip.id, rank(row, self._labels, self._top_k) if np.isfinite(row).all() else not_finite("the embedding"))
            for clip, row in zip(clips, scores, strict=True)
        ]


def _softmax(logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)
