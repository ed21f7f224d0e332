"""A cluster that has to grow before a run can be sized."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.machines import ClusterSize
from cluster.wait import POLL_S, call, wait
from schemas.errors import BadRequest
from tests.cluster.growing import ROOT, Growing, growing

HEAD_ALONE = ClusterSize(cpus=0, gpus=0, nodes=1)
Bundles = list[dict[str, float]]


class Slow:
    """A cluster that has another size every time somebody looks, and a clock that only sleeping moves."""

    def __init__(self, *sizes: ClusterSize) -> None:
        self.sizes, self.asked, self.now_s = list(sizes), list[Bundles](), 0.0

    def look(self) -> ClusterSize:
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def wait(self, cpus: int, gpus: int, timeout_s: float = 60.0) -> ClusterSize:
        return wait(cpus, gpus, timeout_s, ask=self.asked.append, look=self.look, sleep=self.sleep, clock=lambda: self.now_s)


def test_machines_are_asked_for_and_waited_for() -> None:
    grown = ClusterSize(cpus=2, gpus=1, nodes=2)
    cluster = Slow(HEAD_ALONE, HEAD_ALONE, ClusterSize(cpus=2, gpus=0, nodes=2), grown)
    assert cluster.wait(cpus=2, gpus=1) == grown
    assert cluster.asked == [[{"GPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}]]
    assert cluster.now_s == 3 * POLL_S


def test_machines_that_do_not_come_are_named_and_no_longer_asked_for() -> None:
    cluster = Slow(HEAD_ALONE, ClusterSize(cpus=32, gpus=1, nodes=3))
    with pytest.raises(
        BadRequest, match="8 CPUs and 2 GPUs did not come within 1 minutes; there are 32 CPUs and 1 GPUs on 3 nodes"
    ):
        cluster.wait(cpus=8, gpus=2)
    assert cluster.asked[-1] == []


def test_the_request_is_taken_back_when_the_waiting_is_cut_off() -> None:
    cluster = Slow(HEAD_ALONE)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait(1, 0, 60.0, ask=cluster.asked.append, look=cluster.look, sleep=interrupted)
    assert cluster.asked[-1] == []


@pytest.mark.parametrize(("program", "code"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_of_the_command_is_handed_on(program: str, code: int) -> None:
    assert call([sys.executable, "-c", program]) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_ends_in_order_is_waited_for(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, SIGTERM to the one that waits."""
    patient = (
        "import signal, sys, time; s = lambda *_: (time.sleep(0.5), print('published'), sys.exit(4)); "
        "signal.signal(15, s); signal.signal(2, s); open('ready', 'w').close(); time.sleep(60)"
    )
    program = f"import sys; from cluster.wait import call; sys.exit(call([sys.executable, '-c', {patient!r}]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    waiting = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "ready").exists():
        assert waiting.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(waiting.pid, number)
    else:
        waiting.send_signal(number)
    said, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, said) == (4, "published\n")


# --- with Ray's own autoscaler ---


def nodes(cluster: Growing, cwd: Path) -> int:
    program = f"import ray; ray.init({cluster.address!r}, log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    done = cluster.run(sys.executable, "-c", program, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.cluster
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_cluster_grows_from_the_head_alone_is_worked_on_and_shrinks_again(tmp_path: Path) -> None:
    """The groups of ray_cluster.yaml, small: what `ray up` leaves, a run by `cluster.wait`, and the idle timeout."""
    groups = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"]
    assert [groups[name].get("min_workers", 0) for name in groups] == [0, 0, 0]
    small = {
        "decode": {"resources": {"CPU": 1}, "max_workers": 2},
        "models": {"resources": {"CPU": 1, "GPU": 1}, "max_workers": 1},
    }
    # The timeout is shorter than the time that a run takes to begin: machines must stay until it has.
    with growing(small, idle_minutes=0.25) as cluster:
        archive = ["--input", "demo/archive", "--output", "out", "--preset", "embedded", "--set", "resources.device=cpu"]
        clipmill = [sys.executable, "-P", "-m", "pipeline"]
        run = [*clipmill, "run", *archive, "--address", cluster.address]
        wait_for = [sys.executable, "-P", "-m", "cluster.wait", "--address", cluster.address]
        rendered = cluster.run(sys.executable, "-P", "-c", RENDER, cwd=tmp_path)
        assert rendered.returncode == 0, rendered.stderr
        too_early = cluster.run(*run, cwd=tmp_path)
        assert too_early.returncode == 2, too_early.stdout + too_early.stderr
        assert "resources.decode_cpus" in too_early.stderr
        done = cluster.run(*wait_for, "--cpus", "2", "--gpus", "1", "--", *run, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 CPUs and 1 GPUs on 3 nodes" in done.stderr
        status = cluster.run(*clipmill, "status", "out", "--json", cwd=tmp_path)
        assert json.loads(status.stdout)["videos"]["ok"] == 3, status.stdout
        until = time.monotonic() + 300
        while nodes(cluster, tmp_path) > 1 and time.monotonic() < until:
            time.sleep(5)
        assert nodes(cluster, tmp_path) == 1
        missing = cluster.run(*wait_for, "--gpus", "2", "--minutes", "0.2", "--", "touch", "began", cwd=tmp_path)
        assert missing.returncode == 2
        assert "1 CPUs and 2 GPUs did not come within 0.2 minutes" in missing.stderr
        assert not (tmp_path / "began").exists()


RENDER = """
from pathlib import Path
from pipeline.demo_run import Demo
Demo(Path("demo"), 3, 1).render(print)
"""
