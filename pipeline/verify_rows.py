"""Checks the rows of one epoch: keys, order, ids and values of each object, and their counts against the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.findings import Findings
from pipeline.gather import EpochPlan, PlannedObject
from pipeline.log import EpochState, Log
from pipeline.recipe import Recipe
from schemas.tables import STAGES, StageStatus, VideoStatus
from stages.storage import Store

BATCH_ROWS = 20_000
UNIT_LENGTH_TOLERANCE = 1e-3
_CLIP_ID = r"^[0-9a-f]{32}-[a-z][a-z2-7]{7}-[0-9]{9}$"
_PUBLISHED = {StageStatus.OK.value, StageStatus.PARTIAL.value}


def check_epoch_rows(store: Store, log: Log, epoch: EpochState, found: Findings) -> None:
    """Reads every object of a committed epoch once, the ledger's once more for each."""
    plan = EpochPlan.of(epoch.plan)
    recipe = Recipe.from_json(log.runs[plan.run].opened.body["recipe"])
    _check_ledger(store, plan, recipe, found)
    for planned in plan.objects[:-1]:
        checker = _Rows(planned, plan.run, recipe.clips, found)
        counts = _counted(checker.checked(batches(store, planned.key)))
        expected = _expected(store, plan, planned.fingerprint or "")
        for real, wanted in _paired(counts, expected):
            if real != wanted:
                found.add("counts", planned.key, f"(video, rows) {real} in the table, {wanted} in the ledger")


def batches(store: Store, key: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """An object's rows, BATCH_ROWS at a time."""
    with store.open_read(key) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def _counted(tables: Iterator[pa.Table]) -> Iterator[tuple[str, int]]:
    """(video_id, rows) of rows in the order of their video."""
    runs = ((run["values"], run["counts"]) for table in tables for run in _run_lengths(table["video_id"].combine_chunks()))
    for video, group in groupby(runs, key=itemgetter(0)):
        yield video, sum(count for _, count in group)


def _run_lengths(column: pa.Array) -> list[dict[str, Any]]:
    encoded = pc.run_end_encode(column)
    ends = np.asarray(encoded.run_ends)
    values = encoded.values.to_pylist()
    return [{"values": v, "counts": int(n)} for v, n in zip(values, np.diff(ends, prepend=0), strict=True)]


def _expected(store: Store, plan: EpochPlan, fingerprint: str) -> Iterator[tuple[str, int]]:
    """(video_id, rows) that the ledger promises of a fingerprint."""
    for table in batches(store, plan.objects[-1].key, ["video_id", "stages"]):
        for row in table.to_pylist():
            for stage in row["stages"]:
                if stage["fingerprint"] == fingerprint and stage["rows"]:
                    yield row["video_id"], stage["rows"]


def _paired(
    real: Iterator[tuple[str, int]], wanted: Iterator[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int] | None, tuple[str, int] | None]]:
    """Pairs up to and including the first that differ: after it, all would."""
    for pair in zip_longest(real, wanted):
        yield pair
        if pair[0] != pair[1]:
            return


def _check_ledger(store: Store, plan: EpochPlan, recipe: Recipe, found: Findings) -> None:
    key, last = plan.objects[-1].key, ""
    known = {part.fingerprint: (part.stage, part.model, part.revision) for part in recipe.ingredients}
    for table in batches(store, key, ["video_id", "status", "error_code", "stages", "run_id"]):
        for row in table.to_pylist():
            video, published = row["video_id"], [s for s in row["stages"] if s["status"] in _PUBLISHED]
            found.unless(video > last, "order", key, f"video {video} follows {last}")
            found.unless(row["run_id"] == plan.run, "run", key, f"video {video} says run {row['run_id']}")
            found.unless(row["status"] in set(VideoStatus), "status", key, f"video {video} is {row['status']!r}")
            is_usable = row["status"] in (VideoStatus.OK, VideoStatus.PARTIAL)
            if published and not is_usable:
                found.add("status", key, f"video {video} is {row['status']} and has published stages")
            if row["status"] != VideoStatus.OK and not row["error_code"]:
                found.add("status", key, f"video {video} is {row['status']} and does not say why")
            for stage in row["stages"]:
                named = (stage["stage"], stage["model"], stage["revision"])
                if named != known.get(stage["fingerprint"]) or stage["stage"] not in STAGES:
                    found.add("stage", key, f"video {video} names {named} of {stage['fingerprint']}, not of its run")
                if bool(stage["rows"]) != (stage["status"] in _PUBLISHED):
                    found.add("stage", key, f"video {video} has {stage['rows']} rows of a stage that is {stage['status']}")
            last = video


class _Rows:
    """Checks batches of one object as they pass."""

    def __init__(self, planned: PlannedObject, run: str, clips_fingerprint: str, found: Findings) -> None:
        self._key, self._run, self._clips_fingerprint, self._found = planned.key, run, clips_fingerprint, found
        by_table: dict[str, Callable[[pa.Table], None]] = {
            "clips": self._clips,
            "labels": self._labels,
            "captions": self._captions,
            "embeddings": self._embeddings,
        }
        self._own = by_table[planned.table]
        self._last: pa.Table | None = None  # rows of the last clip of the batch before

    def checked(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The same tables, checked."""
        for table in tables:
            self._ids(table)
            joined = pa.concat_tables([self._last, table]) if self._last is not None else table
            self._own(joined)
            is_last = pc.equal(joined["clip_id"], joined["clip_id"][-1])
            self._last = joined.filter(is_last)
            yield table

    def _none(self, wrong: Any, table: pa.Table, kind: str, message: str) -> None:
        """Notes the first row for which `wrong` is true."""
        mask = np.asarray(pc.fill_null(wrong, True) if isinstance(wrong, pa.ChunkedArray | pa.Array) else wrong, dtype=bool)
        if mask.any():
            first = int(np.flatnonzero(mask)[0])
            self._found.add(kind, self._key, f"{message} ({int(mask.sum())} rows, first clip {table['clip_id'][first]})")

    def _ids(self, table: pa.Table) -> None:
        ids = table["clip_id"]
        self._none(pc.invert(pc.match_substring_regex(ids, _CLIP_ID)), table, "clip-id", "is no clip id")
        owner = pc.utf8_slice_codeunits(ids, 0, 32)
        self._none(pc.not_equal(owner, table["video_id"]), table, "clip-id", "belongs to another video")
        made = pc.utf8_slice_codeunits(ids, 33, 41)
        self._none(pc.not_equal(made, self._clips_fingerprint), table, "clip-id", "was made by another configuration of clips")
        self._none(pc.not_equal(table["run_id"], self._run), table, "run", "names another run")

    def _increasing(self, table: pa.Table) -> None:
        ids = table["clip_id"]
        wrong = pc.greater_equal(ids.slice(0, len(ids) - 1), ids.slice(1))
        self._none(wrong, table, "key", "is repeated or out of order")

    def _answered(self, table: pa.Table, column: str) -> None:
        wrong = pc.equal(table[column].is_valid(), table["error_code"].is_valid())
        self._none(wrong, table, "answer", f"has both {column} and an error, or neither")

    def _clips(self, table: pa.Table) -> None:
        self._increasing(table)
        start_ms = pc.cast(pc.utf8_slice_codeunits(table["clip_id"], 42, 51), pa.int64(), safe=True)
        far = np.abs(start_ms.to_numpy() - table["start_s"].to_numpy() * 1000) > 0.5 + 1e-6
        self._none(far, table, "clip-id", "is not named after its start")
        self._none(pc.less_equal(table["end_s"], table["start_s"]), table, "time", "ends before it begins")
        index, same = table["clip_index"].to_numpy(), np.asarray(pc.equal(table["video_id"][1:], table["video_id"][:-1]))
        follows = np.where(same, index[1:] == index[:-1] + 1, index[1:] == 0)
        self._none(np.concatenate([[False], ~follows]), table, "clip-index", "does not count up from 0")

    def _labels(self, table: pa.Table) -> None:
        self._answered(table, "label")
        ids, rank = table["clip_id"], table["rank"].fill_null(0).to_numpy()
        later = np.asarray(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1)))
        same = np.asarray(pc.equal(ids.slice(0, len(ids) - 1), ids.slice(1)))
        self._none(~(later | (same & (rank[1:] > rank[:-1]))), table, "key", "is repeated or out of order")
        keys = table.select(["clip_id", "label"]).group_by(["clip_id", "label"]).aggregate([([], "count_all")])
        self._none(pc.greater(keys["count_all"], 1), keys, "key", "has a label twice")
        score = table["score"].fill_null(0.5).to_numpy()
        self._none(~((score >= 0) & (score <= 1)), table, "value", "has a score outside 0 to 1")

    def _captions(self, table: pa.Table) -> None:
        self._increasing(table)
        self._answered(table, "caption")

    def _embeddings(self, table: pa.Table) -> None:
        self._increasing(table)
        self._answered(table, "embedding")
        good = table.filter(table["embedding"].is_valid())
        vectors = good["embedding"].combine_chunks()
        lengths = pc.list_value_length(vectors).to_numpy()
        self._none(lengths != good["dim"].fill_null(-1).to_numpy(), good, "value", "has a vector of another length than dim")
        squares = pc.list_flatten(vectors).to_numpy(zero_copy_only=False).astype(np.float64) ** 2
        total = np.concatenate([[0.0], np.cumsum(squares)])
        edges = np.concatenate([[0], np.cumsum(lengths)])
        norms = np.sqrt(np.maximum(total[edges[1:]] - total[edges[:-1]], 0))
        # Cumulated sums of many squares round; the tolerance leaves room for that. NaN fails the comparison.
        self._none(~(np.abs(norms - 1) <= UNIT_LENGTH_TOLERANCE), good, "value", "has a vector that is not of unit length")
