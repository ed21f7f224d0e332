"""Ray for runs that are programs of their own: a head that they attach to, and nodes that can be taken away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import worknotes
from pipeline.worknotes import Note

ROOT = Path(__file__).parents[2]
STORE_BYTES = 150 << 20
POLL_S = 0.02
WAIT_S = 120.0


class Grid:
    """A head without CPUs, so that all work is done by nodes that can be taken away."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address

    def grow(self, nodes: int) -> None:
        """Adds nodes of one CPU until there are so many."""
        while len(self._cluster.worker_nodes) < nodes:
            self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def lose(self, node_id: str) -> None:
        """Kills all processes of a node at once, as a power cut does."""
        (node,) = [node for node in self._cluster.worker_nodes if node.node_id == node_id]
        self._cluster.remove_node(node, allow_graceful=False)


@contextmanager
def grid() -> Iterator[Grid]:
    """A head, started with this repository on its workers' import path."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Grid(cluster)
    finally:
        cluster.shutdown()


def running_address() -> str:
    """HOST:PORT of the Ray that this process is connected to."""
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


def caught(step: str, archive: str, is_alive: Callable[[], bool], skip: int = 0) -> Note:
    """Waits for a worker that is just at work in a step on videos of `archive` (other runs may be here, too), letting `skip`
    pass; AssertionError where none comes.
    """
    seen: set[tuple[int, float]] = set()
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for _, note in worknotes.read("*"):
            if note.step != step or note.state != "working" or not all(unit.uri.startswith(archive) for unit in note.units):
                continue
            if not note.owner.is_gone():
                if len(seen | {(note.owner.pid, note.since)}) > skip:
                    return note
                seen.add((note.owner.pid, note.since))
        assert is_alive(), "the run ended before it could be caught"
        time.sleep(POLL_S)
    raise AssertionError(f"no worker was seen in {step}")


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
