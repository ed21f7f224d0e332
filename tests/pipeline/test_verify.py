"""verify finds nothing on a good output, and everything that the tests break."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.findings import MOST_OF_A_KIND, Findings
from pipeline.log import key_of
from pipeline.verify import read_log, verify
from pipeline.verify_across import check_across
from schemas.tables import TABLES
from stages.storage import Store
from tests.pipeline.faults import memory
from tests.pipeline.rows import Steps, Video, World
from tests.pipeline.test_publish import planned

ARCHIVE = (Video("a", (3,)), Video("b", (2, 2)), Video("c", (2,), failing={"embed": (1,)}), Video("d", (0,), error="empty"))


@pytest.fixture(scope="module")
def good() -> tuple[dict[str, bytes], Steps]:
    """Every object of a good output, and the clock that it was made by."""
    w = World(Store(memory()), ARCHIVE, Steps("1"), epoch_videos=3)
    w.run()
    return {info.key: w.store.read(info.key) for info in w.store.list()}, w.steps


@pytest.fixture
def world(good: tuple[dict[str, bytes], Steps]) -> World:
    """A copy of it, to be broken."""
    objects, steps = good
    w = World(Store(memory()), ARCHIVE, Steps("1"), epoch_videos=3)
    w.steps.now = steps.now
    for key, data in objects.items():
        w.store.write(key, data)
    return w


def kinds(w: World) -> set[str]:
    return {finding.kind for finding in verify(w.store, w.steps.now)}


def key_in(store: Store, table: str) -> str:
    return max(store.list(table), key=lambda info: info.size_bytes).key


def test_a_good_output_has_no_findings(world: World) -> None:
    assert verify(world.store, world.steps.now) == []


def test_an_output_that_was_never_used_has_no_findings() -> None:
    assert verify(Store(memory())) == []


@pytest.mark.parametrize("table", TABLES)
def test_a_deleted_object_is_found(world: World, table: str) -> None:
    key = key_in(world.store, table)
    world.store.delete(key)
    assert [(f.kind, f.where) for f in verify(world.store, world.steps.now)] == [("missing", key)]


@pytest.mark.parametrize("table", TABLES)
def test_a_doubled_object_is_found(world: World, table: str) -> None:
    key = key_in(world.store, table)
    copy = key.replace("part-", "part-copy-")
    world.store.write(copy, world.store.read(key))
    assert [(f.kind, f.where) for f in verify(world.store, world.steps.now)] == [("stray", copy)]


@pytest.mark.parametrize("table", TABLES)
def test_an_object_that_was_cut_short_is_found(world: World, table: str) -> None:
    key = key_in(world.store, table)
    world.store.write(key, world.store.read(key)[:-100])
    assert [(f.kind, f.where) for f in verify(world.store, world.steps.now)] == [("changed", key)]


@pytest.mark.parametrize("table", TABLES)
def test_an_object_that_was_edited_by_hand_is_found(world: World, table: str) -> None:
    key = key_in(world.store, table)
    found = pq.ParquetFile(io.BytesIO(world.store.read(key)))
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, found.schema_arrow, compression="zstd") as writer:
        writer.add_key_value_metadata({k: v for k, v in found.metadata.metadata.items() if k.startswith(b"clipmill")})
        writer.write_table(found.read().slice(1))
    world.store.write(key, sink.getvalue())
    assert [(f.kind, f.where) for f in verify(world.store, world.steps.now)] == [("changed", key)]


@pytest.mark.parametrize("table", TABLES)
def test_two_objects_that_changed_places_are_found(world: World, table: str) -> None:
    one, two = [info.key for info in world.store.list(table)][:2]
    first, second = world.store.read(one), world.store.read(two)
    world.store.write(one, second)
    world.store.write(two, first)
    assert {(f.kind, f.where) for f in verify(world.store, world.steps.now)} == {("changed", one), ("changed", two)}


def test_a_foreign_file_below_a_table_is_found(world: World) -> None:
    world.store.write("clips/notes.txt", b"remember the milk")
    assert kinds(world) == {"stray"}


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_entry_of_the_log_is_found(world: World, number: int) -> None:
    world.store.delete(key_of(number))
    assert "log-gap" in kinds(world)


def test_an_entry_of_the_log_that_cannot_be_read_is_found(world: World) -> None:
    world.store.write(key_of(1), b"{")
    assert "log-entry" in kinds(world)


@pytest.mark.parametrize("field", ["objects", "ledger", "token"])
def test_a_plan_that_lacks_a_part_is_found(world: World, field: str) -> None:
    edit_log(world.store, 1, lambda body: body.pop(field))
    assert "log-entry" in kinds(world)


def test_an_open_entry_without_its_recipe_is_found(world: World) -> None:
    edit_log(world.store, 0, lambda body: body.pop("recipe"))
    assert kinds(world) == {"log-entry", "current"}


def test_a_commit_of_other_objects_is_found(world: World) -> None:
    edit_log(world.store, 2, lambda body: body["objects"].pop())
    assert "commit" in kinds(world)


def test_a_run_whose_sums_do_not_add_up_is_found(world: World) -> None:
    number = max(n for n in range(20) if world.store.exists(key_of(n))) - 1  # close, then clean
    edit_log(world.store, number, lambda body: body["sums"].update(rows=3))
    assert kinds(world) == {"sums", "record"}


def edit_log(store: Store, number: int, edit: Callable[[dict[str, Any]], Any]) -> None:
    body = json.loads(store.read(key_of(number)))
    edit(body)
    store.write(key_of(number), json.dumps(body).encode())


def test_an_epoch_of_a_live_run_is_no_fault_and_that_of_a_dead_one_is() -> None:
    w, _, plan = planned(Store(memory()))
    assert verify(w.store, w.steps.now) == []
    w.steps.advance(1000)
    assert kinds(w) == {"unfinished"}
    assert plan.epoch == 1


def test_rows_of_an_epoch_that_was_taken_back_are_found() -> None:
    from tests.pipeline.test_publish import _gone

    w, session, plan = planned(Store(memory()))
    _gone(w.store, plan)
    session.close(complete=False)
    assert kinds(w) == set()
    other = Store(memory())
    _, _, same = planned(other)
    from pipeline.publish import publish

    publish(other, same)
    w.store.write(plan.objects[0].key, other.read(same.objects[0].key))
    assert kinds(w) == {"void-rows"}


def forge(store: Store, table: str, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrites an object as a faulty publisher of ours would have: with a plan and a commit that agree with it."""
    key = key_in(store, table)
    found = pq.ParquetFile(io.BytesIO(store.read(key)))
    made = edit(found.read())
    sink = io.BytesIO()
    properties = {k.decode(): v.decode() for k, v in found.metadata.metadata.items() if k.startswith(b"clipmill")}
    with pq.ParquetWriter(sink, made.schema, compression="zstd") as writer:
        writer.add_key_value_metadata(properties | {"clipmill.rows": str(made.num_rows)})
        writer.write_table(made)
    data = sink.getvalue()
    store.write(key, data)
    for number in range(20):
        if store.exists(key_of(number)):
            edit_log(store, number, lambda body: _agree(body, key, made.num_rows, data))


def _agree(body: dict[str, Any], key: str, rows: int, data: bytes) -> None:
    for item in body.get("objects", []):
        if item["key"] == key:
            item["rows"] = rows
            if "digest" in item:
                item.update(size_bytes=len(data), digest=hashlib.blake2b(data, digest_size=16).hexdigest())


def put(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    at = table.column_names.index(name)
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def without(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def twice(table: pa.Table, row: int) -> pa.Table:
    return pa.concat_tables([table.slice(0, row + 1), table.slice(row)])


def of_other_run(table: pa.Table) -> pa.Table:
    return put(table, "run_id", 0, "20260102T030405-zzzzzz")


def other_video(table: pa.Table) -> pa.Table:
    return put(table, "video_id", 0, "00" * 16)


def stage_rows(table: pa.Table) -> pa.Table:
    stages = table["stages"].to_pylist()[0]
    return put(table, "stages", 0, [stages[0] | {"rows": stages[0]["rows"] + 1}, *stages[1:]])


def foreign_model(table: pa.Table) -> pa.Table:
    stages = table["stages"].to_pylist()[0]
    return put(table, "stages", 0, [*stages[:-1], stages[-1] | {"model": "somebody/else"}])


def stage_without_rows(table: pa.Table) -> pa.Table:
    stages = table["stages"].to_pylist()[0]
    return put(table, "stages", 0, [*stages[:-1], stages[-1] | {"status": "failed"}])


@pytest.mark.parametrize(
    ("table", "edit", "kind"),
    [
        *((name, of_other_run, "run") for name in TABLES),
        *((name, lambda t: without(t, 0), "counts") for name in TABLES if name != "videos"),
        *((name, lambda t: twice(t, 1), "key") for name in TABLES if name != "videos"),
        *((name, other_video, "clip-id") for name in TABLES if name != "videos"),
        *((name, lambda t: t.take(list(range(t.num_rows))[::-1]), "key") for name in TABLES if name != "videos"),
        *((name, lambda t: t.drop_columns([t.column_names[-2]]), "schema") for name in TABLES),
        ("videos", lambda t: twice(t, 0), "order"),
        ("videos", lambda t: put(t, "status", 0, "splendid"), "status"),
        ("videos", lambda t: put(t, "error_code", 0, None), "status"),
        ("videos", lambda t: put(t, "status", 0, "failed"), "status"),
        ("videos", stage_rows, "counts"),
        ("videos", foreign_model, "stage"),
        ("videos", stage_without_rows, "stage"),
        ("clips", lambda t: put(t, "clip_id", 0, "x" + t["clip_id"][0].as_py()[1:]), "clip-id"),
        ("clips", lambda t: put(t, "clip_id", 0, t["clip_id"][0].as_py()[:-1] + "7"), "clip-id"),
        ("clips", lambda t: put(t, "start_s", 1, 2.5), "clip-id"),
        ("clips", lambda t: put(t, "end_s", 1, 0.5), "time"),
        ("clips", lambda t: put(t, "clip_index", 1, 7), "clip-index"),
        ("clips", lambda t: put(t, "clip_id", 0, t["clip_id"][0].as_py().replace("-", "-z", 1)[:41] + "-000000000"), "clip-id"),
        ("labels", lambda t: put(t, "label", 1, t["label"][0].as_py()), "key"),
        ("labels", lambda t: put(t, "label", 0, None), "answer"),
        ("labels", lambda t: put(t, "score", 0, 1.5), "value"),
        ("labels", lambda t: put(t, "score", 0, float("nan")), "value"),
        ("captions", lambda t: put(t, "caption", 0, None), "answer"),
        ("captions", lambda t: put(t, "error_code", 0, "killed"), "answer"),
        ("embeddings", lambda t: put(t, "embedding", 0, None), "answer"),
        ("embeddings", lambda t: put(t, "embedding", 0, [1.0, 1.0, 0.0, 0.0]), "value"),
        ("embeddings", lambda t: put(t, "embedding", 0, [float("nan")] * 4), "value"),
        ("embeddings", lambda t: put(t, "embedding", 0, [1.0]), "value"),
        ("captions", lambda t: put(t, "clip_id", 0, t["clip_id"][0].as_py()[:-9] + "000000001"), "orphan"),
        ("clips", lambda t: put(t, "error_code", 0, "damaged"), "coverage"),
    ],
)  # fmt: skip
def test_rows_that_a_faulty_publisher_would_leave_are_found(world: World, table: str, edit: Any, kind: str) -> None:
    forge(world.store, table, edit)
    assert kind in kinds(world)


def test_what_was_published_twice_is_found_whatever_the_size_of_a_pass(world: World) -> None:
    log = read_log(world.store, Findings())
    committed = [epoch for epoch in log.epochs.values() if epoch.commit]
    for pass_clips in (1, 3, 1000):
        found = Findings()
        check_across(world.store, log, committed, found, pass_clips)
        assert found.all() == []
        check_across(world.store, log, [*committed, committed[0]], found, pass_clips)
        assert "twice" in {finding.kind for finding in found.all()}


def test_an_answer_to_a_clip_that_is_not_there_is_found_across_epochs(world: World) -> None:
    later = World(world.store, ARCHIVE, Steps("2"), caption="Other.")
    later.steps.now = world.steps.now
    later.run()
    assert kinds(later) == set()
    newest = max(world.store.list("captions"), key=lambda info: info.key.rpartition("/")[2]).key
    table = pq.read_table(io.BytesIO(world.store.read(newest)))
    assert pc.count(table["clip_id"]).as_py()

    def shifted(found: pa.Table) -> pa.Table:
        return put(found, "clip_id", found.num_rows - 1, found["clip_id"][-1].as_py()[:-9] + "999999999")

    forge(world.store, "captions", shifted)
    assert {"orphan"} <= kinds(later)


def test_many_findings_of_a_kind_are_counted_and_not_kept() -> None:
    found = Findings()
    for number in range(MOST_OF_A_KIND + 5):
        found.add("kind", str(number), "message")
    assert len(found.all()) == MOST_OF_A_KIND + 1
    assert str(found.all()[-1]) == "kind: ...: 5 more of this kind"
