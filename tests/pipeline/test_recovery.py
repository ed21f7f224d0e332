"""Killed at every write, woken up too late, two at once: the tables come out as if nothing had happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import lease
from pipeline.gather import EpochPlan
from pipeline.log import EpochAbandoned, Log, PromiseBroken, RunClosed
from pipeline.publish import PartsMissing, publish
from pipeline.receipts import parts_folder
from pipeline.recovery import Recovery, unlock
from pipeline.session import Session
from pipeline.staging import StageParts
from pipeline.verify import verify
from schemas.tables import TABLES
from stages.storage import Store
from tests.pipeline.faults import FaultyStore, Killed, Stranger, UnconditionalStore, all_groups, memory, table_rows, tables
from tests.pipeline.rows import ELSEWHERE, Steps, Video, World
from tests.s3 import S3Server

# Videos whose rows do not depend on how often a run begins again: none is deferred, and no stage fails as a whole.
ARCHIVE = (
    Video("plain", (2,)),
    Video("long", (1, 2)),
    Video("unreadable", (0,), error="unreadable"),
    Video("torn", (2,), error="truncated", failing={"embed": (1,)}),
    Video("absent", missing=True),
)
LATER_S = lease.LEASE_S + 1


def world(store: Store, name: str = "", **kwargs: object) -> World:
    return World(store, ARCHIVE, Steps(name), epoch_videos=3, batch_rows=6, **kwargs)  # type: ignore[arg-type]


def undisturbed() -> tuple[dict[str, list[tuple[str, ...]]], dict[tuple[str, ...], int], list[str]]:
    store = FaultyStore(memory())
    world(store).run()
    return tables(store), all_groups(store), store.writes


TABLES_OF_ONE_RUN, WHOLE, WRITES = undisturbed()


def again(store: Store, after: World, name: str = "2") -> World:
    """A world that starts over in the same output, after the lease of the first has lapsed."""
    second = world(store, name)
    second.steps.now = after.steps.now
    second.steps.advance(LATER_S)
    return second


def check_like_undisturbed(store: Store, now: World) -> None:
    assert tables(store) == TABLES_OF_ONE_RUN
    assert [str(found) for found in verify(store, now.steps.now)] == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", range(len(WRITES)), ids=lambda n: f"{n}-{WRITES[n].split()[0]}")
def test_promise_3_killed_at_any_write_and_started_again_leaves_the_same_tables(write: int, after: bool) -> None:
    root = memory()
    watch = Stranger(Store(root), WHOLE)
    first = world(FaultyStore(root, write, after=after, watch=watch))
    with pytest.raises(Killed):
        first.run()
    second = again(FaultyStore(root, watch=watch), first)
    second.run()
    check_like_undisturbed(Store(root), second)
    assert not [info.key for info in Store(root).list("_runs") if "/parts/" in info.key]


def test_promise_2_a_stranger_sees_all_rows_of_a_video_or_none_at_every_write() -> None:
    root = memory()
    stranger = Stranger(Store(root), WHOLE)
    world(FaultyStore(root, watch=stranger)).run()
    assert stranger.looks == sum(key.split()[1].partition("/")[0] in set(TABLES) - {"videos"} for key in WRITES)


def writes_of_recovery(root: str, first: World) -> int:
    store = FaultyStore(root)
    Recovery(store, Log(store), again(store, first).steps.clock(), "count").recover()
    return len(store.writes)


def half_done(root: str) -> World:
    """A run that died with one epoch half published, one not begun, and staged videos that no epoch has."""
    first = World(FaultyStore(root), ARCHIVE, Steps(), batch_rows=6)
    session = first.open()
    found = first.expect(session)
    session.receive(first.stage(session, found.slice(0, 1)))
    plan = session.plan_epoch()
    assert plan is not None
    session.receive(first.stage(session, found.slice(1, 2)))
    session.plan_epoch()
    first.stage(session, found.slice(3))
    half = FaultyStore(root, 1, after=True)
    with pytest.raises(Killed):
        publish(half, plan)
    return first


def test_promise_3_recovery_killed_at_any_write_is_taken_up_by_the_next() -> None:
    root = memory()
    count = writes_of_recovery(root, half_done(root))
    assert count > 15
    for write in range(count):
        for after in (False, True):
            root = memory()
            watch = Stranger(Store(root), WHOLE)
            first = half_done(root)
            dying = FaultyStore(root, write, after=after, watch=watch)
            with pytest.raises(Killed):
                Recovery(dying, Log(dying), again(dying, first, "3").steps.clock(), "dying").recover()
            second = again(FaultyStore(root, watch=watch), first)
            second.run()
            check_like_undisturbed(Store(root), second)


def test_what_a_dead_run_had_staged_completely_is_published_without_decoding_it_again() -> None:
    root = memory()
    first = half_done(root)
    store = Store(root)
    recovered = Recovery(store, Log(store), again(store, first).steps.clock(), "finder").recover()
    assert len(recovered.closed) == 1
    assert len(recovered.committed) == 3
    second = again(store, first)
    assert second.expect(second.open()).num_rows == 0
    runs = {row[-1] for row in table_rows(store, "clips")}
    assert runs == set(recovered.closed)


def test_a_dead_run_leaves_no_row_of_what_is_due_again_anyway() -> None:
    store = Store(memory())
    late = Video("late", (1,), error="storage")
    first = World(store, [late, Video("fine", (1,))], Steps("1"))
    session = first.open()
    first.stage(session, first.expect(session))
    second = World(store, first.videos, Steps("2"))
    second.steps.now = first.steps.now
    second.steps.advance(LATER_S)
    second.run()
    assert [row["run_id"] == session.run_id for row in ledger(store) if row["video_id"] != late.id] == [True]
    assert [row["run_id"] == session.run_id for row in ledger(store) if row["video_id"] == late.id] == [False]


def test_parts_of_two_attempts_never_add_up_to_a_unit() -> None:
    store = Store(memory())
    w = World(store, [Video("v", (4,))], Steps())
    session = w.open()
    unit = w.expect(session).to_pylist()[0]
    stage = StageParts(store, session.run_id)
    session.receive(stage(w.rows(unit, "first").slice(0, 3)))
    session.receive(stage(w.rows(unit, "second").slice(3)))
    assert session.missing().num_rows == 1
    assert session.plan_epoch() is None
    w.steps.advance(LATER_S)
    recovered = Recovery(store, Log(store), w.steps.clock(), "finder").recover()
    assert recovered.closed
    assert not recovered.committed


@pytest.mark.parametrize("gone", ["parts", "one part", "sidecar", "ledger"])
def test_an_epoch_whose_parts_are_gone_is_taken_back_and_its_videos_are_due_again(gone: str) -> None:
    root = memory()
    first = world(FaultyStore(root))
    session = first.open()
    session.receive(first.stage(session, first.expect(session)))
    plan = session.plan_epoch()
    assert plan is not None
    with pytest.raises(Killed):
        publish(FaultyStore(root, 2, after=True), plan)  # two objects are there
    store = Store(root)
    keys = {"sidecar": [plan.parts.key], "ledger": [plan.ledger.key]}.get(gone) or [
        info.key for info in store.list(parts_folder(session.run_id))
    ]
    for key in keys[:1] if gone == "one part" else keys:
        store.delete(key)
    second = again(FaultyStore(root, watch=Stranger(store, WHOLE, may_shrink=True)), first)
    done = second.run()
    assert done.recovered.voided == [plan.epoch]
    check_like_undisturbed(store, second)


def test_an_epoch_whose_objects_are_all_there_needs_no_parts() -> None:
    root = memory()
    first = world(FaultyStore(root))
    session = first.open()
    session.receive(first.stage(session, first.expect(session)))
    plan = session.plan_epoch()
    assert plan is not None
    publish(first.store, plan)
    for info in list(Store(root).list(parts_folder(session.run_id))):
        Store(root).delete(info.key)
    second = again(Store(root), first)
    assert second.run().recovered.committed == [plan.epoch]
    check_like_undisturbed(Store(root), second)


def planned_and_stalled(root: str) -> tuple[World, Session, EpochPlan]:
    first = world(Store(root))
    session = first.open()
    session.receive(first.stage(session, first.expect(session)))
    plan = session.plan_epoch()
    assert plan is not None
    return first, session, plan


def test_promise_2_a_zombie_cannot_plan_after_it_was_closed() -> None:
    root = memory()
    first = world(Store(root))
    zombie = first.open()
    receipts = first.stage(zombie, first.expect(zombie))
    second = again(Store(root), first)
    second.run()
    zombie.receive(receipts)
    with pytest.raises(RunClosed):
        zombie.plan_epoch()
    with pytest.raises(RunClosed):
        zombie.close(complete=False)
    check_like_undisturbed(Store(root), second)


def test_promise_2_a_zombie_that_publishes_and_commits_what_was_finished_for_it_changes_nothing() -> None:
    root = memory()
    first, zombie, plan = planned_and_stalled(root)
    second = again(Store(root), first)
    second.run()
    before = {info.key: Store(root).read(info.key) for table in TABLES for info in Store(root).list(table)}
    publish(Store(root), plan)
    zombie.commit(plan)
    assert before == {info.key: Store(root).read(info.key) for table in TABLES for info in Store(root).list(table)}
    check_like_undisturbed(Store(root), second)


@pytest.mark.parametrize("objects", range(4))
def test_promise_2_a_zombie_cannot_bring_back_an_epoch_that_was_taken_back_while_it_wrote(objects: int) -> None:
    """The zombie has read its parts and stands before making object number `objects` when everything around it moves on."""
    root = memory()
    first, zombie, plan = planned_and_stalled(root)
    moved_on: list[World] = []

    class Slow(FaultyStore):
        def _step(self, name: str, key: str) -> AbstractContextManager[None]:
            if len(self.writes) == objects and not moved_on:
                for info in list(Store(root).list(parts_folder(zombie.run_id))):
                    Store(root).delete(info.key)
                moved_on.append(again(Store(root), first))
                assert moved_on[0].run().recovered.voided == [plan.epoch]
            return super()._step(name, key)

    with pytest.raises((EpochAbandoned, PartsMissing)):
        publish(Slow(root), plan)
    with pytest.raises(EpochAbandoned):
        zombie.commit(plan)
    check_like_undisturbed(Store(root), moved_on[0])


def test_promise_1_two_that_take_over_a_dead_run_at_once_give_a_failed_video_one_row() -> None:
    """The second plans, and dies before it closes the run, while the first stands before its own plan."""
    root = memory()
    first = World(
        Store(root), [Video("bad", (0,), error="unreadable"), Video("half", (2,), failing={"embed": (0, 1)})], Steps()
    )
    session = first.open()
    first.stage(session, first.expect(session))
    others: list[FaultyStore] = []

    class Slow(FaultyStore):
        def create(self, key: str, data: bytes) -> None:
            if not others:
                others.append(FaultyStore(root, 2, after=True))  # two sidecars, and the plan
                with pytest.raises(Killed):
                    Recovery(others[0], Log(others[0]), again(others[0], first, "3").steps.clock(), "other").recover()
                assert others[0].writes[-1].startswith("create _log/")
            super().create(key, data)

    slow = Slow(root)
    Recovery(slow, Log(slow), again(slow, first).steps.clock(), "slow").recover()
    assert Counter((row["video_id"], row["run_id"]) for row in ledger(Store(root))).most_common(1)[0][1] == 1
    assert len(ledger(Store(root))) == 2


def test_an_epoch_that_lost_its_sidecars_does_not_stop_the_taking_over_of_another_run() -> None:
    store = Store(memory())
    first = World(store, [Video("a")], Steps("1"))
    session = first.open()
    first.stage(session, first.expect(session))
    other = World(store, [Video("b")], Steps("2"))
    lost = other.open()
    lost.receive(other.stage(lost, other.expect(lost)))
    plan = lost.plan_epoch()
    assert plan is not None
    for key in (plan.ledger.key, plan.parts.key):
        store.delete(key)
    recovered = Recovery(store, Log(store), again(store, first, "3").steps.clock(), "finder").recover()
    assert recovered.voided == [plan.epoch]
    assert len(recovered.committed) == 2  # what both had staged completely
    assert len(ledger(store)) == 2


def test_the_lease_of_a_run_that_died_before_it_was_opened_is_cleared_away_once_it_has_lapsed() -> None:
    root = memory()
    with pytest.raises(Killed):
        world(FaultyStore(root, 0, after=True)).open()
    early, late = world(Store(root), "2"), world(Store(root), "3")
    early.open()
    assert len([info for info in Store(root).list("_runs") if info.key.endswith("lease.json")]) == 2
    late.steps.advance(LATER_S)
    late.run()
    assert not [info for info in Store(root).list("_runs") if info.key.endswith("lease.json")]


def test_a_run_whose_process_is_gone_is_dead_before_its_lease_lapses() -> None:
    store = Store(memory())
    here = lease.Owner.here()
    assert here.is_gone() is False
    gone = lease.Owner(here.host, here.machine, here.pid, "1")
    first = world(store, owner=gone)
    first.open()
    second = world(store, "2", owner=here)
    assert len(second.open().recovered.closed) == 1


def test_a_run_whose_lease_is_gone_is_given_the_time_of_one() -> None:
    store = Store(memory())
    first = world(store)
    session = first.open()
    store.delete(lease.key_of(session.run_id))
    early, late = world(store, "2"), world(store, "3")
    early.steps.advance(lease.LEASE_S - 1)
    late.steps.advance(lease.LEASE_S + 1)
    assert not early.open().recovered
    assert session.run_id in late.open().recovered.closed


def test_a_ledger_that_lost_an_object_stops_a_run_before_it_publishes_anything_twice() -> None:
    store = Store(memory())
    first = world(store)
    first.run()
    store.delete(next(iter(store.list("videos"))).key)
    before = all_groups(store)
    with pytest.raises(PromiseBroken, match="clipmill verify"):
        again(store, first).run()
    assert all_groups(store) == before


def test_a_live_run_is_left_alone() -> None:
    store = Store(memory())
    first = world(store)
    session = first.open()
    first.stage(session, first.expect(session))
    second = world(store, "2")
    second.steps.advance(lease.LEASE_S - 1)
    assert not second.open().recovered
    session.receive(first.stage(session, session.missing()))
    assert session.plan_epoch() is not None


def test_whoever_starts_right_after_another_machine_failed_waits_for_its_lease_to_lapse() -> None:
    store = Store(memory())
    _, _, plan = planned_and_stalled(store.root)
    second = world(store, "2")
    second.steps.advance(1)
    began = second.steps.now
    assert second.open().recovered.committed == [plan.epoch]
    assert (second.steps.now - began).total_seconds() >= lease.LEASE_S - 2


def test_unlock_closes_a_run_whose_lease_has_not_lapsed() -> None:
    store = Store(memory())
    first, session, plan = planned_and_stalled(store.root)
    done = unlock(store, clock=first.steps.clock())
    assert done.closed == [session.run_id]
    assert done.committed == [plan.epoch]
    with pytest.raises(RunClosed):
        session.plan_epoch()


def test_a_part_that_is_no_part_counts_as_never_staged() -> None:
    store = Store(memory())
    first = world(store)
    session = first.open()
    first.stage(session, first.expect(session))
    key = next(iter(store.list(parts_folder(session.run_id)))).key
    store.write(key, b"no parquet")
    second = again(store, first)
    second.run()
    check_like_undisturbed(store, second)


PROGRAMS = st.lists(st.sampled_from(["first", "second", "late", "kill first", "kill second"]), max_size=60)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PROGRAMS)
def test_promise_2_and_3_two_runs_in_any_order_dying_at_any_step(moves: list[str]) -> None:
    root = memory()
    stranger = Stranger(Store(root), WHOLE)
    steps = Steps("1")
    worlds = {name: world(FaultyStore(root, watch=stranger), name) for name in ("first", "second")}
    running = {name: _program(w, steps) for name, w in worlds.items()}
    for move in moves:
        if move == "late":
            steps.advance(LATER_S)
        elif move.startswith("kill "):
            running.pop(move.removeprefix("kill "), None)
        elif move in running:
            try:
                next(running[move])
            except StopIteration:
                del running[move]
            except RunClosed:
                del running[move]
    steps.advance(LATER_S)
    last = world(FaultyStore(root, watch=stranger), "last")
    last.steps.now = steps.now
    last.run()
    steps.now = last.steps.now
    for left in running.values():  # those that wake up after all is over
        with pytest.raises((RunClosed, StopIteration)):
            consume(left)
    sweeper = world(FaultyStore(root, watch=stranger), "sweeper")  # clears away what they staged
    sweeper.steps.now = steps.now
    sweeper.run()
    steps.now = sweeper.steps.now
    found = tables(Store(root))
    assert {name: rows for name, rows in found.items() if name != "videos"} == {
        name: rows for name, rows in TABLES_OF_ONE_RUN.items() if name != "videos"
    }
    assert [str(item) for item in verify(Store(root), steps.now)] == []
    keys = Counter((row["video_id"], row["run_id"]) for row in ledger(Store(root)))
    assert set(keys.values()) == {1}
    assert {row["video_id"] for row in ledger(Store(root))} == {video.id for video in ARCHIVE}


def consume(program: Iterator[Session]) -> None:
    """Goes on to the end, and says so by StopIteration."""
    while True:
        next(program)


def _program(w: World, steps: Steps) -> Iterator[Session]:
    """A world's program on a clock that several share."""
    own = w.steps
    program = w.program()
    while True:
        own.now = max(own.now, steps.now)
        try:
            yield next(program)
        except StopIteration:
            return
        steps.now = max(own.now, steps.now)


def ledger(store: Store) -> list[dict[str, object]]:
    found = []
    for info in store.list("videos"):
        with store.open_read(info.key) as file:
            found += pq.ParquetFile(file).read().to_pylist()
    return found


def test_a_store_without_conditional_writes_takes_one_run_at_a_time() -> None:
    from schemas.errors import BadRequest

    root = memory()
    first = world(UnconditionalStore(root))
    first.open()
    second = world(UnconditionalStore(root), "2")
    with pytest.raises(BadRequest, match="one run at a time"):
        second.open()
    second.steps.advance(LATER_S)
    second.run()
    check_like_undisturbed(Store(root), second)
    assert first.owner is ELSEWHERE


@pytest.mark.s3
def test_promise_3_a_run_killed_on_s3_and_started_again_leaves_the_same_tables(s3: S3Server) -> None:
    root = f"{s3.bucket()}/out"
    count = len(WRITES)
    for write in (count // 4, count // 2, count - 8):
        first = world(FaultyStore(f"{root}-{write}", write, after=True))
        with pytest.raises(Killed):
            first.run()
        second = again(Store(f"{root}-{write}"), first)
        second.run()
        check_like_undisturbed(Store(f"{root}-{write}"), second)
