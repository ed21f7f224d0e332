"""Processes that publish for real and kill themselves: a small server that forks them, so that each costs little.

`python -m tests.faults.killed` has everything imported and has never opened a connection, so forking it is safe whatever the
test process has in its hands. It reads jobs from its standard input, a line of JSON each, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0  # a process that takes longer hangs
POLL_S = 0.005


@dataclass(frozen=True)
class Ended:
    """How a process ended. `signal` is None where it came to its end; `out` is what it wrote then."""

    signal: int | None
    hung: bool
    out: dict[str, Any]


class Processes:
    """The server, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, **job: Any) -> int:
        """Forks a process that does a job; its id."""
        return int(self._ask({"start": job}))

    def wait(self, pid: int, out: Path) -> Ended:
        """Waits for its end; kills one that hangs."""
        status = self._ask({"wait": pid})
        found = json.loads(out.read_text()) if out.exists() else {}
        return Ended(status["signal"], status["hung"], found)

    def done(self, out: Path, **job: Any) -> Ended:
        """Starts a job and waits for it."""
        out.unlink(missing_ok=True)
        return self.wait(self.start(out=str(out), **job), out)

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def processes(environment: Mapping[str, str]) -> Iterator[Processes]:
    """Starts the server, in an environment with these additions; it ends with the block."""
    command = [sys.executable, "-m", "tests.faults.killed"]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, cwd=ROOT)
    try:
        yield Processes(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


# --- in the server ---


def main() -> None:
    """Forks and waits until the input ends."""
    from tests.faults import stranger
    from tests.faults.steps import JOBS

    if "AWS_ENDPOINT_URL" in os.environ:
        import s3fs  # noqa: F401 - only imported: clients are built in the processes that use them
    jobs = {**JOBS, "watch": stranger.watch}
    for line in sys.stdin:
        request = json.loads(line)
        answer = _started(jobs, request["start"]) if "start" in request else _waited(request["wait"])
        print(json.dumps(answer), flush=True)


def _started(jobs: Mapping[str, Any], job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        jobs[job.pop("job")](**job)
        code = 0
    except BaseException:  # noqa: BLE001 - told by the test
        Path(job["out"]).write_text(json.dumps({"error": traceback.format_exc()}))
    finally:
        sys.stderr.flush()
        os._exit(code)


def _waited(pid: int) -> dict[str, Any]:
    until = time.monotonic() + DEADLINE_S
    hung = False
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(POLL_S)
        if time.monotonic() > until and not hung:
            hung = True
            os.kill(pid, signal.SIGKILL)
    status = ended[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        return {"signal": -os.WEXITSTATUS(status), "hung": hung}
    return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None, "hung": hung}


class Deadly:
    """A store's backend that kills its process at write number `at`: before it, after it, or in the middle of the file."""

    def __init__(self, inner: Any, at: int | None, when: str) -> None:
        self._inner, self._at, self._when = inner, at, when
        self.writes: list[str] = []
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, path: str, data: bytes) -> None:
        with self._step("create", path) as is_middle:
            if is_middle:
                self._half(path, data)
            self._inner.create(path, data)

    def write(self, path: str, data: bytes) -> None:
        with self._step("write", path) as is_middle:
            if is_middle:
                self._half(path, data)
            self._inner.write(path, data)

    def delete(self, path: str) -> None:
        with self._step("delete", path):
            self._inner.delete(path)

    @contextmanager
    def open_write(self, path: str, exclusive: bool = False) -> Iterator[BinaryIO]:
        opened = self._inner.open_write(path, exclusive)
        file = opened.__enter__()
        try:
            yield file
        except BaseException as error:
            opened.__exit__(type(error), error, error.__traceback__)
            raise
        with self._step("appear", path) as is_middle:
            if is_middle:
                file.flush()
                file.truncate(file.tell() // 2)
                die()
            opened.__exit__(None, None, None)

    @contextmanager
    def _step(self, name: str, path: str) -> Iterator[bool]:
        with self._lock:
            is_it = len(self.writes) == self._at
            self.writes.append(f"{name} {path}")
            if is_it and self._when == "before":
                die()
            try:
                yield is_it and self._when == "middle"
            finally:  # a write that was refused is over, too
                if is_it:
                    die()

    def _half(self, path: str, data: bytes) -> None:
        with self._inner.open_write(path, True) as file:
            file.write(data[: len(data) // 2])
            file.flush()
            die()


def die() -> None:
    """As the kernel kills: at once, and nothing of the process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(DEADLINE_S)


if __name__ == "__main__":
    main()
