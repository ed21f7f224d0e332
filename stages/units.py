"""Which units a video is decoded in: whole, or, of a long file that can be sought in exactly, by time range.

The marks lie at multiples of `limits.unit_s`. A file's header decides how many there are; where it lies, the last unit runs to
the file's end however far that is, and units beyond the end have no clips. Marks are part of the clips fingerprint: every
machine cuts alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

import pyarrow as pa

from schemas.config import ClipsConfig
from schemas.errors import BadVideo
from schemas.rows import UNIT_ROW, rows_table
from stages.media import open_media
from stages.reader import Reader, Span
from stages.sources import open_source

Open = Callable[[str, int | None, str | None, datetime | None], BinaryIO]
# Containers in which a frame has the same time whether one reads on to it or seeks to it. Others (MPEG program streams, Ogg,
# ASF) carry a time for some packets only, and FFmpeg guesses the rest from where it began: such a file stays whole.
EXACT_SEEKING = frozenset({"mov", "matroska", "mpegts", "flv"})
_SOURCE_COLUMNS = ("video_id", "uri", "size_bytes", "etag", "modified_at", "supersedes", "due")


def units_of(sources: pa.Table, clips: ClipsConfig, *, open_file: Open = open_source) -> pa.Table:
    """UNIT_ROW for each source (SOURCE_ROW's columns, `supersedes` and `due`), in order.

    Opens only files larger than `limits.unit_min_bytes`. One that cannot be opened stays one unit: decoding it says why.
    """
    rows: list[dict[str, Any]] = []
    for source in sources.select(_SOURCE_COLUMNS).to_pylist():
        rows += [{**source, **unit} for unit in _units(source, clips, open_file)]
    return rows_table(rows, UNIT_ROW)


def marks_s(duration_s: float | None, clips: ClipsConfig) -> list[float]:
    """Seconds at which a video of `duration_s` (None: unknown) is cut into units; none where it is decoded whole.

    A unit that would be shorter than `min_s` joins the one before.
    """
    if duration_s is None:
        return []
    unit_s = clips.limits.unit_s
    count = math.ceil((min(duration_s, clips.limits.max_duration_s) - clips.min_s) / unit_s)
    return [number * unit_s for number in range(1, count)]


def _units(source: dict[str, Any], clips: ClipsConfig, open_file: Open) -> list[dict[str, Any]]:
    whole = [{"unit": 0, "units": 1, "unit_start_s": None, "unit_end_s": None, "origin_s": None}]
    if source["size_bytes"] is None or source["size_bytes"] <= clips.limits.unit_min_bytes:
        return whole
    try:
        duration_s, origin_s = _probe(source, clips, open_file)
    except BadVideo:
        return whole
    marks = marks_s(duration_s, clips)
    if not marks or origin_s is None:
        return whole
    edges: list[float | None] = [None, *marks, None]
    return [
        {"unit": n, "units": len(edges) - 1, "unit_start_s": edges[n], "unit_end_s": edges[n + 1], "origin_s": origin_s}
        for n in range(len(edges) - 1)
    ]


def _probe(source: dict[str, Any], clips: ClipsConfig, open_file: Open) -> tuple[float | None, float | None]:
    """(claimed duration, container time of the first frame) in seconds. Reads as far as the first frame that decodes."""
    with (
        open_file(source["uri"], source["size_bytes"], source["etag"], source["modified_at"]) as file,
        open_media(file, clips.limits) as media,
    ):
        formats = media.facts.container.split(",")
        if EXACT_SEEKING.isdisjoint(formats) or not marks_s(media.facts.duration_s, clips):
            return None, None
        reader = Reader(media, clips.limits, Span(), check=lambda: None)
        next(reader.frames(), None)
        return media.facts.duration_s, reader.origin_s
