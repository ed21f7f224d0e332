"""SQL over the tables: DuckDB, reading the output and nothing else, and writing nowhere."""

from __future__ import annotations

import csv
import datetime
import itertools
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, get_args

import numpy as np
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline import views
from schemas.errors import BadRequest
from schemas.tables import TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from stages.storage import Store

Format = Literal["table", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
SCHEME, ROOT = "clipmill", "clipmill://output"  # how the output is called inside DuckDB
LEGIBLE_WIDTH = 12  # of a column: narrower ones would say nothing, so rows are shown one below the other
TABLE_ROWS = 50  # rows a terminal is shown unless --limit says otherwise
FETCH_ROWS = 1000


class ReadOnly(AbstractFileSystem):  # type: ignore[misc]
    """A store as `clipmill://output/key`, for DuckDB: it can list and read, and every way to write is refused.

    DuckDB lets a statement write wherever it may read, even a SELECT (`WITH x AS (COPY ...)`), so what it is given to read
    must not take writes. Listings are kept: a query sees one state of the tables.
    """

    protocol = SCHEME
    cachable = False

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._listed: dict[str, list[tuple[str, int]]] = {}

    def glob(self, path: str, **_: Any) -> list[str]:
        """What matches; `*` stays within a folder, `**` does not."""
        pattern = _key(path)
        folder = posixpath.dirname(pattern.split("*")[0])
        parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
        words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
        matches = re.compile("".join(words.get(part, re.escape(part)) for part in parts)).fullmatch
        return [f"{ROOT}/{key}" for key, _ in self._list(folder) if matches(key)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name and size; FileNotFoundError."""
        key = _key(path)
        size_bytes = dict(self._list(posixpath.dirname(key))).get(key)
        if size_bytes is None:
            raise FileNotFoundError(key)
        return {"name": path, "size": size_bytes, "type": "file"}

    def modified(self, path: str) -> datetime.datetime:
        """Always the same: what is published is never changed."""
        del path
        return datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        if mode != "rb":
            raise PermissionError("query reads the tables and writes nothing")
        return self._store.open_read(_key(path))

    def _list(self, folder: str) -> list[tuple[str, int]]:
        if folder not in self._listed:
            self._listed[folder] = [(found.key, found.size_bytes) for found in self._store.list(folder)]
        return self._listed[folder]


def _key(path: str) -> str:
    return path.removeprefix(f"{SCHEME}://").removeprefix("output").strip("/")


@dataclass
class Result:
    """Column names and rows as they come; iterate once."""

    columns: list[str]
    rows: Iterator[Sequence[Any]]


@contextmanager
def opened(store: Store) -> Iterator[DuckDBPyConnection]:
    """DuckDB with a view per table and `annotations`; it reaches no other file, no network and no setting."""
    import duckdb

    published = [name for name in TABLES if any(found.key.endswith(".parquet") for found in store.list(name))]
    settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    connection = duckdb.connect(":memory:", config=settings)
    try:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        connection.register_filesystem(ReadOnly(store))
        for statement in views.duckdb_statements(ROOT, views.read_current(store), published):
            connection.execute(statement)
        connection.execute(f"SET allowed_directories = ['{ROOT}']; SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


def select(connection: DuckDBPyConnection, sql: str) -> Result:
    """Runs one SELECT. Raises BadRequest, one line, for anything else and for what DuckDB finds wrong in it."""
    import duckdb

    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise BadRequest("the query should be one SELECT")
        reader = connection.sql(sql).to_arrow_reader(FETCH_ROWS)
    except duckdb.Error as error:
        raise BadRequest(f"the query failed: {_reason(error)}") from error
    rows = _rows(reader)
    first = next(rows, None)  # so that what fails, fails before anything is shown
    return Result(list(reader.schema.names), rows if first is None else itertools.chain([first], rows))


def _rows(reader: pa.RecordBatchReader) -> Iterator[Sequence[Any]]:
    import duckdb

    try:
        for batch in reader:
            yield from zip(*(_values(column) for column in batch.columns), strict=True)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise BadRequest(f"the query failed: {_reason(error)}") from error


def _values(column: pa.Array) -> list[Any]:
    """Python values; a float32 keeps its own few digits (0.9, not 0.8999999761581421)."""
    if pa.types.is_float32(column.type):
        return [None if value is None else float(str(np.float32(value))) for value in column.to_pylist()]
    if pa.types.is_list(column.type) and pa.types.is_float32(column.type.value_type):
        return [None if not row.is_valid else _values(row.values) for row in column]
    values: list[Any] = column.to_pylist()
    return values


def _reason(error: Exception) -> str:
    """DuckDB's own words without the drawing of where it stumbled; of a Python traceback the last line."""
    text = str(error).strip()
    if text.startswith("Traceback"):
        return text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    return text.partition("\n\nLINE ")[0]


# --- showing a result ---


def show(result: Result, how: Format, stream: IO[str], limit: int | None, *, width: int | None = None) -> None:
    """Writes the rows, at most `limit` of them (None: all, but TABLE_ROWS in a table), and says where it left some out."""
    if how == "table":
        _table(result, stream, TABLE_ROWS if limit is None else limit, width)
        return
    rows = result.rows if limit is None else _first(result.rows, limit)
    if how == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(result.columns)
        writer.writerows([_csv(value) for value in row] for row in rows)
        return
    names = [name if name not in result.columns[:i] else f"{name}_{i + 1}" for i, name in enumerate(result.columns)]
    comma = "[\n"
    for row in rows:
        stream.write(comma + json.dumps(dict(zip(names, map(_plain, row), strict=True)), ensure_ascii=False))
        comma = ",\n"
    stream.write("\n]\n" if comma == ",\n" else "[]\n")


def _first(rows: Iterator[Sequence[Any]], limit: int) -> Iterator[Sequence[Any]]:
    for _, row in zip(range(limit), rows, strict=False):
        yield row


def _table(result: Result, stream: IO[str], limit: int, width: int | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=stream, width=width, highlight=False)
    rows = list(_first(result.rows, limit))
    more = next(result.rows, None) is not None
    texts = [[_short(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in texts)]) for i, name in enumerate(result.columns)]
    if sum(min(w, LEGIBLE_WIDTH) + 2 for w in widths) > console.width:
        _records(result.columns, texts, stream)
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(result.columns):
            is_number = any(type(row[index]) in (int, float, Decimal) for row in rows)
            least = min(widths[index], LEGIBLE_WIDTH)
            table.add_column(name, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis", min_width=least)
        for text in texts:
            table.add_row(*(_escaped(value) for value in text))
        console.print(table)
    left = f"the first {len(rows):,} rows; --limit shows more" if more else f"{len(rows):,} row{'s' * (len(rows) != 1)}"
    console.print(f"({left})", markup=False)


def _records(columns: Sequence[str], rows: Sequence[Sequence[str]], stream: IO[str]) -> None:
    """One value a line, for rows too wide for the terminal."""
    pad = max(len(name) for name in columns)
    for number, row in enumerate(rows, start=1):
        stream.write(f"── {number} ──\n")
        stream.writelines(f"{name:<{pad}}  {value}\n" for name, value in zip(columns, row, strict=True))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _short(value: Any) -> str:
    """A value for a table cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > 4:
        return "[" + ", ".join(_short(v) for v in value[:3]) + f", … {len(value)} values]"
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list):
        return "[" + ", ".join(_short(v) for v in value) + "]"
    return "".join(c if c.isprintable() else " " for c in str(value))


def _csv(value: Any) -> Any:
    plain = _plain(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else plain


def _plain(value: Any) -> Any:
    """What JSON can hold: times as ISO 8601 text, decimals as numbers, no NaN."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return bytes(value).hex()
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
