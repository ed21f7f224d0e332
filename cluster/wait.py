"""Runs a command on a cluster that has grown: `python -P -m cluster.wait --gpus 2 -- clipmill run --address auto ...`.

A run counts CPUs and GPUs once, when it starts. On a cluster that grows from nothing there are none: `ray up` is done when the
head is. What the run is meant to have is asked for from Ray's autoscaler, and no longer asked for once the command has ended:
taken back before, the machines that came first could be gone, as idle, when the run begins.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from cluster.attach import attached, cluster_size
from cluster.machines import ClusterSize
from schemas.errors import BadRequest

POLL_S = 2.0
Bundles = list[dict[str, float]]


def wait(
    cpus: int,
    gpus: int,
    timeout_s: float,
    *,
    ask: Callable[[Bundles], None],
    look: Callable[[], ClusterSize] = cluster_size,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ClusterSize:
    """The cluster's size once it has so many CPUs and GPUs in all. `ask` tells the autoscaler what has to fit; [] is nothing.

    BadRequest, naming what there is, where they do not come within `timeout_s` seconds; then they are no longer asked for.
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
    except BaseException:
        ask([])
        raise
    return found


def call(command: Sequence[str]) -> int:
    """Runs a program to its end, whatever signals come: Ctrl-C reaches it anyway, SIGTERM is handed on. Its exit code."""
    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                continue
            return code if code >= 0 else 128 - code
    finally:
        signal.signal(signal.SIGTERM, before)


def main(args: Sequence[str]) -> int:
    """The command: the exit code of what was run, or 2 where the machines did not come."""
    parser = argparse.ArgumentParser("python -P -m cluster.wait", description="Runs a command once a Ray cluster has grown.")
    parser.add_argument("--address", default="auto", metavar="HOST:PORT", help="the cluster (default: the one of this machine)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs in all (default: 1)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs in all (default: 0)")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to wait (default: 30)")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    asked = parser.parse_args(args)
    if shutil.which(asked.command[0]) is None:
        parser.error(f"{asked.command[0]}: no such program")
    try:
        with attached(asked.address):
            found = wait(asked.cpus, asked.gpus, asked.minutes * 60, ask=_ask)
        print(f"{found.cpus:g} CPUs and {found.gpus:g} GPUs on {found.nodes} nodes", file=sys.stderr)
        try:
            return call(asked.command)
        finally:
            with attached(asked.address):
                _ask([])
    except BadRequest as error:
        print(f"cluster.wait: {error}", file=sys.stderr)
        return 2


def _ask(bundles: Bundles) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
