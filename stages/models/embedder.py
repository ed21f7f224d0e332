"""Embeddings of clips by an image-text model, and of texts to search them with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from schemas.config import EmbedConfig
from stages.models.adapter import Answers, ClipFrames, Vector, not_finite
from stages.models.image_text import Towers, check_towers
from stages.models.weights import Resolved


class ImageTextEmbedder:
    """Frame embeddings averaged to one unit vector."""

    @staticmethod
    def check(_config: EmbedConfig, model: Resolved) -> None:
        """BadRequest where the checkpoint is not usable."""
        check_towers(model)

    def __init__(self, _config: EmbedConfig, model: Resolved, device: str, dtype: str) -> None:
        self._towers = Towers(model, device, dtype)

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._towers.dim

    def __call__(self, clips: Sequence[ClipFrames]) -> Answers[Vector]:
        """One unit vector per clip, shape (dim,)."""
        vectors = self._towers.clips([clip.frames for clip in clips])
        return [
            (clip.id, vector if np.isfinite(vector).all() else not_finite("the embedding"))
            for clip, vector in zip(clips, vectors, strict=True)
        ]
