"""Captions of clips."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from schemas.entries import Entry
from schemas.errors import BadClip, ErrorCode
from stages.batches import Batches, Struct
from stages.models import catalogue
from stages.models.adapter import Infer, Said

Load = Callable[[Entry, str, str], Infer[Said]]


class Caption:
    """Fills `captions`: one struct per clip. Decoding is greedy. Arguments as for `Classify`."""

    def __init__(
        self,
        entry: Entry,
        device: str = "cpu",
        dtype: str = "float32",
        batch_clips: int = 16,
        batch_bytes: int = 256 << 20,
        *,
        load: Load = catalogue.captioner,
    ) -> None:
        self._run = Batches(
            entry=entry,
            column="captions",
            infer=load(entry, device, dtype),
            structs=_structs,
            empty={"prompt": None, "caption": None, "tokens": None},
            batch_clips=batch_clips,
            batch_bytes=batch_bytes,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """CLIP_ROW to CLIP_ROW."""
        return self._run(table)


def _structs(said: Said) -> list[Struct]:
    if not isinstance(said.text, str) or not said.text.strip():
        raise BadClip(ErrorCode.MODEL_FAILED, "the model said nothing")
    return [{"prompt": said.prompt, "caption": said.text, "tokens": said.tokens}]
