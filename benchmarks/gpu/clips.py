"""Tables of clips with frames, as decode makes them, and entries for checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.config import CaptionConfig, ClassifyConfig, EmbedConfig
from schemas.entries import Entry
from schemas.rows import CLIP_ROW, rows_table
from stages.models import weights

_CONFIGS: dict[str, Any] = {"classify": ClassifyConfig, "embed": EmbedConfig, "caption": CaptionConfig}
_LENGTH_S = 10.0


def entry(stage: str, folder: Path, frames: int, **settings: Any) -> Entry:
    """The checkpoint in `folder` as a run would use it. The stage's name is the fingerprint of its entry."""
    config = _CONFIGS[stage](model=str(folder), frames=frames, **settings)
    return Entry(stage, config, weights.resolve(str(folder)).revision, stage, stage)


def clips(count: int, frames: int, tiny: bool, due: tuple[str, ...]) -> pa.Table:
    """`count` clips of 16:9 at the default short side (224 pixels), noise for frames."""
    height, width = (48, 80) if tiny else (224, 398)
    rng = np.random.default_rng(count)
    times_s = (np.arange(frames) + 0.5) * _LENGTH_S / frames
    size = frames * height * width * 3
    unit = {"video_id": "0" * 32, "uri": "noise.mp4", "unit": 0, "units": 1, "due": list(due), "attempt": "first"}
    shape = {"frame_count": frames, "frame_height": height, "frame_width": width}
    rows: list[dict[str, object]] = [
        {
            **unit, **shape, "row": number, "clip_id": f"clip-{number:09d}", "boundary": "length",
            "start_s": number * _LENGTH_S, "end_s": (number + 1) * _LENGTH_S,
            "frame_times_s": (number * _LENGTH_S + times_s).tolist(), "frames": rng.integers(0, 256, size, np.uint8).tobytes(),
        }
        for number in range(count)
    ]  # fmt: skip
    return rows_table(rows, CLIP_ROW)
