"""Waits until a cluster has grown to what a run is meant to have: `python -P -m cluster.wait --gpus 2 && clipmill run ...`.

A run counts CPUs and GPUs once, when it starts. On a cluster that grows from nothing there are none: `ray up` is done when the
head is. What is missing is asked for from Ray's autoscaler. Once it is there the request is taken back: machines stay for as
long as somebody works on them, and then for as long as the cluster keeps idle ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from cluster.attach import ClusterSize, attached, cluster_size
from schemas.errors import BadRequest

POLL_S = 2.0


def wait(
    cpus: int,
    gpus: int,
    timeout_s: float,
    *,
    ask: Callable[[list[dict[str, float]]], None],
    look: Callable[[], ClusterSize] = cluster_size,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ClusterSize:
    """The cluster's size once it has so many CPUs and GPUs in all. `ask` tells the autoscaler what has to fit, [] nothing.

    BadRequest, naming what there is, where they do not come within `timeout_s` seconds.
    """
    until = clock() + timeout_s
    found = look()
    try:
        ask([{"GPU": 1.0}] * gpus + [{"CPU": 1.0}] * cpus)
        while found.cpus < cpus or found.gpus < gpus:
            if clock() >= until:
                there = f"{found.cpus:g} CPUs and {found.gpus:g} GPUs on {found.nodes} nodes"
                raise BadRequest(
                    f"{cpus} CPUs and {gpus} GPUs did not come within {timeout_s / 60:g} minutes; there are {there}"
                )
            sleep(POLL_S)
            found = look()
    finally:
        ask([])
    return found


def main(args: Sequence[str]) -> int:
    """The command: 0 when all are there, 2 when they did not come."""
    parser = argparse.ArgumentParser("python -P -m cluster.wait", description="Waits until a Ray cluster has grown.")
    parser.add_argument("--address", default="auto", metavar="HOST:PORT", help="the cluster (default: the one of this machine)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs in all (default: 1)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs in all (default: 0)")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to wait (default: 30)")
    asked = parser.parse_args(args)
    try:
        with attached(asked.address):
            from ray.autoscaler.sdk import request_resources

            found = wait(asked.cpus, asked.gpus, asked.minutes * 60, ask=lambda bundles: request_resources(bundles=bundles))
    except BadRequest as error:
        print(f"cluster.wait: {error}", file=sys.stderr)
        return 2
    print(f"{found.cpus:g} CPUs and {found.gpus:g} GPUs on {found.nodes} nodes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
