"""Greedy decoding, the same for every captioner: no sampling, no penalties, whatever the checkpoint recommends.

Sampling would make a second run say something else, and a repetition penalty looks at the padding of a batch too, so that
a clip would be described differently alone and beside others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from schemas.errors import BadClip
from stages.models.adapter import not_finite

if TYPE_CHECKING:
    import torch


class _Watch:
    """Remembers which rows of a batch had logits that are not finite; a row cannot spoil its neighbours."""

    def __init__(self) -> None:
        self.bad: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - called by generate
        bad = ~scores.isfinite().all(-1)
        self.bad = bad if self.bad is None else self.bad | bad
        return scores


class Greedy:
    """Greedy decoding with one model. The checkpoint's own generation settings are dropped, its special tokens kept."""

    def __init__(self, net: Any, tokenizer: Any, max_tokens: int) -> None:
        from transformers import GenerationConfig

        said = net.generation_config
        text = net.config.get_text_config()
        ends = _first(said.eos_token_id, text.eos_token_id, tokenizer.eos_token_id)
        self._ends = frozenset(ends if isinstance(ends, list | tuple) else () if ends is None else (ends,))
        pad = _first(said.pad_token_id, tokenizer.pad_token_id, next(iter(sorted(self._ends)), 0))
        self.start = _first(said.bos_token_id, text.bos_token_id, tokenizer.bos_token_id)
        self._net = net
        net.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=pad,
            bos_token_id=self.start,
        )

    def __call__(self, inputs: Mapping[str, Any]) -> list[list[int] | BadClip]:
        """Tokens said for each row of `inputs["input_ids"]`, the end token left out."""
        watch = _Watch()
        ids = self._net.generate(**inputs, logits_processor=[watch])
        said = ids[:, inputs["input_ids"].shape[1] :].tolist()
        bad = watch.bad.tolist() if watch.bad is not None else [False] * len(said)
        return [not_finite("the logits") if spoiled else self._until_end(row) for row, spoiled in zip(said, bad, strict=True)]

    def _until_end(self, row: list[int]) -> list[int]:
        length = next((i for i, token in enumerate(row) if token in self._ends), len(row))
        return row[:length]


def _first(*values: Any) -> Any:
    """The first that is given."""
    return next((value for value in values if value is not None), None)
