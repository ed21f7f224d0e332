"""Workers, actors and whole nodes that die while they are busy: the run goes on, and nobody pays for somebody else's end."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.verify import verify
from pipeline.worknotes import read
from stages.storage import Store
from tests.faults.archives import make_archive
from tests.faults.damage import Damage, compared
from tests.faults.driver import Ended, Spec, differences, finish
from tests.faults.head import WAIT_S, caught, grid, kill, running_address
from tests.faults.record import Record
from tests.media import textured, write_video
from tests.pipeline.published import comparable, table

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]
SETS = ("classify=[]", "resources.epoch_clips=4")
EMBED = ("classify=[]", "caption=[]", "resources.epoch_clips=4")
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
PAUSE_S = 0.15
Rows = dict[str, list[dict[str, Any]]]
Busy = Callable[[Spec, Callable[[], bool], int], int]  # the pid of a worker that is just at work


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_archive(tmp_path_factory.mktemp("cluster") / "archive"))


@pytest.fixture(scope="module")
def expected(archive: str, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Rows]:
    """Rows of a run that was left alone, by whether it has a model."""
    known: dict[bool, Rows] = {}

    def rows(has_model: bool) -> Rows:
        if has_model not in known:
            spec = spec_of(archive, tmp_path_factory.mktemp("undisturbed"), running_address(), has_model)
            known[has_model] = undisturbed(spec)
        return known[has_model]

    return rows


def undisturbed(spec: Spec) -> Rows:
    ended = finish(spec.start(**PIPES))
    assert ended.code == 0, ended
    return comparable(spec.output)


def spec_of(archive: str, folder: Path, address: str, has_model: bool = False, **rest: Any) -> Spec:
    chosen = {"preset": "embedded", "sets": EMBED} if has_model else {"sets": SETS}
    return Spec(**{"input": archive, "output": str(folder / "out"), "address": address, "marks": str(folder), **chosen, **rest})


def damage_of(ended: Ended, spec: Spec, expected: Rows) -> Damage:
    """What is wrong with the tables of a run that has ended well."""
    assert ended.code == 0, ended
    found = comparable(spec.output)
    print(differences(expected, found))
    assert not verify(Store(spec.output))
    missed = {row["uri"] for row in expected["videos"]} ^ {row["uri"] for row in found["videos"]}
    statuses = {row["uri"]: row["status"] for row in found["videos"]}
    harmed = sum(statuses.get(row["uri"]) != row["status"] for row in expected["videos"])
    return compared(expected, found) + Damage(harmed=harmed + len(missed))


def ended(process: subprocess.Popen[str], attack: Callable[[Callable[[], bool]], None]) -> Ended:
    """Attacks a run, and waits for its end."""
    try:
        attack(lambda: process.poll() is None)
        return finish(process)
    finally:
        process.kill()
        process.communicate()


def publishing(spec: Spec, is_alive: Callable[[], bool], skip: int) -> int:
    """The pid of a worker that publishes."""
    seen: set[str] = set()
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        seen |= {path.name for path in Path(spec.marks).iterdir() if path.name[0].isdigit()}
        for name in sorted(seen):
            if len(seen) > skip and (Path(spec.marks) / name).exists():
                return int(name.partition(".")[0])
        assert is_alive(), "the run ended before it could be caught"
        time.sleep(0.02)
    raise AssertionError("nobody publishes")


def at(step: str) -> Busy:
    return lambda spec, is_alive, skip: caught(step, spec.input, is_alive, skip).owner.pid


MODELS = "embed + stage parts"  # the step of the models' actors, where there are no GPUs
# what dies -> whether the run has a model, which part is slow, who is caught, how many others are let pass first
WORKERS: dict[str, tuple[bool, str, Busy, int]] = {
    "decode workers": (False, "decode_pause_s", at("decode"), 8),
    "model actors": (True, "model_pause_s", at(MODELS), 8),
    "publishing workers": (False, "publish_pause_s", publishing, 1),
    "staging workers": (False, "stage_pause_s", at("stage parts"), 8),
}
NODES = {"nodes that decode": "decode", "nodes whose actor holds a batch": MODELS}
KINDS = (*WORKERS, *NODES)


def workers_killed(kind: str, rng: random.Random, archive: str, folder: Path, kills: int) -> tuple[Ended, Spec]:
    """A run some of whose workers are killed one after the other."""
    has_model, slow, busy, others = WORKERS[kind]
    spec = spec_of(archive, folder, running_address(), has_model, **{slow: PAUSE_S})

    def attack(is_alive: Callable[[], bool]) -> None:
        for number in range(kills):
            kill(busy(spec, is_alive, 0 if number else rng.randrange(others)))

    return ended(spec.start(**PIPES), attack), spec


def node_lost(kind: str, rng: random.Random, archive: str, folder: Path) -> tuple[Ended, Spec]:
    """A run on a cluster that loses one of its two nodes; what was busy there is what `kind` names."""
    step = NODES[kind]
    with grid() as nodes:
        nodes.grow(2)
        slow = {"decode_pause_s": PAUSE_S, "model_pause_s": PAUSE_S}
        spec = spec_of(archive, folder, nodes.address, step == MODELS, **slow)

        def lose(is_alive: Callable[[], bool]) -> None:
            nodes.lose(caught(step, archive, is_alive, rng.randrange(8)).node)

        return ended(spec.start(**PIPES), lose), spec


@pytest.mark.usefixtures("ray_session")
@pytest.mark.cases(quick=1, long=18)
def test_promise_3_and_4_whatever_dies_while_busy_worker_actor_or_node_the_tables_are_as_if_nothing_had_happened(
    case: int, archive: str, expected: Callable[[bool], Rows], record: Record, tmp_path: Path
) -> None:
    kind, rng = KINDS[case % len(KINDS)], random.Random(f"cluster-{case}")
    kills = 1 if kind in NODES else 1 + case // len(KINDS) % 2
    rows = expected(kind in ("model actors", "nodes whose actor holds a batch"))
    if kind in NODES:
        result, spec = node_lost(kind, rng, archive, tmp_path)
    else:
        result, spec = workers_killed(kind, rng, archive, tmp_path, kills)
    damage = damage_of(result, spec, rows)
    record(f"busy {kind} killed", damage, kills)
    damage.check()


def evil_archive(folder: Path, names: list[str]) -> str:
    """Good videos, and some of names that a decoder or a model is told to die of."""
    folder.mkdir()
    for number, name in enumerate([*(f"good-{number}" for number in range(6)), *names]):
        write_video(folder / f"{name}.mp4", textured(30, seed=number, size=(64, 48)))
    return str(folder)


EVIL_SETS = ("resources.worker_memory_bytes=400000000",)
EVILS = {
    "decode": ["segfault-1", "raise-1", "hang-1", "eat-1", "abort-1", "segfault-2"],
    "embed": ["poison-1", "assert-1", "poison-2", "assert-2"],
}


@pytest.mark.cases(quick=1, long=3)
def test_promise_4_what_segfaults_hangs_or_eats_memory_is_quarantined_after_two_tries_alone_or_named_where_nothing_ends_it(
    case: int, is_long: bool, record: Record, ray_session: None, tmp_path: Path
) -> None:
    if case < len(EVILS):
        what_is_evil_is_quarantined(list(EVILS)[case], is_long, record, tmp_path)
    else:
        a_stalled_run_says_which_unit_is_where_publishes_what_is_complete_and_ends_with_4(record, tmp_path)


def what_is_evil_is_quarantined(step: str, is_long: bool, record: Record, tmp_path: Path) -> None:
    evil = EVILS[step] if is_long else EVILS[step][:2]
    archive = evil_archive(tmp_path / "archive", evil)
    spec = spec_of(archive, tmp_path / "left alone", running_address(), step == "embed")
    rows = undisturbed(spec)
    how: dict[str, Any] = {"evil_deadline_s": 4.0} if step == "decode" else {"is_poisoned": True}
    sets = (*spec.sets, *EVIL_SETS)
    attacked = replace(spec, output=str(tmp_path / "attacked"), sets=sets, **how)
    done = finish(attacked.start(**PIPES))
    assert done.code == 0, done
    ledger = {Path(row["uri"]).stem: row for row in table(attacked.output, "videos")}
    lost = {name for name in evil if (ledger[name]["status"], ledger[name]["error_code"]) != ("quarantined", "killed")}
    assert not lost, [ledger[name] for name in sorted(lost)]
    good = [only_good(found, evil) for found in (rows, comparable(attacked.output))]
    damage = compared(*good)
    record(f"videos that end their worker in {step}", damage, len(evil))
    damage.check()
    assert not verify(Store(attacked.output))
    assert "KeyError" in str(ledger["raise-1"]["error_message"]) if step == "decode" else True


def only_good(rows: Rows, evil: list[str]) -> Rows:
    bad = {row["video_id"] for row in rows["videos"] if Path(row["uri"]).stem in evil}
    return {name: [row for row in found if row["video_id"] not in bad] for name, found in rows.items()}


def a_stalled_run_says_which_unit_is_where_publishes_what_is_complete_and_ends_with_4(record: Record, tmp_path: Path) -> None:
    archive = evil_archive(tmp_path / "archive", ["hang-1"])
    sets = ("classify=[]", "resources.unit_deadline_s=1", "resources.stall_s=17")
    spec = spec_of(archive, tmp_path, running_address(), sets=sets, evil_deadline_s=1000.0)
    process = spec.start(**PIPES)
    note = caught_at("hang-1", process)
    done = finish(process)
    record("runs that stand still", Damage())
    assert done.code == 4, done
    assert "stalled: no receipt for 17.0 s" in done.said
    assert f"{archive}/hang-1.mp4: decode since" in done.said
    assert f"pid {note.owner.pid} on " in done.said
    assert "py-spy dump --pid" in done.said
    assert {Path(row["uri"]).stem for row in table(spec.output, "videos")} == {f"good-{number}" for number in range(6)}
    assert not verify(Store(spec.output))
    until = time.monotonic() + WAIT_S
    while not note.owner.is_gone():
        assert time.monotonic() < until, "the worker that hangs outlives its run"
        time.sleep(0.1)


def caught_at(name: str, process: subprocess.Popen[str]) -> Any:
    while True:
        for _, note in read("*"):
            if note.units and Path(note.units[0].uri).stem == name and not note.owner.is_gone():
                return note
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
