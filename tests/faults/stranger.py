"""Somebody who knows nothing of us reads the tables all the time, with pyarrow, in a process of its own."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from schemas.tables import TABLES

PAUSE_S = 0.01
WAIT_S = 60.0  # for an answer; pyarrow gives up after 3 s, which a busy machine may need


def watch(root: str, out: str, stop: str, looks: str) -> None:
    """Looks until the file `stop` is there; then tells what it saw. After every look the file `looks` has its number.

    Of every (table, partition, video): all row counts that it ever had, and how often it had fewer rows than a moment before.
    `failed` are the objects that were listed and could not be read; of a server's, which may be slow or refuse, twice in a row.
    """
    filesystem, base = _opened(root)
    counts: dict[str, set[int]] = {}
    shrunk: Counter[str] = Counter()
    before: Counter[str] = Counter()
    failed: list[str] = []
    number = 0
    while True:
        is_last = Path(stop).exists()
        now, trouble = look(filesystem, base)
        if trouble and "://" in root:
            now, trouble = look(filesystem, base)
        failed += trouble
        if not trouble:
            for group in before.keys() | now.keys():
                counts.setdefault(group, set()).add(now[group])
                shrunk[group] += now[group] < before[group]
            before = now
        number += 1
        _write(looks, str(number))
        if is_last:
            break
        time.sleep(PAUSE_S)
    found = {group: sorted(values - {0}) for group, values in counts.items()}
    _write(out, json.dumps({"looks": number, "counts": found, "shrunk": dict(+shrunk), "failed": failed}))


def look(filesystem: Any, base: str) -> tuple[Counter[str], list[str]]:
    """Rows by table, partition and video, as they are now; and what was listed and could not be read."""
    found: Counter[str] = Counter()
    failed: list[str] = []
    for name in TABLES:
        folder = f"{base}/{name}"
        try:
            if filesystem.get_file_info(folder).type == fs.FileType.NotFound:
                continue
            found.update(_groups(ds.dataset(folder, filesystem=filesystem, format="parquet", partitioning="hive"), name))
        except (OSError, pa.ArrowInvalid) as error:
            failed.append(f"{name}: {error!r}")
    return found, failed


def _groups(data: ds.Dataset, name: str) -> list[str]:
    """Of each row, its table, partition and video; of the ledger's, which has a row for every run, the run too."""
    columns = ("video_id", "run_id") if name == "videos" else ("model", "fingerprint", "video_id")
    kept = [column for column in columns if column in data.schema.names]
    rows = data.to_table(columns=kept, use_threads=False).to_pylist() if data.files else []
    return [" ".join([name, *(str(row[column]) for column in kept)]) for row in rows]


def _opened(root: str) -> tuple[Any, str]:
    if not root.startswith("s3://"):
        return fs.LocalFileSystem(), root
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    filesystem = fs.S3FileSystem(
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=endpoint.partition("://")[2].rstrip("/"),
        scheme=endpoint.partition("://")[0],
        region="us-east-1",
        connect_timeout=WAIT_S,
        request_timeout=WAIT_S,
    )
    return filesystem, root.removeprefix("s3://")


def _write(path: str, text: str) -> None:
    new = Path(f"{path}.new")
    new.write_text(text)
    new.replace(path)
