"""Secrets that must turn up nowhere, the requests that carry them, and where to look."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq

KEY_ID = "AKIACANARY0123456789"
SECRET = "canary+secret/0123456789abcdefghijklmnop"
SESSION = "canary-session-token-FwoGZXIvYXdzEJr"
HUB = "hf_canarycanarycanarycanarycanary"
PROXY = "canary-proxy-password"
PASSWORD = "canary-password-7"
SLASHED = "canary/pass/word-8"
SIGNATURE = "canarysignature0123456789abcdef"
EVERY = (KEY_ID, SECRET, SESSION, HUB, PROXY, PASSWORD, SLASHED, SIGNATURE)
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": SESSION,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "HF_TOKEN": HUB,
    "HF_ENDPOINT": "http://127.0.0.1:9",
    # botocore reads the settings of one try from here: what is tested is what it says, not for how long it tries
    "FSSPEC_S3": json.dumps({"config_kwargs": {"retries": {"total_max_attempts": 1}}}),
}

# URLs with a secret in them, as somebody may put them where a source, a root, an output or a model is asked for.
URLS = (
    f"https://bucket.s3.amazonaws.com/a.mp4?X-Amz-Credential={KEY_ID}%2Fx&X-Amz-Signature={SIGNATURE}&X-Amz-Security-Token={SESSION}",
    f"https://account.blob.core.windows.net/c/a.mp4?sv=2024&sig={quote(SECRET, safe='')}",
    f"https://host/a.mp4?anything={PASSWORD}",
    f"https://host/a.mp4#{PASSWORD}",
    f"https://user:{PASSWORD}@host/a.mp4",
    f"https://{PASSWORD}@host/a.mp4",
    f"https://user:{SLASHED}@host/a.mp4",
    f"http://user:{PASSWORD}@host:8080/a.mp4",
    f"HTTPS://user:{PASSWORD}@host/a.mp4",
    f"s3://{KEY_ID}:{PASSWORD}@bucket/a.mp4",
    f"s3://{KEY_ID}:{SECRET}@bucket/a.mp4",
    f"s3a://{KEY_ID}:{SLASHED}@bucket/a.mp4",
    f"s3://{KEY_ID}:{PASSWORD}/a.mp4",
    f"s3://bucket/a.mp4?X-Amz-Signature={SIGNATURE}",
    f"ftp://user:{PASSWORD}@host/a.mp4",
    f"sftp://user:{SLASHED}@host/a.mp4",
    f"abfs://container:{PASSWORD}@account/a.mp4",
    f"memory://user:{PASSWORD}@x/a.mp4",
    f"gs://{PASSWORD}:x@bucket/a.mp4",
    f"github://org:{PASSWORD}@repo/a.mp4",
)
# Files that were meant for --config and cannot be used.
FILES = (
    f"{PASSWORD}\n",
    f"- {PASSWORD}\n",
    f"password: {PASSWORD}\n",
    f"input: https://user:{PASSWORD}@host/a.mp4\n",
    f"clips: {{max_s: {PASSWORD}}}\n",
    f"clips: {PASSWORD}\n",
    f"classify: {PASSWORD}\n",
    f"resources: {{device: {PASSWORD}, actors: {PASSWORD}}}\n",
    f"caption: {{model: 'https://user:{PASSWORD}@host/model', prompt: x}}\n",
    f"caption: {{model: ' {PASSWORD}'}}\n",
    f"secret: *{PASSWORD}\n",
    f"secret: !{PASSWORD} x\n",
    f"a: &{PASSWORD} 1\nb: &{PASSWORD} 2\nc: [\n",
    f"a: b: {PASSWORD}\n",
    f"a: '{PASSWORD}\n",
    f"a: @{PASSWORD}\n",
    f"input: {{allow: ['s3://{KEY_ID}:{SECRET}@bucket']}}\n",
    f"output: s3://{KEY_ID}:{SECRET}@bucket/out\n",
    f"\x01{PASSWORD}\n",
)
# Values for --set.
SETTINGS = (
    PASSWORD,
    f"={PASSWORD}",
    f"password={PASSWORD}",
    f"clips.max_s={PASSWORD}",
    f"clips.split={PASSWORD}",
    f"clips={PASSWORD}",
    f"clips.limits.max_pixels=[{PASSWORD}",
    f"classify={PASSWORD}",
    f"classify=[{PASSWORD}]",
    f"classify.labels={PASSWORD}",
    f"embed.name={PASSWORD}",
    f"resources.dtype={PASSWORD}",
    f"input.extensions={{a: {PASSWORD}}}",
    f"input.uri=https://user:{PASSWORD}@host/x",
    f"output=s3://{KEY_ID}:{SECRET}@bucket",
    f"caption.model=https://user:{SLASHED}@host/model",
    f"input.allow=[s3://{KEY_ID}:{SECRET}@bucket]",
)


def leaks(text: str | bytes) -> list[str]:
    """The canaries in it, as they are or percent-encoded."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return [canary for canary in EVERY if canary.encode() in data or quote(canary, safe="").encode() in data]


def leaks_below(folder: Path) -> dict[str, list[str]]:
    """File -> canaries in its name, its bytes and, of Parquet, its values and footer."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            said = leaks(str(path)) + leaks(path.read_bytes())
            if path.suffix == ".parquet":
                table = pq.read_table(path, partitioning=None)
                said += leaks(str(table.to_pylist())) + leaks(str(pq.ParquetFile(path).metadata.metadata))
            if said:
                found[str(path)] = sorted(set(said))
    return found


def call(commands: Sequence[Sequence[str]], environment: Mapping[str, str], folder: Path) -> list[tuple[int, str]]:
    """(exit code, everything printed) of commands of the program, run one after the other in one process of its own."""
    program = """
import contextlib, io, json, sys, traceback
from pipeline import cli
for args in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli.call(args)
        except BaseException:
            traceback.print_exc()
            code = 99
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(commands), env=dict(environment), cwd=folder, text=True,
        capture_output=True, timeout=280, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(commands), done.stderr
    found = [(int(code), str(said)) for code, said in map(json.loads, lines)]
    return [*found, (done.returncode, done.stderr)]


class _Echo(http.server.BaseHTTPRequestHandler):
    """Refuses everything, and repeats in its message every header that it was sent."""

    def do_GET(self) -> None:
        said = " ".join(f"{name}: {value}" for name, value in self.headers.items()).replace("&", " ").replace("<", " ")
        text = f"<Error><Code>AccessDenied</Code><Message>No. {said}</Message></Error>".encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - as the base class calls them

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def echoing_store() -> Iterator[str]:
    """Endpoint of an S3 server that tells everybody what it was told."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
