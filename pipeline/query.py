"""SQL over the tables: DuckDB, reading what is published and nothing else, and writing nowhere.

Whoever writes the SQL need not be trusted. DuckDB is given one folder that holds the tables' objects only and takes no
writes, no temporary directory (a statement may read and write there whatever else is locked), no extensions, no setting that
can be changed, and less memory than the process; the process is given less than the machine.
"""

from __future__ import annotations

import csv
import datetime
import itertools
import json
import os
import posixpath
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, get_args

import numpy as np
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline import views
from schemas.errors import BadRequest, BadVideo
from schemas.tables import TABLES
from stages.filesystems import is_url
from stages.roots import Roots

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from stages.storage import Store

T = TypeVar("T")
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
        """What matches of the tables' objects; `*` stays within a folder, `**` does not."""
        pattern = _key(path)
        folder = posixpath.dirname(pattern.split("*")[0])
        if folder.partition("/")[0] not in TABLES or {".", ".."} & set(pattern.split("/")):
            raise PermissionError(f"{path} is none of the tables")
        parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
        words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
        matches = re.compile("".join(words.get(part, re.escape(part)) for part in parts)).fullmatch
        return [f"{ROOT}/{key}" for key, _ in self._list(folder) if _is_published(key) and matches(key)]

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
        key = _key(path)
        if not _is_published(key):
            raise PermissionError(f"{key} is no object of a table")
        file = self._store.open_read(key)
        try:
            if not is_url(self._store.root):
                Roots((self._store.root,)).check_open(file.fileno(), self._store.uri(key))
        except BadVideo as error:
            file.close()
            raise PermissionError(f"{key} is a link that leads out of the output") from error
        return file

    def _list(self, folder: str) -> list[tuple[str, int]]:
        if folder not in self._listed:
            self._listed[folder] = [(found.key, found.size_bytes) for found in self._store.list(folder)]
        return self._listed[folder]


def _key(path: str) -> str:
    folder, _, key = path.removeprefix(f"{SCHEME}://").partition("/")  # fsspec takes the scheme off, DuckDB leaves it on
    if folder != "output":
        raise PermissionError(f"{path} is not below {ROOT}")
    return key.strip("/")


def _is_published(key: str) -> bool:
    return key.partition("/")[0] in TABLES and key.endswith(".parquet") and not {".", ".."} & set(key.split("/"))


@dataclass
class Result:
    """Column names and rows as they come; iterate once."""

    columns: list[str]
    rows: Iterator[Sequence[Any]]


@contextmanager
def bounded(memory_bytes: int | None = None) -> Iterator[None]:
    """Lets this process take a quarter more than `opened` grants queries: some functions do not ask DuckDB for memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    wanted = held + (memory_bytes or _memory_bytes()) * 5 // 4
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if soft == resource.RLIM_INFINITY else min(wanted, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _memory_bytes() -> int:
    """What a query may take: 60% of what there is, by the control group's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    return total * 6 // 10


@contextmanager
def opened(store: Store, memory_bytes: int | None = None) -> Iterator[DuckDBPyConnection]:
    """DuckDB with a view per table and `annotations`; it reaches no other file, no network and no setting.

    `memory_bytes` is what queries may take together (unset: 60% of what there is); nothing is spilled to disk.
    """
    import duckdb

    _thread.submit(int)
    published = [name for name in TABLES if any(found.key.endswith(".parquet") for found in store.list(name))]
    settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    connection = duckdb.connect(":memory:", config=settings)
    try:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false; SET temp_directory = ''")
        connection.execute("SET http_proxy = ''")  # comes from the environment, perhaps with a password
        connection.execute(f"SET memory_limit = '{memory_bytes or _memory_bytes()} B'")
        connection.register_filesystem(ReadOnly(store))
        try:
            for statement in views.duckdb_statements(ROOT, views.read_current(store), published):
                connection.execute(statement)
        except duckdb.Error as error:
            raise BadRequest(f"{store.root}: its tables cannot be read: {_reason(error)}") from error
        connection.execute(f"SET allowed_directories = ['{ROOT}']; SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


def select(connection: DuckDBPyConnection, sql: str) -> Result:
    """Runs one SELECT. Raises BadRequest, one line, for anything else and for what DuckDB finds wrong in it."""
    import duckdb

    try:
        if [_kind(statement) for statement in connection.extract_statements(sql)] != [duckdb.StatementType.SELECT]:
            raise BadRequest("the query should be one SELECT")
        reader = _watched(connection, lambda: connection.sql(sql).to_arrow_reader(FETCH_ROWS))
    except (duckdb.Error, RuntimeError, MemoryError) as error:
        raise _failed(error) from error
    rows = _rows(connection, reader)
    first = next(rows, None)  # so that what fails, fails before anything is shown
    return Result(list(reader.schema.names), rows if first is None else itertools.chain([first], rows))


def _kind(statement: Any) -> Any:
    """DuckDB knows kinds of statements that its Python package has no name for."""
    try:
        return statement.type
    except ValueError:
        return None


def _watched(connection: DuckDBPyConnection, work: Callable[[], T]) -> T:
    """Does `work` in another thread: where DuckDB waits for its own threads, no Ctrl-C would reach this one."""
    future = _thread.submit(work)
    try:
        return future.result()
    except KeyboardInterrupt:
        while not future.done():
            connection.interrupt()
            time.sleep(0.02)
        raise


_thread = ThreadPoolExecutor(1, "query")  # one for all: once a query has taken what memory there is, none could be started


def _rows(connection: DuckDBPyConnection, reader: pa.RecordBatchReader) -> Iterator[Sequence[Any]]:
    import duckdb

    try:
        while (batch := _watched(connection, lambda: next(reader, None))) is not None:
            yield from zip(*(_values(column) for column in batch.columns), strict=True)
    except (duckdb.Error, pa.ArrowException, OSError, RuntimeError, MemoryError) as error:
        raise _failed(error) from error


def _failed(error: Exception) -> BaseException:
    """How a query's error is raised. A Ctrl-C comes out of DuckDB as a RuntimeError."""
    if isinstance(error, RuntimeError) and "interrupted" in str(error).lower():
        return KeyboardInterrupt()
    return BadRequest(f"the query failed: {_reason(error)}")


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
    text = re.split(r"\n\n(?:LINE |Possible solutions)", str(error).strip())[0] or type(error).__name__
    if text.startswith("Traceback"):
        return text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    return text


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
