"""A compacted copy: the same rows in fewer objects, whatever happens on the way, and runs that go on there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import compact as compacting
from pipeline.compact import COMPACTING, compact
from pipeline.verify import verify
from schemas.errors import BadRequest
from schemas.tables import TABLES
from stages.storage import Store
from tests.pipeline.faults import FaultyStore, Killed, memory, table_rows, tables
from tests.pipeline.rows import Steps, Video, World, sources

NIGHTS = (
    (Video("a"), Video("b", error="unreadable", clips=(0,)), Video("c", (1, 2))),
    (Video("d", missing=True), Video("e", error="truncated", failing={"embed": (1,)})),
    (Video("a", version="2"), Video("f")),  # a was replaced
    (Video("a", version="3"), Video("b", error="unreadable", clips=(0,)), Video("g")),
)
ALL = tuple(video for night in NIGHTS for video in night)


def archive(store: Store | None = None, retry_failed: bool = False) -> tuple[Store, Steps]:
    """An output of four nights, with the captions of another prompt in the third."""
    store, steps = store or Store(memory()), Steps()
    for number, night in enumerate(NIGHTS):
        caption = "Another prompt." if number == 2 else "Say it."
        World(store, night, steps, caption=caption, retry_failed=retry_failed, epoch_videos=2).run()
        steps.advance(86400)
    return store, steps


def objects(store: Store) -> list[str]:
    return [info.key for name in TABLES for info in store.list(name)]


def test_a_copy_holds_the_same_rows_in_fewer_objects_and_verifies() -> None:
    store, steps = archive(retry_failed=True)
    copy = Store(memory())
    found = compact(store, copy, steps.clock())
    assert found.findings == ()
    assert verify(copy, steps.now) == []
    for name in TABLES:
        assert table_rows(copy, name, {"run_date"}) == table_rows(store, name, {"run_date"})
    assert (found.objects, found.objects_before) == (len(objects(copy)), len(objects(store)))
    assert found.objects <= 3 * 5 < found.objects_before  # three stretches of one configuration, five tables
    assert found.rows == sum(len(table_rows(store, name)) for name in TABLES)
    assert not copy.exists(COMPACTING)
    assert copy.read("_current.json").partition(b'"clips"')[2] == store.read("_current.json").partition(b'"clips"')[2]


def test_a_copy_of_a_copy_is_one_too() -> None:
    store, steps = archive()
    first, second = Store(memory()), Store(memory())
    compact(store, first, steps.clock())
    assert compact(first, second, steps.clock()).findings == ()
    assert verify(second, steps.now) == []
    assert tables(second) == tables(store)


@pytest.mark.parametrize("caption", ["Say it.", "Another prompt.", "A third one."])
@pytest.mark.parametrize("retry_failed", [False, True])
def test_runs_go_on_in_the_copy_as_they_would_have(caption: str, retry_failed: bool) -> None:
    store, steps = archive()
    copy = Store(memory())
    compact(store, copy, steps.clock())
    world = World(store, (*ALL, Video("f", version="2"), Video("new")), steps, caption=caption, retry_failed=retry_failed)
    here, there = (replace(world, store=where).open().due(sources(world.videos)) for where in (store, copy))
    assert here.to_pylist() == there.to_pylist()
    assert any(row["supersedes"] for row in here.to_pylist())


def test_what_was_said_last_of_a_video_counts_in_the_copy_too() -> None:
    store, steps = Store(memory()), Steps()
    for error in ("unreadable", None):  # it failed, and was made good by another try
        World(store, (Video("v", (2,) if error is None else (0,), error=error),), steps, retry_failed=True).run()
        steps.advance(86400)
    copy = Store(memory())
    assert compact(store, copy, steps.clock()).findings == ()
    due = World(copy, (Video("v", (2,)),), steps).open().due(sources([Video("v", (2,))]))
    assert due.num_rows == 0


def test_epochs_are_merged_as_far_as_their_clips_and_their_number_go(monkeypatch: pytest.MonkeyPatch) -> None:
    store, steps = archive()
    counts = []
    for name, most in (("EPOCH_CLIPS", 12), ("MOST_MERGED", 2)):
        with monkeypatch.context() as changed:
            changed.setattr(compacting, name, most)
            copy = Store(memory())
            assert compact(store, copy, steps.clock()).findings == ()
            counts.append(len(objects(copy)))
    whole = Store(memory())
    compact(store, whole, steps.clock())
    assert len(objects(whole)) < min(counts) <= max(counts) < len(objects(store)), counts


def test_a_copy_that_is_killed_at_any_write_goes_on_where_it_was(tmp_path: Path) -> None:
    store, steps = archive(Store(str(tmp_path / "source")))
    counting = FaultyStore(str(tmp_path / "whole"))
    compact(store, counting, steps.clock())
    expected = tables(counting)
    last = len(counting.writes) - 1
    for at in (*range(0, last, 5), last - 1, last):
        root = str(tmp_path / str(at))
        with pytest.raises(Killed):
            compact(store, FaultyStore(root, at, after=at % 2 == 0), steps.clock())
        copy = Store(root)
        if copy.exists(COMPACTING):
            with pytest.raises(BadRequest, match="half made"):
                World(copy, ALL, steps).open()
        else:  # before the first write, or after the last
            assert at in (0, last)
            continue
        assert compact(store, copy, steps.clock()).findings == ()
        assert tables(copy) == expected
        assert verify(copy, steps.now) == []


def test_what_changed_on_the_way_is_found() -> None:
    store, steps = archive()
    copy = FaultyStore(memory(), kill_at=9)
    with pytest.raises(Killed):
        compact(store, copy, steps.clock())
    World(store, (Video("late"),), steps).run()
    with pytest.raises(BadRequest, match="begun as a copy"):
        compact(store, Store(copy.root), steps.clock())


def test_what_cannot_be_copied_is_refused() -> None:
    store, steps = archive()
    with pytest.raises(BadRequest, match="is not empty"):
        compact(store, store, steps.clock())
    with pytest.raises(BadRequest, match="published nothing"):
        compact(Store(memory()), Store(memory()), steps.clock())
    World(store, ALL, steps).open()
    with pytest.raises(BadRequest, match="works on"):
        compact(store, Store(memory()), steps.clock())


def test_tables_of_an_older_version_verify_and_are_copied_with_the_columns_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    store, steps = archive()
    clips = TABLES["clips"]
    for nullable in (False, True):
        added = pa.schema([*clips.schema, pa.field("loudness", pa.float32(), nullable=nullable)])
        monkeypatch.setitem(TABLES, "clips", replace(clips, schema=added))  # type: ignore[arg-type]
        assert {finding.kind for finding in verify(store, steps.now)} == (set() if nullable else {"schema"})
    copy = Store(memory())
    assert compact(store, copy, steps.clock()).findings == ()
    clips_of_copy = [key for key in objects(copy) if key.startswith("clips/")]
    for key in clips_of_copy:
        with copy.open_read(key) as file:
            assert pq.read_table(file)["loudness"].null_count == pq.read_metadata(file).num_rows > 0


def test_verify_tells_rows_of_a_copy_that_are_of_no_run_of_it() -> None:
    store, steps = archive()
    copy = Store(memory())
    compact(store, copy, steps.clock())
    plan = next(key for key in sorted(info.key for info in copy.list("_log")) if b'"origins"' in copy.read(key))
    body = copy.read(plan)
    first = body.partition(b'"origins"')[2].partition(b'"run": "')[2][:22]
    copy.write(plan, body.replace(b'"run": "' + first, b'"run": "20200101T000000-000000', 2))
    assert {"run"} <= {finding.kind for finding in verify(copy, steps.now)}
