"""Whether a contestant did the work: a row for every window, and embeddings like those of the pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

Rows = dict[tuple[str, int], npt.NDArray[np.float64]]


class WorkMissing(Exception):
    """A contestant's output lacks rows, or holds other embeddings than it should."""


def read(output: Path) -> Rows:
    """Embeddings by (video, window) of Parquet files with columns video, window and embedding, or of Clipmill's tables."""
    if (output / "embeddings").is_dir():
        return _of_tables(output)
    files = [str(path) for path in sorted(output.rglob("*.parquet"))]
    table = ds.dataset(files).to_table(columns=["video", "window", "embedding"])
    return _rows(table["video"].to_pylist(), table["window"].to_pylist(), table)


def _of_tables(output: Path) -> Rows:
    clips = ds.dataset(output / "clips", format="parquet").to_table(columns=["clip_id", "uri", "start_s"])
    embeddings = ds.dataset(output / "embeddings", format="parquet").to_table(columns=["clip_id", "embedding"])
    table = _joined(embeddings, clips)
    videos = [Path(uri).name for uri in table["uri"].to_pylist()]
    return _rows(videos, [round(start_s / 10) for start_s in table["start_s"].to_pylist()], table)


def _joined(embeddings: pa.Table, clips: pa.Table) -> pa.Table:
    """With the clips' columns beside the embeddings (Arrow joins no tables that hold lists)."""
    place = {clip_id: row for row, clip_id in enumerate(clips["clip_id"].to_pylist())}
    found = clips.take([place[clip_id] for clip_id in embeddings["clip_id"].to_pylist()])
    return found.append_column("embedding", embeddings["embedding"])


def _rows(videos: list[str], windows: list[int], table: pa.Table) -> Rows:
    rows: Rows = {}
    for video, window, vector in zip(videos, windows, table["embedding"].to_pylist(), strict=True):
        if (video, window) in rows:
            raise WorkMissing(f"window {window} of {video} is there twice")
        rows[video, window] = np.asarray(vector, np.float64)
    return rows


def cosines(found: Rows, wanted: Rows) -> npt.NDArray[np.float64]:
    """Of each window's embedding and the wanted one. WorkMissing where a window is missing or nobody asked for it."""
    if found.keys() != wanted.keys():
        missing, extra = len(wanted.keys() - found.keys()), len(found.keys() - wanted.keys())
        raise WorkMissing(f"{missing} of {len(wanted)} windows are missing, {extra} are extra")
    pairs = [(found[key], wanted[key]) for key in sorted(wanted)]
    return np.array([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs])
