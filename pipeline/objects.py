"""Objects of the published tables: how they are written, and how one is recognised."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.rows import conform
from schemas.tables import TABLES
from stages.storage import Store

GROUP_ROWS = 100_000
GROUP_BYTES = 128 << 20
CHUNK_BYTES = 8 << 20
# The ledger has many columns and few bytes a row, and is written by the driver, which holds a page of each meanwhile.
_PAGE_BYTES = {"videos": 16 << 10}
# Columns of few distinct values, or of values that stand in runs: everything but text, vectors and measured numbers.
_DICTIONARY = {
    "videos": ["status", "error_code", "error_stage", "container", "codec", "run_id"],
    "clips": ["video_id", "uri", "boundary", "error_code", "run_id", "width", "height"],
    "labels": ["clip_id", "video_id", "stage", "label", "error_code", "run_id"],
    "captions": ["video_id", "prompt", "error_code", "run_id"],
    "embeddings": ["video_id", "dim", "error_code", "run_id"],
}


@dataclass(frozen=True)
class Written:
    """An object as it was written: commits hold these, so that any later change shows."""

    key: str
    rows: int
    size_bytes: int
    digest: str  # blake2b of the bytes, 32 hex digits

    def to_json(self) -> dict[str, Any]:
        """As it stands in the log."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Reverse of `to_json`."""
        return cls(**data)


class Hashing(io.RawIOBase):
    """Counts and digests what passes through to an object that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file: BinaryIO | None = file
        self._digest = hashlib.blake2b(digest_size=16)
        self.size_bytes = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Passes `data` on."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        if self._file is not None:
            self._file.write(view)
        self.size_bytes += len(view)
        return len(view)

    def give_up(self) -> None:
        """From here on nothing is passed on: a Parquet writer that is collected writes its footer, wanted or not."""
        self._file = None

    def tell(self) -> int:
        """Bytes so far."""
        return self.size_bytes

    @property
    def digest(self) -> str:
        """Of all bytes so far."""
        return self._digest.hexdigest()


class RowWriter:
    """Rows of one table on their way into one object, in row groups of at most GROUP_ROWS and about GROUP_BYTES.

    A context: when an exception leaves it, the object is given up.
    """

    def __init__(self, key: str, file: BinaryIO, table: str) -> None:
        self._key, self._schema = key, TABLES[table].schema
        self._sink = Hashing(file)
        self._writer = pq.ParquetWriter(
            schema=self._schema,
            where=self._sink,
            compression="zstd",
            use_dictionary=_DICTIONARY[table],
            data_page_size=_PAGE_BYTES.get(table),
        )
        self._held: list[pa.Table] = []
        self._held_rows = self._held_bytes = self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._sink.give_up()
            self._writer.close()

    def write(self, rows: pa.Table) -> None:
        """Takes rows in; they must conform to the table."""
        rows = conform(rows, self._schema)
        for begin in range(0, rows.num_rows, GROUP_ROWS):
            part = rows.slice(begin, GROUP_ROWS)
            if self._held_rows + part.num_rows > GROUP_ROWS or self._held_bytes + part.nbytes > GROUP_BYTES:
                self._flush()
            self._held.append(part)
            self._held_rows += part.num_rows
            self._held_bytes += part.nbytes
            self.rows += part.num_rows

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=GROUP_ROWS)
        self._held, self._held_rows, self._held_bytes = [], 0, 0

    def close(self, properties: dict[str, str]) -> Written:
        """Writes what is held, and the footer with `properties`."""
        self._flush()
        self._writer.add_key_value_metadata({f"clipmill.{name}": value for name, value in properties.items()})
        self._writer.close()
        return Written(self._key, self.rows, self._sink.size_bytes, self._sink.digest)


def footer(store: Store, key: str) -> pq.FileMetaData | None:
    """The footer of a Parquet object; None where there is no object, or none that can be read."""
    try:
        with store.open_read(key) as file:
            return pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError):  # what is no Parquet is either, to pyarrow
        return None


def property_of(found: pq.FileMetaData, name: str) -> str | None:
    """A clipmill property of an object's footer."""
    value = (found.metadata or {}).get(f"clipmill.{name}".encode())
    return None if value is None else value.decode("utf-8", "replace")


def examined(store: Store, key: str, rows: int) -> Written:
    """An object that is there, read to its end for its size and digest."""
    digest, size_bytes = hashlib.blake2b(digest_size=16), 0
    for chunk in chunks(store, key):
        digest.update(chunk)
        size_bytes += len(chunk)
    return Written(key, rows, size_bytes, digest.hexdigest())


def chunks(store: Store, key: str) -> Iterator[bytes]:
    """The bytes of an object, piece by piece."""
    with store.open_read(key) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@contextmanager
def hashed(store: Store, key: str) -> Iterator[Hashing]:
    """A new object that is digested as it is written."""
    with store.open_write(key) as file:
        yield Hashing(file)
