"""Nodes of a cluster on this machine, without Ray: what a session leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.process import _reaping
from cluster import nodes
from cluster.nodes import Node, head_options

PARENT_AND_CHILD = "import os, time; os.fork(); print(flush=True); time.sleep(1000)"


@pytest.mark.timeout(60)  # or it waits for ever
def test_a_node_is_gone_when_its_processes_are_though_nobody_waits_for_them(tmp_path: Path) -> None:
    with _reaping():  # as a container's first process, we become the parent of what the node leaves
        process = subprocess.Popen([sys.executable, "-c", PARENT_AND_CHILD], start_new_session=True, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        node = Node(process, tmp_path)
        node.kill()
    assert node.is_gone


@pytest.mark.parametrize("installed", [True, False])
def test_a_head_is_given_a_port_for_ray_client_only_where_it_would_take_one(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "find_spec", lambda name: object() if installed and name == "grpc" else None)
    assert any("ray-client-server-port" in option for option in head_options("6379")) is installed
