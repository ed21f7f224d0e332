"""What every unit's rows must keep to, whatever its file; the status that they give; and whether two decodes agree."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipeline.outcome import Outcome, Trouble, UnitEnd, outcome
from pipeline.receipts import Described
from pipeline.recipe import Recipe
from schemas.config import ClipsConfig
from schemas.errors import MAX_MESSAGE_CHARS, ErrorCode
from schemas.identity import clip_id
from schemas.rows import PART_ROW, UNIT_ROW, rows_table
from stages.filesystems import local_uri
from tests.faults.pool import Told

CLIPS = ClipsConfig()
FINGERPRINT = CLIPS.fingerprint()
# The clips themselves are due, and carry the frames that a model of 8 would see.
FRAME_COUNTS = {FINGERPRINT: 8}
CLOSE = 1e-5
_TICK_S = 1e-6
_OF_THE_TRY = {
    "attempt",
    "uri",
    "video_id",
    "clip_id",
    "started_at",
    "decode_cpu_s",
    "size_bytes",
    "unit",
    "etag",
    "modified_at",
}
Row = dict[str, Any]


def broken(told: Told, limits_s: float = CLIPS.limits.max_duration_s) -> list[str]:
    """What is wrong with a unit's rows; nothing where it was given up."""
    return [] if told.given_up else list(_broken(told.rows, limits_s))


def _broken(rows: Sequence[Row], limit_s: float) -> Iterator[str]:
    *clips, last = rows
    end = last["end"]
    if end is None or any(row["end"] is not None for row in clips):
        yield "not exactly one end row, at the end"
        return
    if [row["row"] for row in rows] != list(range(len(rows))) or end["clips"] != len(clips):
        yield f"rows {[row['row'] for row in rows]}, {end['clips']} clips by the end row"
    if len({row["attempt"] for row in rows}) != 1:
        yield "rows of several attempts"
    yield from _broken_error(end["error_code"], end["error_message"])
    yield from _not_finite(last)
    if not 0 <= end["decoded_s"] <= limit_s or min(end["frames"], end["lost_packets"]) < 0:
        yield f"decoded {end['decoded_s']} s, {end['frames']} frames, lost {end['lost_packets']}"
    if clips and not end["frames"]:
        yield "clips without frames"
    first_s = clips[0]["start_s"] if clips else 0.0
    if clips and not _begins_within(first_s, last["unit_start_s"], last["unit_end_s"]):
        yield f"the first clip begins at {first_s}"
    for clip in clips:
        yield from _broken_clip(clip, first_s, first_s + end["decoded_s"])
    for one, two in pairwise(clips):
        if not one["start_s"] < two["start_s"] or one["end_s"] != two["start_s"] or one["clip_id"] >= two["clip_id"]:
            yield f"clip {one['start_s']} to {one['end_s']} before clip {two['start_s']}"


def _begins_within(first_s: float, start_s: float | None, end_s: float | None) -> bool:
    """Whether a unit's first clip begins where it may: in the first unit, with the video."""
    return first_s == 0 if start_s is None else start_s <= first_s < (math.inf if end_s is None else end_s)


def _broken_clip(clip: Row, first_s: float, last_s: float) -> Iterator[str]:
    start_s, end_s, times_s = clip["start_s"], clip["end_s"], clip["frame_times_s"]
    where = f"clip {start_s} to {end_s} of {first_s} to {last_s}: "
    if not first_s <= start_s < end_s <= last_s + _TICK_S:
        yield f"{where}has no place there"
    if clip["clip_id"] != clip_id(clip["video_id"], FINGERPRINT, start_s):
        yield f"{where}is called {clip['clip_id']}"
    if clip["boundary"] not in ("start", "cut", "gradual", "length", "unit"):
        yield f"{where}boundary {clip['boundary']}"
    if not times_s or not all(start_s <= time_s < end_s for time_s in times_s) or not all(a < b for a, b in pairwise(times_s)):
        yield f"{where}frames at {times_s}"
    if len(times_s) != clip["frame_count"] or clip["frames"] is None or min(clip["frame_height"], clip["frame_width"]) != 224:
        yield f"{where}{clip['frame_count']} frames of {clip['frame_width']}x{clip['frame_height']}"
    if not (clip["width"] >= 1 and clip["height"] >= 1 and clip["fps"] > 0):
        yield f"{where}{clip['width']}x{clip['height']} at {clip['fps']} fps"
    if not all(0 <= clip[name] <= 1 for name in ("brightness", "contrast", "sharpness")) or not 0 <= (clip["motion"] or 0) <= 1:
        yield f"{where}quality {[clip[name] for name in ('motion', 'brightness', 'contrast', 'sharpness')]}"
    if clip["error_code"] is not None:
        yield f"{where}{clip['error_code']}"
    yield from (where + what for what in _not_finite(clip))


def _broken_error(code: str | None, message: str | None) -> Iterator[str]:
    if (code is None) != (message is None) or (code is not None and code not in set(ErrorCode)):
        yield f"error {code}: {message}"
    if message is not None and not (0 < len(message) <= MAX_MESSAGE_CHARS and message.isprintable()):
        yield f"a message that is not one line: {message!r}"


def _not_finite(row: Row) -> Iterator[str]:
    for name, value in {**row, **(row["end"] or {})}.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            yield f"{name} is {value}"


def unit(path: bytes | str | os.PathLike[str], number: int, **part: Any) -> Row:
    """A unit as a run knows it: the whole of a file, or `part` of it."""
    uri = local_uri(os.fsdecode(path))
    row = {"video_id": f"{number:032x}", "uri": uri, "unit": 0, "units": 1, "due": [FINGERPRINT]} | part
    made: Row = rows_table([row], UNIT_ROW).to_pylist()[0]
    return made


def settled(told: Told) -> Outcome:
    """The video's row in the ledger, by the rule of a run."""
    recipe, now = Recipe.of(FINGERPRINT, []), datetime.now(UTC)
    if told.given_up:
        trouble = Trouble(ErrorCode.KILLED.value, "decode", "ended its worker")
        return outcome([UnitEnd(told.unit, given_up=trouble)], recipe, [FINGERPRINT], "run", now)
    table: pa.Table = rows_table([{k: v for k, v in row.items() if k != "frames"} for row in told.rows], PART_ROW)
    receipt = Described(table).receipt(0, table.num_rows)
    return outcome([UnitEnd(told.unit, [receipt])], recipe, [FINGERPRINT], "run", now)


def differences(expected: Told, found: Told) -> list[str]:
    """Where two decodes of one file differ: in anything but floats by more than nothing, in those by more than CLOSE."""
    if len(expected.rows) != len(found.rows):
        return [f"{len(found.rows)} rows instead of {len(expected.rows)}: {found.end or found.deaths or found.faults}"]
    pairs = zip(expected.rows, found.rows, strict=True)
    return [what for one, two in pairs for what in _differences(one, two)]


def _differences(expected: Any, found: Any, name: str = "row") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() - _OF_THE_TRY:
            yield from _differences(expected[key], found.get(key), key)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for one, two in zip(expected, found, strict=True):
            yield from _differences(one, two, name)
    elif isinstance(expected, float) and isinstance(found, float):
        if abs(expected - found) > CLOSE:
            yield f"{name}: {found} instead of {expected}"
    elif expected != found:
        yield f"{name}: {found!r} instead of {expected!r}"
