"""A compacted copy of an output under a new root: the same rows in fewer, larger objects.

Nightly runs leave an object for each table, model and night. They cannot be merged where they are: whoever lists a table at the
wrong moment would see rows twice, or not at all. So what the log of an output has committed is written anew below another root,
with a log of its own, and checked; readers and the next run move over when it is there.

Consecutive epochs of one configuration become one, as far as EPOCH_CLIPS and MOST_MERGED go. The rows stay as they are, and
name the runs that made them; `run_date` is that of the newest of them. The copy is planned once, in `_compacting.json`, and its
log is written last: a compaction that was killed goes on where it was, and until it has come to its end no run begins there.
"""

from __future__ import annotations

import heapq
import json
import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.current import name_current
from pipeline.findings import Finding
from pipeline.gather import EpochPlan, PlannedObject
from pipeline.log import Body, Log, key_of, timestamp
from pipeline.objects import RowWriter, Written, examined, footer, property_of
from pipeline.recovery import Clock
from pipeline.verify import verify
from schemas.errors import BadRequest
from schemas.tables import PUBLISH_ORDER, TABLES
from stages.storage import Store

COMPACTING = "_compacting.json"
EPOCH_CLIPS = 500_000  # that a merged epoch has at most, unless one had more already
MOST_MERGED = 64  # epochs that become one: all their objects of a table are read at once
_BATCH_ROWS = 1_000
_HELD_ROWS = 10_000
_NOTHING = Written("", 0, 0, "")  # parts of an epoch that was not made from any


@dataclass(frozen=True)
class Group:
    """Consecutive epochs of the source, by number, that become one; `run` and `epoch` name it in the copy."""

    run: str
    epoch: int
    token: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Compacted:
    """What came of it. `findings`: what `verify` says of the copy, where it is not as it should be."""

    objects_before: int
    objects: int
    bytes_before: int
    bytes: int
    rows: int
    findings: tuple[Finding, ...]

    def lines(self, root: str) -> list[str]:
        """For people."""
        if self.findings:
            return [str(finding) for finding in self.findings]
        return [
            f"{root}: {self.rows:,} rows in {self.objects:,} objects of {self.bytes:,} bytes"
            f" (before: {self.objects_before:,} of {self.bytes_before:,}), all checked"
        ]


def compact(source: Store, target: Store, clock: Clock | None = None) -> Compacted:
    """Copies what `source` has published to the empty `target`, or goes on with a copy that was broken off.

    Raises BadRequest where a run is open, where nothing is published, or where `target` holds anything else.
    """
    clock = clock or Clock()
    log = Log(source)
    log.refresh()
    _refuse_open(log, source)
    at, groups = _plan(log, target, clock)
    made = [(group, *_copied(source, target, log, group)) for group in groups]
    _write_log(log, target, at, made)
    there = Log(target)
    there.refresh()
    name_current(there, clock.now())
    findings = [*verify(target), *_uncopied(log, made)]
    if not findings:
        target.delete(COMPACTING)
    before = [item for epoch in _committed(log) for item in log.epochs[epoch].commit.body["objects"]]  # type: ignore[union-attr]
    after = [item for _, _, written in made for item in written]
    return Compacted(
        objects_before=len(before),
        objects=len(after),
        bytes_before=sum(item["size_bytes"] for item in before),
        bytes=sum(item.size_bytes for item in after),
        rows=sum(item.rows for item in after),
        findings=tuple(findings),
    )


def refuse_half_made(store: Store) -> None:
    """BadRequest where a compaction into `store` was begun and has not come to its end."""
    if store.exists(COMPACTING):
        raise BadRequest(f"{store.root} is being made by `clipmill compact`, or was left half made; let that come to its end")


def _refuse_open(log: Log, source: Store) -> None:
    for run, state in log.runs.items():
        if state.closed is None or not all(log.epochs[number].commit or log.epochs[number].void for number in state.epochs):
            raise BadRequest(
                f"run {run} works on {source.root}, or has died: compact once it is over (the next run, or unlock, tidies up)"
            )


def _committed(log: Log) -> list[int]:
    return [number for number, epoch in log.epochs.items() if epoch.commit]


# --- what becomes of what ---


def _plan(log: Log, target: Store, clock: Clock) -> tuple[str, list[Group]]:
    """(when it was made, the groups) as planned for this target and this state of the source; anew where nothing was."""
    try:
        body = json.loads(target.read(COMPACTING))
    except FileNotFoundError:
        return _new_plan(log, target, clock)
    if (body["source"], body["length"]) != (log.store.root, log.length):
        raise BadRequest(
            f"{target.root} was begun as a copy of {body['source']} with {body['length']} entries in its log, and that is not"
            f" how {log.store.root} stands ({log.length}); give an empty place"
        )
    return body["at"], [Group(**{**group, "members": tuple(group["members"])}) for group in body["groups"]]


def _new_plan(log: Log, target: Store, clock: Clock) -> tuple[str, list[Group]]:
    if any(True for _ in target.list()):
        raise BadRequest(f"{target.root} is not empty")
    if not _committed(log):
        raise BadRequest(f"{log.store.root} has published nothing")
    at, groups = timestamp(clock.now()), list(_grouped(log, clock))
    body = {"source": log.store.root, "length": log.length, "at": at, "groups": [asdict(group) for group in groups]}
    target.write(COMPACTING, json.dumps(body, indent=1).encode())
    return at, groups


def _grouped(log: Log, clock: Clock) -> Iterator[Group]:
    """Groups in the order of the log. A stretch of one configuration is a run of the copy: an entry that opens it, for each
    epoch one that plans and one that commits it, and two that end it.
    """
    entries = 0
    by_recipe = groupby(_committed(log), key=lambda number: _recipe(log, number))
    for _, numbers in by_recipe:
        run = f"{clock.now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        entries += 1
        for members in _merged(log, list(numbers)):
            yield Group(run, entries, clock.token(), members)
            entries += 2
        entries += 2


def _recipe(log: Log, number: int) -> Body:
    recipe: Body = log.runs[log.epochs[number].plan.run].opened.body["recipe"]
    return recipe


def _merged(log: Log, numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    members: list[int] = []
    clips = 0
    for number in numbers:
        size = log.epochs[number].plan.body["clips"] + log.epochs[number].plan.body["videos"]
        if members and (clips + size > EPOCH_CLIPS or len(members) >= MOST_MERGED):
            yield tuple(members)
            members, clips = [], 0
        members.append(number)
        clips += size
    if members:
        yield tuple(members)


def _epoch_plan(log: Log, group: Group) -> EpochPlan:
    """The copy's epoch, but for what is known of its ledger once that is written."""
    plans = [EpochPlan.of(log.epochs[number].plan) for number in group.members]
    newest = plans[-1]
    rows: dict[tuple[str, str | None], int] = defaultdict(int)
    first: dict[tuple[str, str | None], PlannedObject] = {}
    for plan in plans:
        for planned in plan.objects:
            rows[planned.table, planned.fingerprint] += planned.rows
            first.setdefault((planned.table, planned.fingerprint), planned)
    objects = [
        replace(planned, key=_key(planned.key, newest.run_date, group), rows=rows[which]) for which, planned in first.items()
    ]
    objects.sort(key=lambda planned: (PUBLISH_ORDER.index(planned.table), planned.key))
    return EpochPlan(
        run=group.run, epoch=group.epoch, token=group.token, at=newest.at, run_date=newest.run_date,
        videos=sum(plan.videos for plan in plans), clips=sum(plan.clips for plan in plans), ledger=_NOTHING, parts=_NOTHING,
        objects=tuple(objects), origins=tuple(origin for plan in plans for origin in plan.made_by),
    )  # fmt: skip


def _key(key: str, run_date: str, group: Group) -> str:
    return f"{key.partition('run_date=')[0]}run_date={run_date}/part-{group.run}-{group.epoch:08d}.parquet"


# --- the rows ---


def _copied(source: Store, target: Store, log: Log, group: Group) -> tuple[EpochPlan, list[Written]]:
    """Makes those objects of a group that are not there."""
    plan = _epoch_plan(log, group)
    written = [_object(source, target, log, group, plan, planned) for planned in plan.objects]
    ledger = written[-1]
    return replace(plan, ledger=ledger), written


def _object(source: Store, target: Store, log: Log, group: Group, plan: EpochPlan, planned: PlannedObject) -> Written:
    if (found := footer(target, planned.key)) is not None and property_of(found, "token") == plan.token:
        return examined(target, planned.key, found.num_rows)
    keys = [
        part["key"]
        for number in group.members
        for part in log.epochs[number].plan.body["objects"]
        if (part["table"], part["fingerprint"]) == (planned.table, planned.fingerprint)
    ]
    with target.open_write(planned.key) as file, RowWriter(planned.key, file, planned.table) as writer:
        held: list[pa.Table] = []
        for rows in merged(source, keys):
            held.append(_widened(rows, TABLES[planned.table].schema))
            if sum(part.num_rows for part in held) >= _HELD_ROWS:
                writer.write(pa.concat_tables(held))
                held = []
        if held:
            writer.write(pa.concat_tables(held))
        return writer.close(plan.properties(planned))


def _widened(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """With the columns that later versions have added."""
    for field in list(schema)[rows.num_columns :]:
        rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


def merged(store: Store, keys: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of objects that are in the order of their videos each, in the order of videos; of one video, in that of `keys`."""
    with ExitStack() as stack:
        files = [pq.ParquetFile(stack.enter_context(store.open_read(key))) for key in keys]
        for _, rows in heapq.merge(*(_by_video(file) for file in files), key=itemgetter(0)):
            yield rows


def _by_video(file: pq.ParquetFile) -> Iterator[tuple[str, pa.Table]]:
    """(video, rows) of stretches of rows of one video, in order."""
    for batch in file.iter_batches(batch_size=_BATCH_ROWS):
        table = pa.Table.from_batches([batch])
        begin = 0
        for video, same in groupby(table["video_id"].to_pylist()):
            count = sum(1 for _ in same)
            yield video, table.slice(begin, count)
            begin += count


# --- the log ---


def _write_log(log: Log, target: Store, at: str, made: Sequence[tuple[Group, EpochPlan, list[Written]]]) -> None:
    """What a run that published all this would have left; entries that are there already are the same."""
    entries: list[Body] = []
    for run, of_run in groupby(made, key=lambda item: item[0].run):
        items = list(of_run)
        signed = {"token": items[0][0].token, "at": at, "by": "compact"}
        opened = log.runs[log.epochs[items[0][0].members[0]].plan.run].opened.body
        entries.append({"kind": "open", "run": run, **opened, **signed, "copy_of": log.store.root})
        for group, plan, written in items:
            entries.append({"kind": "plan", "run": run, **plan.body()})
            body = {"epoch": group.epoch, "objects": [item.to_json() for item in written]}
            entries.append({"kind": "commit", "run": run, **signed, **body})
        entries += [{"kind": kind, "run": run, **signed} for kind in ("close", "clean")]
    for number, entry in enumerate(entries):
        data = json.dumps(entry, indent=1).encode()
        try:
            target.create(key_of(number), data)
        except FileExistsError:
            if target.read(key_of(number)) != data:
                raise BadRequest(f"{target.uri(key_of(number))} was made by somebody else; give an empty place") from None


def _uncopied(log: Log, made: Sequence[tuple[Group, EpochPlan, list[Written]]]) -> Iterator[Finding]:
    """Tables that came out with other numbers of rows than they went in."""
    before: dict[Any, int] = defaultdict(int)
    after: dict[Any, int] = defaultdict(int)
    for number in _committed(log):
        for part in log.epochs[number].plan.body["objects"]:
            before[part["table"], part["fingerprint"]] += part["rows"]
    for _, plan, written in made:
        for planned, item in zip(plan.objects, written, strict=True):
            after[planned.table, planned.fingerprint] += item.rows
    for which in before.keys() | after.keys():
        if before[which] != after[which]:
            yield Finding("copy", " ".join(filter(None, which)), f"has {after[which]} rows; {before[which]} were published")
