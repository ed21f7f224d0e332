"""Sources, units, clip rows and receipts in any number, as the stages make them, built column by column."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.config import CaptionConfig, ClassifyConfig, EmbedConfig, JobConfig
from schemas.entries import Entry
from schemas.rows import CAPTION, EMBEDDING, END, LABEL, PART_ROW, RECEIPT, SOURCE_ROW, STAGED, UNIT_ROW, conform

CLIP_S = 6.0
LABELS = 5  # of a clip
FRAMES = 8  # likewise
_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_REVISION = "made"
_CAPTION = "a person walks along a street with parked cars while it begins to rain, clip {}"
_RNG = np.random.default_rng(7)
_Column = pa.Array | pa.ChunkedArray


def job(output: str, uri: str, stages: Sequence[str], **resources: Any) -> tuple[JobConfig, list[Entry]]:
    """A configuration with one model in each of `stages` (classify, embed, caption), and its entries."""
    models: dict[str, Any] = {
        "classify": ClassifyConfig(model="made/classifier"), "embed": EmbedConfig(model="made/embedder"),
        "caption": CaptionConfig(model="made/captioner"),
    }  # fmt: skip
    chosen = {stage: models[stage] for stage in stages}
    config = JobConfig(input={"uri": uri}, output=output, resources=resources, **chosen)
    clips = config.clips.fingerprint()
    entries = [Entry(stage, model, _REVISION, model.fingerprint(clips, _REVISION), stage) for stage, model in chosen.items()]
    return config, entries


def sources(first: int, count: int) -> pa.Table:
    """SOURCE_ROW of videos number `first`, ..."""
    numbers = range(first, first + count)
    ids = [hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest() for number in numbers]
    columns: dict[str, Any] = {
        "video_id": pa.array(ids),
        "uri": pa.array([f"s3://footage-of-all-years/camera-{number % 97:03d}/{number:09d}.mp4" for number in numbers]),
        "size_bytes": pa.repeat(pa.scalar(20 << 20, pa.int64()), count),
        "etag": pa.array([name[::-1] for name in ids]),
    }
    return _filled(columns, SOURCE_ROW, count)


def units(due: pa.Table) -> pa.Table:
    """UNIT_ROW, one for each source (as from `Session.due`)."""
    count = due.num_rows
    columns = {name: due[name] for name in due.column_names if name in UNIT_ROW.names}
    columns |= {"unit": _int(0, count), "units": _int(1, count)}
    return _filled(columns, UNIT_ROW, count)


def clip_rows(unit_rows: pa.Table, clips: int, clips_fingerprint: str, entries: Sequence[Entry] = (), dim: int = 8) -> pa.Table:
    """PART_ROW of units with `clips` clips each and an end row, with the answers of `entries`; vectors of length `dim`."""
    each, count = clips + 1, unit_rows.num_rows
    total = each * count
    row = np.tile(np.arange(each, dtype=np.int32), count)
    is_clip = pa.array(row < clips)
    start_s = pa.array(row * CLIP_S, mask=row == clips)
    ids = unit_rows["video_id"].to_pylist()
    names = [
        f"{video}-{clips_fingerprint}-{round(number * CLIP_S * 1000):09d}" if number < clips else None
        for video in ids
        for number in range(each)
    ]
    owner = unit_rows.take(np.repeat(np.arange(count), each))
    columns: dict[str, _Column] = {name: owner[name] for name in UNIT_ROW.names}
    columns |= {
        "attempt": pa.repeat(pa.scalar("a" * 16), total), "row": pa.array(row), "clip_id": pa.array(names, pa.string()),
        "start_s": start_s, "end_s": pa.array((row + 1) * CLIP_S, mask=row == clips),
        "boundary": _where(row < clips, "cut"), "width": _where(row < clips, 1920, pa.int32()),
        "height": _where(row < clips, 1080, pa.int32()), "fps": _where(row < clips, 25.0),
        "frame_times_s": _lists(row < clips, pa.array(np.tile(_frame_times_s(clips), count)), FRAMES),
        "frame_count": _where(row < clips, FRAMES, pa.int32()),
        "end": _ends(row == clips, clips),
        **{name: _where(row < clips, 0.25, pa.float32()) for name in ("motion", "brightness", "contrast", "sharpness")},
    }  # fmt: skip
    columns |= answers(is_clip, entries, dim)
    return _filled(columns, PART_ROW, total)


def answers(is_clip: pa.Array, entries: Sequence[Entry], dim: int) -> dict[str, _Column]:
    """The columns of the model stages: for the rows that are clips, what each entry says of them."""
    mask = is_clip.to_numpy(zero_copy_only=False)
    empty = {name: _lists(mask, pa.array([], kind), 0) for name, kind in _KINDS.items()}
    return empty | {_COLUMNS[entry.stage]: _MAKERS[entry.stage](mask, entry, dim) for entry in entries}


def _frame_times_s(clips: int) -> np.ndarray:
    """Of all clips of a unit, one after the other: float64, shape (clips * FRAMES,)."""
    return (np.arange(clips * FRAMES) + 0.5) * CLIP_S / FRAMES


def _labels(mask: np.ndarray, entry: Entry, dim: int) -> pa.Array:
    del dim
    clips = int(mask.sum())
    count, rank = clips * LABELS, np.tile(np.arange(1, LABELS + 1, dtype=np.int32), clips)
    values = {
        "fingerprint": pa.repeat(pa.scalar(entry.fingerprint), count),
        "label": pa.array(np.char.add("label ", ((np.arange(count) * 7) % 400).astype(str))),
        "score": pa.array((1.0 / (1.0 + rank)).astype(np.float32)), "rank": pa.array(rank),
    }  # fmt: skip
    return _lists(mask, _struct(values, LABEL, count), LABELS)


def _embeddings(mask: np.ndarray, entry: Entry, dim: int) -> pa.Array:
    clips = int(mask.sum())
    vectors = _RNG.normal(size=(clips, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = {
        "fingerprint": pa.repeat(pa.scalar(entry.fingerprint), clips), "dim": _int(dim, clips),
        "embedding": pa.ListArray.from_arrays(_offsets(np.full(clips, dim)), pa.array(vectors.reshape(-1))),
    }  # fmt: skip
    return _lists(mask, _struct(values, EMBEDDING, clips), 1)


def _captions(mask: np.ndarray, entry: Entry, dim: int) -> pa.Array:
    del dim
    clips = int(mask.sum())
    values = {
        "fingerprint": pa.repeat(pa.scalar(entry.fingerprint), clips),
        "prompt": pa.repeat(pa.scalar("Describe this video in one sentence."), clips),
        "caption": pa.array([_CAPTION.format(number) for number in range(clips)]), "tokens": _int(18, clips),
    }  # fmt: skip
    return _lists(mask, _struct(values, CAPTION, clips), 1)


_MAKERS = {"classify": _labels, "embed": _embeddings, "caption": _captions}
_COLUMNS = {"classify": "labels", "embed": "embeddings", "caption": "captions"}
_KINDS = {"labels": LABEL, "embeddings": EMBEDDING, "captions": CAPTION}


def receipts(unit_rows: pa.Table, clips: int, entries: Sequence[Entry]) -> pa.Table:
    """RECEIPT rows of units that came back whole, in one part each."""
    count = unit_rows.num_rows
    staged = [_staged(entry, clips, count) for entry in entries]
    order = np.arange(len(entries) * count).reshape(len(entries), count).T.reshape(-1)
    values = pa.concat_arrays(staged).take(pa.array(order)) if staged else pa.array([], STAGED)
    columns: dict[str, _Column] = {name: unit_rows[name] for name in UNIT_ROW.names}
    columns |= {
        "attempt": pa.repeat(pa.scalar("a" * 16), count), "first_row": _int(0, count), "last_row": _int(clips, count),
        "clips": _int(clips, count), "bad_clips": _int(0, count),
        "staged": pa.ListArray.from_arrays(_offsets(np.full(count, len(entries))), values),
        "end": _ends(np.ones(count, dtype=bool), clips),
    }  # fmt: skip
    return _filled(columns, RECEIPT, count)


def _staged(entry: Entry, clips: int, count: int) -> pa.Array:
    rows = clips * (LABELS if entry.stage == "classify" else 1)
    values = {
        "stage": pa.repeat(pa.scalar(entry.stage), count), "fingerprint": pa.repeat(pa.scalar(entry.fingerprint), count),
        "rows": pa.repeat(pa.scalar(rows, pa.int64()), count), "good": _int(clips, count), "failed": _int(0, count),
    }  # fmt: skip
    return _struct(values, STAGED, count)


def _ends(mask: np.ndarray, clips: int) -> pa.Array:
    """The END struct where `mask` is true, null elsewhere."""
    end = {
        "clips": clips, "container": "mov,mp4", "codec": "h264", "width": 1920, "height": 1080, "rotation_deg": 0,
        "duration_s": clips * CLIP_S, "has_audio": True, "frames": round(25 * clips * CLIP_S), "lost_packets": 0,
        "decoded_s": clips * CLIP_S, "started_at": _AT, "decode_cpu_s": 1.0, "error_code": None, "error_message": None,
    }  # fmt: skip
    return pa.array([end, None], END).take(pa.array(np.where(mask, 0, 1)))


def _int(value: int, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.int32()), count)


def _where(mask: np.ndarray, value: Any, kind: pa.DataType | None = None) -> pa.Array:
    """`value` where `mask` is true, null elsewhere."""
    return pa.array([value, None], kind).take(pa.array(np.where(mask, 0, 1)))


def _offsets(lengths: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _lists(mask: np.ndarray, values: pa.Array, each: int) -> pa.Array:
    """Lists of `each` values where `mask` is true, null elsewhere."""
    offsets = np.concatenate([[0], np.cumsum(np.where(mask, each, 0))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~mask))


def _struct(values: dict[str, pa.Array], kind: pa.StructType, count: int) -> pa.Array:
    """Structs of `kind`; fields that are not in `values` are null."""
    fields = [kind.field(number) for number in range(kind.num_fields)]
    found = [values.get(field.name, pa.nulls(count, field.type)) for field in fields]
    return pa.StructArray.from_arrays(
        [array.cast(field.type) for array, field in zip(found, fields, strict=True)], fields=fields
    )


def _filled(columns: dict[str, Any], schema: pa.Schema, count: int) -> pa.Table:
    """A table of `schema`; columns that are not there are null."""
    return conform(pa.table({field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in schema}), schema)
