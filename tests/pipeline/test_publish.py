"""Objects of an epoch: what stands in them, in what order they appear, and who may make them."""

from __future__ import annotations

import gc
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline import objects
from pipeline.gather import EpochPlan
from pipeline.log import EpochAbandoned
from pipeline.objects import RowWriter
from pipeline.publish import PartsMissing, clear, publish, publish_epoch, written_for
from pipeline.receipts import parts_folder
from pipeline.session import Session
from schemas.tables import CLIPS, PUBLISH_ORDER, TABLES
from stages.storage import Store
from tests.pipeline.faults import FaultyStore, Killed, memory, table_rows
from tests.pipeline.rows import Steps, Video, World, job

ARCHIVE = (
    Video("a", (3,)),
    Video("b", (2, 0, 3)),
    Video("c", (2,), failing={"classify": (1,)}),
    Video("d", (1,), error="changed"),
)


def planned(store: Store, videos: tuple[Video, ...] = ARCHIVE, **kwargs: object) -> tuple[World, Session, EpochPlan]:
    w = World(store, videos, Steps(), **kwargs)  # type: ignore[arg-type]
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    plan = session.plan_epoch()
    assert plan is not None
    return w, session, plan


def table_of(store: Store, plan: EpochPlan, name: str) -> pa.Table:
    key = next(o.key for o in plan.objects if o.table == name)
    return pq.ParquetFile(io.BytesIO(store.read(key))).read()


def objects_of(store: Store) -> dict[str, bytes]:
    return {info.key: store.read(info.key) for name in TABLES for info in store.list(name)}


def test_every_object_has_exactly_the_columns_of_its_table() -> None:
    store = Store(memory())
    _, _, plan = planned(store)
    publish(store, plan)
    for planned_object in plan.objects:
        schema = pq.read_schema(io.BytesIO(store.read(planned_object.key)))
        assert schema.remove_metadata().equals(TABLES[planned_object.table].schema.remove_metadata())
        assert [field.nullable for field in schema] == [field.nullable for field in TABLES[planned_object.table].schema]


def test_rows_are_sorted_by_video_and_time_and_clips_are_counted_through_the_units() -> None:
    store = Store(memory())
    _, _, plan = planned(store, batch_rows=2)
    publish(store, plan)
    rows = table_of(store, plan, "clips").to_pylist()
    assert [row["clip_id"] for row in rows] == sorted(row["clip_id"] for row in rows)
    assert [(row["video_id"], row["start_s"]) for row in rows] == sorted((row["video_id"], row["start_s"]) for row in rows)
    long = [row for row in rows if row["video_id"] == ARCHIVE[1].id]
    assert [row["clip_index"] for row in long] == [0, 1, 2, 3, 4]
    assert [row["start_s"] for row in long] == [0.0, 2.0, 1200.0, 1202.0, 1204.0]
    labels = table_of(store, plan, "labels").to_pylist()
    assert [row["clip_id"] for row in labels] == sorted(row["clip_id"] for row in labels)


def test_a_clip_that_failed_in_a_stage_is_a_row_there_with_nulls_and_its_error() -> None:
    store = Store(memory())
    _, _, plan = planned(store)
    publish(store, plan)
    failed = [row for row in table_of(store, plan, "labels").to_pylist() if row["error_code"]]
    assert [(row["video_id"], row["label"], row["score"], row["error_code"]) for row in failed] == [
        (ARCHIVE[2].id, None, None, "not_finite")
    ]


def test_a_deferred_video_publishes_nothing_but_its_row_in_the_ledger() -> None:
    store = Store(memory())
    _, _, plan = planned(store)
    publish(store, plan)
    for name in PUBLISH_ORDER[:-1]:
        assert ARCHIVE[3].id not in table_of(store, plan, name)["video_id"].to_pylist()
    assert ARCHIVE[3].id in table_of(store, plan, "videos")["video_id"].to_pylist()


def test_paths_carry_the_partitions_and_files_do_not() -> None:
    store = Store(memory())
    w, session, plan = planned(store)
    publish(store, plan)
    caption = w.entries[-1]
    name = f"part-{session.run_id}-{plan.epoch:08d}.parquet"
    keys = {o.table: o.key for o in plan.objects}
    assert keys["captions"] == f"captions/model={caption.slug}/fingerprint={caption.fingerprint}/run_date=2026-01-02/{name}"
    assert keys["clips"] == f"clips/fingerprint={w.config.clips.fingerprint()}/run_date=2026-01-02/{name}"
    assert keys["videos"] == f"videos/run_date=2026-01-02/{name}"


def test_the_footer_names_run_epoch_model_and_revision() -> None:
    store = Store(memory())
    w, session, plan = planned(store)
    publish(store, plan)
    key = next(o.key for o in plan.objects if o.table == "embeddings")
    footer = pq.read_metadata(io.BytesIO(store.read(key))).metadata
    expected = {"run": session.run_id, "epoch": str(plan.epoch), "token": plan.token, "rows": "10", "revision": "r1"}
    expected |= {"model": "embedded:clip", "fingerprint": w.entries[1].fingerprint}
    assert {name: footer[f"clipmill.{name}".encode()].decode() for name in expected} == expected


def test_promise_2_objects_appear_whole_in_the_order_that_makes_the_ledger_true() -> None:
    root = memory()
    _, _, plan = planned(Store(root))
    store = FaultyStore(root)
    publish(store, plan)
    order = [write.split()[1].partition("/")[0] for write in store.writes]
    assert order == [o.table for o in plan.objects]
    assert order == sorted(order, key=PUBLISH_ORDER.index)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", range(5))
def test_promise_3_publishing_goes_on_where_it_was_killed_and_makes_the_same_bytes(write: int, after: bool) -> None:
    alone = Store(memory())
    _, _, plan = planned(alone)
    publish(alone, plan)
    root = memory()
    _, _, plan = planned(Store(root))
    with pytest.raises(Killed):
        publish(FaultyStore(root, write, after=after), plan)
    store = FaultyStore(root)
    publish(store, plan)
    assert len(store.writes) == 5 - write - after
    assert objects_of(store) == objects_of(alone)


def test_publishing_again_writes_nothing_and_tells_the_same() -> None:
    root = memory()
    _, _, plan = planned(Store(root))
    first = publish(Store(root), plan)
    store = FaultyStore(root)
    assert publish(store, plan) == first
    assert store.writes == []
    assert [item.size_bytes for item in first] == [len(store.read(item.key)) for item in first]


def test_two_publishers_at_once_make_one_set_of_objects() -> None:
    root = memory()
    _, _, plan = planned(Store(root))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: publish(Store(root), plan), range(4)))
    assert all(result == results[0] for result in results)


def test_an_object_made_by_another_publisher_meanwhile_is_taken_as_it_is() -> None:
    root = memory()
    _, _, plan = planned(Store(root))
    slow = FaultyStore(root)
    slow.watch = lambda _: publish(Store(root), plan) if len(slow.writes) == 1 else None
    assert publish(slow, plan) == publish(Store(root), plan)


@pytest.mark.parametrize("spoilt", [b"cut short", None])
def test_an_object_that_does_not_fit_the_plan_stays_and_the_epoch_is_given_up(spoilt: bytes | None) -> None:
    alone = Store(memory())
    _, _, plan = planned(alone)
    publish(alone, plan)
    store = Store(memory())
    w, session, plan = planned(store)
    store.write(plan.objects[1].key, spoilt or alone.read(plan.objects[2].key))
    before = objects_of(store)
    with pytest.raises(PartsMissing, match="not what was planned"):
        publish(store, plan)
    assert objects_of(store) == before
    session.close(complete=False)
    assert all(table_rows(store, name) == [] for name in TABLES)
    again = World(store, ARCHIVE, Steps("2"))
    again.steps.now = w.steps.now
    again.run()
    assert len(table_rows(store, "clips")) == 10


class _OthersWereFaster(FaultyStore):
    """Somebody else publishes the epoch right after the first look that found no object."""

    plan: EpochPlan | None = None

    def _looked(self) -> None:
        plan, self.plan = self.plan, None
        if plan is not None:
            publish(Store(self.root), plan)

    def size(self, key: str) -> int | None:
        found = super().size(key)
        if found is None:
            self._looked()
        return found

    def open_read(self, key: str) -> BinaryIO:
        try:
            return super().open_read(key)
        except FileNotFoundError:
            self._looked()
            raise


def test_promise_2_an_object_that_appears_between_a_look_and_the_next_is_not_taken_away() -> None:
    root = memory()
    _, _, plan = planned(Store(root))
    slow = _OthersWereFaster(root)
    slow.plan = plan
    publish(slow, plan)
    assert not [write for write in slow.writes if write.startswith("delete")]


def _gone(store: Store, plan: EpochPlan) -> None:
    for info in list(store.list(parts_folder(plan.run))):
        store.delete(info.key)


def _one_gone(store: Store, plan: EpochPlan) -> None:
    store.delete(next(iter(store.list(parts_folder(plan.run)))).key)


def _one_cut(store: Store, plan: EpochPlan) -> None:
    key = next(iter(store.list(parts_folder(plan.run)))).key
    store.write(key, store.read(key)[:-20])


def _one_shorter(store: Store, plan: EpochPlan) -> None:
    key = next(iter(store.list(parts_folder(plan.run)))).key
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(store.read(key))).slice(1), sink)
    store.write(key, sink.getvalue())


def _answers_missing(store: Store, plan: EpochPlan) -> None:
    """The part holds its rows, but fewer answers than its receipt said."""
    key = next(iter(store.list(parts_folder(plan.run)))).key
    table = pq.read_table(io.BytesIO(store.read(key)))
    at = table.column_names.index("captions")
    table = table.set_column(
        at, table.schema.field("captions"), pa.array([[]] * table.num_rows, table.schema.field("captions").type)
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.write(key, sink.getvalue())


def _sidecar_gone(store: Store, plan: EpochPlan) -> None:
    store.delete(plan.parts.key)


@pytest.mark.parametrize("spoil", [_gone, _one_gone, _one_cut, _one_shorter, _answers_missing, _sidecar_gone])
def test_promise_2_nothing_appears_where_parts_are_not_what_was_planned(spoil) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    store = Store(memory())
    _, _, plan = planned(store, videos=(Video("a", (3,)),))
    spoil(store, plan)
    with pytest.raises(PartsMissing):
        publish(store, plan)
    assert objects_of(store) == {}


def test_an_object_that_was_given_up_is_silent_about_it(tmp_path: Path) -> None:
    """Warnings of what is collected fail the tests."""
    store = Store(str(tmp_path))
    _, _, plan = planned(store, videos=(Video("a", (3,)),))
    _one_shorter(store, plan)
    with pytest.raises(PartsMissing):
        publish(store, plan)
    gc.collect()
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("spoilt", ["gone", "edited"])
def test_the_ledger_is_published_as_it_was_planned_or_not_at_all(spoilt: str) -> None:
    store = Store(memory())
    _, _, plan = planned(store)
    if spoilt == "gone":
        store.delete(plan.ledger.key)
    else:
        store.write(plan.ledger.key, store.read(plan.ledger.key)[::-1])
    with pytest.raises(PartsMissing):
        publish(store, plan)
    assert not store.exists(plan.objects[-1].key)


def test_an_epoch_that_was_taken_back_leaves_no_rows_and_cannot_be_published_again() -> None:
    store = Store(memory())
    _, _, plan = planned(store)
    publish(store, plan)
    clear(store, plan)
    assert all(table_rows(store, name) == [] for name in TABLES)
    with pytest.raises(EpochAbandoned):
        publish(store, plan)
    assert all(table_rows(store, name) == [] for name in TABLES)


def test_a_commit_reads_what_a_remote_publisher_has_left() -> None:
    root = memory()
    w, session, plan = planned(Store(root))
    publish_epoch(root, plan)
    _gone(Store(root), plan)
    store = FaultyStore(root)
    assert {item.key for item in written_for(store, plan)} == {o.key for o in plan.objects}
    assert store.writes == []
    session.commit(plan)
    assert w.store.exists("_current.json")


def test_a_plan_can_be_sent_to_a_worker() -> None:
    import pickle

    _, _, plan = planned(Store(memory()))
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert len(pickle.dumps(plan)) < 4000


def test_promise_6_another_prompt_publishes_captions_alone() -> None:
    store = Store(memory())
    first = World(store, ARCHIVE[:3], Steps("1"))
    first.run()
    before = objects_of(store)
    second = World(store, ARCHIVE[:3], Steps("2"), caption="Another prompt.")
    second.steps.now = first.steps.now
    second.run()
    added = set(objects_of(store)) - set(before)
    assert {key.partition("/")[0] for key in added} == {"captions", "videos"}
    assert all(store.read(key) == data for key, data in before.items())
    caption = job(caption="Another prompt.")[1][-1]
    assert all(f"fingerprint={caption.fingerprint}" in key for key in added if key.startswith("captions"))


def test_anybody_who_reads_parquet_reads_the_tables(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    World(store, ARCHIVE, Steps()).run()
    clips = ds.dataset(f"{store.root}/clips", partitioning="hive").to_table()
    assert clips.num_rows == 10
    assert {"fingerprint", "run_date"} < set(clips.column_names)
    vectors = np.array(pq.read_table(f"{store.root}/embeddings")["embedding"].to_pylist())
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_rows_are_written_in_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(memory())
    _, _, plan = planned(store, videos=(Video("a", (30,)),))
    publish(store, plan)
    rows = table_of(store, plan, "clips")
    monkeypatch.setattr(objects, "GROUP_ROWS", 8)
    sink = io.BytesIO()
    writer = RowWriter("clips/x.parquet", sink, "clips")
    for begin in range(0, 30, 5):
        writer.write(rows.slice(begin, 5))
    written = writer.close({"run": "r"})
    found = pq.ParquetFile(io.BytesIO(sink.getvalue()))
    assert written.rows == 30
    assert max(found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)) <= 8
    assert found.read().equals(rows)
    assert found.schema_arrow.remove_metadata().equals(CLIPS.schema.remove_metadata())
