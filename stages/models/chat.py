"""What chat models share: a tokenized prompt with places for the frames, padded on the left, and a greedy answer.

The places are filled in here rather than by transformers' processors: those need torchvision for video and resize on the
CPU, one image at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from schemas.errors import BadClip
from stages.models.adapter import Answers, ClipFrames, Said
from stages.models.generation import Greedy
from stages.models.loading import load, load_tokenizer
from stages.models.weights import Resolved

if TYPE_CHECKING:
    import torch


class Chat:
    """A loaded chat model that answers texts whose media tokens are already in place."""

    def __init__(self, model: Resolved, device: str, dtype: str, prompt: str, max_tokens: int) -> None:
        self._device, self._prompt = device, prompt
        self.tokenizer = load_tokenizer(model)
        self.net = load("AutoModelForImageTextToText", model, device, dtype)
        self._greedy = Greedy(self.net, self.tokenizer, max_tokens)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask, shape (texts, longest), padded on the left so that all answers begin at one place."""
        bos = self.tokenizer.bos_token
        rows = self.tokenizer(
            list(texts),
            padding=True,
            padding_side="left",
            add_special_tokens=not (bos is not None and texts[0].startswith(bos)),
            return_tensors="pt",
        )
        return {name: rows[name].to(self._device) for name in ("input_ids", "attention_mask")}

    def answer(self, clips: Sequence[ClipFrames], inputs: Mapping[str, Any]) -> Answers[Said]:
        """What the model says to each row of `inputs`."""
        return [(clip.id, self._said(row)) for clip, row in zip(clips, self._greedy(inputs), strict=True)]

    def _said(self, row: list[int] | BadClip) -> Said | BadClip:
        if isinstance(row, BadClip):
            return row
        return Said(self.tokenizer.decode(row, skip_special_tokens=True).strip(), len(row), self._prompt)


def chat_template(model: Resolved, tokenizer: Any) -> str | None:
    """The checkpoint's chat template, from where transformers looks for it; None where there is none."""
    file = model.folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    for name in ("chat_template.json", "processor_config.json"):
        template = (model.read(name) or {}).get("chat_template")
        if isinstance(template, str):
            return template
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
