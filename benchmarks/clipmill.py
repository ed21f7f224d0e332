"""`clipmill run` as a process of its own, and what it has published."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from benchmarks.process import Cost, run
from benchmarks.rounds import ROOT
from schemas.tables import TABLES

_OF_THE_RUN = {"run_id", "started_at", "finished_at"}
_TOLERANCE = 1e-5  # of floats, whatever the cluster's shape


class RowsDiffer(Exception):
    """Two runs over the same input have not published the same."""


def environment() -> dict[str, str]:
    """Ours, with this tree on the import path and nobody asking the network for anything."""
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT)}


def annotate(
    videos: Path | str,
    work: Path,
    *,
    cores: int | None = None,
    settings: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    output: str | None = None,
    timeout_s: float = 1800.0,
) -> Cost:
    """Runs the embedded models over `videos`, into `work`/tables (which is emptied) or `output`. ProgramFailed.

    `cores`: that it may use no others, and that Ray believes in no others.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    where = output or str(work / "tables")
    command = [sys.executable, "-m", "pipeline", "run", "--input", str(videos), "--output", where, "--preset", "embedded"]
    command += [word for name, value in (settings or {}).items() for word in ("--set", f"{name}={value}")]
    around = {**environment(), **(env or {})}
    if cores is not None:
        mine = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
        command = ["taskset", "-c", mine, *command]
        around["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {cores}}}'  # Ray counts the machine's, whatever a process may use
    return run(command, log=work / "log", env=around, timeout_s=timeout_s)


def table(work: Path, name: str) -> pa.Table:
    """A published table, without its partitions' columns, sorted by its key."""
    columns = TABLES[name].schema.names
    found = ds.dataset(work / "tables" / name, format="parquet", partitioning=None).to_table(columns=columns)
    keys = [key for key in TABLES[name].key if key in columns and key not in _OF_THE_RUN]
    return found.sort_by([(key, "ascending") for key in keys])


def work_s(work: Path) -> float:
    """Seconds from when the first unit began to decode until the last epoch was planned."""
    videos = table(work, "videos")
    began, ended = min(videos["started_at"].to_pylist()), max(videos["finished_at"].to_pylist())
    return float((ended - began).total_seconds())


def check_same(work: Path, other: Path, tables: Sequence[str] = tuple(TABLES)) -> None:
    """Raises RowsDiffer unless two runs have published the same, columns of time and run aside, floats within 1e-5."""
    for name in tables:
        ours, theirs = table(work, name), table(other, name)
        for column in ours.column_names:
            if column not in _OF_THE_RUN and not same(ours[column], theirs[column]):
                raise RowsDiffer(f"{column} of {name} differs between {work} and {other}")


def same(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> bool:
    """Whether two columns are the same, floats within 1e-5."""
    if ours.type != theirs.type or len(ours) != len(theirs):
        return False
    if pa.types.is_list(ours.type) and pa.types.is_floating(ours.type.value_type):
        ours, theirs = (column.combine_chunks() for column in (ours, theirs))
        if ours.value_lengths() != theirs.value_lengths():
            return False
        ours, theirs = ours.flatten(), theirs.flatten()
    if not pa.types.is_floating(ours.type):
        return bool(ours.equals(theirs))
    a, b = (np.asarray(column.to_numpy(zero_copy_only=False), np.float64) for column in (_whole(ours), _whole(theirs)))
    return bool(np.allclose(a, b, rtol=0.0, atol=_TOLERANCE, equal_nan=True))


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
