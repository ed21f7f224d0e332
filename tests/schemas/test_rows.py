import pyarrow as pa
import pytest

from schemas.rows import CLIP_ROW, END, PART_ROW, SOURCE_ROW, UNIT_ROW, conform, rows_table

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("n", pa.int32())])


def test_conform_orders_and_casts() -> None:
    out = conform(pa.table({"n": pa.array([1, None], pa.int64()), "id": ["a", "b"]}), SCHEMA)
    assert out.schema.equals(SCHEMA)
    assert out.to_pylist() == [{"id": "a", "n": 1}, {"id": "b", "n": None}]


def test_conform_names_columns_that_are_missing_or_do_not_belong() -> None:
    with pytest.raises(ValueError, match=r"missing \['n'\], unknown \['m'\]"):
        conform(pa.table({"id": ["a"], "m": [1]}), SCHEMA)


def test_conform_refuses_a_null_where_none_may_stand() -> None:
    with pytest.raises(ValueError, match="id"):
        conform(pa.table({"id": pa.array([None], pa.string()), "n": [1]}), SCHEMA)


def test_conform_refuses_a_value_that_does_not_fit() -> None:
    with pytest.raises(pa.ArrowInvalid):
        conform(pa.table({"id": ["a"], "n": [2**40]}), SCHEMA)


def test_an_empty_table_conforms() -> None:
    assert conform(CLIP_ROW.empty_table(), CLIP_ROW).num_rows == 0


def test_rows_may_leave_out_what_is_null_and_nothing_else() -> None:
    assert rows_table([{"id": "a"}], SCHEMA).to_pylist() == [{"id": "a", "n": None}]
    assert rows_table([], SCHEMA).schema.equals(SCHEMA)
    with pytest.raises(ValueError, match="'m'"):
        rows_table([{"id": "a", "m": 1}], SCHEMA)
    with pytest.raises(ValueError, match="id"):
        rows_table([{"n": 1}], SCHEMA)


def test_a_row_keeps_what_is_known_of_its_source_all_the_way() -> None:
    known = [name for name in SOURCE_ROW.names if not name.startswith("error_")]
    for schema in (UNIT_ROW, CLIP_ROW, PART_ROW):
        assert schema.names[: len(known)] == known
    assert UNIT_ROW.names == CLIP_ROW.names[: len(UNIT_ROW)]


def test_frames_are_all_that_leaves_before_staging() -> None:
    assert set(CLIP_ROW.names) - set(PART_ROW.names) == {"frames"}
    assert pa.types.is_large_binary(CLIP_ROW.field("frames").type)  # 32-bit offsets overflow when batches are put together


def test_an_end_row_can_say_everything_that_the_ledger_takes_from_it() -> None:
    names = {END.field(index).name for index in range(END.num_fields)}
    assert {"clips", "error_code", "container", "codec", "rotation_deg", "decoded_s", "started_at"} <= names
