"""What the tests of the decode stage share: units of files, and decoding them to rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from schemas.config import ClipsConfig
from schemas.rows import CLIP_ROW, UNIT_ROW, rows_table
from stages.decode import Decode
from stages.reader import Reader

ENTRY = "aaaaaaaa"  # a model that sees 8 frames
Row = dict[str, Any]


def unit(path: Path | str, **changes: Any) -> Row:
    """A unit that is the whole of a file."""
    row = {"video_id": "0" * 32, "uri": str(path), "unit": 0, "units": 1, "due": [ENTRY]}
    if Path(path).is_file():
        row["size_bytes"] = Path(path).stat().st_size
    return row | changes


def decoder(clips: ClipsConfig | None = None, counts: dict[str, int] | None = None, **options: Any) -> Decode:
    return Decode(clips or ClipsConfig(), counts or {ENTRY: 8}, **({"unit_deadline_s": 600.0} | options))


def run(decode: Decode, *units: Row) -> list[pa.Table]:
    tables = list(decode(rows_table(list(units), UNIT_ROW)))
    assert all(table.schema.equals(CLIP_ROW) for table in tables)
    return tables


def rows_of(decode: Decode, *units: Row) -> list[Row]:
    return [row for table in run(decode, *units) for row in table.to_pylist()]


def decoded(path: Path | str, clips: ClipsConfig | None = None, **changes: Any) -> tuple[list[Row], Row]:
    """(clip rows, end) of one unit decoded by itself."""
    *clip_rows, end = rows_of(decoder(clips), unit(path, **changes))
    assert [row["row"] for row in (*clip_rows, end)] == list(range(len(clip_rows) + 1))
    assert end["end"]["clips"] == len(clip_rows)
    assert all(row["end"] is None and row["clip_id"] for row in clip_rows)
    assert end["clip_id"] is None
    return clip_rows, end["end"]


def timed_frames(reader: Reader) -> list[tuple[float, av.VideoFrame]]:
    """All that a reader reads."""
    return [timed for burst in reader.bursts() for timed in burst]


def frames_of(row: Row) -> np.ndarray:
    """Kept frames: uint8, (count, height, width, 3)."""
    shape = (row["frame_count"], row["frame_height"], row["frame_width"], 3)
    return np.frombuffer(row["frames"], np.uint8).reshape(shape)


def spans(clip_rows: list[Row]) -> list[tuple[float, float, str]]:
    return [(round(row["start_s"], 3), round(row["end_s"], 3), row["boundary"]) for row in clip_rows]
