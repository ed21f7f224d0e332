"""Small published tables, laid out as a run lays them out, without a run."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.views import Current, CurrentEntry
from schemas.identity import clip_id, fingerprint, video_id
from schemas.rows import rows_table
from schemas.tables import TABLES, Table
from stages.storage import Store

CLIPS_FP = fingerprint({"clips": 1})
DAY = "2026-11-01"
NOON = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)

ACTION = CurrentEntry("classify", "action", "embedded:motion", "embedded-motion", "r1", fingerprint({"action": 1}))
OBJECT = CurrentEntry("classify", "object", "embedded:clip", "embedded-clip", "r1", fingerprint({"object": 1}))
EMBEDDING = CurrentEntry("embed", "embedding", "embedded:clip", "embedded-clip", "r1", fingerprint({"embedding": 1}))
CAPTION = CurrentEntry("caption", "caption", "embedded:git", "embedded-git", "r1", fingerprint({"caption": 1}))
CURRENT = Current(CLIPS_FP, (ACTION, OBJECT, EMBEDDING, CAPTION))


def write(
    store: Store, table: str, partitions: Mapping[str, str], rows: Sequence[dict[str, Any]], run: str, epoch: int = 0
) -> None:
    """One object of a table; `partitions` without run_date."""
    schema = TABLES[table].schema
    folder = "/".join(f"{name}={value}" for name, value in {**partitions, "run_date": DAY}.items())
    sink = io.BytesIO()
    pq.write_table(rows_table([dict(row) for row in rows], schema), sink, compression="zstd")
    store.create(f"{table}/{folder}/part-{run}-{epoch}.parquet", sink.getvalue())


def write_current(store: Store, current: Current = CURRENT) -> None:
    entries = [vars(entry) for entry in current.entries]
    store.write("_current.json", json.dumps({"clips": current.clips, "entries": entries}).encode())


def video(name: str, version: str = "1") -> str:
    return video_id(f"/videos/{name}", 1000, version)


def ledger_row(name: str, run: str = "r1", *, version: str = "1", hours_later: float = 0, **values: Any) -> dict[str, Any]:
    when = NOON + datetime.timedelta(hours=hours_later)
    stages = [
        {"stage": "clips", "fingerprint": CLIPS_FP, "status": "ok", "rows": 2},
        *(
            {
                "stage": e.stage,
                "model": e.model,
                "revision": e.revision,
                "fingerprint": e.fingerprint,
                "status": "ok",
                "rows": 2,
            }
            for e in CURRENT.entries
        ),
    ]
    row = {
        "video_id": video(name, version), "uri": f"/videos/{name}", "size_bytes": 1000, "status": "ok", "clips": 2,
        "decoded_s": 7.0, "duration_s": 7.0, "has_audio": False, "stages": stages, "run_id": run, "attempts": 1,
        "started_at": when, "finished_at": when,
    }  # fmt: skip
    return {**row, **values}


def clip_rows(
    name: str, run: str = "r1", *, version: str = "1", fp: str = CLIPS_FP, starts_s: Sequence[float] = (0.0, 3.5)
) -> list[dict[str, Any]]:
    video_of = video(name, version)
    return [
        {
            "clip_id": clip_id(video_of, fp, start), "video_id": video_of, "uri": f"/videos/{name}", "clip_index": index,
            "start_s": start, "end_s": start + 3.5, "boundary": "cut" if index else "start", "width": 320, "height": 240,
            "fps": 25.0, "frame_times_s": [start + 0.1, start + 2.0], "motion": 0.1, "brightness": 0.5, "contrast": 0.2,
            "sharpness": 0.1, "run_id": run,
        }
        for index, start in enumerate(starts_s)
    ]  # fmt: skip


def label_rows(clips: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {**_ids(clip), "stage": "classify", "label": label, "score": 0.9 / (rank + 1), "rank": rank + 1}
        for clip in clips
        for rank, label in enumerate(labels)
    ]


def caption_rows(clips: Sequence[dict[str, Any]], caption: str) -> list[dict[str, Any]]:
    return [{**_ids(clip), "caption": caption, "tokens": len(caption.split())} for clip in clips]


def embedding_rows(clips: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**_ids(clip), "dim": 2, "embedding": [0.6, 0.8]} for clip in clips]


def _ids(clip: dict[str, Any]) -> dict[str, Any]:
    return {name: clip[name] for name in ("clip_id", "video_id", "run_id")}


def write_small(store: Store) -> None:
    """Two good videos of two clips each, one that failed; every model of CURRENT has an answer to every clip."""
    clips = [*clip_rows("a.mp4"), *clip_rows("b.mp4")]
    for entry in CURRENT.entries:
        where = {"model": entry.slug, "fingerprint": entry.fingerprint}
        if entry.stage == "classify":
            labels = ("left", "right") if entry.name == "action" else ("red circle", "blue star")
            write(store, "labels", where, label_rows(clips, labels), "r1")
        elif entry.stage == "caption":
            write(store, "captions", where, caption_rows(clips, "a red circle moving left"), "r1")
        else:
            write(store, "embeddings", where, embedding_rows(clips), "r1")
    write(store, "clips", {"fingerprint": CLIPS_FP}, clips, "r1")
    failed = {"status": "failed", "error_code": "no_video", "error_stage": "decode", "error_message": "audio only", "clips": 0}
    broken = ledger_row("c.mp3", **failed, decoded_s=None, stages=[])
    write(store, "videos", {}, [ledger_row("a.mp4"), ledger_row("b.mp4"), broken], "r1")
    write_current(store)


def write_log(store: Store, *events: tuple[str, str], body: Mapping[str, Any] | None = None) -> None:
    """Events (kind, run) of the log, an hour apart, the first one at noon."""
    from pipeline.log import Log, timestamp

    log = Log(store)
    for kind, run in events:
        log.refresh()
        at = timestamp(NOON + datetime.timedelta(hours=log.length))
        log.append(kind, run, lambda number, at=at: {"token": f"{number}", "at": at, **(body or {})})


def partition_names(table: Table) -> list[str]:
    return [*table.schema.names, *table.partitions]


def types_of(table: pa.Table) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in table.schema}
