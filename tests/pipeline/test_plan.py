"""How work is dealt out in blocks, and which steps a job has."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.sizing import Sizing
from pipeline.plan import BLOCK_BYTES, BLOCK_FILES, Step, blocks, steps, unit_bytes
from schemas.config import EmbedConfig, InputConfig, JobConfig
from schemas.entries import Entry
from schemas.rows import UNIT_ROW


def units(sizes: list[int | None], of_each: int = 1) -> pa.Table:
    rows = [
        {"video_id": f"{video:032x}", "uri": f"v{video}.mp4", "size_bytes": size, "unit": unit, "units": of_each, "due": ["x"]}
        for video, size in enumerate(sizes)
        for unit in range(of_each)
    ]
    return pa.Table.from_pylist(rows, schema=UNIT_ROW)


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 200 << 20)), max_size=60),
    st.integers(1, 3),
    st.sampled_from([1, 2, 64]),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=50)
def test_every_unit_is_in_exactly_one_block_and_no_block_is_over_its_limits(
    sizes: list[int | None], of_each: int, cpus: int, grain: int
) -> None:
    work = units(sizes, of_each)
    dealt = list(blocks(work, cpus, grain))
    names = [(row["video_id"], row["unit"]) for block in dealt for row in block.select(["video_id", "unit"]).to_pylist()]
    assert sorted(names) == sorted(zip(work["video_id"].to_pylist(), work["unit"].to_pylist(), strict=True))
    for block in dealt:
        assert block.schema == UNIT_ROW
        assert 1 <= block.num_rows <= grain * BLOCK_FILES
        assert block.num_rows == 1 or unit_bytes(block).sum() <= grain * BLOCK_BYTES


def test_equal_files_are_dealt_to_at_least_eight_blocks_per_cpu() -> None:
    assert len(list(blocks(units([1000] * 160), cpus=2))) >= 16


def test_a_coarse_grain_makes_fewer_blocks_of_much_work_but_not_of_little() -> None:
    much, little = units([1000] * 20_000), units([1000] * 160)
    assert len(list(blocks(much, 8, grain=8))) == 1 + len(list(blocks(much, 8))) // 8 == 157
    assert len(list(blocks(little, 2, grain=8))) == len(list(blocks(little, 2)))


def steps_on(gpus: float, grain: int = 1) -> list[Step]:
    sizing = Sizing("cuda" if gpus else "cpu", "bfloat16", 0.45, 1.0, gpus, 1, 1, grain=grain)
    entry = Entry("embed", EmbedConfig(model="org/clip"), "revision", "fingerprint", "/weights")
    config = JobConfig(input=InputConfig(uri="/videos"), output="/tables", embed=(entry.config,))
    return steps(config, [entry], sizing, "/tables", "run")


def test_actors_stage_what_they_have_made_unless_a_gpu_would_wait_for_it() -> None:
    assert [(step.name, step.actors) for step in steps_on(gpus=0.0)] == [("decode", None), ("embed + stage parts", (1, 1))]
    assert [step.name for step in steps_on(gpus=0.5)] == ["decode", "embed", "stage parts"]


@pytest.mark.parametrize(("grain", "gpus", "batches"), [(1, 0.0, [None]), (1, 1.0, [16, None]), (8, 1.0, [128, 256])])
def test_batches_grow_with_the_grain(grain: int, gpus: float, batches: list[int | None]) -> None:
    assert [step.batch_rows for step in steps_on(gpus, grain)[1:]] == batches


def test_the_largest_units_come_first_and_units_of_one_video_stay_together() -> None:
    dealt = list(blocks(units([10, 3_000_000, 20], of_each=2), cpus=1))
    order = [row["uri"] for block in dealt for row in block.to_pylist()]
    assert order == ["v1.mp4", "v1.mp4", "v2.mp4", "v2.mp4", "v0.mp4", "v0.mp4"]


@pytest.mark.parametrize("cpus", [0.5, 1, 2])
def test_no_units_make_no_blocks(cpus: float) -> None:
    assert list(blocks(units([]), cpus)) == []
