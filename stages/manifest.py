"""Reads a manifest: a list of videos as text (one URI a line), CSV or Parquet (columns `uri` and, if you like, `id`).

A relative URI is relative to the manifest's folder. Lines of text are taken as they are, spaces and all; only empty ones are
skipped. Text and CSV are UTF-8; other bytes are kept, as names on disk may hold them.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from schemas.errors import BadRequest
from schemas.secrets import redacted
from stages.filesystems import is_url
from stages.storage import Store

_BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a manifest: where the video is, and its own id where there is one."""

    uri: str | None
    id: str | None
    row: int  # from 1


def is_manifest(uri: str) -> bool:
    """By the extension."""
    return _extension(uri) in _READERS


def read_manifest(uri: str) -> Iterator[Entry]:
    """Entries in their order, streamed. `uri` is absolute, None where the row has none.

    Raises BadRequest, naming the manifest, where it cannot be read as what its extension says, or has no `uri` column.
    """
    folder, _, name = uri.rpartition("/")
    folder = folder or "/"
    try:
        with Store(folder).open_read(name) as file:
            for row, (value, id_) in enumerate(_READERS[_extension(uri)](file), start=1):
                yield Entry(absolute(value, folder) if value else None, id_ or None, row)
    except _unreadable() as error:
        raise BadRequest(f"manifest {redacted(uri)}: {error}") from error


def absolute(uri: str, folder: str) -> str:
    """`uri`, or if it is relative the same below `folder`."""
    if uri.startswith("/") or "://" in uri:
        return uri
    joined = f"{folder.rstrip('/')}/{uri}"
    if not is_url(folder) or not {".", ".."} & set(uri.split("/")):
        return joined
    head, _, rest = joined.partition("://")
    return f"{head}://{posixpath.normpath(rest)}"


def _extension(uri: str) -> str:
    return posixpath.splitext(uri)[1].lower()


def _read_text(file: BinaryIO) -> Iterator[tuple[str | None, str | None]]:
    for line in io.TextIOWrapper(_buffered(file), "utf-8-sig", errors="surrogateescape", newline="\n"):
        if uri := line.rstrip("\r\n"):
            yield uri, None


def _read_csv(file: BinaryIO) -> Iterator[tuple[str | None, str | None]]:
    rows = csv.DictReader(io.TextIOWrapper(_buffered(file), "utf-8-sig", errors="surrogateescape", newline=""))
    _check_columns(rows.fieldnames or ())
    for row in rows:
        yield row.get("uri"), row.get("id")


def _read_parquet(file: BinaryIO) -> Iterator[tuple[str | None, str | None]]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    _check_columns(names)
    columns = [name for name in ("uri", "id") if name in names]
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):  # whose memory threads would keep
        for row in batch.to_pylist():
            uri, id_ = row["uri"], row.get("id")
            yield None if uri is None else str(uri), None if id_ is None else str(id_)


def _check_columns(names: Sequence[str]) -> None:
    if "uri" not in names:
        raise ValueError(f"has no column named uri, only {', '.join(repr(redacted(name)) for name in names) or 'nothing'}")


def _buffered(file: BinaryIO) -> io.BufferedReader:
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[arg-type]


def _unreadable() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (ValueError, csv.Error, pa.ArrowException)


_READERS: dict[str, Callable[[BinaryIO], Iterator[tuple[str | None, str | None]]]] = {
    ".txt": _read_text,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
