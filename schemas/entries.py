"""A stage entry: one configured use of one model, resolved to what is really there."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.config import CaptionConfig, ClassifyConfig, EmbedConfig


@dataclass(frozen=True)
class Entry:
    """One model in one stage. `fingerprint` and `slug` name it in rows and paths, `name` is its column in `annotations`."""

    stage: str  # classify, embed or caption
    config: ClassifyConfig | EmbedConfig | CaptionConfig
    revision: str  # commit of a hub model, digest of the files of any other
    fingerprint: str
    name: str

    @property
    def model(self) -> str:
        """The model as configured: full id, folder or URL."""
        return self.config.model

    @property
    def slug(self) -> str:
        """The model's name in paths."""
        return self.config.slug
