"""Nodes that join and leave while a run is at work. The head stays; the tables are those of a run that was left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.nodes import Nodes, started
from pipeline import worknotes
from pipeline.verify import verify
from stages.storage import Store
from tests.cluster.gated import ROOT, Gated
from tests.cluster.growing import Growing, growing
from tests.faults.archives import make_archive
from tests.faults.damage import compared
from tests.faults.driver import differences, finish
from tests.pipeline.published import comparable, table
from tests.s3 import environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]
DECODED_ONLY = ("classify=[]", "resources.epoch_clips=4")
EMBEDDED = ("classify=[]", "caption=[]", "resources.epoch_clips=4")
MODELS = "embed + stage parts"  # the step of the models' actors, where there are no GPUs
POLL_S, WAIT_S = 0.1, 300.0
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_archive(tmp_path_factory.mktemp("elastic") / "archive"))


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """Stages that stand in tests are imported by their module's name in the workers too."""
    with environment({"PYTHONPATH": str(ROOT)}):
        yield


def undisturbed(archive: str, folder: Path, address: str | None, **how: Any) -> Rows:
    """Of a run that nobody touches."""
    run = Gated(archive, str(folder / "undisturbed"), address, str(folder), **how)
    with run.started() as process:
        done = finish(process)
    assert done.code == 0, done
    return comparable(run.output)


def check_tables(output: str, expected: Rows) -> None:
    """Row for row those of the undisturbed run; so nobody is quarantined for the death of a node."""
    found = comparable(output)
    compared(expected, found).check(differences(expected, found))
    assert not verify(Store(output))
    assert "quarantined" not in {row["status"] for row in table(output, "videos")}


def busy(step: str, nodes: Nodes, process: subprocess.Popen[str]) -> str:
    """The id of a worker node that is at work in a step. Others' runs leave notes on this machine, too."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        for _, note in worknotes.read("*"):
            is_working = note.step == step and note.state == "working" and not note.owner.is_gone()
            if is_working and any(node.is_named(note.node) for node in nodes.workers):
                return note.node
        time.sleep(POLL_S)
    raise AssertionError(f"no node was seen in {step}")


def test_promise_3_a_node_that_joins_goes_on_where_one_was_lost_while_it_decoded(archive: str, tmp_path: Path) -> None:
    with started(1) as nodes, environment(nodes.env):
        expected = undisturbed(archive, tmp_path, nodes.address, sets=DECODED_ONLY)
        run = Gated(archive, str(tmp_path / "out"), nodes.address, str(tmp_path), ["decode"], sets=DECODED_ONLY)
        with run.started() as process:
            first = busy("decode", nodes, process)
            nodes.grow(2)
            nodes.lose(first)
            run.open("decode")
            done = finish(process)
    assert done.code == 0, done
    check_tables(run.output, expected)


@pytest.mark.cluster
def test_promise_3_and_8_from_one_node_to_three_and_back_by_the_loss_of_one_that_decodes_and_of_one_whose_actor_holds_a_batch(
    archive: str, tmp_path: Path
) -> None:
    """The head loses no process: it is the same one that the run began with that ends it."""
    with started(1) as nodes, environment(nodes.env):
        expected = undisturbed(archive, tmp_path, nodes.address, preset="embedded", sets=EMBEDDED)
        steps = ["decode", MODELS]
        run = Gated(archive, str(tmp_path / "out"), nodes.address, str(tmp_path), steps, "embedded", EMBEDDED)
        with run.started() as process:
            first = busy("decode", nodes, process)
            nodes.grow(3)
            nodes.lose(first)
            run.open("decode")
            nodes.lose(busy(MODELS, nodes, process))
            run.open(MODELS)
            done = finish(process)
        assert [node.is_gone for node in nodes.workers].count(True) == 2
    assert done.code == 0, done
    check_tables(run.output, expected)


# --- with Ray's own autoscaler ---


class Watched:
    """How many nodes a cluster has, again and again, from a process of its own: one line for each number."""

    PROGRAM = (
        "import ray, sys, time; ray.init({address!r}, log_to_driver=False)\n"
        "while True: print(sum(n['Alive'] for n in ray.nodes()), flush=True); time.sleep(0.5)"
    )

    def __init__(self, cluster: Growing, cwd: Path) -> None:
        command = [sys.executable, "-c", self.PROGRAM.format(address=cluster.address)]
        self._process = subprocess.Popen(command, cwd=cwd, env=dict(cluster.env), stdout=subprocess.PIPE, text=True)
        self.counts: list[int] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdecimal():
                self.counts.append(int(line))

    def wait_for(self, count: int, timeout_s: float = 300.0) -> None:
        until = time.monotonic() + timeout_s
        while not self.counts or self.counts[-1] != count:
            assert time.monotonic() < until, self.counts
            time.sleep(0.5)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()


@pytest.mark.cluster
def test_promise_3_a_run_grows_its_cluster_from_the_head_alone_to_what_the_configuration_allows_and_it_shrinks_again(
    archive: str, tmp_path: Path
) -> None:
    """Two machines that decode and one with an L4, a claimed one. Refused as long as nobody knows that any may come."""
    expected = undisturbed(archive, tmp_path, None, preset="embedded", sets=EMBEDDED)
    groups = {
        "decode": {"resources": {"CPU": 1}, "max_workers": 2},
        "models": {"resources": {"CPU": 1, "GPU": 1, "accelerator_type:L4": 1}, "max_workers": 1},
    }
    machines = "resources.machines=[{cpus: 1, most: 2}, {cpus: 1, gpus: 1, accelerator_type: L4, most: 1}]"
    with growing(groups, idle_minutes=0.25) as cluster:
        watched = Watched(cluster, tmp_path)
        sets, pause_s = (*EMBEDDED, machines, "resources.accelerator_type=L4"), 6.0  # slow enough for machines to come
        run = Gated(
            archive, str(tmp_path / "out"), cluster.address, str(tmp_path), ["decode"], "embedded", sets, pause_s
        )  # fmt: skip
        run.open("decode")
        asked = ["--preset", "embedded", "--input", archive, "--output", "out", "--address", cluster.address]
        try:
            refused = cluster.run(sys.executable, "-P", "-m", "pipeline", "plan", *asked, cwd=tmp_path)
            assert refused.returncode == 2, refused
            assert "say which in resources.machines" in refused.stderr
            with environment(dict(cluster.env)), run.started() as process:
                done = finish(process, timeout_s=900)
            assert done.code == 0, done
            watched.wait_for(1)
        finally:
            watched.stop()
    assert max(watched.counts) == 4, watched.counts
    check_tables(run.output, expected)
