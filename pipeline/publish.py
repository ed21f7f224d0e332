"""Publishing an epoch: one object for each partition of each table, the ledger's last. Idempotent, even at two places at once.

Objects are made create-only and appear whole, in an order that makes whatever the ledger says true. An epoch that was given up
leaves objects without rows in their places, so that a publisher that slept through it cannot make them any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.gather import EpochPlan, PlannedObject, read_parts
from pipeline.log import EpochAbandoned
from pipeline.objects import Hashing, RowWriter, Written, chunks, examined, footer, property_of
from pipeline.outcome import Row
from pipeline.parallel import mapped
from pipeline.receipts import parts_folder
from schemas.errors import ClipmillError
from schemas.rows import CAPTION, EMBEDDING, LABEL, PART_ROW
from schemas.tables import CLIPS, TABLES
from stages.storage import Store

PARTS_TOGETHER = 64
_ANSWERS = {"labels": LABEL, "embeddings": EMBEDDING, "captions": CAPTION}


class PartsMissing(ClipmillError):
    """What a plan counts on is gone, or is not what its receipts said."""


def publish_epoch(root: str, plan: EpochPlan) -> None:
    """`publish` for a remote task. `root` is the output's URI; what was written is left where `written_for` finds it."""
    store = Store(root)
    found = [item.to_json() for item in publish(store, plan)]
    store.write(_written_key(plan), json.dumps(found, indent=1).encode())


def written_for(store: Store, plan: EpochPlan) -> tuple[Written, ...]:
    """What `publish_epoch` has written elsewhere; where it did not come to an end, this does its work.

    Raises what `publish` does.
    """
    try:
        found = json.loads(store.read(_written_key(plan)))
    except FileNotFoundError:
        return publish(store, plan)
    return tuple(Written.from_json(item) for item in found)


def _written_key(plan: EpochPlan) -> str:
    return f"_runs/{plan.run}/epochs/{plan.epoch:08d}.{plan.token}.written.json"


def publish(store: Store, plan: EpochPlan) -> tuple[Written, ...]:
    """Makes those objects of an epoch that are not there; what the commit has to name, in the plan's order.

    Raises PartsMissing, EpochAbandoned, StorageUnavailable; whatever has appeared then is whole, and the call can be repeated.
    """
    there = {planned.key: _found(store, plan, planned) for planned in plan.objects}
    missing = [planned for planned in plan.objects[:-1] if there[planned.key] is None]
    if missing:
        there |= _write_rows(store, plan, missing)
    last = plan.objects[-1]
    there[last.key] = there[last.key] or _copy_ledger(store, plan, last)
    return tuple(written for written in there.values() if written)


def _found(store: Store, plan: EpochPlan, planned: PlannedObject) -> Written | None:
    """An object of the epoch that is there already, or None.

    Nothing is ever deleted here, nor replaced: between a look and a deletion somebody else may have made the object and
    committed it, or have taken the epoch back. Where what is there is not what was planned, the epoch is given up instead.
    """
    if not store.exists(planned.key):
        return None
    found = footer(store, planned.key)
    if found is not None and property_of(found, "void") and property_of(found, "token") == plan.token:
        raise EpochAbandoned(f"epoch {plan.epoch} was given up")
    expected = plan.properties(planned)
    if (
        found is None
        or found.num_rows != planned.rows
        or any(property_of(found, name) != value for name, value in expected.items())
    ):
        raise PartsMissing(f"{planned.key} is there, and is not what was planned")
    return examined(store, planned.key, planned.rows)


@dataclass
class _Attempt:
    """An object on its way."""

    planned: PlannedObject
    writer: RowWriter
    written: Written | None = None
    lost: bool = field(default=False)  # somebody else made the object meanwhile


def _write_rows(store: Store, plan: EpochPlan, missing: Sequence[PlannedObject]) -> dict[str, Written | None]:
    """Reads the parts once for all objects; none appears before all have the rows that were planned."""
    with ExitStack() as stack:
        # Left in reverse, so that the first of the order appears first.
        attempts = [stack.enter_context(_object(store, planned)) for planned in reversed(missing)]
        for publish, clips in _batches(store, plan, {planned.table for planned in missing}):
            for attempt in attempts:
                if attempt.planned.fingerprint in publish:
                    attempt.writer.write(rows_of(clips, attempt.planned, plan.run))
        for attempt in attempts:
            if attempt.writer.rows != attempt.planned.rows:
                raise PartsMissing(f"{attempt.planned.key} would get {attempt.writer.rows} rows, not {attempt.planned.rows}")
            attempt.written = attempt.writer.close(plan.properties(attempt.planned))
    return {attempt.planned.key: _settled(store, plan, attempt) for attempt in attempts}


@contextmanager
def _object(store: Store, planned: PlannedObject) -> Iterator[_Attempt]:
    attempt = None
    try:
        with store.open_write(planned.key, exclusive=True) as file, RowWriter(planned.key, file, planned.table) as writer:
            attempt = _Attempt(planned, writer)
            yield attempt
    except FileExistsError:
        if attempt is None or attempt.written is None:
            raise
        attempt.lost = True


def _settled(store: Store, plan: EpochPlan, attempt: _Attempt) -> Written | None:
    return _by_others(store, plan, attempt.planned) if attempt.lost else attempt.written


def _by_others(store: Store, plan: EpochPlan, planned: PlannedObject) -> Written:
    """An object that somebody else made between our look and our write."""
    found = _found(store, plan, planned)
    if found is None:
        raise PartsMissing(f"{planned.key} was made by somebody else, and is gone")
    return found


def _copy_ledger(store: Store, plan: EpochPlan, last: PlannedObject) -> Written:
    """The ledger's rows were written when the epoch was planned; they only take their place."""
    try:
        with store.open_write(last.key, exclusive=True) as file:
            _copy(store, plan, file)
    except FileExistsError:
        return _by_others(store, plan, last)
    return Written(last.key, plan.ledger.rows, plan.ledger.size_bytes, plan.ledger.digest)


def _copy(store: Store, plan: EpochPlan, file: BinaryIO) -> None:
    sink = Hashing(file)
    try:
        with store.known(plan.ledger.key):
            for chunk in chunks(store, plan.ledger.key):
                sink.write(chunk)
    except FileNotFoundError as error:
        raise PartsMissing(f"{store.uri(plan.ledger.key)} is gone") from error
    if sink.digest != plan.ledger.digest:
        raise PartsMissing(f"{store.uri(plan.ledger.key)} is not what was planned")


def _batches(store: Store, plan: EpochPlan, tables: set[str]) -> Iterator[tuple[list[str], pa.Table]]:
    """(fingerprints to publish, clip rows of some parts with their `first_index`), in the order of the plan."""
    columns = _columns(tables)
    held: list[pa.Table] = []
    publish: list[str] = []
    for row, table in mapped(lambda row: (row, _read_part(store, plan, row, columns)), _planned_parts(store, plan)):
        if held and (row["publish"] != publish or len(held) >= PARTS_TOGETHER):
            yield publish, pa.concat_tables(held).combine_chunks()
            held = []
        publish = row["publish"]
        held.append(table)
    if held:
        yield publish, pa.concat_tables(held).combine_chunks()


def _columns(tables: set[str]) -> list[str]:
    """Columns of parts that the objects of some tables are made of."""
    wanted = {"attempt", "row", "clip_id", "video_id"} | (tables & set(_ANSWERS))
    if "clips" in tables:
        wanted |= set(CLIPS.schema.names)
    return [field.name for field in PART_ROW if field.name in wanted]


def _planned_parts(store: Store, plan: EpochPlan) -> Iterator[Row]:
    try:
        with store.known(plan.parts.key):
            yield from read_parts(store, plan)
    except (pa.ArrowInvalid, OSError) as error:  # gone, or no Parquet; trouble with the store is StorageUnavailable
        raise PartsMissing(f"{store.uri(plan.parts.key)}: {error}") from error


def _read_part(store: Store, plan: EpochPlan, row: Row, columns: Sequence[str]) -> pa.Table:
    key = f"{parts_folder(plan.run)}/{row['part']}"
    try:
        with store.known(key):
            table = pq.ParquetFile(pa.BufferReader(store.read(key))).read(columns=list(columns), use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise PartsMissing(f"{store.uri(key)}: {error}") from error
    rows, attempts = table["row"].to_pylist(), table["attempt"].to_pylist()
    if rows != list(range(row["first_row"], row["last_row"] + 1)) or set(attempts) != {row["attempt"]}:
        raise PartsMissing(f"{store.uri(key)} does not hold the rows of its name")
    if table["clip_id"][-1].as_py() is None:  # the end row
        table = table.slice(0, len(rows) - 1)
    return table.append_column("first_index", pa.array([row["first_index"]] * table.num_rows, pa.int32()))


def rows_of(clips: pa.Table, planned: PlannedObject, run: str) -> pa.Table:
    """Rows of an object from clip rows of parts (PART_ROW columns that it needs, and `first_index`)."""
    if planned.table == "clips":
        return _clips(clips, run)
    answers = clips[planned.table].combine_chunks()
    flat = pc.list_flatten(answers)
    ours = pc.equal(flat.field("fingerprint"), planned.fingerprint)
    of_clip = clips.select(["clip_id", "video_id"]).take(pc.list_parent_indices(answers).filter(ours))
    flat = flat.filter(ours)
    columns = {name: of_clip[name] for name in of_clip.column_names}
    columns |= {field.name: flat.field(field.name) for field in _ANSWERS[planned.table] if field.name != "fingerprint"}
    columns |= {"run_id": _constant(run, len(flat))}
    if planned.table == "labels":
        columns["stage"] = _constant(planned.stage or "", len(flat))
    schema = TABLES[planned.table].schema
    return pa.table({name: columns[name] for name in schema.names})


def _clips(clips: pa.Table, run: str) -> pa.Table:
    times = clips["frame_times_s"].combine_chunks()
    made = {
        "clip_index": pc.add(clips["first_index"], clips["row"]),
        "run_id": _constant(run, clips.num_rows),
        "frame_times_s": pc.if_else(times.is_valid(), times, pa.scalar([], times.type)),
    }
    return pa.table({name: made[name] if name in made else clips[name] for name in CLIPS.schema.names})


def _constant(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), count)


def clear(store: Store, plan: EpochPlan) -> None:
    """Takes back what an abandoned epoch has published: objects without rows stand in its places, for ever.

    The ledger's goes first. A publisher that is still at work finds its places taken.
    """
    for planned in reversed(plan.objects):
        with store.open_write(planned.key) as file, RowWriter(planned.key, file, planned.table) as writer:
            writer.close(plan.properties(planned) | {"rows": "0", "void": "true"})
