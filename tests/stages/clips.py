"""Clip rows for tests of the model stages: moving patterns, so that order, colour and place all matter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.config import CaptionConfig, ClassifyConfig, EmbedConfig
from schemas.entries import Entry
from schemas.rows import CLIP_ROW, rows_table
from stages.models import weights
from tests.stages.checkpoints import checkpoint

FINGERPRINT = "abcdefgh"
CONFIGS = {"classify": ClassifyConfig, "embed": EmbedConfig, "caption": CaptionConfig}
COLUMNS = {"classify": "labels", "embed": "embeddings", "caption": "captions"}
FRAMES = {"timesformer": 4, "videomae": 6, "vivit": 4, "git": 3, "git-image": 1}


def entry(stage: str, kind: str, fingerprint: str = FINGERPRINT, **settings: Any) -> Entry:
    """A configured use of the small checkpoint of `kind`."""
    folder = str(checkpoint(kind))
    defaults: dict[str, Any] = {"model": folder, "frames": FRAMES.get(kind, 3)}
    if stage == "classify" and kind in ("clip", "siglip"):
        defaults["labels"] = ("red circle", "blue square", "cat", "dog")
    if stage == "caption":
        defaults |= {"max_tokens": 8, "prompt": "what is seen in it ?"}
    config = CONFIGS[stage](**{**defaults, **settings})
    return Entry(stage, config, weights.resolve(folder).revision, fingerprint, "here")


def pattern(seed: int, count: int = 8, height: int = 48, width: int = 80) -> np.ndarray:
    """`count` frames of coloured blobs that move and grow: uint8, shape (count, height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    frames = np.empty((count, height, width, 3), np.uint8)
    ground, ink = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    place, step, size = rng.uniform(0, 1, 2), rng.uniform(-0.15, 0.15, 2), rng.uniform(0.1, 0.4)
    for t in range(count):
        at = (place + step * t) % 1.0
        inside = np.exp(-(((y / height - at[0]) / size) ** 2 + ((x / width - at[1]) / size) ** 2))[..., None]
        frames[t] = (ground * (1 - inside) + ink * inside).clip(0, 255)
    return frames


def clip_row(
    number: int, frames: np.ndarray | None = None, due: tuple[str, ...] = (FINGERPRINT,), **values: Any
) -> dict[str, Any]:
    """Clip `number` of a video, two seconds long; its frames stand at equal distances."""
    frames = pattern(number) if frames is None else frames
    start_s = 2.0 * number
    times_s = start_s + (np.arange(len(frames)) + 0.5) * 2.0 / len(frames)
    return {
        "video_id": "0" * 32, "uri": "here.mp4", "unit": 0, "units": 1, "due": list(due), "attempt": "first", "row": number,
        "clip_id": f"{'0' * 32}-clips-{number:09d}", "start_s": start_s, "end_s": start_s + 2.0, "boundary": "cut",
        "width": 640, "height": 360, "fps": 25.0, "frame_times_s": times_s.tolist(), "frames": frames.tobytes(),
        "frame_count": len(frames), "frame_height": frames.shape[1], "frame_width": frames.shape[2], **values,
    }  # fmt: skip


def failed_row(number: int) -> dict[str, Any]:
    """A clip that failed before."""
    return clip_row(number, error_code="damaged", error_message="before") | {"frames": None, "frame_count": None}


def end_row(clips: int) -> dict[str, Any]:
    """The end row of a unit."""
    end = {"clips": clips, "frames": 99, "lost_packets": 0, "decoded_s": 9.0, "started_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return {
        "video_id": "0" * 32, "uri": "here.mp4", "unit": 0, "units": 1, "due": [FINGERPRINT], "attempt": "first", "row": clips,
        "end": {**end, "decode_cpu_s": 0.1},
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table that conforms."""
    return rows_table(rows, CLIP_ROW)


def answers(out: pa.Table, stage: str) -> list[Any]:
    """What the rows hold in the stage's column, clip ids beside it."""
    return list(zip(out["clip_id"].to_pylist(), out[COLUMNS[stage]].to_pylist(), strict=True))
