"""The best labels of a row of probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.models.adapter import Ranked, Vector


def rank(scores: Vector, labels: Sequence[str], top_k: int) -> list[Ranked]:
    """The `top_k` labels (or all, if there are fewer), most probable first; of equal ones the first stays first."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Ranked(labels[i], float(scores[i])) for i in best]
