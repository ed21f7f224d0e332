"""Tables between Ray's processes: the same on both sides, whatever their chunks, and frames without a copy."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from pipeline import wire
from schemas.rows import CLIP_ROW, PART_ROW, RECEIPT, conform
from tests.pipeline.rows import Video, World, clip_rows


def sent(table: pa.Table) -> tuple[pa.Table, list[pa.Buffer]]:
    """As by pickle protocol 5 with buffers beside it, which is what Ray does: the table, and what lay beside."""
    beside: list[pickle.PickleBuffer] = []
    told = pickle.dumps(wire.packed(table), protocol=5, buffer_callback=beside.append)
    buffers = [pa.py_buffer(one.raw()) for one in beside]
    return wire.unpacked(pickle.loads(told, buffers=buffers)), buffers


def with_frames(rows: pa.Table) -> pa.Table:
    """CLIP_ROW as decode yields it: a chunk of frames for each clip, and none at the end row."""
    lengths = range(3, rows.num_rows + 2)
    chunks = [pa.array([bytes([n]) * n], pa.large_binary()) for n in lengths] + [pa.nulls(1, pa.large_binary())]
    return conform(rows.append_column("frames", pa.chunked_array(chunks)), CLIP_ROW)


@pytest.fixture
def rows() -> pa.Table:
    video = Video("a", (4,))
    world = World(None, [video])  # type: ignore[arg-type]
    unit = dict.fromkeys(CLIP_ROW.names) | {"video_id": video.id, "unit": 0, "units": 1, "uri": video.uri, "due": []}
    return clip_rows(unit, video, world.entries, world.config.clips.fingerprint())


def test_clip_rows_arrive_as_they_left(rows: pa.Table) -> None:
    table = with_frames(rows)
    assert table["frames"].num_chunks == 5
    arrived, _ = sent(table)
    assert arrived.equals(table)
    assert arrived.schema.equals(CLIP_ROW, check_metadata=True)
    arrived.validate(full=True)


def test_frames_lie_where_they_came_in(rows: pa.Table) -> None:
    arrived, buffers = sent(with_frames(rows))
    places = [(one.address, one.address + one.size) for one in buffers]
    for chunk in arrived["frames"].chunks:
        data = chunk.buffers()[2]
        assert not data.size or any(begin <= data.address < end for begin, end in places)


def test_a_slice_takes_only_its_own_bytes_along(rows: pa.Table) -> None:
    frames = pa.array([b"a" * 1000, None, b"b" * 1000, b"", b"c" * 1000], pa.large_binary())
    table = conform(rows.append_column("frames", frames), CLIP_ROW).slice(1, 3)
    arrived, buffers = sent(table)
    assert arrived["frames"].to_pylist() == [None, b"b" * 1000, b""]
    assert sum(one.size for one in buffers if bytes(one[:1]) == b"b") == 1000
    assert not any(b"aaaa" in bytes(one) or b"cccc" in bytes(one) for one in buffers)


def test_a_null_may_lie_over_bytes(rows: pa.Table) -> None:
    buffers = [pa.py_buffer(bytes([0b11101])), pa.py_buffer(np.array([0, 2, 5, 6, 6, 8], np.int64)), pa.py_buffer(b"aaxxxbcc")]
    frames = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 5, buffers)
    arrived, _ = sent(conform(rows.append_column("frames", frames), CLIP_ROW))
    assert arrived["frames"].to_pylist() == [b"aa", None, b"b", b"", b"cc"]


@pytest.mark.parametrize("schema", [CLIP_ROW, PART_ROW, RECEIPT], ids=["clips", "parts", "receipts"])
def test_a_table_without_rows_keeps_its_columns(schema: pa.Schema) -> None:
    arrived, _ = sent(schema.empty_table())
    assert arrived.schema.equals(schema)
    assert not arrived.num_rows


def test_a_column_of_that_name_that_holds_no_bytes_is_a_column() -> None:
    table = pa.table({"frames": pa.array([3, None], pa.int64()), "x": ["a", "b"]}).replace_schema_metadata({b"k": b"v"})
    arrived, _ = sent(table)
    assert arrived.equals(table, check_metadata=True)


def test_many_chunks_become_one_but_for_frames(rows: pa.Table) -> None:
    table = pa.concat_tables([with_frames(rows), with_frames(rows)])
    arrived, _ = sent(table)
    assert arrived.equals(table)
    assert arrived["clip_id"].num_chunks == 1
    assert np.array_equal([len(chunk) for chunk in arrived["frames"].chunks], [1] * 10)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_ray_hands_tables_over_in_this_form(rows: pa.Table) -> None:
    import ray

    wire.use()
    table = with_frames(rows)
    packed: list[pa.Table] = []
    real, wire.packed = wire.packed, lambda one: packed.append(one) or real(one)  # type: ignore[func-returns-value]
    try:
        wire.use()
        assert ray.get(ray.put(table)).equals(table)
    finally:
        wire.packed = real
        wire.use()
    assert packed
