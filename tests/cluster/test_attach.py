"""Clusters that cannot be attached to: each is one line that names the address, within seconds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from cluster import attach
from cluster.attach import attached, check_attachable, told
from schemas.errors import BadRequest
from tests.cluster.heads import Head

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # other work may be on the machine


def refusal(address: str) -> str:
    with pytest.raises(BadRequest) as caught:
        check_attachable(address)
    said = str(caught.value)
    assert said.startswith(f"--address {address}: ")
    return said.removeprefix(f"--address {address}: ")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "not made for Ray Client; clipmill submit --address http://HEAD:8265"),
        ("http://head:8265", "should be the head's HOST:PORT, or auto; clipmill submit --address http://HEAD:8265"),
        ("head", "should be the head's HOST:PORT, such as"),
        ("head:", "should be the head's HOST:PORT, such as"),
        (":6379", "should be the head's HOST:PORT, such as"),
        ("head:70000", "should be the head's HOST:PORT, such as"),
        ("", "should be the head's HOST:PORT, such as"),
    ],
)
def test_what_is_no_address_of_a_head_is_refused_by_its_form(address: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught, attached(address):
        pass
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"trouble": "no cluster", "said": "no cluster runs on this machine"}, "no cluster runs on this machine; give"),
        ({"trouble": "silent"}, "no Ray cluster"),
        ({"trouble": "crash", "said": "Check failed"}, "ended without an answer (Check failed)"),
        ({"trouble": "token"}, "RAY_AUTH_MODE=token"),
        (
            {"trouble": "versions", "theirs": ["2.61.0", "3.12.1"], "ours": ["2.60.0", "3.11.7"]},
            "runs Ray 2.61.0 on Python 3.12.1, this is Ray 2.60.0 on Python 3.11.7",
        ),
        ({"trouble": "no node"}, "this machine is not one of the cluster's"),
    ],
)
def test_every_trouble_has_words_of_its_own(answer: dict[str, object], said: str) -> None:
    line = told(answer)  # type: ignore[arg-type]
    assert line is not None
    assert said in line


def test_no_trouble_is_silence() -> None:
    assert told({"trouble": None}) is None


def test_a_port_where_nobody_listens_and_a_host_that_is_none_are_named() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and deaf
        assert refusal(f"127.0.0.1:{unused.getsockname()[1]}") == "nothing to attach to (connection refused)"
    assert refusal("nowhere.invalid:6379").startswith("nothing to attach to (")


@contextmanager
def mute() -> Iterator[str]:
    """Takes every connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.cluster
def test_what_takes_connections_and_is_no_cluster_is_named() -> None:
    with mute() as address:
        assert refusal(address).startswith("what answers there is no Ray cluster")


@pytest.mark.cluster
@pytest.mark.parametrize("stopped_s", [6.0, 14.0])
def test_a_cluster_whose_head_is_busy_for_a_while_is_waited_for(stopped_s: float, let_in: Head) -> None:
    (store,) = [process for process in let_in.processes() if process.name() == "gcs_server"]
    store.suspend()
    timer = threading.Timer(stopped_s, store.resume)
    timer.start()
    try:
        check_attachable(let_in.address)
    finally:
        timer.join()


PUT = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_put(b"CLUSTER_METADATA", sys.argv[2].encode(), True, b"cluster")
"""


@contextmanager
def started_with(head: Head, ray: str, python: str) -> Iterator[None]:
    """The head believes that it was started with other versions."""
    import platform

    import ray as ours

    def put(*versions: str) -> None:
        metadata = dict(zip(("ray_version", "python_version"), versions, strict=True)) | {"ray_init_cluster": False}
        head.run([sys.executable, "-c", PUT, head.address, json.dumps(metadata)]).check_returncode()

    put(ray, python)
    try:
        yield
    finally:
        put(ours.__version__, platform.python_version())


@pytest.fixture
def let_in(ray_head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, ray_head.env[name])
    return ray_head


@pytest.mark.cluster
def test_a_cluster_of_the_same_versions_can_be_attached_to_and_one_of_others_is_told_with_both(let_in: Head) -> None:
    check_attachable(let_in.address)
    with started_with(let_in, "2.55.0", "3.12.1"):
        assert refusal(let_in.address).startswith("the cluster runs Ray 2.55.0 on Python 3.12.1, this is Ray 2.")


@pytest.mark.ray
@pytest.mark.parametrize(("mode", "token"), [("disabled", None), ("token", None), ("token", "0" * 64)])
def test_a_cluster_that_wants_another_token_says_how_to_give_it(
    mode: str, token: str | None, ray_head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.ray/auth_token
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    assert "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN" in refusal(ray_head.address)


@pytest.mark.cluster
def test_a_run_that_no_cluster_takes_ends_with_2_and_writes_nothing(ray_head: Head, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    where = ["--input", str(tmp_path / "archive"), "--output", str(tmp_path / "out"), "--set", "classify=[]"]
    run = [sys.executable, "-m", "pipeline", "run", *where]
    with mute() as silent, started_with(ray_head, "2.55.0", "3.12.1"):
        for address in ("127.0.0.1:9", silent, ray_head.address):
            done = ray_head.run([*run, "--address", address], cwd=ROOT)
            assert done.returncode == 2, done
            assert done.stdout == ""
            assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == [
                done.stderr.splitlines()[-1]
            ]
            assert f"clipmill: --address {address}: " in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.cluster
def test_on_a_machine_that_is_no_node_of_the_cluster_submit_is_named(ray_head: Head) -> None:
    """In a pid namespace of its own a process sees no node on this machine."""
    probe = [sys.executable, "-P", str(ROOT / "cluster" / "probe.py"), ray_head.address]
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make namespaces")
    answer = json.loads(ray_head.run([*alone, *probe]).stdout.splitlines()[-1])
    assert answer["trouble"] == "no node"


def test_a_ray_that_does_not_start_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(BadRequest, match="Ray on this machine: The current node timed out"):
        attach._connect(None, None, None, tmp_path)


@pytest.mark.usefixtures("ray_session")
def test_workers_without_work_are_kept_for_the_next() -> None:
    import ray

    @ray.remote(num_cpus=0.01)
    def worker() -> int:
        time.sleep(1.0)  # so that each has a process of its own
        return os.getpid()

    pids = set(ray.get([worker.remote() for _ in range(4 * (os.cpu_count() or 1))]))
    time.sleep(4.0)  # Ray's own is one second, and it looks five times a second
    assert all(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.usefixtures("ray_session")
def test_a_ray_of_our_own_is_no_more_than_a_node_and_its_state() -> None:
    found = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    programs = {name for name in ("gcs_server", "raylet", "dashboard.py", "monitor.py") if any(name in one for one in found)}
    assert programs == {"gcs_server", "raylet"}


@pytest.mark.usefixtures("ray_session")
def test_a_ray_of_our_own_seldom_looks_at_its_processes_for_figures_that_nobody_asked_for() -> None:
    program = "from ray.dashboard.modules.reporter.reporter_consts import REPORTER_UPDATE_INTERVAL_MS as ms; print(ms)"
    raylet = next(child for child in psutil.Process().children() if child.name() == "raylet")  # which starts the one that looks
    started_with = {name: value for name, value in raylet.environ().items() if name.startswith("REPORTER")}
    done = subprocess.run([sys.executable, "-c", program], env=started_with, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 60_000
