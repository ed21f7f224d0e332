"""What a run asks of an object store: requests of a video, of a staged part and of an epoch, counted by the store itself.

    python -m benchmarks.requests

A server that speaks S3 and enforces conditional writes (moto's) runs beside; its log names every request of every process of
`clipmill run`, those that were repeated included.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.clipmill import annotate
from benchmarks.growth import tiny
from benchmarks.places import parser_of
from benchmarks.report import publish, table
from benchmarks.rounds import Figure, Results, Section

TITLE = "Requests to an object store"
SOURCES, TABLES = "footage", "tables"  # buckets
KINDS = ("list", "get", "put", "delete")
WHERE = ("source", "part", "epoch")  # epoch: sidecars, published objects, the log, leases, and all that is left
_LINE = re.compile(r'"([A-Z]+) /(\S*) HTTP/1\.[01]" (\d+)')
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of answers other than 200
_RUNNING = re.compile(r"Running on (http://[0-9.]+:[0-9]+)")
_PLANNED = re.compile(r"_runs/[^/]+/epochs/[^/]+\.parts\.parquet$")
_BLOCK_BYTES = 4 << 20  # that a source is read in
_START_S = 120.0


def counted(lines: Sequence[str]) -> Counter[str]:
    """Requests of a server's log as `<where>_<kind>`, and how many `parts` were written, `epochs` were planned."""
    found: Counter[str] = Counter()
    for line in lines:
        if match := _LINE.search(_COLOURS.sub("", line)):
            method, path, status = match.groups()
            key, _, query = path.partition("?")
            where = (
                "source"
                if key.split("/")[0] == SOURCES
                else "part"
                if re.search(r"/parts/|parts%2F|parts/?$", path)
                else "epoch"
            )
            kind = _kind(method, query)
            found[f"{where}_{kind}"] += 1
            if kind == "put" and status == "200":
                found["parts"] += where == "part"
                found["epochs"] += _PLANNED.search(key) is not None
    return found


def _kind(method: str, query: str) -> str:
    if method == "GET" and ("list-type" in query or "prefix=" in query):
        return "list"
    if method == "DELETE" or (method == "POST" and "delete" in query):
        return "delete"
    return "get" if method in ("GET", "HEAD") else "put"


@contextlib.contextmanager
def server(log: Path) -> Iterator[str]:
    """A server of S3 in memory, by its endpoint; its log is the file `log`."""
    with log.open("wb") as output:
        command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield _endpoint(process, log)
    finally:
        process.kill()
        process.wait()


def _endpoint(process: subprocess.Popen[bytes], log: Path) -> str:
    ends_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < ends_s:
        if match := _RUNNING.search(log.read_text()):
            return match.group(1)
        time.sleep(0.1)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}")


def noise(path: Path, frames: int = 40) -> Path:
    """A video that is large for its length: about 20 MB, of which nothing can be compressed."""
    rng = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for _ in range(frames):
            picture = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def measured(original: Path, videos: int, settings: Mapping[str, Any], work: Path) -> Figure:
    """Counts of one run over so many copies of a video."""
    log = work / "server.log"
    with server(log) as endpoint:
        env = {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": secrets.token_hex(8), "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16), "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        _upload(env, original, videos)
        before = len(log.read_text().splitlines())
        cost = annotate(f"s3://{SOURCES}", work / "run", settings=settings, env=env, output=f"s3://{TABLES}/archive")
        found = counted(log.read_text().splitlines()[before:])
    size_bytes = original.stat().st_size
    told = {name: found[name] for name in _NAMES}
    return {"videos": videos, "blocks": videos * -(-size_bytes // _BLOCK_BYTES), "cpu_s": cost.cpu_s, **told}


_NAMES = ("parts", "epochs", *(f"{where}_{kind}" for where in WHERE for kind in KINDS))


def _upload(env: Mapping[str, str], original: Path, videos: int) -> None:
    import s3fs

    store = s3fs.S3FileSystem(
        key=env["AWS_ACCESS_KEY_ID"], secret=env["AWS_SECRET_ACCESS_KEY"], endpoint_url=env["AWS_ENDPOINT_URL"],
        skip_instance_cache=True,
    )  # fmt: skip
    for bucket in (SOURCES, TABLES):
        store.call_s3("create_bucket", Bucket=bucket)
    store.pipe({f"{SOURCES}/{number:04d}.mp4": original.read_bytes() for number in range(videos)})


def of_a_video(results: Results, kind: str) -> float:
    """Requests of one video of one block, listings apart: a page of one names a thousand."""
    return 0.0 if kind == "list" else _each(results, "small", f"source_{kind}", "videos")


def of_a_block(results: Results) -> float:
    """Requests of each further block of a video."""
    extra = results.of("large", "blocks").median - results.of("large", "videos").median
    beyond = results.of("large", "source_get").median - of_a_video(results, "get") * results.of("large", "videos").median
    return max(0.0, beyond / extra)


def of_a_part(results: Results, kind: str) -> float:
    """Requests of one staged part, until it is cleared away."""
    return _each(results, "small", f"part_{kind}", "parts")


def of_an_epoch(results: Results, kind: str) -> float:
    """Requests of one more epoch."""
    more = results.of("many epochs", "epochs").median - results.of("small", "epochs").median
    return (results.of("many epochs", f"epoch_{kind}").median - results.of("small", f"epoch_{kind}").median) / more


def of_a_run(results: Results, kind: str) -> float:
    """Requests of a run whatever it does, its first epoch and the first page of the listing included."""
    listing = results.of("small", "source_list").median if kind == "list" else 0.0
    return results.of("small", f"epoch_{kind}").median + listing


def _each(results: Results, name: str, of: str, per: str) -> float:
    return results.of(name, of).median / results.of(name, per).median


def report(results: Results, page: Path) -> None:
    """Writes the section of the page."""
    head = ["of each", "LIST", "GET and HEAD", "PUT and POST", "DELETE"]
    rows = {
        "video of up to 4 MB": partial(of_a_video, results), "staged part": partial(of_a_part, results),
        "epoch": partial(of_an_epoch, results), "run, with one epoch": partial(of_a_run, results),
    }  # fmt: skip
    lines = [[what, *(f"{of(kind):.2f}" for kind in KINDS)] for what, of in rows.items()]
    lines.insert(1, ["further 4 MB of a video", "", f"{of_a_block(results):.2f}", "", ""])
    publish("requests", TITLE, _WORDS + "\n\n" + table(head, lines), [], results, page)


_WORDS = """
`python -m benchmarks.requests`. All requests of all processes of a run, as a server in memory has logged them. A part is what
is staged of a video at a time (up to 16 clips). Where there is more of anything: one LIST for a thousand videos or parts, one
POST that removes a thousand parts, one PUT for every 16 MB of a published object. Tiny videos, hence one part each.
""".strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--small", type=int, default=40, help="small videos")
    parser.add_argument("--large", type=int, default=3, help="videos of some 20 MB")
    args = parser.parse_args(arguments)
    settings = {"small": args.small, "large": args.large}
    section = Section("requests", settings=settings, packages=("s3fs", "moto"), folder=args.records)
    if not args.report:
        work = args.records / "requests"
        small, large = tiny(work / "small.mp4"), noise(work / "large.mp4")
        contestants = {
            "small": partial(measured, small, args.small, {}, work),
            "many epochs": partial(measured, small, args.small, {"resources.epoch_clips": 2}, work),
            "large": partial(measured, large, args.large, {}, work),
        }
        section.run(contestants, args.rounds)
    if section.results().rounds():
        report(section.results(), args.page)


if __name__ == "__main__":
    main()
