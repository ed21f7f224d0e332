import pyarrow as pa
import pytest

from schemas.tables import PUBLISH_ORDER, STAGE_TABLE, STAGES, TABLES, Table

ALL = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


def flat(kind: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_list(kind):
        return flat(kind.value_type)
    if pa.types.is_struct(kind):
        return [leaf for index in range(kind.num_fields) for leaf in flat(kind.field(index).type)]
    return [kind]


@ALL
def test_every_column_has_a_description(table: Table) -> None:
    assert table.description
    assert all(field.metadata[b"description"] for field in table.schema)


@ALL
def test_partition_columns_stand_in_the_path_only(table: Table) -> None:
    assert not set(table.partitions) & set(table.schema.names)
    assert table.partitions[-1] == "run_date"


@ALL
def test_a_key_is_made_of_columns_and_partitions_and_none_of_it_is_optional_but_the_label(table: Table) -> None:
    assert set(table.key) <= {*table.schema.names, *table.partitions}
    optional = {name for name in table.key if name in table.schema.names and table.schema.field(name).nullable}
    assert optional <= {"label"}


@ALL
def test_types_are_those_that_spark_trino_and_duckdb_share(table: Table) -> None:
    shared = {pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")}
    for field in table.schema:
        assert set(flat(field.type)) <= shared, field


@ALL
def test_rows_name_their_video_and_run(table: Table) -> None:
    assert {"video_id", "run_id"} <= set(table.schema.names)


def test_every_table_is_published_and_the_ledger_last() -> None:
    assert set(PUBLISH_ORDER) == set(TABLES)
    assert PUBLISH_ORDER[-1] == "videos"


def test_every_stage_has_a_table() -> None:
    assert set(STAGE_TABLE) == set(STAGES)
    assert set(STAGE_TABLE.values()) == set(TABLES) - {"videos"}
