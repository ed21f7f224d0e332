"""Whole runs, each a program of its own, killed at any time and started again: the tables are those of a run left alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.gather import EpochPlan
from pipeline.log import EpochAbandoned, Log
from pipeline.publish import PartsMissing, publish
from pipeline.recovery import unlock
from pipeline.verify import verify
from stages.storage import Store
from tests.faults.archives import make_archive
from tests.faults.damage import Damage, compared
from tests.faults.driver import ROOT, Ended, Spec, differences, finish
from tests.faults.head import running_address
from tests.faults.onlooker import Onlooker, onlooker
from tests.faults.record import Record
from tests.pipeline.faults import FaultyStore
from tests.pipeline.published import comparable
from tests.s3 import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800), pytest.mark.usefixtures("ray_session")]
SETS = ("classify=[]", "resources.epoch_clips=4")
EMBED = ("classify=[]", "caption=[]", "resources.epoch_clips=4")
PAUSE_S = 0.1
POINTS = 16


@dataclass(frozen=True)
class Job:
    """A run as it is asked for."""

    archive: str
    output: str
    address: str
    has_model: bool = False
    sets: tuple[str, ...] = ()

    def start(self) -> subprocess.Popen[str]:
        """`clipmill run`, in a session of its own."""
        where = ["--input", self.archive, "--output", self.output, "--address", self.address, "--max-failed", "100%"]
        preset = ["--preset", "embedded"] if self.has_model else []
        sets = [part for one in (*(EMBED if self.has_model else SETS), *self.sets) for part in ("--set", one)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "pipeline", "run", *where, *preset, *sets]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)

    def run(self) -> Ended:
        """To its end."""
        return finish(self.start())


@dataclass(frozen=True)
class Undisturbed:
    """A run that was left alone: how long it took, and its rows."""

    life_s: float
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_archive(tmp_path_factory.mktemp("runs") / "archive", videos=18, frames=60))


@pytest.fixture(scope="module")
def address(ray_session: None) -> str:
    return running_address()


@pytest.fixture(scope="module")
def undisturbed(archive: str, address: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Undisturbed]:
    """By whether it has a model: made when first asked for."""
    known: dict[bool, Undisturbed] = {}

    def measured(has_model: bool) -> Undisturbed:
        if has_model not in known:
            job = Job(archive, str(tmp_path_factory.mktemp("undisturbed") / "out"), address, has_model)
            began_s = time.monotonic()
            ended = job.run()
            assert ended.code == 0, ended
            known[has_model] = Undisturbed(time.monotonic() - began_s, comparable(job.output))
        return known[has_model]

    return measured


@pytest.fixture(scope="module")
def stranger(s3: S3Server) -> Iterator[Onlooker]:
    with onlooker() as looking:
        yield looking


def kill_during(job: Job, after_s: float) -> bool:
    """Whether the run was still there to be killed."""
    process = job.start()
    try:
        process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


def waits(rng: random.Random, case: int, life_s: float) -> list[float]:
    """When to kill the runs one after the other: one, two in a row, or one and then the recovery."""
    first = rng.random() * life_s
    again = {0: [], 1: [rng.random() * life_s], 2: [rng.random() * 0.4 * life_s]}[case % 3]
    return [first, *again]


def battered(job: Job, rng: random.Random, case: int, life_s: float) -> int:
    """Starts and kills runs; how many were killed. A run that is too quick to be killed ends the attack on it."""
    kills = 0
    for after_s in waits(rng, case, life_s):
        if not kill_during(job, after_s):
            break
        kills += 1
    return kills


class Zombies:
    """Workers of dead runs that do not know it: they go on publishing beside the next run, and stage what they had staged.

    Ray ends the workers of a driver that dies, in a moment where they are on its machine; elsewhere it may take longer.
    """

    def __init__(self, output: str) -> None:
        self._store = Store(output)
        self._plans = list(pending(self._store))
        self._parts = {found.key: self._store.read(found.key) for found in self._store.list("_runs") if "/parts/" in found.key}
        self._pool = ThreadPoolExecutor(2)
        self._working = [self._pool.submit(self._publish, plan, PAUSE_S) for plan in self._plans]

    def _publish(self, plan: EpochPlan, pause_s: float) -> None:
        with contextlib.suppress(PartsMissing, EpochAbandoned):
            publish(FaultyStore(self._store.root, watch=lambda _: time.sleep(pause_s)), plan)

    def finish(self) -> None:
        """Once more, after everything is over; raises what a worker should not have met."""
        for working in self._working:
            working.result()
        self._pool.shutdown()
        for plan in self._plans:
            self._publish(plan, 0)

    def stage(self) -> None:
        """Leaves parts behind that nobody wants any more."""
        for key, data in self._parts.items():
            with contextlib.suppress(FileExistsError):
                self._store.create(key, data)


def pending(store: Store) -> Iterator[EpochPlan]:
    """Plans that nobody has committed yet."""
    log = Log(store)
    log.refresh()
    return (EpochPlan.of(epoch.plan) for epoch in log.epochs.values() if epoch.is_pending)


def checked(job: Job, expected: Undisturbed, stranger: Onlooker, attack: Callable[[], object], sweeps: bool = False) -> Damage:
    """What an attack did, once a last run has gone to its end beside workers that outlived theirs.

    With `sweeps` these leave parts behind in the end, and one more run has to clear them away.
    """
    stranger.watch(job.output)
    try:
        attack()
        zombies = Zombies(job.output)
        last = job.run()
        zombies.finish()
        if sweeps:
            zombies.stage()
            assert "nothing was due" in job.run().said
    except subprocess.TimeoutExpired:
        stranger.stop()
        return Damage(hangs=1)
    seen = stranger.stop()
    assert last.code == 0, last
    assert seen.looks
    found = comparable(job.output)
    damage = compared(expected.rows, found)
    print(differences(expected.rows, found))
    findings = verify(Store(job.output))
    assert not findings, findings
    return damage + Damage(partial_views=seen.partial_views(job.output))


def attack(job: Job, expected: Undisturbed, stranger: Onlooker, rng: random.Random, case: int) -> tuple[int, Damage]:
    kills: list[int] = []
    damage = checked(job, expected, stranger, lambda: kills.append(battered(job, rng, case, expected.life_s)), case % 4 == 0)
    return kills[0], damage


@pytest.mark.cases(quick=1, long=28)
def test_promise_3_runs_on_disk_that_are_killed_at_any_time_leave_the_tables_of_one_left_alone(
    case: int,
    archive: str,
    address: str,
    undisturbed: Callable[[bool], Undisturbed],
    stranger: Onlooker,
    record: Record,
    tmp_path: Path,
) -> None:
    has_model = case % 8 == 7
    expected, rng = undisturbed(has_model), random.Random(f"runs-disk-{case}")
    kills = 0
    while not kills:  # a run that ended before its time came is not one that was killed
        job = Job(archive, str(tmp_path / f"out-{rng.random()}"), address, has_model)
        kills, damage = attack(job, expected, stranger, rng, case)
        record("random kills of whole runs, on disk", damage, kills)
        damage.check()


@pytest.mark.s3
@pytest.mark.cases(quick=1, long=14)
def test_promise_3_runs_on_s3_that_are_killed_at_any_time_leave_the_tables_of_one_left_alone(
    case: int,
    archive: str,
    address: str,
    undisturbed: Callable[[bool], Undisturbed],
    stranger: Onlooker,
    record: Record,
    s3: S3Server,
) -> None:
    expected, rng = undisturbed(False), random.Random(f"runs-s3-{case}")
    kills = 0
    while not kills:
        job = Job(archive, f"{s3.bucket()}/tables", address)
        kills, damage = attack(job, expected, stranger, rng, case)
        record("random kills of whole runs, on S3", damage, kills)
        damage.check()


def stopped_for(job: Job, after_s: float) -> None:
    """Stops a run, lets another take its place and finish, then lets the first one go on.

    The first one keeps its share of the cluster, so the other one has to do with little.
    """
    process = job.start()
    try:
        process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGSTOP)
        try:
            unlock(Store(job.output))
            other = replace(job, sets=("resources.decode_cpus=0.08",)).run()
        finally:
            process.send_signal(signal.SIGCONT)
        assert other.code == 0, other
        woken = finish(process)
        assert woken.code in (0, 4), woken
        assert "Traceback" not in woken.said, woken


def dead_at_a_write(job: Job, rng: random.Random, case: int) -> None:
    """A run whose driver kills itself at one of its writes, before or after it took effect."""
    kill_at = 2 * case + rng.randrange(2)
    spec = Spec(job.archive, job.output, job.address, SETS, kill_at=kill_at, after=rng.random() < 0.5)
    assert finish(spec.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)).code == -signal.SIGKILL


@pytest.mark.s3
@pytest.mark.cases(quick=1, long=26)
def test_promises_2_and_3_a_driver_that_dies_at_a_write_or_sleeps_while_another_run_takes_its_place_does_no_damage(
    case: int,
    archive: str,
    address: str,
    undisturbed: Callable[[bool], Undisturbed],
    stranger: Onlooker,
    record: Record,
    s3: S3Server,
    tmp_path: Path,
) -> None:
    expected, rng = undisturbed(False), random.Random(f"runs-points-{case}")
    sleeps = case >= POINTS
    job = Job(archive, f"{s3.bucket()}/tables" if sleeps and case % 2 else str(tmp_path / "out"), address)
    if sleeps:
        after_s = (0.3 + 0.6 * rng.random()) * expected.life_s
        damage = checked(job, expected, stranger, lambda: stopped_for(job, after_s))
    else:
        damage = checked(job, expected, stranger, lambda: dead_at_a_write(job, rng, case))
    record("runs that slept while another took their place" if sleeps else "drivers that die at a write of theirs", damage)
    damage.check()
