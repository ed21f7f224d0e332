"""Parts and receipts: what is staged is what the receipt says, whatever is replayed."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.intake import Intake
from pipeline.receipts import BadPart, from_footer, parts_folder, read_receipt, to_footer
from pipeline.staging import StageParts
from schemas.rows import CLIP_ROW, PART_ROW, RECEIPT, UNIT_ROW
from stages.storage import Store
from tests.pipeline.faults import memory
from tests.pipeline.rows import Steps, Video, World

RUN = "20260102T030405-aaaaaa"


def world(*videos: Video) -> tuple[World, pa.Table]:
    """A world and the UNIT_ROW rows of its videos."""
    w = World(Store(memory()), videos, Steps())
    session = w.open()
    return w, w.expect(session)


def rows_of(w: World, found: pa.Table, attempt: str = "a1", noise: float = 0.0) -> pa.Table:
    return pa.concat_tables([w.rows(unit, attempt, noise) for unit in found.to_pylist()])


def parts(store: Store) -> dict[str, pa.Table]:
    return {info.key: pq.read_table(io.BytesIO(store.read(info.key))) for info in store.list(parts_folder(RUN))}


def replaced(table: pa.Table, **columns: list[Any]) -> pa.Table:
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    return table


def test_a_unit_becomes_one_part_whose_footer_is_the_receipt() -> None:
    w, found = world(Video("v", (3,), bad_clips=(1,), failing={"caption": (0,)}, error="damaged"))
    receipts = StageParts(w.store, RUN)(rows_of(w, found))
    row = receipts.to_pylist()[0]
    assert receipts.schema.equals(RECEIPT)
    assert (row["first_row"], row["last_row"], row["clips"], row["bad_clips"], row["error_code"]) == (0, 3, 3, 1, "damaged")
    counted = {staged["stage"]: (staged["rows"], staged["good"], staged["failed"]) for staged in row["staged"]}
    assert counted == {"classify": (4, 2, 0), "embed": (2, 2, 0), "caption": (2, 1, 1)}
    assert row["end"]["clips"] == 3
    key, part = next(iter(parts(w.store).items()))
    assert key.endswith(f"{w.videos[0].id}-0000.a1.000000-000003.parquet")
    assert part.num_rows == 4
    assert read_receipt(w.store, key) == row


def test_frames_are_not_staged() -> None:
    w, found = world(Video("v", (2,)))
    table = rows_of(w, found)
    frames = pa.array([b"\x00" * 1000] * table.num_rows, pa.large_binary())
    clip_rows = table.add_column(CLIP_ROW.names.index("frames"), CLIP_ROW.field("frames"), frames)
    StageParts(w.store, RUN)(clip_rows.select(CLIP_ROW.names))
    assert all(part.schema.remove_metadata().equals(PART_ROW) for part in parts(w.store).values())


def test_no_rows_make_no_parts() -> None:
    store = Store(memory())
    assert StageParts(store, RUN)(PART_ROW.empty_table()).num_rows == 0
    assert not parts(store)


def test_the_stage_can_be_sent_to_a_worker() -> None:
    import pickle

    w, found = world(Video("v", (1,)))
    assert pickle.loads(pickle.dumps(StageParts(w.store, RUN)))(rows_of(w, found)).num_rows == 1


def test_an_empty_unit_reports_through_its_end_row() -> None:
    w, found = world(Video("v", (0,), error="unreadable"))
    row = StageParts(w.store, RUN)(rows_of(w, found)).to_pylist()[0]
    assert (row["clips"], row["end"]["error_code"], row["staged"]) == (0, "unreadable", [])


def test_rows_with_a_gap_become_parts_without_one() -> None:
    w, found = world(Video("v", (5,)))
    table = rows_of(w, found)
    receipts = StageParts(w.store, RUN)(pa.concat_tables([table.slice(4), table.slice(0, 2)]))
    assert [(row["first_row"], row["last_row"]) for row in receipts.to_pylist()] == [(0, 1), (4, 5)]


def test_promise_3_a_replay_with_other_answers_leaves_part_and_receipt_as_they_were() -> None:
    w, found = world(Video("v", (3,)))
    first = StageParts(w.store, RUN)(rows_of(w, found))
    before = parts(w.store)
    worse = World(w.store, [Video("v", (3,), failing={"embed": (1,), "classify": (0,)})], w.steps)
    again = StageParts(w.store, RUN)(rows_of(worse, found))
    assert again.equals(first)
    after = parts(w.store)
    assert after.keys() == before.keys()
    assert all(after[key].equals(before[key]) for key in before)


def test_a_replay_that_cuts_batches_elsewhere_collides_with_nothing() -> None:
    w, found = world(Video("v", (5,)))
    table, stage, intake = rows_of(w, found), StageParts(w.store, RUN), Intake()
    intake.expect(found)
    for begin, length in ((0, 4), (0, 2), (3, 1), (2, 4)):  # only 0-1 and 2-5 fit together
        intake.receive(stage(table.slice(begin, length)))
    (_, units), *_ = intake.ends(intake.ready)
    assert [(r["first_row"], r["last_row"]) for r in units[0].receipts] == [(0, 1), (2, 5)]


def test_overlapping_parts_that_do_not_fit_together_are_no_unit() -> None:
    w, found = world(Video("v", (5,)))
    table, stage, intake = rows_of(w, found), StageParts(w.store, RUN), Intake()
    intake.expect(found)
    for begin, length in ((0, 4), (3, 3)):
        intake.receive(stage(table.slice(begin, length)))
    assert intake.ready == []
    assert intake.missing().num_rows == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_of_the_rows_in_any_order_completes_every_unit_once(data: st.DataObject) -> None:
    w, found = world(Video("a", (3, 0, 2)), Video("b", (1,)), Video("c", (0,), error="no_video"))
    table = rows_of(w, found)
    cuts = sorted({0, table.num_rows, *data.draw(st.lists(st.integers(1, table.num_rows - 1), max_size=6))})
    slices = [table.slice(a, b - a) for a, b in pairwise(cuts)]
    stage, intake = StageParts(w.store, RUN), Intake()
    intake.expect(found)
    deltas = [intake.receive(stage(part)) for part in data.draw(st.permutations(slices))]
    total = sum(deltas[1:], deltas[0])
    assert (total.units, total.videos, total.clips, total.failed) == (5, 3, 6, 1)
    assert intake.missing().num_rows == 0
    for _, units in intake.ends(intake.ready):
        for unit in units:
            held = [n for r in unit.receipts for n in range(r["first_row"], r["last_row"] + 1)]
            assert held == list(range(unit.end["clips"] + 1)) if unit.end else False


@pytest.mark.parametrize("merge", [1, 2, 3, 100])
def test_receipts_stay_with_their_units_when_tables_are_merged(monkeypatch: pytest.MonkeyPatch, merge: int) -> None:
    monkeypatch.setattr("pipeline.intake.MERGE_TABLES", merge)
    videos = [Video(name, (number, 1)) for number, name in enumerate("abcdefg")]
    w, found = world(*videos)
    stage, intake = StageParts(w.store, RUN), Intake(accept_unknown=True)
    for unit in found.to_pylist():
        intake.receive(stage(w.rows(unit)))
    clips = {video: [unit.clips for unit in units] for video, units in intake.ends(intake.ready)}
    assert clips == {video.id: list(video.clips) for video in videos}
    ended = [(unit, receipt) for _, units in intake.ends(intake.ready) for unit in units for receipt in unit.receipts]
    assert not any(unit.source.keys() & receipt.keys() for unit, receipt in ended)  # said once


def test_a_unit_that_was_given_up_ends_its_video_and_ignores_late_receipts() -> None:
    from schemas.errors import ErrorCode

    w, found = world(Video("v", (1, 2)))
    units = found.to_pylist()
    stage, intake = StageParts(w.store, RUN), Intake()
    intake.expect(found)
    intake.expect(found.slice(1))
    intake.receive(stage(w.rows(units[0])))
    delta = intake.give_up([f"{w.videos[0].id}-0001"], ErrorCode.KILLED, "it died")
    assert (delta.units, delta.videos, delta.failed) == (1, 1, 0)
    assert intake.receive(stage(w.rows(units[1]))).units == 0
    (_, ends), *_ = intake.ends(intake.ready)
    assert [unit.tries for unit in ends] == [1, 2]
    assert ends[1].trouble is not None
    assert ends[1].trouble.message == "unit 2 of 2: it died"


def test_receipts_of_units_that_nobody_expects_are_ignored() -> None:
    w, found = world(Video("v", (1,)))
    intake = Intake()
    assert intake.receive(StageParts(w.store, RUN)(rows_of(w, found))).units == 0


def test_a_receipt_survives_the_footer() -> None:
    w, found = world(Video("v", (2,), error="truncated"))
    receipt = StageParts(w.store, RUN)(rows_of(w, found)).to_pylist()[0]
    assert from_footer(to_footer(receipt)) == receipt


def test_what_is_missing_keeps_the_units_as_they_were_expected() -> None:
    w, found = world(Video("a", (1,)), Video("b", (1, 1)))
    intake = Intake()
    intake.expect(found)
    intake.receive(StageParts(w.store, RUN)(w.rows(found.to_pylist()[0])))
    wanted = found.filter(pc.not_equal(found["video_id"], found["video_id"][0]))
    assert intake.missing().sort_by("unit").equals(wanted.sort_by("unit"))
    assert intake.missing().schema.equals(UNIT_ROW)


def _swapped_ids(table: pa.Table) -> pa.Table:
    ids = table["clip_id"].to_pylist()
    return replaced(table, clip_id=[ids[1], ids[0], *ids[2:]])


def _foreign_id(table: pa.Table) -> pa.Table:
    ids = table["clip_id"].to_pylist()
    return replaced(table, clip_id=["0" * 32 + ids[0][32:], *ids[1:]])


def _lost_answer(table: pa.Table) -> pa.Table:
    return replaced(table, captions=[[], *table["captions"].to_pylist()[1:]])


def _answer_twice(table: pa.Table) -> pa.Table:
    answers = table["embeddings"].to_pylist()
    return replaced(table, embeddings=[answers[0] * 2, *answers[1:]])


def _answer_to_a_bad_clip(table: pa.Table) -> pa.Table:
    return replaced(table, error_code=["damaged", *table["error_code"].to_pylist()[1:]])


def _wrong_count(table: pa.Table) -> pa.Table:
    ends = table["end"].to_pylist()
    return replaced(table, end=[*ends[:-1], ends[-1] | {"clips": 7}])


def _early_end(table: pa.Table) -> pa.Table:
    ends = table["end"].to_pylist()
    return replaced(table, end=[ends[-1], *ends[1:]])


def _no_length(table: pa.Table) -> pa.Table:
    return replaced(table, end_s=table["start_s"].to_pylist())


def _no_boundary(table: pa.Table) -> pa.Table:
    return replaced(table, boundary=[None] * table.num_rows)


def _path_in_attempt(table: pa.Table) -> pa.Table:
    return replaced(table, attempt=["../../videos/x"] * table.num_rows)


@pytest.mark.parametrize(
    "broken",
    [
        _swapped_ids, _foreign_id, _lost_answer, _answer_twice, _answer_to_a_bad_clip, _wrong_count, _early_end, _no_length,
        _no_boundary, _path_in_attempt,
    ],
)  # fmt: skip
def test_rows_that_contradict_themselves_are_refused_before_anything_is_staged(broken: Any) -> None:
    w, found = world(Video("v", (3,)))
    with pytest.raises(BadPart):
        StageParts(w.store, RUN)(broken(rows_of(w, found)))
    assert not parts(w.store)
