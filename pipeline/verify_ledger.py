"""Checks the ledger's rows of one epoch: each by itself, and against the plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.findings import Findings
from pipeline.gather import EpochPlan
from pipeline.outcome import Row
from pipeline.recipe import Recipe
from schemas.errors import ErrorCode
from schemas.identity import VIDEO_ID
from schemas.tables import STAGES, StageStatus, VideoStatus
from stages.storage import Store

BATCH_ROWS = 20_000
_PUBLISHED = {StageStatus.OK.value, StageStatus.PARTIAL.value}
_ERROR_STAGES = {"discover", "decode", *STAGES[1:]}
_CODES = {code.value for code in ErrorCode}
_COLUMNS = [
    "video_id", "supersedes", "status", "error_code", "error_stage", "error_message", "clips", "stages", "run_id", "attempts",
    "finished_at",
]  # fmt: skip


def batches(store: Store, key: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """An object's rows, BATCH_ROWS at a time."""
    with store.open_read(key) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def check_ledger(store: Store, plan: EpochPlan, recipe: Recipe, found: Findings) -> None:
    """Checks the ledger's object of a committed epoch."""
    key, videos, clips = plan.objects[-1].key, 0, 0
    last: tuple[Any, ...] = ("",)
    known = {part.fingerprint: (part.stage, part.model, part.revision) for part in recipe.ingredients}
    for table in batches(store, key, _COLUMNS):
        for row in table.to_pylist():
            place = (row["video_id"], row["finished_at"])
            is_next = place > last if plan.origins else place[0] > last[0]
            found.unless(is_next, "order", key, f"video {row['video_id']} follows {last[0]}")
            _check_row(row, plan, key, found)
            _check_stages(row, known, key, found)
            last, videos, clips = place, videos + 1, clips + (row["clips"] or 0)
    planned = (plan.videos, plan.clips)
    found.unless((videos, clips) == planned, "plan", key, f"has (videos, clips) {(videos, clips)}; {planned} were planned")


def _check_row(row: Row, plan: EpochPlan, key: str, found: Findings) -> None:
    def unless(is_right: Any, kind: str, message: str) -> None:
        found.unless(bool(is_right), kind, key, f"video {row['video_id']} {message}")

    unless(VIDEO_ID.fullmatch(row["video_id"]), "order", "is no video id")
    times = [origin.at for origin in plan.made_by if origin.run == row["run_id"]]
    unless(times, "run", f"says run {row['run_id']}")
    unless(
        not times or row["finished_at"] in times, "run", f"finished at {row['finished_at']}, when no epoch of it was planned"
    )
    unless(row["status"] in set(VideoStatus), "status", f"is {row['status']!r}")
    unless(row["status"] == VideoStatus.OK or row["error_code"], "status", f"is {row['status']} and does not say why")
    errors = [row[name] for name in ("error_code", "error_stage", "error_message")]
    unless(len({error is None for error in errors}) == 1, "error", f"has an error in part: {errors}")
    unless(row["error_code"] is None or row["error_code"] in _CODES, "error", f"has an error of no known code: {errors[0]}")
    unless(row["error_stage"] is None or row["error_stage"] in _ERROR_STAGES, "error", f"failed in no known stage: {errors[1]}")
    unless(row["attempts"] >= 0 and (row["clips"] or 0) >= 0, "value", "has less than no clips or attempts")
    unless(row["supersedes"] != row["video_id"], "supersedes", "supersedes itself")


def _check_stages(row: Row, known: dict[str, tuple[Any, ...]], key: str, found: Findings) -> None:
    video = row["video_id"]
    published = [stage for stage in row["stages"] if stage["status"] in _PUBLISHED]
    if published and row["status"] not in (VideoStatus.OK, VideoStatus.PARTIAL):
        found.add("status", key, f"video {video} is {row['status']} and has published stages")
    names = [stage["fingerprint"] for stage in row["stages"]]
    found.unless(len(set(names)) == len(names), "stage", key, f"video {video} names a fingerprint twice: {names}")
    for stage in row["stages"]:
        named = (stage["stage"], stage["model"], stage["revision"])
        if named != known.get(stage["fingerprint"]) or stage["stage"] not in STAGES:
            found.add("stage", key, f"video {video} names {named} of {stage['fingerprint']}, not of its run")
        if bool(stage["rows"]) != (stage["status"] in _PUBLISHED) or stage["status"] not in set(StageStatus):
            found.add("stage", key, f"video {video} has {stage['rows']} rows of a stage that is {stage['status']}")
        if row["status"] == VideoStatus.OK and stage["status"] != StageStatus.OK:
            found.add("stage", key, f"video {video} is ok, and its stage {stage['stage']} is {stage['status']}")
        if stage["stage"] == "clips" and stage["rows"] not in (0, row["clips"]):
            found.add("stage", key, f"video {video} has {row['clips']} clips and published {stage['rows']}")
