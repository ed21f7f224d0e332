import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from duckdb import DuckDBPyConnection

from pipeline import query, views
from pipeline.views import DIALECTS, Current, CurrentEntry
from schemas.errors import BadRequest
from schemas.tables import CLIPS, TABLES
from stages.storage import Store
from tests.pipeline import tables as made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def connection(store: Store) -> Iterator[DuckDBPyConnection]:
    made.write_small(store)
    with query.opened(store) as opened:
        yield opened


def rows(store: Store, sql: str) -> list[dict[str, Any]]:
    with query.opened(store) as connection:
        result = query.select(connection, sql)
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def test_annotations_has_one_row_per_clip_with_every_models_answer(store: Store) -> None:
    made.write_small(store)
    found = rows(store, "SELECT * FROM annotations ORDER BY clip_id")
    clips = [*made.clip_rows("a.mp4"), *made.clip_rows("b.mp4")]
    assert [row["clip_id"] for row in found] == sorted(clip["clip_id"] for clip in clips)
    assert list(found[0]) == [
        *CLIPS.schema.names, "action", "action_score", "object", "object_score", "embedding", "caption"
    ]  # fmt: skip
    for row in found:
        assert (row["action"], row["object"], row["caption"]) == ("left", "red circle", "a red circle moving left")
        assert row["embedding"] == [0.6, 0.8]
        assert row["action_score"] == 0.9


def test_annotations_shows_the_newest_version_of_a_replaced_file(store: Store) -> None:
    made.write_small(store)
    made.write(store, "clips", {"fingerprint": made.CLIPS_FP}, made.clip_rows("a.mp4", "r2", version="2", starts_s=[0]), "r2")
    replaced = made.ledger_row("a.mp4", "r2", version="2", hours_later=24, supersedes=made.video("a.mp4"))
    made.write(store, "videos", {}, [replaced], "r2")
    found = rows(store, "SELECT video_id, uri FROM annotations ORDER BY uri")
    assert [row["uri"] for row in found] == ["/videos/a.mp4", "/videos/b.mp4", "/videos/b.mp4"]
    assert found[0]["video_id"] == made.video("a.mp4", "2")


def test_annotations_keeps_a_video_that_a_later_run_worked_on_again(store: Store) -> None:
    made.write_small(store)
    made.write(store, "videos", {}, [made.ledger_row("a.mp4", "r2", hours_later=24, status="deferred")], "r2")
    assert len(rows(store, "SELECT * FROM annotations")) == 4


def test_annotations_shows_only_the_latest_way_of_making_clips_and_of_using_models(store: Store) -> None:
    made.write_small(store)
    made.write(store, "clips", {"fingerprint": "zzzzzzzz"}, made.clip_rows("a.mp4", "r2", fp="zzzzzzzz"), "r2")
    old = {"model": made.CAPTION.slug, "fingerprint": "zzzzzzzz"}
    made.write(store, "captions", old, made.caption_rows(made.clip_rows("a.mp4"), "an older prompt"), "r0")
    found = rows(store, "SELECT caption FROM annotations")
    assert [row["caption"] for row in found] == ["a red circle moving left"] * 4


def test_annotations_has_nulls_where_a_model_has_no_answer_yet(store: Store) -> None:
    made.write_small(store)
    new = CurrentEntry("caption", "caption", "me/new", "me--new", "r", "bbbbbbbb")
    made.write_current(store, Current(made.CLIPS_FP, (made.ACTION, new)))
    found = rows(store, "SELECT action, caption FROM annotations")
    assert found == [{"action": "left", "caption": None}] * 4


def test_a_label_that_failed_leaves_the_clip_with_a_null(store: Store) -> None:
    made.write_small(store)
    failed = CurrentEntry("classify", "action", "me/bad", "me--bad", "r", "bbbbbbbb")
    clips = made.clip_rows("a.mp4")
    errors = [
        {**row, "label": None, "score": None, "rank": None, "error_code": "model_failed"}
        for row in made.label_rows(clips, ["x"])
    ]
    made.write(store, "labels", {"model": "me--bad", "fingerprint": "bbbbbbbb"}, errors, "r2")
    made.write_current(store, Current(made.CLIPS_FP, (failed,)))
    assert rows(store, "SELECT action FROM annotations") == [{"action": None}] * 4


def test_before_anything_is_published_every_view_is_there_empty_and_typed(store: Store) -> None:
    with query.opened(store) as connection:
        for name, table in TABLES.items():
            found = dict(query.select(connection, f"SELECT column_name, column_type FROM (DESCRIBE {name})").rows)
            assert list(found) == made.partition_names(table)
        assert list(query.select(connection, "SELECT * FROM annotations").rows) == []


def test_an_empty_view_has_the_types_that_the_full_one_has(store: Store, tmp_path: Path) -> None:
    made.write_small(store)
    with query.opened(store) as full, query.opened(Store(str(tmp_path / "empty"))) as empty:
        for name in [*TABLES, "annotations"]:
            described = f"SELECT column_name, column_type FROM (DESCRIBE {name})"
            there = dict(query.select(full, described).rows)
            expected = {column: kind for column, kind in there.items() if name != "annotations" or column in CLIPS.schema.names}
            assert dict(query.select(empty, described).rows) == expected


def test_partitions_are_text_and_days_are_dates(connection: DuckDBPyConnection) -> None:
    [row] = query.select(connection, "SELECT DISTINCT typeof(fingerprint), typeof(run_date), run_date::VARCHAR FROM clips").rows
    assert list(row) == ["VARCHAR", "DATE", made.DAY]


# --- _current.json ---


def test_current_is_read_as_it_is_written(store: Store) -> None:
    assert views.read_current(store) == Current()
    made.write_current(store)
    assert views.read_current(store) == made.CURRENT


@pytest.mark.parametrize("change", [{"fingerprint": "x'; DROP"}, {"slug": "../x"}, {"name": 'a"b'}, {"stage": "paint"}])
def test_nothing_but_names_gets_from_current_into_sql(change: dict[str, str], store: Store) -> None:
    made.write_current(store, Current(made.CLIPS_FP, (CurrentEntry(**{**vars(made.ACTION), **change}),)))
    with pytest.raises(BadRequest, match=r"_current\.json is damaged"):
        views.read_current(store)


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", json.dumps({"clips": "no", "entries": []}).encode()])
def test_a_damaged_current_is_said_in_one_line(content: bytes, store: Store) -> None:
    store.write("_current.json", content)
    with pytest.raises(BadRequest, match=r"_current\.json is damaged"):
        views.read_current(store)


# --- other engines ---


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_makes_every_table_and_annotations(dialect: views.Dialect) -> None:
    script = views.script("s3://bucket/out", made.CURRENT, dialect)
    for name, table in TABLES.items():
        assert f"s3://bucket/out/{name}" in script
        if dialect != "duckdb":
            made_of = script.partition(f" {name} (" if dialect == "spark" else f"`{name}` (")[2].partition(";")[0]
            assert all(f"`{column}`" in made_of for column in made.partition_names(table))
    assert script.count(";\n") == len(TABLES) * (2 if dialect == "athena" else 1) + 1
    assert "annotations AS" in script


def test_athena_has_partitions_apart_from_columns_and_hive_types() -> None:
    script = views.table_view(TABLES["videos"], "s3://b/o", "athena")
    assert "PARTITIONED BY (`run_date` date)" in script
    # `rows` is a reserved word there
    stage = "`stage`:string,`model`:string,`revision`:string,`fingerprint`:string,`status`:string,`rows`:bigint"
    assert f"`stages` array<struct<{stage}>>" in script
    assert "LOCATION 's3://b/o/videos/'" in script
    assert "`finished_at` timestamp" in script


def test_spark_quotes_with_backticks_and_athenas_views_with_double_quotes() -> None:
    assert "c.`clip_id`" in views.annotations_view(made.CURRENT, "spark")
    assert "TEMPORARY VIEW annotations" in views.annotations_view(made.CURRENT, "spark")
    assert 'c."clip_id"' in views.annotations_view(made.CURRENT, "athena")


def test_the_duckdb_script_runs_as_it_is_printed(store: Store) -> None:
    import duckdb

    made.write_small(store)
    with duckdb.connect() as plain:
        plain.execute(views.script(store.root, views.read_current(store), "duckdb"))
        assert plain.execute("SELECT count(*) FROM annotations").fetchall() == [(4,)]


def test_a_quote_in_the_outputs_name_ends_no_string(tmp_path: Path) -> None:
    import duckdb

    store = Store(str(tmp_path / "it's"))
    made.write_small(store)
    with duckdb.connect() as plain:
        plain.execute(views.script(store.root, views.read_current(store), "duckdb"))
        assert plain.execute("SELECT count(*) FROM clips").fetchall() == [(4,)]
