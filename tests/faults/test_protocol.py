"""The protocol as a state machine: runs that die, sleep and wake up in any order, over parts that vanish."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from pipeline.gather import EpochPlan
from pipeline.log import Log, PromiseBroken
from pipeline.recovery import Recovery, unlock
from pipeline.session import Busy, Session
from pipeline.verify import verify
from stages.storage import Store
from tests.faults.damage import Damage, compared
from tests.faults.model import (
    ARCHIVE,
    PROMPTS,
    Actor,
    Group,
    Programs,
    Rows,
    Time,
    expected,
    groups_of,
    mended,
    published,
    rows_of_object,
)
from tests.faults.record import Record
from tests.pipeline.faults import UnconditionalStore
from tests.pipeline.rows import Steps, World, job, sources

MOST_ACTORS = 4
MOST_VANISHED = 3
LATER_S = 10_000.0  # every lease has lapsed, whatever the clocks
# Operations that an actor may be stopped before: between these, others get in.
PLACES = (
    "create .*_log/", "read .*_log/", "write .*epochs/", "size .*/part-", "open .*/part-", "(create|write) .*/part-",
    "delete ", "list .*/parts", "write .*_current", "write .*run.json", "write .*lease", "read .*lease", "read .*/parts/",
    "create .*/parts/",
)  # fmt: skip
PUBLISHING = st.just("(create|write) .*/part-")
ACTORS = st.integers(0, MOST_ACTORS - 1)


class Protocol(RuleBasedStateMachine):
    """Runs over one output. `tried` counts over all machines of a test."""

    is_conditional, most_actors = True, MOST_ACTORS
    tried: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.root = f"memory://{uuid.uuid4().hex}"
        self.time, self.programs = Time(), Programs()
        self.actors: list[Actor] = []
        self.started = 0
        self.vanished, self.is_sound = 0, False
        self._objects: dict[str, tuple[object, dict[Group, Rows]]] = {}
        self._before: dict[Group, str] = {}
        self._whole: dict[str, Mapping[Group, Rows]] = {}

    # --- what happens ---

    @initialize(
        names=st.sets(st.sampled_from(sorted(ARCHIVE)), min_size=1),
        runs=st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from([20, 40, 80])), min_size=1, max_size=2),
    )
    def archive(self, names: set[str], runs: list[tuple[int, int]]) -> None:
        for name in sorted(names):
            self.programs.put(ARCHIVE[name])
        for number, operations in runs[: self.most_actors]:
            self.begin(self.programs.run(PROMPTS[number % 2], False, number)).go(operations)

    def begin(self, program: Callable[[Actor], None], skew_s: float = 0.0) -> Actor:
        self.started += 1
        actor = Actor(f"{self.started:03d}", self.time, skew_s, program, self.root, self.is_conditional)
        self.actors.append(actor)
        return actor

    @precondition(lambda self: len(self.actors) < self.most_actors)
    @rule(
        prompt=st.sampled_from(PROMPTS), retry=st.booleans(), number=st.integers(0, 1 << 16),
        skew_s=st.sampled_from([0.0, 0.0, 90.0, -7200.0]), operations=st.sampled_from([0, 20, 40, 80, 160]),
    )  # fmt: skip
    def start(self, prompt: str, retry: bool, number: int, skew_s: float, operations: int) -> None:
        self.begin(self.programs.run(prompt, retry, number), skew_s).go(operations)

    @precondition(lambda self: self.actors)
    @rule(which=ACTORS, operations=st.sampled_from([1, 2, 5, 12, 30, 80]))
    def go(self, which: int, operations: int) -> None:
        self.of(which).go(operations)

    @precondition(lambda self: self.actors)
    @rule(which=ACTORS, place=st.sampled_from(PLACES), skipped=st.integers(0, 2))
    def go_to(self, which: int, place: str, skipped: int) -> None:
        for _ in range(skipped + 1):
            self.of(which).go_to(place)

    @precondition(lambda self: self.actors)
    @rule(which=ACTORS)
    def finish(self, which: int) -> None:
        self.of(which).go()

    @precondition(lambda self: len(self.actors) > 1)
    @rule(
        which=ACTORS,
        places=st.tuples(st.sampled_from(PLACES), st.sampled_from(PLACES)),
        finishes=st.sampled_from(["01", "10", "1"]),
    )
    def race(self, which: int, places: tuple[str, str], finishes: str) -> None:
        """Two come to a place each, and then to their ends, one before the other; or the first stays where it is."""
        racers = [self.of(which), self.of(which + 1)]
        for actor, place in zip(racers, places, strict=True):
            actor.go_to(place)
        for number in finishes:
            racers[int(number)].go()

    @precondition(lambda self: self.actors)
    @rule(
        which=ACTORS, place=st.none() | PUBLISHING | st.sampled_from(PLACES), times=st.integers(1, 3), vanishes=st.booleans(),
        stops=st.lists(st.tuples(st.none() | st.sampled_from(PLACES), st.booleans()), min_size=1, max_size=2),
    )  # fmt: skip
    def be_overtaken(
        self, which: int, place: str | None, times: int, vanishes: bool, stops: list[tuple[str | None, bool]]
    ) -> None:
        """It falls asleep before some operation, perhaps loses what it has staged, and is taken for dead by one or two. These
        stop somewhere too, before the other goes on; there they die, or come to their end later.
        """
        runs = [actor for actor in self.actors if actor.is_run] or self.actors
        sleeper = runs[which % len(runs)]
        for _ in range(0 if place is None else times):
            sleeper.go_to(place or "")
        staged = [path for path in self.paths("/_runs/") if "/parts/" in path]
        if vanishes and staged and self.vanished < MOST_VANISHED:
            self.vanished += 1
            for path in staged:
                del MemoryFileSystem.store[path]
        self.time.advance(125.0)
        made = [(self.begin(self.recovering(forced=False)), *stop) for stop in stops[: MOST_ACTORS - len(self.actors)]]
        for actor, stop, _ in made:
            actor.go() if stop is None else actor.go_to(stop)
        for actor, _, dies in made[::-1]:
            if dies:
                self.lose(actor)
            else:
                actor.go()

    @precondition(lambda self: self.actors)
    @rule(which=ACTORS)
    def die(self, which: int) -> None:
        self.lose(self.of(which))

    def lose(self, actor: Actor) -> None:
        actor.kill()
        self.actors.remove(actor)

    @rule(what=st.sampled_from(["a lease lapses", "a lease is renewed", "midnight"]), which=ACTORS)
    def time_passes(self, what: str, which: int) -> None:
        if what == "a lease is renewed":
            if self.actors:
                self.of(which).renew()
        else:
            self.time.advance(125.0 if what == "a lease lapses" else 40_000.0)

    @precondition(lambda self: len(self.actors) < self.most_actors)
    @rule(what=st.sampled_from(["publish", "publish", "recover", "unlock"]), which=st.integers(0, 20))
    def others_come(self, what: str, which: int) -> None:
        """A publishing task that is late, for any epoch that ever was; whoever finds dead runs; an operator who closes all."""
        if what != "publish":
            self.begin(self.recovering(forced=what == "unlock"))
        elif epochs := list(self.log().epochs.values()):
            self.begin(self.programs.publisher(EpochPlan.of(epochs[which % len(epochs)].plan)))

    def recovering(self, forced: bool) -> Callable[[Actor], None]:
        def program(actor: Actor) -> None:
            if forced:
                unlock(actor.store, clock=actor.clock())
            else:
                Recovery(actor.store, Log(actor.store), actor.clock(), actor.name).recover()

        return program

    @precondition(lambda self: self.vanished < MOST_VANISHED and self.actors)
    @rule(kind=st.sampled_from(["/parts/", "/epochs/", "/epochs/", "lease.json"]), which=st.integers(0, 1 << 10))
    def vanish(self, kind: str, which: int) -> None:
        found = [path for path in self.paths("/_runs/") if kind in path]
        if found:
            self.vanished += 1
            del MemoryFileSystem.store[found[which % len(found)]]

    @rule(name=st.none() | st.sampled_from(sorted(ARCHIVE)))
    def the_archive_changes(self, name: str | None) -> None:
        """A video arrives or is replaced; without a name, what could not be read, stored or captioned can be from now on."""
        now = self.programs.archive.get(name or "")
        if name is None:
            self.programs.is_mended = True
        elif now is None or int(now.version) < 3:
            self.programs.put(replace(ARCHIVE[name], version=str(int(now.version) + 1) if now else "1"))

    def paths(self, below: str) -> list[str]:
        base = "/" + self.root.removeprefix("memory://") + below
        return sorted(path for path in MemoryFileSystem.store if path.startswith(base))

    def of(self, which: int) -> Actor:
        return self.actors[which % len(self.actors)]

    def log(self) -> Log:
        log = Log(Store(self.root))
        log.refresh()
        return log

    # --- what must be true, whatever happened ---

    @invariant()
    def promise_2_all_rows_of_a_video_or_none_and_never_twice_or_fewer(self) -> None:
        self.tried["steps"] += 1
        self.is_sound = False
        self._look()
        for actor in [actor for actor in self.actors if actor.ended]:
            self._ended(actor)
            self.actors.remove(actor)
        self.is_sound = True

    def _look(self) -> None:
        there: dict[Group, str] = {}
        for key, file in published(self.root).items():
            if self._objects.get(key, (None,))[0] is not file:
                self._objects[key] = (file, rows_of_object(key, file.getvalue()) if not key.startswith("videos/") else {})
            for group, rows in self._objects[key][1].items():
                assert group not in there, f"{group} is in {there[group]} and in {key}"
                assert rows == self._rows_of(group), f"{group} of {key} is there in part"
                there[group] = key
        fewer = {group: key for group, key in self._before.items() if group not in there}
        if fewer:
            given_up = {planned["key"] for epoch in self.log().epochs.values() if epoch.abandoned
                        for planned in epoch.plan.body["objects"]}  # fmt: skip
            assert set(fewer.values()) <= given_up, f"rows vanished: {fewer}"
            assert not fewer.keys() & {group for key in fewer.values() for group in self._objects[key][1]}
            self.tried["videos whose rows were taken back"] += len(fewer)
        self._before = there

    def _rows_of(self, group: Group) -> Rows | None:
        video = group[2]
        if video not in self._whole:
            self._whole[video] = expected(self.programs.was[video])
        return self._whole[video].get(group)

    def _ended(self, actor: Actor) -> None:
        self.tried["actors that came to their end"] += 1
        self.tried["operations"] += actor.operations
        is_explained = actor.error is None or (self.vanished and isinstance(actor.error, PromiseBroken))
        is_explained |= isinstance(actor.error, Busy) and not self.is_conditional
        if not is_explained:
            raise AssertionError(f"actor {actor.name} failed after {actor.next}") from actor.error
        if actor.session is not None and actor.stopped is None and actor.error is None:
            rows, due = self._ledger_rows(actor.session.run_id), actor.session.sums.due
            assert rows == due, f"run {actor.session.run_id} ended well with {rows} rows of {due} due sources"

    # --- how it ends ---

    def teardown(self) -> None:
        try:
            if self.is_sound and self.programs.archive:
                self._end()
        finally:
            for actor in self.actors:
                actor.kill()
            for path in self.paths("/"):
                del MemoryFileSystem.store[path]

    def _end(self) -> None:
        self.programs.is_mended = True
        self._last_runs("y")
        self._all_is_well()
        done = groups_of(Store(self.root))
        if not self.is_conditional:  # there, whoever sleeps through their lease must not wake up
            self._count()
            return
        for zombie in self.actors:
            zombie.go()
            self._look()
            self._ended(zombie)
        self.actors = []
        assert groups_of(Store(self.root)) == done
        self._current_is_of_the_latest()
        self._last_runs("z")
        self._all_is_well()
        self._count()

    def _count(self) -> None:
        log = self.log()
        self.tried["machines"] += 1
        self.tried["runs that were begun"] += len(log.runs)
        self.tried["runs closed by others"] += sum(
            state.closed is not None and "sums" not in state.closed.body for state in log.runs.values()
        )
        self.tried["epochs committed"] += sum(epoch.commit is not None for epoch in log.epochs.values())
        self.tried["epochs taken back"] += sum(epoch.void for epoch in log.epochs.values())

    def _last_runs(self, name: str) -> None:
        for number, prompt in enumerate(PROMPTS):
            videos = [mended(video) for video in self.programs.archive.values()]
            world = World(self.store(), videos, Steps(f"{name}{number}"), caption=prompt, retry_failed=True)
            self.time.advance(LATER_S)
            world.steps.now = self.time.now
            world.run()
            self.time.now = world.steps.now
            self._look()

    def store(self) -> Store:
        return Store(self.root) if self.is_conditional else UnconditionalStore(self.root)

    def _all_is_well(self) -> None:
        videos = list(self.programs.archive.values())
        wanted = {group: rows for video in videos for group, rows in expected(video).items()}
        found = {group: rows for group, rows in groups_of(Store(self.root)).items() if group in wanted}
        compared({str(g): r for g, r in wanted.items()}, {str(g): r for g, r in found.items()}).check()
        for prompt in PROMPTS:
            config, entries = job(caption=prompt)
            due = Session.look(Store(self.root), config, entries).due(sources(videos))
            assert due.num_rows == 0, f"still due: {due['uri'].to_pylist()}"
        assert [str(finding) for finding in verify(Store(self.root), self.time.now)] == []
        for run in self.log().runs:
            self._ledger_rows(run)

    def _current_is_of_the_latest(self) -> None:
        """Of the runs that published or closed themselves, the one that was opened last."""
        log = self.log()
        published = {run for run, state in log.runs.items() if any(log.epochs[number].commit for number in state.epochs)}
        runs = [run for run, state in log.runs.items() if run in published or (state.closed and "sums" in state.closed.body)]
        named = json.loads(Store(self.root).read("_current.json"))["entries"]
        assert named == log.runs[runs[-1]].opened.body["recipe"]["entries"], "_current.json names an older configuration"

    def _ledger_rows(self, run: str) -> int:
        """Videos with a row of this run, which is exactly one."""
        rows: Counter[str] = Counter()
        for key, file in published(self.root).items():
            if key.startswith("videos/") and f"/part-{run}-" in key:
                rows.update(pq.ParquetFile(BytesIO(file.getvalue())).read(["video_id"])["video_id"].to_pylist())
        assert set(rows.values()) <= {1}, f"run {run} has two rows of {[key for key, count in rows.items() if count > 1]}"
        return len(rows)


class OneAtATime(Protocol):
    """A store that takes every write: a run begins once the lease of the one before has lapsed, and that one never wakes up."""

    is_conditional, most_actors = False, 1

    def be_overtaken(self) -> None:  # type: ignore[override]
        """Not here."""

    def others_come(self) -> None:  # type: ignore[override]
        """Not here."""

    @precondition(lambda self: not self.actors)
    @rule(what=st.sampled_from(["a lease lapses", "midnight"]))
    def time_passes(self, what: str) -> None:  # type: ignore[override]
        super().time_passes(what, 0)


def tried(machine: type[Protocol], case: int, examples: int, steps: int) -> Counter[str]:
    """Runs a machine; a failure prints the steps that lead to it, and `case` is its seed."""
    made = seed(case)(type(machine.__name__, (machine,), {"tried": Counter()}))
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    run_state_machine_as_test(made, settings=chosen)
    return made.tried


@pytest.mark.timeout(1800)
@pytest.mark.cases(quick=1, long=10)
def test_promises_1_2_3_and_6_whatever_runs_do_to_each_other(case: int, is_long: bool, record: Record) -> None:
    found = tried(Protocol, case, 26 if is_long else 5, 50)
    record("protocol steps", Damage(), found["steps"])
    tell(found, record)


@pytest.mark.timeout(1800)
@pytest.mark.cases(quick=1, long=2)
def test_promises_1_2_3_and_6_with_one_run_at_a_time_where_writes_have_no_conditions(
    case: int, is_long: bool, record: Record
) -> None:
    found = tried(OneAtATime, case, 30 if is_long else 3, 40)
    record("protocol steps without conditional writes", Damage(), found["steps"])
    tell(found, record)


def tell(found: Counter[str], record: Record) -> None:
    for what, count in found.items():
        if what != "steps":
            so_far = int(record.figures.get(f"protocol: {what}", "0").replace(",", ""))
            record.figure(f"protocol: {what}", f"{so_far + count:,}")
