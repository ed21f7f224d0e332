"""What the ledger knows of a video, and how little it costs."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.idtable import IdTable, first_of_each, packed, unpacked
from pipeline.ledger import MOST_FINGERPRINTS, Known
from schemas.errors import BadRequest
from schemas.rows import rows_table
from schemas.tables import VIDEOS
from tests.pipeline.rows import START

CLIPS, MODEL, OTHER = "clipsaaa", "modelbbb", "otherccc"
ALL = [CLIPS, MODEL, OTHER]
IDS = st.binary(min_size=16, max_size=16).map(bytes.hex) | st.sampled_from(["00" * 16, "00" * 15 + "01", "01" + "00" * 15])


def rows(*videos: tuple[str, str, dict[str, str]], uri: str | None = None, supersedes: str | None = None) -> pa.Table:
    """Ledger rows of (video id, status, {fingerprint: status})."""
    made: list[dict[str, Any]] = []
    for video, status, stages in videos:
        listed = [
            {"stage": "clips" if f == CLIPS else "embed", "fingerprint": f, "status": s, "rows": int(s in ("ok", "partial"))}
            for f, s in stages.items()
        ]
        made.append(
            {
                "video_id": video, "uri": uri or f"/{video}", "supersedes": supersedes, "status": status, "stages": listed,
                "run_id": "r", "attempts": 1, "finished_at": START,
            }
        )  # fmt: skip
    return rows_table(made, VIDEOS.schema)


def known(*tables: pa.Table) -> Known:
    found = Known(ALL)
    for table in tables:
        found.add(table)
    return found


def done(found: Known, video: str) -> list[str]:
    return found.names(found.done(packed(pa.array([video])))).to_pylist()[0]


def given_up(found: Known, video: str) -> list[str]:
    return found.names(found.given_up(packed(pa.array([video])))).to_pylist()[0]


V, W = "ab" * 16, "cd" * 16


def test_ok_and_partial_are_done_failed_and_deferred_are_not() -> None:
    found = known(rows((V, "partial", {CLIPS: "partial", MODEL: "ok", OTHER: "failed"}), (W, "deferred", {CLIPS: "deferred"})))
    assert done(found, V) == [CLIPS, MODEL]
    assert done(found, W) == []
    assert given_up(found, V) == []
    assert given_up(found, W) == []


def test_done_stays_done_whatever_later_rows_say() -> None:
    found = known(
        rows((V, "ok", {CLIPS: "ok"})), rows((V, "deferred", {MODEL: "deferred"})), rows((V, "failed", {OTHER: "failed"}))
    )
    assert done(found, V) == [CLIPS]


@pytest.mark.parametrize("status", ["failed", "quarantined"])
def test_a_failed_video_is_given_up_for_all_that_follows_from_its_clips(status: str) -> None:
    found = known(rows((V, status, {CLIPS: "failed", MODEL: "failed"})))
    assert given_up(found, V) == ALL


def test_a_video_that_failed_without_its_clips_being_due_is_given_up_for_what_was_due() -> None:
    assert given_up(known(rows((V, "failed", {MODEL: "failed"}))), V) == [MODEL]


def test_a_video_that_failed_under_another_configuration_of_clips_is_due() -> None:
    assert given_up(known(rows((V, "failed", {"elsewher": "failed"}))), V) == []


def test_the_last_row_decides_whether_a_video_is_given_up() -> None:
    found = known(rows((V, "failed", dict.fromkeys(ALL, "failed"))), rows((V, "deferred", dict.fromkeys(ALL, "deferred"))))
    assert given_up(found, V) == []
    found.add(rows((V, "quarantined", dict.fromkeys(ALL, "failed"))))
    assert given_up(found, V) == ALL


def test_an_unknown_video_is_neither() -> None:
    found = known(rows((V, "ok", {CLIPS: "ok"})))
    assert done(found, W) == given_up(found, W) == []


def test_a_new_file_at_a_known_uri_supersedes_the_newest_other_one() -> None:
    found = known(rows((V, "ok", {CLIPS: "ok"}), uri="/a"), rows((W, "ok", {CLIPS: "ok"}), uri="/a", supersedes=V))
    third = "ef" * 16
    assert found.supersedes(packed(pa.array([third])), ["/a"]).to_pylist() == [W]
    assert found.supersedes(packed(pa.array([third])), ["/b"]).to_pylist() == [None]


def test_what_a_video_supersedes_is_said_again_in_its_later_rows() -> None:
    found = known(rows((V, "ok", {CLIPS: "ok"}), uri="/a"), rows((W, "ok", {CLIPS: "ok"}), uri="/a", supersedes=V))
    assert found.supersedes(packed(pa.array([W])), ["/a"]).to_pylist() == [V]


def test_promise_7_a_known_video_costs_a_few_bytes() -> None:
    count = 200_000
    ids = np.frombuffer(secrets.token_bytes(16 * count), dtype="S16")
    found = Known(ALL)
    table = rows((V, "ok", dict.fromkeys(ALL, "ok")))
    for part in np.array_split(ids, 20):
        names = unpacked(part)
        repeated = pa.concat_tables([table] * len(part)).combine_chunks()
        repeated = repeated.set_column(0, table.schema.field("video_id"), pa.array(names))
        found.add(repeated.set_column(1, table.schema.field("uri"), pa.array([f"/{name}" for name in names])))
    assert len(found) == count
    assert found.bytes <= 33 * count
    assert (found.done(ids) == 7).all()


def test_more_models_than_there_are_bits_is_a_bad_request() -> None:
    Known([f"f{n}" for n in range(MOST_FINGERPRINTS)])
    with pytest.raises(BadRequest):
        Known([f"f{n}" for n in range(MOST_FINGERPRINTS + 1)])


@pytest.mark.parametrize("count", [4, 5, 8, 9, 16, 17, MOST_FINGERPRINTS])
def test_every_number_of_models_fits_its_bits(count: int) -> None:
    names = [f"f{n:07d}" for n in range(count)]
    found = Known(names)
    found.add(rows((V, "partial", {names[-1]: "ok"}), (W, "failed", {names[-1]: "failed"})))
    assert done(found, V) == [names[-1]]
    assert given_up(found, W) == [names[-1]]


@given(st.lists(IDS))
def test_ids_survive_packing(ids: list[str]) -> None:
    assert unpacked(packed(pa.array(ids, pa.string()))) == ids


@pytest.mark.parametrize("bad", ["", "ab", "g" * 32, "AB" * 16, "ab" * 17, "ab" * 15 + "ä"])
def test_what_is_no_id_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"hex digits|ascii"):
        packed(pa.array([bad]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(IDS, st.integers(0, 255), max_size=8), max_size=8), st.lists(IDS, max_size=8))
def test_a_table_of_ids_is_a_dict(writes: list[dict[str, int]], others: list[str]) -> None:
    table, model = IdTable("S16", "u1"), dict[str, int]()
    for write in writes:
        table.put(packed(pa.array(list(write), pa.string())), np.array(list(write.values()), dtype="u1"))
        model |= write
    asked = [*model, *others]
    found, values = table.get(packed(pa.array(asked, pa.string())))
    assert found.tolist() == [name in model for name in asked]
    assert values.tolist() == [model.get(name, 0) for name in asked]
    assert len(table) == len(model)


def test_a_table_of_ids_keeps_everything_when_it_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.idtable._SMALLEST_MERGE", 10)
    ids = np.frombuffer(secrets.token_bytes(16 * 500), dtype="S16")
    table = IdTable("S16", "u2")
    for begin in range(0, 500, 7):
        part = ids[begin : begin + 7]
        table.put(part, np.arange(begin, begin + len(part), dtype="u2"))
    assert table.get(ids)[1].tolist() == list(range(500))


@given(st.lists(st.integers(0, 5)))
def test_the_first_of_equal_keys_is_kept(keys: list[int]) -> None:
    mask = first_of_each(np.array(keys, dtype=np.int64))
    assert [key for key, kept in zip(keys, mask, strict=True) if kept] == list(dict.fromkeys(keys))
