"""A Ray head with a job server, as `ray start` makes it: processes of its own, ports of its own, and a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

STORE_BYTES = 150 << 20
WAIT_S = 240.0


@dataclass(frozen=True)
class Head:
    """`env` is what a caller needs to be let in."""

    pid: int
    gcs_port: int
    dashboard_port: int
    env: Mapping[str, str]

    @property
    def address(self) -> str:
        """For drivers that attach."""
        return f"127.0.0.1:{self.gcs_port}"

    @property
    def url(self) -> str:
        """For jobs."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def processes(self) -> list[psutil.Process]:
        """All of the head's processes, workers too."""
        return [process for process in psutil.process_iter() if _session_of(process.pid) == self.pid]

    def run(
        self, command: Sequence[str | Path], cwd: Path | None = None, timeout_s: float = 420.0
    ) -> subprocess.CompletedProcess[str]:
        """A program of somebody who has the token."""
        return subprocess.run(command, cwd=cwd, env=self.env, text=True, capture_output=True, timeout=timeout_s, check=False)


@contextmanager
def head(cpus: int = 2) -> Iterator[Head]:
    """Starts one, waits until its job server answers, and ends all of its processes."""
    with ExitStack() as stack:
        # Its name is short: sockets lie in it, and their paths may have 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        gcs, dashboard, agent, client = _free_ports(4)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}",
            f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=true",
            f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}",
        ]  # fmt: skip
        log = stack.enter_context((folder / "start.log").open("w+"))
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
        started = Head(process.pid, gcs, dashboard, env)
        stack.callback(end, started, process)
        _wait_for_jobs(started, process, folder / "start.log")
        yield started


def end(started: Head, process: subprocess.Popen[bytes] | None = None) -> None:
    """Kills a head, as a power cut does."""
    for found in started.processes():
        try:
            found.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    if process is not None:
        process.wait()


def _wait_for_jobs(started: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{started.url}/api/jobs/", headers={"Authorization": f"Bearer {started.env['RAY_AUTH_TOKEN']}"}
    )
    until = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10):
                if "Ray runtime started" in log.read_text():
                    return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]
