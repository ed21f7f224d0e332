"""SQL of the tables as views, and of `annotations`, for DuckDB, Spark and Athena.

`annotations` has one row per clip of the newest version of each video, as the latest configuration makes clips: the columns of
clips, and for each model its own (`<name>` and `<name>_score` of a classifier, `<name>` of a captioner or an embedder).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from pipeline.settings import columns_of
from schemas.errors import BadRequest
from schemas.identity import FINGERPRINT, SLUG
from schemas.secrets import redacted
from schemas.tables import CLIPS, STAGE_TABLE, TABLES, Table

if TYPE_CHECKING:
    from stages.storage import Store

Dialect = Literal["duckdb", "spark", "athena"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
CURRENT_KEY = "_current.json"
_ABSENT = "aaaaaaaa"  # a fingerprint that no configuration has been seen to have

_TYPES: Mapping[str, tuple[str, str, str]] = {
    "string": ("VARCHAR", "STRING", "string"),
    "int32": ("INTEGER", "INT", "int"),
    "int64": ("BIGINT", "BIGINT", "bigint"),
    "float": ("FLOAT", "FLOAT", "float"),
    "double": ("DOUBLE", "DOUBLE", "double"),
    "bool": ("BOOLEAN", "BOOLEAN", "boolean"),
    "timestamp[us, tz=UTC]": ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "timestamp"),
}
_PARTITION_TYPES: Mapping[str, pa.DataType] = {"run_date": pa.date32()}
_LABEL_VALUES = {"classify": ("label", "score"), "embed": ("embedding",), "caption": ("caption",)}


@dataclass(frozen=True)
class CurrentEntry:
    """One model of the latest configuration."""

    stage: str
    name: str
    model: str
    slug: str
    revision: str
    fingerprint: str


@dataclass(frozen=True)
class Current:
    """What `_current.json` says; `clips` is None where nothing has been published yet."""

    clips: str | None = None
    entries: tuple[CurrentEntry, ...] = ()


def read_current(store: Store) -> Current:
    """The latest configuration's fingerprints; an empty Current where there is none. Raises BadRequest where it is damaged."""
    try:
        return parse_current(json.loads(store.read(CURRENT_KEY)))
    except FileNotFoundError:
        return Current()
    except (ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"{redacted(store.uri(CURRENT_KEY))} is damaged: {error}") from error


def parse_current(content: Mapping[str, Any]) -> Current:
    """`_current.json`, checked: what goes from here into SQL is a slug, a fingerprint or a plain name. ValueError if not."""
    names = CurrentEntry.__dataclass_fields__
    entries = tuple(CurrentEntry(**{name: str(entry[name]) for name in names}) for entry in content["entries"])
    for entry in entries:
        is_good = FINGERPRINT.fullmatch(entry.fingerprint) and SLUG.fullmatch(entry.slug) and entry.stage in STAGE_TABLE
        if not is_good or not entry.name.isidentifier():
            raise ValueError(f"{CURRENT_KEY} has an entry that makes no sense: {entry}")
    if not FINGERPRINT.fullmatch(str(content["clips"])):
        raise ValueError(f"{CURRENT_KEY} has no fingerprint of clips: {content['clips']!r}")
    return Current(str(content["clips"]), entries)


# --- views of the tables ---


def table_view(table: Table, root: str, dialect: Dialect) -> str:
    """A statement that makes the table under `root` known by its name."""
    location = f"{root.rstrip('/')}/{table.name}"
    if dialect == "duckdb":
        types = ", ".join(f"{name}: {sql_type(_partition_type(name), dialect)}" for name in table.partitions)
        pattern = _text(f"{location}/**/*.parquet")
        how = f"hive_partitioning = true, hive_types = {{{types}}}, union_by_name = true"
        return f"CREATE OR REPLACE VIEW {table.name} AS\nSELECT * FROM read_parquet({pattern}, {how})"
    if dialect == "spark":
        columns = ",\n".join(f"  {_quoted(f.name, dialect)} {sql_type(f.type, dialect)}" for f in _all_fields(table))
        return f"CREATE OR REPLACE TEMPORARY VIEW {table.name} (\n{columns}\n) USING parquet OPTIONS (path {_text(location)})"
    columns = ",\n".join(f"  `{f.name}` {sql_type(f.type, dialect)}" for f in table.schema)
    partitions = ", ".join(f"`{name}` {sql_type(_partition_type(name), dialect)}" for name in table.partitions)
    return (
        f"CREATE EXTERNAL TABLE IF NOT EXISTS `{table.name}` (\n{columns}\n) PARTITIONED BY ({partitions})\n"
        f"STORED AS PARQUET LOCATION {_text(location + '/')}"
    )


def empty_view(table: Table) -> str:
    """DuckDB's statement for a table of which nothing is published: its columns and types, no row."""
    columns = ", ".join(f"NULL::{sql_type(f.type, 'duckdb')} AS {_quoted(f.name, 'duckdb')}" for f in _all_fields(table))
    return f"CREATE OR REPLACE VIEW {table.name} AS\nSELECT {columns} WHERE false"


def sql_type(kind: pa.DataType, dialect: Dialect) -> str:
    """Arrow's type in the words of the dialect; KeyError for a type that no table has."""
    if pa.types.is_date(kind):
        return "date" if dialect == "athena" else "DATE"
    if pa.types.is_list(kind):
        inner = sql_type(kind.value_type, dialect)
        return {"duckdb": f"{inner}[]", "spark": f"ARRAY<{inner}>", "athena": f"array<{inner}>"}[dialect]
    if pa.types.is_struct(kind):
        fields = [(kind.field(i).name, sql_type(kind.field(i).type, dialect)) for i in range(kind.num_fields)]
        if dialect == "duckdb":
            return "STRUCT(" + ", ".join(f'"{name}" {field_type}' for name, field_type in fields) + ")"
        word, comma = ("STRUCT", ", ") if dialect == "spark" else ("struct", ",")
        # Quoted: `rows` is a reserved word of Athena's DDL.
        return f"{word}<" + comma.join(f"`{name}`:{field_type}" for name, field_type in fields) + ">"
    return _TYPES[str(kind)][DIALECTS.index(dialect)]


def _partition_type(name: str) -> pa.DataType:
    return _PARTITION_TYPES.get(name, pa.string())


def _all_fields(table: Table) -> list[pa.Field]:
    return [*table.schema, *(pa.field(name, _partition_type(name)) for name in table.partitions)]


# --- annotations ---


def annotations_view(current: Current, dialect: Dialect) -> str:
    """The statement that makes the view `annotations`."""
    make = "CREATE OR REPLACE TEMPORARY VIEW" if dialect == "spark" else "CREATE OR REPLACE VIEW"
    return f"{make} annotations AS\n{annotations_select(current, dialect)}"


def annotations_select(current: Current, dialect: Dialect) -> str:
    """One row per clip of the latest configuration and of the newest video of each uri."""
    clips = ", ".join(f"c.{_quoted(name, dialect)}" for name in CLIPS.schema.names)
    columns = textwrap.wrap(clips, 110, break_long_words=False)
    joins: list[str] = []
    for number, entry in enumerate(current.entries):
        values = zip(_LABEL_VALUES[entry.stage], columns_of(entry.stage, entry.name), strict=True)
        columns[-1] += ","
        columns.append(", ".join(f"m{number}.{value} AS {_quoted(name, dialect)}" for value, name in values))
        joins.append(_join(entry, number, dialect))
    return "\n".join(
        [
            "SELECT",
            *(f"  {line}" for line in columns),
            "FROM clips c",
            "JOIN (",
            "  SELECT video_id FROM (",
            f"    {_newest()}",
            "  ) n WHERE n.age = 1",
            ") v ON v.video_id = c.video_id",
            *joins,
            f"WHERE c.fingerprint = {_text(current.clips or _ABSENT)}",
        ]
    )


def _newest() -> str:
    """The video that each uri's newest ledger row is of: a replaced file is another video, and the older one is hidden."""
    order = "PARTITION BY uri ORDER BY finished_at DESC, run_id DESC, video_id"
    return f"SELECT video_id, row_number() OVER ({order}) AS age\n    FROM videos"


def _join(entry: CurrentEntry, number: int, dialect: Dialect) -> str:
    values = ", ".join(("clip_id", *_LABEL_VALUES[entry.stage]))
    best = f" AND {_quoted('rank', dialect)} = 1" if entry.stage == "classify" else ""
    where = f"model = {_text(entry.slug)} AND fingerprint = {_text(entry.fingerprint)}{best}"
    table = STAGE_TABLE[entry.stage]
    return f"LEFT JOIN (\n  SELECT {values} FROM {table}\n  WHERE {where}\n) m{number} ON m{number}.clip_id = c.clip_id"


def script(root: str, current: Current, dialect: Dialect) -> str:
    """All statements, in order, each ended by a semicolon."""
    statements = [table_view(table, root, dialect) for table in TABLES.values()]
    if dialect == "athena":
        statements += [f"MSCK REPAIR TABLE `{table.name}`" for table in TABLES.values()]
    statements.append(annotations_view(current, dialect))
    return ";\n\n".join(statements) + ";\n"


def duckdb_statements(root: str, current: Current, published: Collection[str]) -> list[str]:
    """What `query` runs: a view per table, empty and typed where `published` does not name it, and `annotations`."""
    tables = [table_view(table, root, "duckdb") if table.name in published else empty_view(table) for table in TABLES.values()]
    return [*tables, annotations_view(current, "duckdb")]


def _quoted(name: str, dialect: Dialect) -> str:
    return f"`{name}`" if dialect == "spark" else f'"{name}"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
