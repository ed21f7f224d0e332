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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

STORE_BYTES = 150 << 20
WAIT_S = 240.0
TRIES = 3


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
    """Starts one, waits until its job server answers, and ends all of its processes.

    `ray start` gives its parts 30 s to come up, which is not enough on a machine that is full of work: then it starts again.
    """
    for tries_left in reversed(range(TRIES)):
        with ExitStack() as stack:
            # Its name is short: sockets lie in it, and their paths may have 107 characters.
            folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            log = folder / "start.log"
            started, process = _start(folder, log, cpus)
            stack.callback(end, started, process)
            if _answers(started, process, log):
                yield started
                return
            assert tries_left, log.read_text()


def _start(folder: Path, log: Path, cpus: int) -> tuple[Head, subprocess.Popen[bytes]]:
    gcs, dashboard, agent, client = _free_ports(4)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}",
        f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=true",
        f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}",
    ]  # fmt: skip
    patient = {**env, "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{WAIT_S:.0f}"}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=patient, stdout=file, stderr=file, start_new_session=True)
    return Head(process.pid, gcs, dashboard, env), process


def end(started: Head, process: subprocess.Popen[bytes] | None = None) -> None:
    """Kills a head, as a power cut does."""
    killed = started.processes()
    for found in killed:
        with suppress(psutil.NoSuchProcess):
            found.send_signal(signal.SIGKILL)
    if process is not None:
        process.wait()
    until = time.monotonic() + WAIT_S
    while any(map(_writes, killed)) and time.monotonic() < until:
        time.sleep(0.05)


def _writes(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answers(started: Head, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Waits until all of it is up; False where `ray start` has given up."""
    request = urllib.request.Request(
        f"{started.url}/api/jobs/", headers={"Authorization": f"Bearer {started.env['RAY_AUTH_TOKEN']}"}
    )
    until = time.monotonic() + WAIT_S
    while process.poll() is None:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=10):
            if "Ray runtime started" in log.read_text():
                return True
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    return False


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]
