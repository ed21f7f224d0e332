import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from duckdb import DuckDBPyConnection

from pipeline import query
from schemas.errors import BadRequest
from schemas.tables import TABLES
from stages.storage import Store
from tests.pipeline import tables as made
from tests.s3 import S3Server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    made.write_small(store)
    return store


@pytest.fixture
def connection(store: Store) -> Iterator[DuckDBPyConnection]:
    with query.opened(store) as opened:
        yield opened


def shown(connection: DuckDBPyConnection, sql: str, how: query.Format, limit: int | None = None, width: int = 100) -> str:
    stream = io.StringIO()
    query.show(query.select(connection, sql), how, stream, limit, width=width)
    return stream.getvalue()


# --- what other readers see ---


@pytest.mark.parametrize("name", TABLES)
def test_pandas_pyarrow_polars_and_duckdb_open_a_table_with_its_partitions(name: str, store: Store, connection: Any) -> None:
    import pandas as pd
    import polars as pl
    import pyarrow.parquet as pq

    folder = Path(store.root) / name
    columns = set(made.partition_names(TABLES[name]))
    count = len(pd.read_parquet(folder))
    assert count
    assert set(pd.read_parquet(folder).columns) == columns
    assert (pq.read_table(folder).num_rows, set(pq.read_table(folder).column_names)) == (count, columns)
    frame = pl.scan_parquet(folder / "**" / "*.parquet", hive_partitioning=True).collect()
    assert (frame.height, set(frame.columns)) == (count, columns)
    assert [list(row) for row in query.select(connection, f"SELECT count(*) FROM {name}").rows] == [[count]]


@pytest.mark.parametrize("name", TABLES)
def test_types_come_back_as_the_schema_has_them(name: str, store: Store) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(Path(store.root) / name)
    for field in TABLES[name].schema:
        found = table.schema.field(field.name).type
        assert str(found).replace("element", "item") == str(field.type) or pa.types.is_nested(field.type)


# --- where the tables may be ---


def test_tables_in_memory_are_read_like_those_on_disk() -> None:
    store = Store("memory://query-test/out")
    made.write_small(store)
    with query.opened(store) as connection:
        [row] = query.select(connection, "SELECT count(*), count(embedding) FROM annotations").rows
    assert list(row) == [4, 4]


@pytest.mark.s3
def test_tables_on_s3_are_read_like_those_on_disk(s3: S3Server) -> None:
    store = Store(f"{s3.bucket()}/deep/out")
    made.write_small(store)
    with query.opened(store) as connection:
        found = [list(row) for row in query.select(connection, "SELECT uri, caption FROM annotations ORDER BY clip_id").rows]
        with pytest.raises(BadRequest, match="Permission"):
            query.select(connection, f"SELECT * FROM read_parquet('{store.root}/clips/**/*.parquet')")
    assert len(found) == 4
    assert found[0][1] == "a red circle moving left"


# --- it reads the output and nothing else ---


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM read_parquet('{out}/clips/**/*.parquet')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM glob('/**')",
        "SELECT * FROM 'https://example.com/x.parquet'",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "SELECT * FROM read_text('clipmill://output/../../{file}')",
        "WITH x AS (COPY (SELECT 1) TO '{out}/evil.csv') SELECT * FROM x",
        "WITH x AS (COPY (SELECT 1) TO 'clipmill://output/evil.csv') SELECT * FROM x",
        "WITH x AS (COPY (SELECT 1) TO 'clipmill://output/clips/evil.parquet') SELECT * FROM x",
        "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''clipmill://output/evil.csv'') SELECT * FROM x')",
    ],
)
def test_a_query_can_neither_read_elsewhere_nor_write_anywhere(sql: str, store: Store, connection: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(BadRequest) as caught:
        list(query.select(connection, sql.format(file=tmp_path / "secret.txt", out=store.root)).rows)
    assert "\n" not in str(caught.value)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO 'clipmill://output/evil.csv'", "ATTACH '/tmp/x.db'", "INSTALL httpfs", "LOAD httpfs",
        "SET enable_external_access = true", "EXPORT DATABASE 'x'", "CREATE TABLE t AS SELECT 1", "DROP VIEW clips",
        "SELECT 1; SELECT 2", "EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'", "PRAGMA version", "", "-- nothing",
    ],
)  # fmt: skip
def test_anything_but_one_select_is_refused(sql: str, connection: DuckDBPyConnection) -> None:
    with pytest.raises(BadRequest, match="the query should be one SELECT"):
        query.select(connection, sql)


def test_variables_of_the_program_are_no_tables(connection: DuckDBPyConnection) -> None:
    secret = pa.table({"a": [1]})
    assert secret.num_rows
    with pytest.raises(BadRequest, match="secret"):
        query.select(connection, "SELECT * FROM secret")


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FRM clips", "Parser Error: syntax error"),
        ("SELECT nope FROM clips", 'Referenced column "nope" not found'),
        ("SELECT * FROM nowhere", "nowhere does not exist"),
        ("SELECT CAST(label AS INT) FROM labels", "Could not convert string"),
    ],
)
def test_an_error_in_the_sql_is_one_line_in_duckdbs_words(sql: str, said: str, connection: DuckDBPyConnection) -> None:
    with pytest.raises(BadRequest) as caught:
        list(query.select(connection, sql).rows)
    assert said in str(caught.value)
    assert "LINE" not in str(caught.value)


def test_an_error_after_the_first_rows_is_one_line_too(connection: DuckDBPyConnection) -> None:
    late = "SELECT CASE WHEN range < 900000 THEN '1' ELSE 'x' END::INT FROM range(1000000)"
    with pytest.raises(BadRequest, match="Could not convert string"):
        list(query.select(connection, late).rows)


# --- showing ---

VALUES = """
SELECT 'it''s, ok' AS text, 0.1::FLOAT AS small, 1e-7::DOUBLE AS tiny, 'nan'::DOUBLE AS nothing, NULL AS missing, true AS yes,
  170141183460469231731687303715884105727 AS huge, 1.25::DECIMAL(4,2) AS exact, [0.1::FLOAT, NULL] AS list,
  {'a': 1, 'b': DATE '2026-01-02'} AS struct, TIMESTAMPTZ '2026-01-02 03:04:05+00' AS moment, 'A'::BLOB AS bytes
"""


def test_csv_has_plain_values_and_json_inside_where_a_value_is_nested(connection: DuckDBPyConnection) -> None:
    [row] = csv.DictReader(io.StringIO(shown(connection, VALUES, "csv")))
    assert row == {
        "text": "it's, ok", "small": "0.1", "tiny": "1e-07", "nothing": "", "missing": "", "yes": "true",
        "huge": "170141183460469231731687303715884105727", "exact": "1.25", "list": "[0.1, null]",
        "struct": '{"a": 1, "b": "2026-01-02"}', "moment": "2026-01-02T03:04:05+00:00", "bytes": "41",
    }  # fmt: skip


def test_json_is_one_list_that_any_parser_takes(connection: DuckDBPyConnection) -> None:
    [row] = json.loads(shown(connection, VALUES, "json"), parse_constant=lambda name: pytest.fail(name))
    assert row["small"] == 0.1
    assert row["nothing"] is None
    assert row["huge"] == 170141183460469231731687303715884105727
    assert row["struct"] == {"a": 1, "b": "2026-01-02"}
    assert json.loads(shown(connection, "SELECT 1 WHERE false", "json")) == []
    assert len(json.loads(shown(connection, "SELECT * FROM range(3)", "json"))) == 3


def test_json_keeps_both_of_two_columns_with_one_name(connection: DuckDBPyConnection) -> None:
    assert json.loads(shown(connection, "SELECT 1 AS a, 2 AS a", "json")) in ([{"a": 1, "a_2": 2}], [{"a": 1, "a_1": 2}])


def test_a_table_is_aligned_and_says_how_many_rows_there_are(connection: DuckDBPyConnection) -> None:
    text = shown(connection, "SELECT uri, start_s, caption FROM annotations ORDER BY clip_id", "table")
    assert "/videos/a.mp4" in text
    assert "(4 rows)" in text
    assert "(1 row)" in shown(connection, "SELECT 1", "table")


def test_a_table_shows_the_first_rows_and_says_that_there_are_more(connection: DuckDBPyConnection) -> None:
    text = shown(connection, "SELECT * FROM range(1000)", "table")
    assert "(the first 50 rows; --limit shows more)" in text
    assert "(the first 3 rows; --limit shows more)" in shown(connection, "SELECT * FROM range(1000)", "table", 3)
    assert "(60 rows)" in shown(connection, "SELECT * FROM range(60)", "table", 1000)


@pytest.mark.parametrize(("how", "lines"), [("csv", 1001), ("json", 1002)])
def test_files_get_all_rows_unless_limited(how: query.Format, lines: int, connection: DuckDBPyConnection) -> None:
    assert shown(connection, "SELECT * FROM range(1000)", how).count("\n") == lines
    assert shown(connection, "SELECT * FROM range(1000)", how, 7).count("\n") == lines - 993


def test_rows_too_wide_for_the_terminal_are_shown_a_value_a_line(connection: DuckDBPyConnection) -> None:
    text = shown(connection, "SELECT * FROM annotations ORDER BY clip_id", "table", width=80)
    assert "caption        a red circle moving left\n" in text
    assert text.startswith("── 1 ──\n")


def test_a_value_cannot_draw_on_the_terminal(connection: DuckDBPyConnection) -> None:
    text = shown(connection, "SELECT 'a' || chr(27) || '[31mb' AS x, '[red]y[/red]' AS y", "table")
    assert "\x1b" not in text
    assert "[red]y[/red]" in text


def test_a_long_list_is_cut_short_in_a_table(connection: DuckDBPyConnection) -> None:
    assert "[0, 1, 2, … 512 values]" in shown(connection, "SELECT list(range) AS v FROM range(512)", "table")
