"""Checks the rows of one epoch: keys, order, ids and values of each object, and their counts against the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.findings import Findings
from pipeline.gather import EpochPlan, PlannedObject
from pipeline.log import EpochState, Log
from pipeline.recipe import Recipe
from pipeline.verify_ledger import batches, check_ledger
from schemas.errors import ErrorCode
from stages.storage import Store

UNIT_LENGTH_TOLERANCE = 1e-3
_OWNER = ("video_id", "uri")
_CODES = pa.array([code.value for code in ErrorCode])
_BOUNDARIES = pa.array(["start", "cut", "gradual", "length", "unit"])
_MOST = {"motion": 1.0, "brightness": 1.0, "contrast": 0.5, "sharpness": 1.0}
_ROUNDING = 1e-3
_CLIP_ID = r"^[0-9a-f]{32}-[a-z][a-z2-7]{7}-[0-9]{9}$"


def check_epoch_rows(store: Store, log: Log, epoch: EpochState, found: Findings) -> None:
    """Reads every object of a committed epoch once, the ledger's once more for each."""
    plan = EpochPlan.of(epoch.plan)
    recipe = Recipe.from_json(log.runs[plan.run].opened.body["recipe"])
    check_ledger(store, plan, recipe, found)
    for planned in plan.objects[:-1]:
        checker = _Rows(planned, {origin.run for origin in plan.made_by}, recipe.clips, found)
        owner = _OWNER if planned.table == "clips" else _OWNER[:1]  # clips say where their video is, as the ledger does
        counts = _counted(checker.checked(batches(store, planned.key)), owner)
        expected = _expected(store, plan, planned.fingerprint or "", owner)
        for real, wanted in _paired(counts, expected):
            if real != wanted:
                found.add("counts", planned.key, f"(video, rows) {real} in the table, {wanted} in the ledger")


def _counted(tables: Iterator[pa.Table], owner: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(video, rows) of rows in the order of their video, which is named by the columns `owner`."""
    named = (pc.binary_join_element_wise(*(table[name] for name in owner), " ").combine_chunks() for table in tables)
    runs = ((run["values"], run["counts"]) for names in named for run in _run_lengths(names))
    for video, group in groupby(runs, key=itemgetter(0)):
        yield video, sum(count for _, count in group)


def _run_lengths(column: pa.Array) -> list[dict[str, Any]]:
    encoded = pc.run_end_encode(column)
    ends = np.asarray(encoded.run_ends)
    values = encoded.values.to_pylist()
    return [{"values": v, "counts": int(n)} for v, n in zip(values, np.diff(ends, prepend=0), strict=True)]


def _expected(store: Store, plan: EpochPlan, fingerprint: str, owner: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(video, rows) that the ledger promises of a fingerprint."""
    for table in batches(store, plan.objects[-1].key, [*owner, "stages"]):
        for row in table.to_pylist():
            for stage in row["stages"]:
                if stage["fingerprint"] == fingerprint and stage["rows"]:
                    yield " ".join(row[name] for name in owner), stage["rows"]


def _paired(
    real: Iterator[tuple[str, int]], wanted: Iterator[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int] | None, tuple[str, int] | None]]:
    """Pairs up to and including the first that differ: after it, all would."""
    for pair in zip_longest(real, wanted):
        yield pair
        if pair[0] != pair[1]:
            return


class _Rows:
    """Checks batches of one object as they pass."""

    def __init__(self, planned: PlannedObject, runs: set[str], clips_fingerprint: str, found: Findings) -> None:
        self._key, self._clips_fingerprint, self._found = planned.key, clips_fingerprint, found
        self._runs = pa.array(sorted(runs))
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
        self._none(pc.invert(pc.is_in(table["run_id"], self._runs)), table, "run", "names another run")
        codes, messages = table["error_code"], table["error_message"]
        self._none(
            pc.and_(codes.is_valid(), pc.invert(pc.is_in(codes, _CODES))), table, "error", "has an error of no known code"
        )
        self._none(
            pc.not_equal(codes.is_valid(), messages.is_valid()), table, "error", "has a code without a message, or reverse"
        )

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
        self._none(~(table["end_s"].to_numpy() > table["start_s"].to_numpy()), table, "time", "ends before it begins")
        self._frame_times(table)
        self._none(pc.invert(pc.is_in(table["boundary"], _BOUNDARIES)), table, "value", "begins for no known reason")
        for name in ("width", "height"):
            self._none(pc.less(table[name], 1), table, "value", f"has a {name} of no pixels")
        self._none(_outside(table["fps"], 0.0, np.finfo(np.float64).max), table, "value", "has an impossible fps")
        for name, most in _MOST.items():
            self._none(_outside(table[name], 0.0, most), table, "value", f"has a {name} outside 0 to {most}")
        index, same = table["clip_index"].to_numpy(), np.asarray(pc.equal(table["video_id"][1:], table["video_id"][:-1]))
        follows = np.where(same, index[1:] == index[:-1] + 1, index[1:] == 0)
        self._none(np.concatenate([[False], ~follows]), table, "clip-index", "does not count up from 0")

    def _frame_times(self, table: pa.Table) -> None:
        """Kept frames are frames of their clip, in the order of time."""
        times = table["frame_times_s"].combine_chunks()
        of = pc.list_parent_indices(times).to_numpy()
        at = pc.list_flatten(times).to_numpy(zero_copy_only=False)
        start_s, end_s = (table[name].to_numpy() for name in ("start_s", "end_s"))
        wrong = ~((at >= start_s[of] - _ROUNDING) & (at <= end_s[of] + _ROUNDING))
        wrong[1:] |= (of[1:] == of[:-1]) & ~(at[1:] > at[:-1])
        self._none(np.isin(np.arange(table.num_rows), of[wrong]), table, "time", "has a frame outside of it, or out of order")

    def _labels(self, table: pa.Table) -> None:
        self._answered(table, "label")
        self._none(pc.not_equal(table["stage"], "classify"), table, "value", "is of another stage")
        for name in ("score", "rank"):
            self._none(
                pc.not_equal(table["label"].is_valid(), table[name].is_valid()), table, "answer", f"has no {name}, or no label"
            )
        ids, rank = table["clip_id"], table["rank"].fill_null(0).to_numpy()
        later = np.asarray(pc.less(ids.slice(0, len(ids) - 1), ids.slice(1)))
        same = np.asarray(pc.equal(ids.slice(0, len(ids) - 1), ids.slice(1)))
        self._none(~(later | (same & (rank[1:] > rank[:-1]))), table, "key", "is repeated or out of order")
        keys = table.select(["clip_id", "label"]).group_by(["clip_id", "label"]).aggregate([([], "count_all")])
        self._none(pc.greater(keys["count_all"], 1), keys, "key", "has a label twice")
        score = table["score"].fill_null(0.5).to_numpy()
        self._none(~((score >= 0) & (score <= 1)), table, "value", "has a score outside 0 to 1")
        labelled = table["label"].is_valid().to_numpy()
        first = np.concatenate([[True], ~same])
        self._none(labelled & first & (rank != 1), table, "key", "has no label of rank 1")
        follows = (rank[1:] == rank[:-1] + 1) & (score[1:] <= score[:-1])
        self._none(
            np.concatenate([[False], same & ~follows]), table, "key", "skips a rank, or has a better score at a lower one"
        )

    def _captions(self, table: pa.Table) -> None:
        self._increasing(table)
        self._answered(table, "caption")
        self._none(pc.not_equal(table["caption"].is_valid(), table["tokens"].is_valid()), table, "answer", "lacks its length")
        self._none(pc.fill_null(pc.less(table["tokens"], 0), False), table, "value", "has less than no tokens")

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


def _outside(column: pa.ChunkedArray, least: float, most: float) -> Any:
    """Which values are there and not within [least, most]; NaN is not."""
    values = column.fill_null(least).to_numpy()
    return ~((values >= least) & (values <= most + _ROUNDING))
