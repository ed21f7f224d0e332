"""A Ray cluster that grows and shrinks by itself: Ray's autoscaler, with machines that are processes on this one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
STORE_BYTES = 100 << 20
START_S = 180.0
HEAD_ID, HEAD_TYPE = f"{'f' * 51}00000", "ray.head.default"  # names that Ray's stand-in for a cloud insists on
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@dataclass(frozen=True)
class Growing:
    """`env` is what a driver needs to be let in."""

    address: str
    env: Mapping[str, str]

    def run(self, *command: str | Path, cwd: Path, timeout_s: float = 400.0) -> subprocess.CompletedProcess[str]:
        """A program that uses the cluster."""
        return subprocess.run(command, cwd=cwd, env=self.env, text=True, capture_output=True, timeout=timeout_s, check=False)


@contextmanager
def growing(groups: Mapping[str, Mapping[str, Any]], idle_minutes: float) -> Iterator[Growing]:
    """A head without CPUs and, when something asks for them, machines of these groups (resources, most); gone at the end."""
    from ray.util import get_node_ip_address

    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))  # short: sockets lie in it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        host, (gcs, agent, client) = get_node_ip_address(), _free_ports(3)
        (folder / "cluster.json").write_text(json.dumps(_config(groups, idle_minutes, f"{host}:{gcs}")))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env = inherited | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        own = {
            "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_NODE_TYPE_NAME": HEAD_TYPE,
        }  # fmt: skip
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}",
            f"--node-ip-address={host}", f"--port={gcs}", f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false",
            "--num-cpus=0", f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={folder / 'cluster.json'}",
            "--disable-usage-stats",
        ]  # fmt: skip
        log = stack.enter_context((folder / "start.log").open("w+"))
        process = subprocess.Popen(command, cwd=folder, env=env | own, stdout=log, stderr=log, start_new_session=True)
        stack.callback(_end, process, folder)
        _wait_for(process, folder / "start.log")
        yield Growing(f"{host}:{gcs}", env)


def _config(groups: Mapping[str, Mapping[str, Any]], idle_minutes: float, address: str) -> dict[str, Any]:
    types = {name: {**group, "min_workers": 0, "node_config": {}} for name, group in groups.items()}
    types[HEAD_TYPE] = {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}}
    for entry in types.values():
        entry["resources"] = {**entry["resources"], "object_store_memory": STORE_BYTES}
    provider = {
        "type": "external",
        "module": PROVIDER,
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": address,
    }
    return {
        "cluster_name": "growing", "provider": provider, "idle_timeout_minutes": idle_minutes, "docker": {}, "auth": {},
        "max_workers": sum(group["max_workers"] for group in groups.values()), "upscaling_speed": 1.0, "file_mounts": {},
        "head_node_type": HEAD_TYPE, "available_node_types": types, "cluster_synced_files": [],
        **{f"{kind}_commands": [] for kind in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")},
        "worker_start_ray_commands": [],
    }  # fmt: skip


def _wait_for(process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while "will now block forever" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kills every process of the head's session, and those that only name its folder: machines have sessions of their own."""
    for found in psutil.process_iter(["cmdline"]):
        try:
            if os.getsid(found.pid) == process.pid or any(str(folder) in word for word in found.info["cmdline"] or ()):
                found.kill()
        except (psutil.Error, ProcessLookupError):
            continue
    process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]
