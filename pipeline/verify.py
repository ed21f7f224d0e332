"""Checks the promises on what is published: log, ledger and tables against each other, both ways, in bounded memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import lease
from pipeline.findings import Finding, Findings
from pipeline.gather import EpochPlan, PlannedObject
from pipeline.log import NAME, Body, EpochState, Log, PromiseBroken, key_of, parse
from pipeline.objects import Written, examined, footer, property_of
from pipeline.recipe import Recipe
from pipeline.verify_across import PASS_CLIPS, check_across
from pipeline.verify_rows import check_epoch_rows
from pipeline.verify_runs import check_runs
from schemas.tables import PUBLISH_ORDER, TABLES
from stages.storage import Store


def verify(store: Store, now: datetime | None = None, pass_clips: int = PASS_CLIPS) -> list[Finding]:
    """Everything that is not as promised; an empty list where all is well. Reads every published object twice, and once more
    for every further `pass_clips` clips, which bound its memory.

    A run may be at work meanwhile: what it has planned and not committed yet is no fault. Raises StorageUnavailable.
    """
    found = Findings()
    # Listed before the log is read: every object that is there now has been planned by then.
    listed = {info.key: info.size_bytes for table in TABLES for info in store.list(table)}
    log = read_log(store, found)
    intact = [epoch for epoch in log.epochs.values() if _epoch(store, log, epoch, listed, now or datetime.now(UTC), found)]
    _strays(log, listed, found)
    check_runs(store, log, found)
    for epoch in intact:
        check_epoch_rows(store, log, epoch, found)
    check_across(store, log, intact, found, pass_clips)
    return found.all()


def read_log(store: Store, found: Findings) -> Log:
    """The log as far as it can be made sense of."""
    log = Log(store)
    numbers = sorted(int(match[1]) for info in store.list("_log") if (match := NAME.fullmatch(info.key)))
    for number in range(max(numbers, default=-1) + 1):
        try:
            event = parse(number, store.read(key_of(number)))
            found.unless(event.at.tzinfo is not None, "log-entry", key_of(number), "names a time of no zone")
            problem = log.apply(event)
        except FileNotFoundError:  # an entry made while the folder was listed may be left out of the listing, so all are read
            found.add("log-gap", key_of(number), "is missing, but later entries are there")
            continue
        except (PromiseBroken, KeyError, TypeError, ValueError) as error:
            problem = f"makes no sense: {error!r}"
        if problem:
            found.add("log-entry", key_of(number), problem)
    return log


def _epoch(store: Store, log: Log, epoch: EpochState, listed: dict[str, int], now: datetime, found: Findings) -> bool:
    """Checks the objects of an epoch; whether it is committed and all of them are as they were written."""
    try:
        plan = EpochPlan.of(epoch.plan)
        recipe = Recipe.from_json(log.runs[plan.run].opened.body["recipe"])
        is_sound = plan.run_date == f"{plan.at:%Y-%m-%d}" and _is_of(plan, recipe)
    except (KeyError, TypeError, ValueError) as error:
        found.add("log-entry", key_of(epoch.plan.number), f"is no plan, or its run names no recipe: {error!r}")
        return False
    where = f"epoch {plan.epoch}"
    if not found.unless(is_sound, "plan", where, "plans other objects than its run's recipe and its time have"):
        return False
    if epoch.abandoned:
        found.unless(epoch.void, "unfinished", where, "was given up and not taken back; the next run does it")
        for planned in plan.objects if epoch.void else ():
            if planned.key in listed and not _is_empty(store, planned):
                found.add("void-rows", planned.key, "belongs to an epoch that was taken back, and holds rows")
        return False
    if epoch.commit is None:
        run = log.runs[plan.run]
        is_over = run.closed is not None or lease.read(store, run).is_dead(now)
        found.unless(not is_over, "unfinished", where, f"of run {plan.run} is planned and not committed; the next run does it")
        return False
    return _committed(store, plan, epoch.commit.body.get("objects", []), found)


def _is_of(plan: EpochPlan, recipe: Recipe) -> bool:
    """Whether a plan's objects are where its run's recipe and its date put them, in the order of publishing."""
    name = f"part-{plan.run}-{plan.epoch:08d}.parquet"
    parts = {part.fingerprint: part for part in recipe.ingredients}
    *rows, last = plan.objects
    for planned in rows:
        part = parts[planned.fingerprint or ""]
        named = (planned.table, planned.stage, planned.model, planned.revision)
        if named != (part.table, part.stage, part.model, part.revision) or not planned.rows > 0:
            return False
        if planned.key != f"{part.folder(plan.run_date)}/{name}":
            return False
    order = [PUBLISH_ORDER.index(planned.table) for planned in plan.objects]
    is_last = last.table == "videos" and last.key == f"videos/run_date={plan.run_date}/{name}"
    return is_last and order == sorted(order) and len({planned.key for planned in plan.objects}) == len(plan.objects)


def _committed(store: Store, plan: EpochPlan, objects: list[Body], found: Findings) -> bool:
    where = f"epoch {plan.epoch}"
    try:
        written = {str(item["key"]): Written.from_json(item) for item in objects}
    except (KeyError, TypeError, AttributeError) as error:
        found.add("log-entry", where, f"its commit names no objects: {error!r}")
        return False
    as_planned = list(written) == [planned.key for planned in plan.objects]
    if not found.unless(as_planned, "commit", where, "committed other objects than planned"):
        return False
    ledger = written[plan.objects[-1].key]
    is_copy = (ledger.rows, ledger.size_bytes, ledger.digest) == (plan.ledger.rows, plan.ledger.size_bytes, plan.ledger.digest)
    found.unless(is_copy, "ledger", where, "committed other rows of the ledger than planned")
    whole = [_object(store, plan, planned, written[planned.key], found) for planned in plan.objects]
    return all(whole)


def _object(store: Store, plan: EpochPlan, planned: PlannedObject, written: Written, found: Findings) -> bool:
    key = planned.key
    # Whether it was in the listing or not: one that has been committed since then is not.
    try:
        real = examined(store, key, planned.rows)
    except FileNotFoundError:
        found.add("missing", key, "was committed and is gone")
        return False
    if real != written:
        message = f"has {real.size_bytes} bytes of digest {real.digest}; {written.size_bytes} of {written.digest} were written"
        found.add("changed", key, message)
        return False
    metadata = footer(store, key)
    if metadata is None or metadata.num_rows != planned.rows:
        found.add("rows", key, f"does not hold the {planned.rows} rows that were planned")
        return False
    wrong = {name: value for name, value in plan.properties(planned).items() if property_of(metadata, name) != value}
    found.unless(not wrong, "footer", key, f"its footer does not say {wrong}")
    return not wrong and _schema(store, planned, found)


def _schema(store: Store, planned: PlannedObject, found: Findings) -> bool:
    with store.open_read(planned.key) as file:
        real = pq.read_schema(file)
    expected = TABLES[planned.table].schema
    message = f"has columns {_columns(real)}, not {_columns(expected)}"
    return found.unless(_is_as_ever(real, expected), "schema", planned.key, message)


def _is_as_ever(real: pa.Schema, expected: pa.Schema) -> bool:
    """Whether an object has the columns of now, or those of an older version: later ones come at the end, and may be null."""
    first, later = list(expected)[: len(real)], list(expected)[len(real) :]
    return bool(real.remove_metadata().equals(pa.schema(first))) and all(field.nullable for field in later)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}{'' if field.nullable else ' not null'}" for field in schema)


def _is_empty(store: Store, planned: PlannedObject) -> bool:
    metadata = footer(store, planned.key)
    return metadata is not None and metadata.num_rows == 0


def _strays(log: Log, listed: dict[str, int], found: Findings) -> None:
    """Objects below the tables that the log does not name: readers would take them for ours."""
    named = {planned["key"] for epoch in log.epochs.values() for planned in epoch.plan.body.get("objects", [])}
    for key in sorted(set(listed) - named):
        found.add("stray", key, "no epoch has published it")
