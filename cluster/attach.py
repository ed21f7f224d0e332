"""Attaching to a Ray cluster, or starting Ray on this machine for as long as a run takes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.alone import few_processes
from cluster.machines import ClusterSize, Group, from_ray, machine_of, this_machine
from schemas.errors import BadRequest

if TYPE_CHECKING:
    from cluster.probe import Answer

# Ray's own defaults talk a lot; a run reports for itself.
_QUIET_ENV = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of Ray Data's own statistics; ours are looked at
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what Ray prints of workers that die; read when Ray is imported
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that still asks when all is over would start another Ray; read likewise
    "TOKENIZERS_PARALLELISM": "false",
}
# How long a cluster is waited for: to accept a connection, to answer as Ray (and once more, as its head may be busy), and the
# whole probe with the start of Python.
_CONNECT_S = 5.0
_ANSWER_S = (4, 20)
_PROBE_S = 90.0
# Ray ends workers that were idle for a second where they are more than CPUs; ours are, and a new one takes seconds of a CPU.
IDLE_WORKER_MS = 60_000
# How often Ray's agent of a node looks at all of its processes, by default every 5 s: a hundredth of a run's CPU time, for
# figures that nobody reads where no port was asked for.
SELDOM_ENV = {"REPORTER_UPDATE_INTERVAL_MS": "60000"}
UNLIMITED = 1000  # machines of a group that has no limit, for what has to be a number
SUBMIT_HINT = "clipmill submit --address http://HEAD:8265 sends the run to a cluster from any machine"


@contextlib.contextmanager
def attached(
    address: str | None = None, *, object_store_bytes: int | None = None, metrics_port: int | None = None
) -> Iterator[ClusterSize]:
    """Holds a connection to Ray: to `address` (or "auto"), to a Ray that this process is connected to, or to one of its own.

    Only a Ray that was started here is shut down at the end. SIGTERM interrupts the block as Ctrl-C does. Raises BadRequest,
    within seconds, where `address` cannot be attached to.
    """
    if address is not None:
        _check_form(address)
    for name, value in _QUIET_ENV.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield cluster_size()
        return
    if address is not None:
        check_attachable(address)
    before = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory(prefix="clipmill-") as empty:
        _connect(address, object_store_bytes, metrics_port, Path(empty))
        try:
            with _sigterm_interrupts(before):
                yield cluster_size()
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _sigterm_interrupts(before: Any) -> Iterator[None]:
    """In place of the handler that Ray sets where it connects, which prints where its native code was and ends Python with 15.
    Afterwards `before` holds again.
    """
    if threading.current_thread() is not threading.main_thread():  # Ray sets none there, and nobody else may
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _check_form(address: str) -> None:
    scheme, separator, _ = address.partition("://")
    if scheme == "ray" and separator:
        raise BadRequest(f"--address {address}: Ray Data is not made for Ray Client; {SUBMIT_HINT}")
    if separator:
        raise BadRequest(f"--address {address}: should be the head's HOST:PORT, or auto; {SUBMIT_HINT}")
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise BadRequest(f"--address {address}: should be the head's HOST:PORT, such as 10.0.0.5:6379, or auto")


def check_attachable(address: str) -> None:
    """Raises BadRequest, one line that says why, unless a driver can attach to `address` (HOST:PORT or auto) from here.

    Takes seconds where nothing answers; Ray itself would wait for minutes.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except OSError as error:
            why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
            raise BadRequest(f"--address {address}: nothing to attach to ({why})") from error
    answer: Answer = {}
    for answer_s in _ANSWER_S:
        answer = _asked(address, answer_s)
        if answer.get("trouble") != "silent":
            break
    if trouble := told(answer):
        raise BadRequest(f"--address {address}: {trouble}")


def _asked(address: str, answer_s: int) -> Answer:
    """What the probe says of a cluster that has `answer_s` to answer."""
    program = Path(__file__).with_name("probe.py")
    env = os.environ | {
        "RAY_py_gcs_connect_timeout_s": str(answer_s),
        "RAY_gcs_rpc_server_connect_timeout_s": str(answer_s // 2),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    command = [sys.executable, "-P", str(program), address]  # -P: nothing of the caller's folder is imported
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return {"trouble": "silent"}
    try:
        answer: Answer = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except ValueError:
        return {"trouble": "crash", "said": done.stderr.strip().partition("\n")[0]}
    return answer


def told(answer: Answer) -> str | None:
    """What the probe found wrong, for people; None where all is well."""
    match answer.get("trouble"):
        case "no cluster":
            return f"{answer.get('said')}; give the head's HOST:PORT"
        case "silent":
            return (
                "what answers there is no Ray cluster, or its head is too busy to say so; give the head's HOST:PORT, as "
                "`ray start --head --port` had it"
            )
        case "crash":
            return f"Ray's client ended without an answer ({answer.get('said') or 'not a word'})"
        case "token":
            return (
                "the cluster wants another token than the one sent; set RAY_AUTH_MODE=token, and the cluster's token in "
                "RAY_AUTH_TOKEN or ~/.ray/auth_token"
            )
        case "versions":
            theirs, ours = ("Ray {} on Python {}".format(*answer[side]) for side in ("theirs", "ours"))
            return f"the cluster runs {theirs}, this is {ours}, and Ray wants them alike; {SUBMIT_HINT}"
        case "no node":
            return f"this machine is not one of the cluster's, and a run's driver has to be on one; {SUBMIT_HINT}"
    return None


def _connect(address: str | None, object_store_bytes: int | None, metrics_port: int | None, empty: Path) -> None:
    """Connects from the folder `empty`: Ray puts the driver's working directory on its workers' import path, where a
    folder called `stages` would hide ours.
    """
    import ray

    cpus = int(this_machine().cpus)  # as it was sized; Ray itself does not ask which CPUs a process is bound to
    own = {
        "include_dashboard": False,
        "num_cpus": cpus,
        "object_store_memory": object_store_bytes,
        "_metrics_export_port": metrics_port,
        "_system_config": {"idle_worker_killing_time_threshold_ms": IDLE_WORKER_MS},
    }
    local = {} if address else own
    if address is None and metrics_port is None:
        for name, value in SELDOM_ENV.items():
            os.environ.setdefault(name, value)
    try:
        with contextlib.chdir(empty), _without_native_chatter(), contextlib.nullcontext() if address else few_processes():
            # "local": without it Ray would join any cluster that somebody runs on this machine.
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except Exception as error:  # Ray says by a plain one that a node did not start in time
        where = f"--address {address}" if address else "Ray on this machine"
        raise BadRequest(f"{where}: {error}") from error


@contextlib.contextmanager
def _without_native_chatter() -> Iterator[None]:
    """Ray's native code greets on file descriptor 2, past every logger. What goes wrong reaches us as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cluster_size() -> ClusterSize:
    """The connected cluster's resources, as of now, and what it may grow to where Ray was told."""
    import ray

    return ClusterSize.of(from_ray(ray.nodes()), _groups())


def _groups() -> Iterator[Group]:
    """What an autoscaler has told Ray of the machines that it may bring.

    Those of managed clusters do; the one that comes with Ray 2.60 does not, on AWS or elsewhere.
    """
    from ray._private.state import state

    config = state.get_cluster_config() if hasattr(state, "get_cluster_config") else None
    for group in config.node_group_configs if config else ():
        if group.resources and group.max_count:
            yield Group(machine_of(group.resources), UNLIMITED if group.max_count < 0 else group.max_count)


def alive_nodes() -> frozenset[str]:
    """Ids of the nodes that are up."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
