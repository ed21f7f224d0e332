"""Which kinds of model each stage takes. A new kind is one file beside this one and one line in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schemas.config import CaptionConfig, ClassifyConfig, EmbedConfig
from schemas.entries import Entry
from schemas.errors import BadRequest
from stages.models import weights
from stages.models.adapter import Embedder, Infer, Ranked, Said, Vector
from stages.models.embedder import ImageTextEmbedder
from stages.models.git_captioner import GitCaptioner
from stages.models.image_text import Towers, check_towers
from stages.models.loading import check_tokenizer
from stages.models.qwen_vl_captioner import QwenVlCaptioner
from stages.models.smolvlm_captioner import SmolVlmCaptioner
from stages.models.video_classifier import VideoClassifier
from stages.models.weights import Resolved
from stages.models.zero_shot import ZeroShotClassifier

# model_type in config.json -> adapter, by stage.
CLASSIFIERS: Mapping[str, type[VideoClassifier] | type[ZeroShotClassifier]] = {
    "timesformer": VideoClassifier,
    "videomae": VideoClassifier,
    "vivit": VideoClassifier,
    "clip": ZeroShotClassifier,
    "siglip": ZeroShotClassifier,
}
EMBEDDERS: Mapping[str, type[ImageTextEmbedder]] = {
    "clip": ImageTextEmbedder,
    "siglip": ImageTextEmbedder,
}
CAPTIONERS: Mapping[str, type[GitCaptioner] | type[SmolVlmCaptioner] | type[QwenVlCaptioner]] = {
    "git": GitCaptioner,
    "smolvlm": SmolVlmCaptioner,
    "qwen2_5_vl": QwenVlCaptioner,
}
KINDS: Mapping[str, Mapping[str, Any]] = {"classify": CLASSIFIERS, "embed": EMBEDDERS, "caption": CAPTIONERS}


def check(stage: str, config: ClassifyConfig | EmbedConfig | CaptionConfig, model: Resolved) -> None:
    """Refuses, in one line that says what to do, a model or a setting that `stage` cannot work with. Needs no weights."""
    kinds = KINDS[stage]
    if model.model_type not in kinds:
        elsewhere = sorted(name for name, others in KINDS.items() if model.model_type in others)
        hint = f"; it is one for {' and '.join(elsewhere)}" if elsewhere else ""
        kind = model.model_type or "(none)"
        raise BadRequest(f"model {model.model}: {stage} does not know kind {kind} (known: {', '.join(kinds)}){hint}")
    kinds[model.model_type].check(config, model)


def classifier(entry: Entry, device: str, dtype: str) -> Infer[list[Ranked]]:
    """Loads a classifier: clips -> their best labels."""
    assert isinstance(entry.config, ClassifyConfig)
    model = _load(entry)
    return CLASSIFIERS[model.model_type](entry.config, model, device, dtype)


def embedder(entry: Entry, device: str, dtype: str) -> Embedder:
    """Loads an embedder: clips -> unit vectors."""
    assert isinstance(entry.config, EmbedConfig)
    model = _load(entry)
    return EMBEDDERS[model.model_type](entry.config, model, device, dtype)


def captioner(entry: Entry, device: str, dtype: str) -> Infer[Said]:
    """Loads a captioner: clips -> captions."""
    assert isinstance(entry.config, CaptionConfig)
    model = _load(entry)
    return CAPTIONERS[model.model_type](entry.config, model, device, dtype)


def text_encoder(
    model: str, revision: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> Callable[[Sequence[str]], Vector]:
    """The text side of an embedder: sentences -> unit vectors, float32 (n, dim), to be multiplied with clips' embeddings.

    `revision` is what the ledger says of the embeddings; None takes what is there now. BadRequest as for `resolve`.
    """
    found = weights.resolve(model) if revision is None else None
    revision = revision or (found.revision if found else "")
    there = weights.opened(model, revision, weights.fetch(model, revision))
    if there.model_type not in EMBEDDERS:
        raise BadRequest(f"model {model}: {there.model_type or '(none)'} embeds no texts (known: {', '.join(EMBEDDERS)})")
    check_towers(there)
    check_tokenizer(there)
    return Towers(there, device, dtype).texts


def _load(entry: Entry) -> Resolved:
    model = weights.opened(entry.model, entry.revision, weights.fetch(entry.model, entry.revision))
    check(entry.stage, entry.config, model)
    return model
