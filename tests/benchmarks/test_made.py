from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import made
from benchmarks.planning import archive, ledger
from pipeline.publish import publish
from pipeline.session import Session
from pipeline.staging import StageParts
from pipeline.verify import verify
from stages.discover import Discovery
from stages.storage import Store

STAGES = ("classify", "embed", "caption")


def test_made_rows_are_staged_published_and_verified_like_real_ones(tmp_path: Path) -> None:
    config, entries = made.job(str(tmp_path), "/footage", STAGES)
    store = Store(str(tmp_path))
    session = Session.open(store, config, entries)
    units = made.units(session.due(made.sources(7, 20)))
    session.expect(units)
    rows = made.clip_rows(units, 3, config.clips.fingerprint(), entries, dim=4)
    receipts = StageParts(store, session.run_id)(rows)
    assert receipts.sort_by("video_id").equals(made.receipts(units, 3, entries).sort_by("video_id"))
    session.receive(receipts)
    plan = session.plan_epoch()
    assert plan is not None
    publish(store, plan)
    session.commit(plan)
    assert session.close().statuses == {"ok": 20}
    assert verify(store) == []


@pytest.mark.parametrize("which", ["known", "new"])
def test_a_made_ledger_knows_its_videos_and_no_others(tmp_path: Path, which: str) -> None:
    known, output = archive(tmp_path, 30, "known"), tmp_path / "tables"
    ledger(output, known)
    manifest = archive(tmp_path, 30, which)
    config, entries = made.job(str(output), str(manifest), STAGES)
    session = Session.look(Store(str(output)), config, entries)
    due = sum(session.due(sources).num_rows for sources in Discovery(config.input).batches())
    assert due == (0 if which == "known" else 30)
