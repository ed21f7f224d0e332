"""A run as its driver sees it: what is due, how videos end, and that the sums add up."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import lease
from pipeline.log import Log, PromiseBroken, RunClosed
from pipeline.publish import publish
from pipeline.recovery import Recovery, unlock
from pipeline.session import Busy, Session
from pipeline.staging import StageParts
from pipeline.verify import verify
from schemas.errors import ErrorCode
from schemas.rows import UNIT_ROW
from stages.storage import StorageUnavailable, Store
from tests.pipeline.faults import FaultyStore, UnconditionalStore, memory, table_rows
from tests.pipeline.rows import Steps, Video, World, sources
from tests.pipeline.test_recovery import ledger


def run(*videos: Video, **kwargs: Any) -> tuple[World, Session]:
    w = World(Store(memory()), videos, Steps("1"), **kwargs)
    return w, w.run()


def after(w: World, *videos: Video, **kwargs: Any) -> World:
    """A later world on the same output."""
    later = World(w.store, videos or w.videos, Steps("2"), **kwargs)
    later.steps.now = w.steps.now
    later.steps.advance(1000)
    return later


def row_of(w: World, video: Video) -> dict[str, Any]:
    found = [row for row in ledger(w.store) if row["video_id"] == video.id]
    assert len(found) == 1
    return found[0]


def stages_of(row: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {stage["stage"]: (stage["status"], stage["rows"]) for stage in row["stages"]}


NOTHING = dict.fromkeys(("clips", "classify", "embed", "caption"), ("failed", 0))


def test_a_good_video_is_ok_with_all_its_stages() -> None:
    video = Video("a", (2, 1))
    w, _ = run(video)
    row = row_of(w, video)
    assert (row["status"], row["clips"], row["decoded_s"], row["fps"], row["error_code"]) == ("ok", 3, 6.0, 25.0, None)
    assert (row["container"], row["codec"], row["attempts"], row["uri"]) == ("mov", "h264", 1, video.uri)
    assert stages_of(row) == {"clips": ("ok", 3), "classify": ("ok", 6), "embed": ("ok", 3), "caption": ("ok", 3)}
    named = {stage["stage"]: (stage["model"], stage["revision"]) for stage in row["stages"]}
    assert named["clips"] == (None, None)
    assert named["embed"] == ("embedded:clip", "r1")


@pytest.mark.parametrize(
    ("video", "status", "code", "stage", "says"),
    [
        (Video("a", (0,), error="unreadable"), "failed", "unreadable", "decode", "it broke"),
        (Video("a", (0,), error="memory"), "quarantined", "memory", "decode", "it broke"),
        (Video("a", (0,), error="vanished"), "deferred", "vanished", "decode", "it broke"),
        (Video("a", (3,), error="changed"), "deferred", "changed", "decode", "it broke"),
        (Video("a", (3,), error="damaged"), "partial", "damaged", "decode", "it broke"),
        (Video("a", (3,), error="memory"), "partial", "memory", "decode", "it broke"),
        (Video("a", (2, 0), error="damaged"), "partial", "damaged", "decode", "unit 2 of 2: it broke"),
        (Video("a", (0,)), "failed", "no_frames", "decode", "no clip"),
        (Video("a", (2, 0)), "ok", None, None, None),
        (Video("a", (3,), bad_clips=(1,)), "partial", "damaged", "decode", "1 of 3 clips: frames lost"),
        (Video("a", (2,), bad_clips=(0, 1)), "failed", "damaged", "decode", "2 of 2 clips"),
        (Video("a", (3,), failing={"embed": (0,)}), "partial", "not_finite", "embed", "1 of 3 clips: NaN"),
        (Video("a", (2,), failing={"classify": (0, 1), "caption": (0,)}), "partial", "not_finite", "classify", "2 of 2 clips"),
        (Video("a", missing=True), "failed", "missing", "discover", "not there"),
    ],
)
def test_how_a_video_ends(video: Video, status: str, code: str | None, stage: str | None, says: str | None) -> None:
    w, session = run(video, Video("good"))
    row = row_of(w, video)
    assert (row["status"], row["error_code"], row["error_stage"]) == (status, code, stage)
    assert row["error_message"] is None if says is None else says in row["error_message"]
    assert session.sums.statuses[status] >= 1
    is_usable = status in ("ok", "partial")
    assert any(rows for _, rows in stages_of(row).values()) == is_usable
    assert row_of(w, Video("good"))["status"] == "ok"
    assert verify(w.store, w.steps.now) == []


def test_a_video_that_failed_lists_what_was_due_as_failed() -> None:
    w, _ = run(Video("a", (0,), error="no_video"))
    assert stages_of(row_of(w, Video("a"))) == NOTHING


def test_a_stage_that_failed_on_every_clip_publishes_nothing_of_the_video() -> None:
    video = Video("a", (2,), failing={"embed": (0, 1)})
    w, _ = run(video, Video("b"))
    assert stages_of(row_of(w, video))["embed"] == ("failed", 0)
    assert not [row for row in table_rows(w.store, "embeddings") if video.id in str(row)]
    assert [row for row in table_rows(w.store, "captions") if video.id in str(row)]


def test_a_lost_tail_makes_every_stage_partial() -> None:
    video = Video("a", (2,), error="truncated")
    w, _ = run(video)
    assert {status for status, _ in stages_of(row_of(w, video)).values()} == {"partial"}


def test_a_unit_that_was_given_up_costs_only_its_own_clips() -> None:
    video = Video("a", (2, 3))
    w = World(Store(memory()), [video, Video("killer", (1,))], Steps())
    session = w.open()
    units = w.expect(session).to_pylist()
    session.expect(session.missing())
    stage = StageParts(w.store, session.run_id)
    session.receive(stage(w.rows(next(unit for unit in units if unit["video_id"] == video.id and unit["unit"] == 0))))
    names = [f"{unit['video_id']}-{unit['unit']:04d}" for unit in session.missing().to_pylist()]
    assert len(names) == 2
    session.give_up(names, ErrorCode.KILLED, "ended its worker twice")
    w.publish(session, session.plan_epoch())
    session.close()
    row = row_of(w, video)
    assert (row["status"], row["error_code"], row["clips"], row["attempts"]) == ("partial", "killed", 2, 2)
    assert row["error_message"] == "unit 2 of 2: ended its worker twice"
    killer = row_of(w, Video("killer"))
    assert (killer["status"], stages_of(killer), killer["decoded_s"]) == ("quarantined", NOTHING, None)
    assert verify(w.store, w.steps.now) == []


def test_a_second_run_finds_nothing_due() -> None:
    w, first = run(Video("a"), Video("b", (0,), error="unreadable"), Video("c", error="damaged"), Video("d", missing=True))
    second = after(w)
    session = second.run()
    assert (session.sums.due, session.sums.not_due, session.sums.given_up) == (0, 2, 2)
    assert session.sums.rows == 0
    assert first.sums.rows == 4
    assert session.sums.problem is None


def test_deferred_videos_are_due_again_and_failed_ones_when_asked_for() -> None:
    w, _ = run(Video("late", (1,), error="storage"), Video("bad", (0,), error="unreadable"))
    found = after(w, Video("late"), Video("bad"))
    session = found.open()
    assert found.expect(session)["uri"].to_pylist() == [Video("late").uri]
    session.close(complete=False)
    retry = after(found, Video("late"), Video("bad"), retry_failed=True)
    assert sorted(retry.expect(retry.open())["uri"].to_pylist()) == sorted([Video("late").uri, Video("bad").uri])


def test_a_failed_video_is_not_tried_again_for_another_prompt_but_is_when_its_file_changes() -> None:
    bad = Video("bad", (0,), error="unreadable")
    w, _ = run(bad, Video("good"))
    session = after(w, caption="Other.").run()
    assert (session.sums.due, session.sums.given_up) == (1, 1)
    changed = after(w, Video("bad", version="2"), caption="Say it.")
    changed.steps.advance(2000)
    changed.run()
    new = row_of(changed, Video("bad", version="2"))
    assert (new["status"], new["supersedes"]) == ("ok", bad.id)


def test_promise_6_only_what_changed_is_due() -> None:
    w, _ = run(Video("a"))
    later = after(w, caption="Other.")
    session = later.open()
    found = later.expect(session)
    assert found["due"].to_pylist() == [[later.entries[-1].fingerprint]]


def test_configurations_a_b_a_publish_each_once() -> None:
    w, _ = run(Video("a"), Video("b", (2,)))
    b = after(w, caption="Other.")
    b.run()
    a = after(b)
    session = a.run()
    assert session.sums.due == 0
    assert verify(w.store, a.steps.now) == []
    assert len(table_rows(w.store, "captions")) == 2 * 5
    assert len(table_rows(w.store, "clips")) == 5


def test_one_more_model_computes_only_that_model() -> None:
    w, _ = run(Video("a"), caption=None)
    later = after(w)
    later.run()
    rows = [row for row in ledger(w.store) if row["video_id"] == Video("a").id]
    assert [list(stages_of(row)) for row in rows] == [["clips", "classify", "embed"], ["caption"]]


def test_doubled_sources_are_one_and_counted() -> None:
    videos = [Video("a"), Video("b")]
    w = World(Store(memory()), videos, Steps())
    session = w.open()
    twice = pa.concat_tables([sources(videos), sources(videos[:1])])
    first = session.due(twice)
    again = session.due(sources(videos))
    assert (first.num_rows, again.num_rows, session.sums.duplicates, session.sums.due) == (2, 0, 3, 2)


def test_promise_1_sources_in_are_rows_out_and_not_due() -> None:
    w, session = run(Video("a"), Video("b", (0,), error="empty"), Video("c", (1,), error="storage"), Video("d", missing=True))
    assert session.sums.listed == 4 == session.sums.rows == len(ledger(w.store))
    assert sum(session.sums.statuses.values()) == 4


def test_promise_1_a_video_that_got_lost_is_noticed() -> None:
    w = World(Store(memory()), [Video("a"), Video("b")], Steps())
    session = w.open()
    found = w.expect(session)
    session.receive(w.stage(session, found.slice(0, 1)))
    w.publish(session, session.plan_epoch())
    assert session.sums.open == 1
    with pytest.raises(PromiseBroken, match="2 sources were listed"):
        session.close()
    recovered = after(w).run()  # closed all the same, so the next run goes on
    assert recovered.sums.due == 1


def test_what_the_caller_leaves_out_is_accounted_for() -> None:
    w = World(Store(memory()), [Video("a"), Video("b"), Video("c")], Steps())
    session = w.open()
    found = w.expect(session)
    session.leave_out(1)
    session.receive(w.stage(session, found.slice(0, 2)))
    w.publish(session, session.plan_epoch())
    session.close()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.builds(
            Video,
            name=st.sampled_from("abcdefgh"),
            clips=st.sampled_from([(0,), (1,), (3,), (1, 2), (0, 2)]),
            version=st.sampled_from("12"),
            error=st.sampled_from([None, None, "damaged", "unreadable", "storage", "killed"]),
            bad_clips=st.sampled_from([(), (0,)]),
            failing=st.sampled_from([{}, {"embed": (0,)}, {"caption": (0, 1, 2)}]),
            missing=st.sampled_from([False, False, False, True]),
        ),
        max_size=8,
        unique_by=lambda video: video.id,
    ),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_promise_1_holds_for_any_archive_and_so_does_verify(videos: list[Video], epoch_videos: int, batch_rows: int) -> None:
    w = World(Store(memory()), videos, Steps("1"), epoch_videos=epoch_videos, batch_rows=batch_rows)
    session = w.run()
    assert session.sums.problem is None
    assert sorted(row["video_id"] for row in ledger(w.store)) == sorted(video.id for video in videos)
    assert [str(found) for found in verify(w.store, w.steps.now)] == []
    again = after(w)
    again.run()
    assert [str(found) for found in verify(w.store, again.steps.now)] == []


def test_an_empty_archive_is_a_run_with_nothing_in_it() -> None:
    w, session = run()
    assert session.sums.listed == 0
    assert verify(w.store, w.steps.now) == []


def test_two_runs_over_one_output_publish_each_row_once_and_each_its_ledger() -> None:
    store = Store(memory())
    videos = [Video("a"), Video("b", (1, 1))]
    one, two = World(store, videos, Steps("1")), World(store, videos, Steps("2"))
    first, second = one.open(), two.open()
    first.receive(one.stage(first, one.expect(first)))
    second.receive(two.stage(second, two.expect(second)))
    plan = first.plan_epoch()
    theirs = second.plan_epoch()
    assert plan is not None
    assert theirs is not None
    assert [o.table for o in theirs.objects] == ["videos"]
    publish(store, theirs)
    second.commit(theirs)
    publish(store, plan)
    first.commit(plan)
    first.close()
    second.close()
    assert verify(store, one.steps.now) == []
    assert len(table_rows(store, "clips")) == 5
    assert sorted(len(row["stages"]) for row in ledger(store)) == [0, 0, 4, 4]


def test_a_run_publishes_what_another_one_could_not() -> None:
    store = Store(memory())
    one = World(store, [Video("a", (2,), failing={"embed": (0, 1)})], Steps("1"))
    two = World(store, [Video("a", (2,))], Steps("2"))
    first, second = one.open(), two.open()
    first.receive(one.stage(first, one.expect(first)))
    second.receive(two.stage(second, two.expect(second)))
    one.publish(first, first.plan_epoch())
    two.publish(second, second.plan_epoch())
    first.close()
    second.close()
    assert len(table_rows(store, "embeddings")) == len(table_rows(store, "clips")) == 2
    assert verify(store, one.steps.now) == []


def test_a_plan_whose_answer_was_lost_is_not_made_twice() -> None:
    class Lossy(Store):
        lose = False

        def create(self, key: str, data: bytes) -> None:
            super().create(key, data)
            if self.lose and key.startswith("_log/"):
                Lossy.lose = False
                raise StorageUnavailable("the answer got lost")

    store = Lossy(memory())
    w = World(store, [Video("a"), Video("b", missing=True)], Steps())
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    Lossy.lose = True
    with pytest.raises(StorageUnavailable):
        session.plan_epoch()
    assert session.plan_epoch() is None
    session.close()
    assert len(ledger(store)) == 2
    assert len(table_rows(store, "clips")) == 3
    assert verify(store, w.steps.now) == []


def test_a_run_that_was_taken_over_but_not_closed_goes_on_without_rows_of_its_own_twice() -> None:
    store = Store(memory())
    w = World(store, [Video("a"), Video("b")], Steps("1"))
    session = w.open()
    receipts = w.stage(session, w.expect(session))
    w.steps.advance(1000)
    log = Log(store)
    log.refresh()

    class DiesBeforeClosing(Recovery):
        def close(self, run: str, more: Any = dict) -> None:
            raise StorageUnavailable(f"died before closing {run} with {more}")

    with pytest.raises(StorageUnavailable):
        DiesBeforeClosing(store, log, w.steps.clock(), "closer").recover()
    session.receive(receipts)
    assert session.plan_epoch() is None
    session.close()
    assert len(ledger(store)) == 2
    assert verify(store, w.steps.now) == []


def test_the_current_configuration_is_named() -> None:
    w, _ = run(Video("a"))
    current = json.loads(w.store.read("_current.json"))
    assert current["clips"] == w.config.clips.fingerprint()
    assert [(entry["stage"], entry["slug"], entry["fingerprint"]) for entry in current["entries"]] == [
        (entry.stage, entry.slug, entry.fingerprint) for entry in w.entries
    ]
    later = after(w, caption="Other.")
    later.run()
    assert json.loads(w.store.read("_current.json"))["entries"][-1]["fingerprint"] == later.entries[-1].fingerprint


def test_the_record_of_a_run_counts_every_source() -> None:
    w, session = run(Video("a"), Video("b", (0,), error="empty"))
    record = json.loads(w.store.read(f"_runs/{session.run_id}/run.json"))
    assert record["sums"]["listed"] == record["sums"]["rows"] == 2
    assert record["sums"]["statuses"] == {"ok": 1, "failed": 1}
    assert record["complete"] is True
    assert record["versions"]["pyarrow"] == pa.__version__


def test_nothing_of_a_closed_run_is_left_but_its_record() -> None:
    w, session = run(Video("a"), Video("b"))
    left = [info.key for info in w.store.list(f"_runs/{session.run_id}")]
    assert not [key for key in left if "/parts/" in key or key.endswith("lease.json")]
    assert f"_runs/{session.run_id}/run.json" in left


def test_closing_publishes_what_was_planned() -> None:
    w = World(Store(memory()), [Video("a")], Steps())
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    assert session.plan_epoch()
    session.close()
    assert len(table_rows(w.store, "clips")) == 3


def test_a_run_that_was_unlocked_cannot_go_on() -> None:
    w = World(Store(memory()), [Video("a")], Steps())
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    unlock(w.store, [session.run_id], w.steps.clock())
    with pytest.raises(RunClosed):
        session.plan_epoch()


def test_midnight_between_plan_and_publishing_changes_no_key() -> None:
    from datetime import timedelta

    w = World(Store(memory()), [Video("a")], Steps())
    w.steps.now = w.steps.now.replace(hour=23, minute=59, second=59)
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    plan = session.plan_epoch()
    w.steps.now += timedelta(hours=2)
    session.renew_lease()
    w.publish(session, plan)
    session.close()
    days = {info.key.split("run_date=")[1][:10] for name in ("videos", "clips", "captions") for info in w.store.list(name)}
    assert days == {"2026-01-02"}
    assert verify(w.store, w.steps.now) == []


def test_promise_1_a_run_whose_epoch_had_to_be_taken_back_does_not_end_well() -> None:
    w = World(Store(memory()), [Video("a"), Video("b")], Steps())
    session = w.open()
    found = w.expect(session)
    session.receive(w.stage(session, found.slice(0, 1)))
    w.publish(session, session.plan_epoch())
    session.receive(w.stage(session, found.slice(1)))
    assert session.plan_epoch()
    for info in list(w.store.list(f"_runs/{session.run_id}/parts")):
        w.store.delete(info.key)
    with pytest.raises(PromiseBroken, match="2 sources were listed, but 1 are accounted for"):
        session.close()
    assert session.sums.rows == len(ledger(w.store)) == 1
    assert session.sums.statuses == {"ok": 1}
    assert verify(w.store, w.steps.now) == []
    assert after(w).expect(after(w).open()).num_rows == 1


def test_a_run_that_wakes_up_late_does_not_bring_an_old_configuration_back() -> None:
    w = World(Store(memory()), [Video("a")], Steps())
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    plan = session.plan_epoch()
    later = after(w, caption="Other.")
    later.steps.advance(lease.LEASE_S + 1)
    run_id = later.run().run_id
    w.publish(session, plan)
    with pytest.raises(RunClosed):
        session.close(complete=False)
    assert json.loads(w.store.read("_current.json"))["run"] == run_id


def test_what_late_workers_stage_for_a_run_that_is_over_is_cleared_away_by_the_next_run() -> None:
    w, session = run(Video("a"))
    record = [info.key for info in w.store.list(f"_runs/{session.run_id}")]
    unit = dict.fromkeys(UNIT_ROW.names) | {
        "video_id": w.videos[0].id, "uri": w.videos[0].uri, "unit": 0, "units": 1,
        "due": [w.config.clips.fingerprint(), *(entry.fingerprint for entry in w.entries)],
    }  # fmt: skip
    StageParts(w.store, session.run_id)(w.rows(unit, "late"))
    w.store.write(lease.key_of(session.run_id), b"{}")
    assert len(list(w.store.list(f"_runs/{session.run_id}"))) == len(record) + 2
    after(w).run()
    assert [info.key for info in w.store.list(f"_runs/{session.run_id}")] == record


def test_a_run_says_that_it_lives_while_it_publishes_what_is_left() -> None:
    class Renewing(FaultyStore):
        def open_write(self, key: str, exclusive: bool = False) -> Any:
            if key.startswith("videos/"):
                session.renew_lease()
            return super().open_write(key, exclusive)

    store = Renewing(memory())
    w = World(store, [Video("a")], Steps())
    session = w.open()
    session.receive(w.stage(session, w.expect(session)))
    store.writes.clear()
    session.close()
    assert any(write.endswith("lease.json") and write.startswith("write") for write in store.writes)
    session.renew_lease()
    assert not store.exists(lease.key_of(session.run_id))


def test_of_two_runs_that_begin_at_the_same_instant_without_conditional_writes_one_gives_way() -> None:
    root = memory()
    store = UnconditionalStore(root)

    class Overwritten(Steps):
        def advance(self, seconds: float) -> None:
            super().advance(seconds)
            entry = json.loads(store.read("_log/00000000.json"))
            store.write("_log/00000000.json", json.dumps(entry | {"run": "another", "token": "another"}).encode())

    with pytest.raises(Busy, match="in this very moment"):
        World(store, [Video("a")], Overwritten("1")).open()
    assert [info.key for info in store.list()] == ["_log/00000000.json"]
