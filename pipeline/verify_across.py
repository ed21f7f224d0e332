"""Checks what no single epoch shows: that nothing was published twice, and that model tables and clips name the same clips.

Goes over the videos in passes by the first bytes of their ids, so that what it holds is bounded whatever the tables' size:
about 40 bytes a clip of a pass, PASS_CLIPS clips a pass.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.findings import Findings
from pipeline.gather import EpochPlan, PlannedObject
from pipeline.idtable import Ids, IdTable, hashes, packed, unpacked
from pipeline.log import EpochState, Log
from pipeline.recipe import Recipe
from pipeline.verify_ledger import BATCH_ROWS, batches
from schemas.tables import StageStatus
from stages.storage import Store

PASS_CLIPS = 5_000_000


def check_across(store: Store, log: Log, epochs: Sequence[EpochState], found: Findings, pass_clips: int = PASS_CLIPS) -> None:
    """Checks committed, intact epochs against each other."""
    plans = [EpochPlan.of(epoch.plan) for epoch in epochs]
    size = sum(plan.clips + plan.videos for plan in plans)
    passes = max(1, math.ceil(size / pass_clips))
    edges = [f"{round(number * 2**32 / passes):08x}" for number in range(passes)] + ["g"]  # sorts after every hex digit
    elsewhere = _elsewhere(store, log, {plan.epoch for plan in plans})
    for low, high in pairwise(edges):
        _Pass(store, log, plans, (low, high), elsewhere, found).check()


def _elsewhere(store: Store, log: Log, intact: set[int]) -> list[str] | None:
    """Sidecars of epochs that are planned, or were taken back: their rows are not in the ledger. None where any is gone, or
    where what was committed is damaged: then nobody can say who is missing.
    """
    if any(epoch.commit and number not in intact for number, epoch in log.epochs.items()):
        return None
    try:
        keys = [str(epoch.plan.body["ledger"]["planned"]) for n, epoch in log.epochs.items() if n not in intact]
        return keys if all(store.exists(key) for key in keys) else None
    except (KeyError, TypeError, ValueError):
        return None


class _Pass:
    """Videos with ids in [low, high)."""

    def __init__(
        self,
        store: Store,
        log: Log,
        plans: Sequence[EpochPlan],
        span: tuple[str, str],
        elsewhere: list[str] | None,
        found: Findings,
    ) -> None:
        self._is_settled = elsewhere is not None and all(epoch.commit or epoch.void for epoch in log.epochs.values())
        self._elsewhere, self._listed = elsewhere, IdTable("S16", "u1")  # every video that the ledger has
        self._store, self._plans, self._span, self._found = store, plans, span, found
        self._recipes = {plan.run: Recipe.from_json(log.runs[plan.run].opened.body["recipe"]) for plan in plans}
        # fingerprint -> video -> 1: published, 2: and complete
        self._published: dict[str, IdTable] = defaultdict(lambda: IdTable("S16", "u1"))
        self._clips: dict[str, npt.NDArray[np.int64]] = {}  # clips fingerprint -> sorted hashes of ids of good clips
        self._good: dict[str, IdTable] = defaultdict(lambda: IdTable("S16", "i4"))  # the same -> video -> good clips
        self._made_in: dict[str, IdTable] = defaultdict(lambda: IdTable("S16", "i4"))  # the same -> video -> epoch of its clips

    def check(self) -> None:
        """All of it."""
        self._ledger()
        self._gather_clips()
        self._superseded()
        for plan in self._plans:
            for planned in plan.objects[:-1]:
                if planned.table != "clips":
                    self._answers(planned, plan.epoch, self._recipes[plan.run].clips)

    def _ledger(self) -> None:
        runs: dict[str, IdTable] = defaultdict(lambda: IdTable("S16", "u1"))
        for plan in self._plans:
            key = plan.objects[-1].key
            for table in self._rows(key, ["video_id", "run_id", "stages"]):
                ids = packed(table["video_id"])
                self._list(ids)
                for run in pc.unique(table["run_id"]).to_pylist():
                    of_run = ids[pc.equal(table["run_id"], run).to_numpy()]
                    self._twice(runs[run], of_run, np.ones(len(of_run), dtype="u1"), key, f"has another row in run {run}")
                stages = table["stages"].combine_chunks()
                flat, parent = pc.list_flatten(stages), pc.list_parent_indices(stages)
                for fingerprint in pc.unique(flat.field("fingerprint")).to_pylist():
                    ours = pc.and_(pc.equal(flat.field("fingerprint"), fingerprint), pc.greater(flat.field("rows"), 0))
                    complete = pc.equal(flat.field("status"), StageStatus.OK.value).filter(ours).to_numpy(zero_copy_only=False)
                    videos, state = ids[parent.filter(ours).to_numpy()], 1 + complete.astype("u1")
                    self._twice(self._published[fingerprint], videos, state, key, f"publishes {fingerprint} again")

    def _list(self, ids: Ids) -> None:
        once = np.unique(ids)
        self._listed.put(once, np.ones(len(once), dtype="u1"))

    def _superseded(self) -> None:
        """Who is superseded was listed once: it has a row, or had one in an epoch that was planned and is not there."""
        low, high = self._span
        if self._elsewhere is None:
            return
        for key in self._elsewhere:
            for table in self._rows(key, ["video_id"]):
                self._list(packed(table["video_id"]))
        for plan in self._plans:
            key = plan.objects[-1].key
            for table in batches(self._store, key, ["supersedes"]):
                names = table["supersedes"].drop_null()
                names = names.filter(pc.and_(pc.greater_equal(names, low), pc.less(names, high)))
                known, _ = self._listed.get(packed(names))
                for video in names.filter(pa.array(~known)).to_pylist():
                    self._found.add("supersedes", key, f"a row supersedes video {video}, which was never there")

    def _twice(self, table: IdTable, ids: Ids, values: npt.NDArray[np.uint8], key: str, message: str) -> None:
        known, _ = table.get(ids)
        for video in unpacked(ids[known]):
            self._found.add("twice", key, f"video {video} {message}")
        table.put(ids, values)

    def _gather_clips(self) -> None:
        gathered: dict[str, list[npt.NDArray[np.int64]]] = defaultdict(list)
        # Which rows came in one epoch is not told of those that were put together from several.
        made = [
            (planned, -1 if plan.origins else plan.epoch)
            for plan in self._plans
            for planned in plan.objects
            if planned.table == "clips"
        ]
        for planned, epoch in made:
            for table in self._rows(planned.key, ["clip_id", "video_id", "error_code"]):
                good = table.filter(table["error_code"].is_null())
                gathered[planned.fingerprint or ""].append(hashes(good["clip_id"].to_pylist()))
                videos, counts = np.unique(packed(good["video_id"]), return_counts=True)
                counted = self._good[planned.fingerprint or ""]
                counted.put(videos, counted.get(videos)[1] + counts.astype("i4"))
                self._made_in[planned.fingerprint or ""].put(videos, np.full(len(videos), epoch, dtype="i4"))
        self._clips = {fingerprint: np.sort(np.concatenate(arrays)) for fingerprint, arrays in gathered.items()}

    def _answers(self, planned: PlannedObject, epoch: int, clips_fingerprint: str) -> None:
        """Of videos whose clips are complete, or were published with them, a model's rows must belong to clips; where both are
        complete, to all of them.
        """
        clips = self._clips.get(clips_fingerprint, np.empty(0, dtype=np.int64))
        answered = expected = 0
        last_clip, last_video = np.empty(0, dtype=np.int64), np.empty(0, dtype="S16")
        for table in self._rows(planned.key, ["clip_id", "video_id"]):
            ids = packed(table["video_id"])
            whole = self._published[clips_fingerprint].get(ids)[1] == 2
            has_clips, _ = self._published[clips_fingerprint].get(ids)
            for video in unpacked(np.unique(ids[~has_clips])) if self._is_settled else ():
                self._found.add("unfinished", planned.key, f"video {video} has answers and no clips; the next run makes them")
            names, hashed = table["clip_id"], hashes(table["clip_id"].to_pylist())
            owned = whole | (self._made_in[clips_fingerprint].get(ids)[1] == epoch)
            for name in names.filter(pa.array(owned & ~_among(clips, hashed))).slice(0, 3).to_pylist():
                self._found.add("orphan", planned.key, f"clip {name} is not in clips")
            hashed = hashed[whole]
            complete = (self._published[planned.fingerprint or ""].get(ids)[1] == 2)[whole]
            new_clips = np.setdiff1d(hashed[complete], last_clip)
            new_videos = np.setdiff1d(ids[whole][complete], last_video)
            answered += len(new_clips)
            expected += int(self._good[clips_fingerprint].get(new_videos)[1].sum())
            # Rows are in order, so only the last clip and the last video can go on in the next batch.
            last_clip, last_video = hashed[complete][-1:], ids[whole][complete][-1:]
        message = f"of videos that are complete, {expected} clips are good and {answered} have answers"
        self._found.unless(answered == expected, "coverage", planned.key, message)

    def _rows(self, key: str, columns: list[str]) -> Iterator[pa.Table]:
        """Rows of the pass; row groups outside it are not read."""
        low, high = self._span
        with self._store.open_read(key) as file:
            parquet = pq.ParquetFile(file)
            groups = [n for n in range(parquet.num_row_groups) if self._overlaps(parquet.metadata.row_group(n))]
            if not groups:
                return
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, row_groups=groups):
                table = pa.Table.from_batches([batch])
                inside = pc.and_(pc.greater_equal(table["video_id"], low), pc.less(table["video_id"], high))
                table = table.filter(inside)
                if table.num_rows:
                    yield table

    def _overlaps(self, group: pq.RowGroupMetaData) -> bool:
        column = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "video_id")
        statistics = column.statistics
        if statistics is None or not statistics.has_min_max:
            return True
        return bool(statistics.max >= self._span[0] and statistics.min < self._span[1])


def _among(sorted_keys: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of `keys` are in `sorted_keys`."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[place] == keys, dtype=bool)
