"""A Ray cluster on this machine alone: a head and nodes that can be taken away, each a `ray start` of its own.

For trying out what becomes of a run when machines go. Every node has sockets, a temporary folder and ports of its own, listens
on this machine only, and lets in whoever has the cluster's token.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.attach import SELDOM_ENV
from schemas.errors import ClipmillError

HOST = "127.0.0.1"
STORE_BYTES = 200 << 20
# Longer than on machines of their own: together these nodes have more workers than this machine has processors, and many that
# start at a time take long.
IDLE_WORKER_MS = 600_000
START_S = 300.0
TRIES = 3
POLL_S = 0.2
_WAYS_TO_GO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STARTED = "Ray runtime started"


class NodeFailed(ClipmillError):
    """A node did not start."""


@dataclass
class Node:
    """One `ray start`: all processes of its session are this node. `folder` holds its sockets and logs."""

    process: subprocess.Popen[bytes]
    folder: Path
    is_gone: bool = False

    def kill(self) -> None:
        """Ends all its processes at once, as a power cut does."""
        if self.is_gone:  # and its session's number may be somebody else's by now
            return
        while found := _in_session(self.process.pid):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S / 10)
        self.process.wait()
        self.is_gone = True

    def remove(self) -> None:
        """Nothing of it is left."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_named(self, node_id: str) -> bool:
        """Whether Ray knows it by this id, which its processes have been told."""
        word = f"node_id={node_id}".encode()
        return not self.is_gone and any(word in _command(pid) for pid in _in_session(self.process.pid))

    def wait_until_started(self) -> None:
        """Raises NodeFailed."""
        log, until = self.folder / "start.log", time.monotonic() + START_S
        while _STARTED not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > until:
                raise NodeFailed(f"a Ray node did not start: {' '.join(log.read_text().split()[-40:])}")
            time.sleep(POLL_S)


class Nodes:
    """A cluster: `address` for drivers, `env` what their environment needs to be let in."""

    def __init__(self, cpus: int) -> None:
        (port,) = _free_ports(1)
        self.address = f"{HOST}:{port}"
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        self.workers: list[Node] = []
        self._cpus, self._begun = cpus, list[Node]()

    def begin(self) -> None:
        """Starts the head. Raises NodeFailed."""
        head = head_options(self.address.rpartition(":")[2])
        self._waited(self._launched(head), head)

    def grow(self, workers: int) -> None:
        """Starts nodes until there were so many, those that have gone included. Raises NodeFailed."""
        options = (f"--address={self.address}", f"--num-cpus={self._cpus}")
        for node in [self._launched(options) for _ in range(workers - len(self.workers))]:
            self.workers.append(self._waited(node, options))

    def lose(self, node_id: str) -> int:
        """Kills the worker node that Ray knows by this id; its number, from 1."""
        for number, node in enumerate(self.workers, 1):
            if node.is_named(node_id):
                node.kill()
                return number
        raise ValueError(f"{node_id} is no worker node of this cluster")

    def remove(self) -> None:
        """Nothing of it is left."""
        for node in self._begun:
            node.remove()

    def _launched(self, options: Sequence[str]) -> Node:
        patient = {"RAY_idle_worker_killing_time_threshold_ms": str(IDLE_WORKER_MS), **SELDOM_ENV}
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | self.env | patient
        self._begun.append(_launched(env, options))
        return self._begun[-1]

    def _waited(self, node: Node, options: Sequence[str]) -> Node:
        """`node` or, as Ray gives up on one after 30 seconds, which a busy machine may need, another one in its place."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(NodeFailed):
                node.wait_until_started()
                return node
            node.remove()
            node = self._launched(options)
        node.wait_until_started()
        return node


@contextmanager
def started(workers: int, cpus: int = 1) -> Iterator[Nodes]:
    """A head without CPUs, and `workers` nodes with `cpus` each. Nothing of them is left at the end, however it comes.

    SIGTERM and a terminal that is closed end the block in order, too. Raises NodeFailed.
    """
    before: dict[signal.Signals, Any] = {way: signal.getsignal(way) for way in _WAYS_TO_GO}
    nodes = Nodes(cpus)
    try:
        for way in _WAYS_TO_GO[1:]:
            signal.signal(way, _leave)
        nodes.begin()
        nodes.grow(workers)
        yield nodes
    finally:
        for way in _WAYS_TO_GO:  # an impatient second Ctrl-C leaves nothing behind
            signal.signal(way, signal.SIG_IGN)
        nodes.remove()
        for way, handler in before.items():
            signal.signal(way, handler)


def _leave(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _launched(env: Mapping[str, str], options: Sequence[str]) -> Node:
    # Its name is short: sockets lie in it, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="clipmill-node-", dir="/tmp"))
    command = [
        sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block",
        f"--temp-dir={folder}", f"--node-ip-address={HOST}",
        _port("dashboard-agent-listen-port"), "--min-worker-port=0", "--max-worker-port=0", "--num-gpus=0",
        # no driver asks for what workers print
        f"--object-store-memory={STORE_BYTES}", "--include-log-monitor=false", *options,
    ]  # fmt: skip
    with (folder / "start.log").open("wb") as log:
        # In a session of its own: Ctrl-C is for the driver, which publishes what is complete while the nodes still live.
        return Node(
            subprocess.Popen(command, cwd=folder, env=dict(env), stdout=log, stderr=log, start_new_session=True), folder
        )


def head_options(port: str) -> tuple[str, ...]:
    """Of `ray start`. With the packages of Ray Client (grpc) it serves that, at the same port for all heads unless it is given
    another; without them it takes none.
    """
    client = (_port("ray-client-server-port"),) if find_spec("grpc") else ()
    return ("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", *client)


def _port(option: str) -> str:
    return f"--{option}={_free_ports(1)[0]}"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


def _in_session(leader: int) -> list[int]:
    """Processes of a session, by their ids. Not those that have ended: whoever became their parent may never ask for them."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, ProcessLookupError, FileNotFoundError):
            if os.getsid(int(path.name)) == leader and _state(int(path.name)) not in ("Z", "X"):
                found.append(int(path.name))
    return found


def _state(pid: int) -> str:
    """R, S, Z...; see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
