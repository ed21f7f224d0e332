"""Attaching to a Ray cluster, or starting Ray on this machine for as long as a run takes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import BadRequest

# Ray's own defaults talk a lot; a run reports for itself.
_QUIET_ENV = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of Ray Data's own statistics; ours are looked at
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what Ray prints of workers that die; read when Ray is imported
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class ClusterSize:
    """What a cluster offers in all: logical CPUs and GPUs, and how many nodes hold them."""

    cpus: float
    gpus: float
    nodes: int


@contextlib.contextmanager
def attached(address: str | None = None, *, object_store_bytes: int | None = None) -> Iterator[ClusterSize]:
    """Holds a connection to Ray: to `address` (or "auto"), to a Ray that this process is connected to, or to one of its own.

    Only a Ray that was started here is shut down at the end. Raises BadRequest where nothing answers at `address`.
    """
    for name, value in _QUIET_ENV.items():
        os.environ.setdefault(name, value)
    import ray

    if address is not None and address.startswith("ray://"):
        raise BadRequest(f"--address {address}: Ray Data is not made for Ray Client; give the head's HOST:PORT, or auto")
    if ray.is_initialized():
        yield cluster_size()
        return
    with tempfile.TemporaryDirectory(prefix="clipmill-") as empty:
        _connect(address, object_store_bytes, Path(empty))
        try:
            yield cluster_size()
        finally:
            ray.shutdown()


def _connect(address: str | None, object_store_bytes: int | None, empty: Path) -> None:
    """Connects from the folder `empty`: Ray puts the driver's working directory on its workers' import path, where a
    folder called `stages` would hide ours.
    """
    import ray

    local = {} if address else {"include_dashboard": False, "object_store_memory": object_store_bytes}
    try:
        with contextlib.chdir(empty), _without_native_chatter():
            # "local": without it Ray would join any cluster that somebody runs on this machine.
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
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
    """The connected cluster's resources, as of now."""
    import ray

    total = ray.cluster_resources()
    return ClusterSize(total.get("CPU", 0.0), total.get("GPU", 0.0), max(1, len(alive_nodes())))


def alive_nodes() -> frozenset[str]:
    """Ids of the nodes that are up."""
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
