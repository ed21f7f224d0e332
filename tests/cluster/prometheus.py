"""The programs of Prometheus, where there are any."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

START_S = 60.0


def program(name: str) -> str:
    """Its path; the test is skipped where it is missing, unless CLIPMILL_REQUIRE_PROMETHEUS says that it must not be."""
    found = shutil.which(name)
    if found is None:
        why = f"the program {name} is not installed (Debian's package prometheus has it)"
        if os.environ.get("CLIPMILL_REQUIRE_PROMETHEUS"):
            pytest.fail(why)
        pytest.skip(why)
    return found


def promtool(*args: str | Path) -> None:
    done = subprocess.run([program("promtool"), *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Server:
    """A Prometheus that answers."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        asked = f"{self._url}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The instant vector of a query: each series' labels as `metric` and [time, "value"] as `value`."""
        return list(self.get("/api/v1/query", query=query)["result"])

    def value(self, query: str) -> float | None:
        """Of a query that has one answer at most."""
        answers = self.ask(query)
        assert len(answers) <= 1, answers
        return float(answers[0]["value"][1]) if answers else None


@contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Server]:
    """Runs Prometheus with a configuration and its data in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "prometheus.log"
    command = [
        program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            _wait(port, process, log)
            yield Server(port)
        finally:
            process.terminate()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.1)
