"""Which units a video is decoded in: whole, or, of a long file that can be sought in exactly, by time range.

The marks lie at multiples of `limits.unit_s`. A file's header decides how many there are; where it lies, the last unit runs to
the file's end however far that is, and units beyond the end have no clips. Marks are part of the clips fingerprint: every
machine cuts alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from schemas.config import ClipsConfig
from schemas.errors import BadVideo
from schemas.rows import UNIT_ROW, rows_table
from stages.probe import Extent, Prober
from stages.roots import ANYWHERE, Roots

Probe = Callable[[dict[str, Any]], Extent]
_SOURCE_COLUMNS = ("video_id", "uri", "size_bytes", "etag", "modified_at", "supersedes", "due")


def units_of(sources: pa.Table, clips: ClipsConfig, roots: Roots = ANYWHERE, *, probe: Probe | None = None) -> pa.Table:
    """UNIT_ROW for each source (SOURCE_ROW's columns, `supersedes` and `due`), in order.

    Probes only files larger than `limits.unit_min_bytes`, by default in a process of its own: who plans a run must outlive
    every file. One that cannot be opened, or that ends its prober, stays one unit: decoding it says why.
    """
    rows: list[dict[str, Any]] = []
    with Prober(clips.limits, roots=roots) as prober:
        for source in sources.select(_SOURCE_COLUMNS).to_pylist():
            rows += [{**source, **unit} for unit in _units(source, clips, probe or prober)]
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


def _units(source: dict[str, Any], clips: ClipsConfig, probe: Probe) -> list[dict[str, Any]]:
    whole = [{"unit": 0, "units": 1, "unit_start_s": None, "unit_end_s": None, "origin_s": None}]
    if source["size_bytes"] is None or source["size_bytes"] <= clips.limits.unit_min_bytes:
        return whole
    try:
        duration_s, origin_s = probe(source)
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
