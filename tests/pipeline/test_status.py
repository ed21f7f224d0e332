import datetime
import json
from pathlib import Path

import pytest

from pipeline import lease, status
from schemas.config import InputConfig
from stages.storage import Store
from tests.pipeline import tables as made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    made.write_small(store)
    made.write_log(store, ("open", "r1"), ("close", "r1"))
    return store


def held(store: Store, run: str, until: datetime.datetime) -> None:
    lease.write(store, lease.Lease(run, lease.Owner("elsewhere", None, 7, None), until))


def test_videos_are_counted_by_status_and_errors_by_code(store: Store) -> None:
    found = status.read(store)
    assert found.videos == {"ok": 2, "failed": 1}
    assert found.errors == (status.ErrorCount("decode", "no_video", 1, "/videos/c.mp3"),)
    assert (found.clips, found.decoded_s, found.superseded) == (4, 14.0, 0)


def test_a_video_is_counted_once_however_many_runs_worked_on_it(store: Store) -> None:
    again = made.ledger_row("a.mp4", "r2", hours_later=24, status="deferred", error_code="storage", decoded_s=None, clips=0)
    less = made.ledger_row("b.mp4", "r2", hours_later=24, decoded_s=2.0)
    made.write(store, "videos", {}, [again, less], "r2")
    found = status.read(store)
    assert found.videos == {"ok": 1, "failed": 1, "deferred": 1}
    assert (found.decoded_s, found.clips) == (14.0, 4)  # what was published of it before still stands


def test_a_replaced_file_counts_as_its_newest_version(store: Store) -> None:
    made.write(store, "videos", {}, [made.ledger_row("a.mp4", "r2", version="2", hours_later=24, decoded_s=1.0)], "r2")
    found = status.read(store)
    assert found.videos == {"ok": 2, "failed": 1}
    assert (found.superseded, found.decoded_s, found.clips) == (1, 8.0, 2)
    assert "  videos   2 ok, 1 failed (1 older versions are hidden)" in status.lines(found)


def test_models_of_the_latest_configuration_say_how_far_they_are(store: Store) -> None:
    assert [(m.name, m.videos, m.rows) for m in status.read(store).models] == [
        ("action", 2, 4), ("object", 2, 4), ("embedding", 2, 4), ("caption", 2, 4)
    ]  # fmt: skip


def test_a_model_that_failed_on_a_video_has_not_done_it(store: Store) -> None:
    stages = made.ledger_row("a.mp4")["stages"]
    failed = [{**stage, "status": "failed", "rows": 0} if stage["stage"] == "caption" else stage for stage in stages]
    made.write(store, "videos", {}, [made.ledger_row("d.mp4", "r2", stages=failed)], "r2")
    done = {model.name: model.videos for model in status.read(store).models}
    assert done == {"action": 3, "object": 3, "embedding": 3, "caption": 2}


def test_the_last_runs_are_done_running_or_dead(store: Store) -> None:
    made.write_log(store, ("open", "r2"), ("open", "r3"))
    far = datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC)
    held(store, "r2", far)
    held(store, "r3", made.NOON)
    found = status.read(store).runs
    assert [(run.run, run.state, run.videos) for run in found] == [("r3", "dead", 0), ("r2", "running", 0), ("r1", "done", 3)]
    text = "\n".join(status.lines(status.read(store)))
    assert "took 1 h 00 min" in text
    assert "ended without closing" in text


def test_only_the_last_few_runs_are_told(store: Store) -> None:
    made.write_log(store, *((kind, f"x{number}") for number in range(9) for kind in ("open", "close")))
    assert [run.run for run in status.read(store).runs] == ["x8", "x7", "x6", "x5", "x4"]


def test_sources_that_have_gone_or_come_are_told_where_an_input_is_given(tmp_path: Path) -> None:
    archive, store = tmp_path / "archive", Store(str(tmp_path / "out"))
    archive.mkdir()
    for name in ("kept.mp4", "new.mp4"):
        (archive / name).write_bytes(b"x")
    rows = [made.ledger_row(name, uri=str(archive / name)) for name in ("kept.mp4", "gone.mp4")]
    made.write(store, "videos", {}, rows, "r1")
    found = status.read(store, InputConfig(uri=str(archive)))
    assert found.sources == status.Sources(gone=1, new=1, listed=2, gone_uris=(str(archive / "gone.mp4"),))
    assert f"             gone: {archive / 'gone.mp4'}" in status.lines(found)


def test_the_report_is_plain_json_and_aligned_text(store: Store) -> None:
    found = status.read(store)
    assert json.loads(json.dumps(found.to_json()))["videos"] == {"ok": 2, "failed": 1}
    lines = status.lines(found)
    assert lines[:4] == [store.root, "  videos   2 ok, 1 failed", "  footage  14.0 s", "  clips    4"]
    models = lines[lines.index("  models") + 1 :][:4]
    assert len({line.index("2 videos") for line in models}) == 1


def test_an_output_where_nothing_has_been_published_yet_has_a_status(tmp_path: Path) -> None:
    found = status.read(Store(str(tmp_path)))
    assert (found.videos, found.clips, found.runs) == ({}, 0, ())
    assert "  videos   none yet" in status.lines(found)
