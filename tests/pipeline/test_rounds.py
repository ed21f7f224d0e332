"""Rounds over real workers: a file that ends its worker is quarantined, its neighbours are not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from pipeline.plan import Step
from pipeline.publisher import Here, Publisher
from pipeline.rounds import Deadlines, Rounds, StoppedEarly
from pipeline.session import Session
from pipeline.staging import StageParts
from schemas.config import ClipsConfig, JobConfig
from stages.decode import Decode
from stages.discover import Discovery
from stages.storage import StorageUnavailable, Store
from stages.units import units_of
from tests.faults.doubles import hang
from tests.media import textured, write_video

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class DeadlyDecode:
    """Decodes, but ends its worker at a file called killer, and at one called once the first time."""

    def __init__(self, clips: ClipsConfig, marks: str) -> None:
        self._decode, self._marks = Decode(clips, {}, 60.0, 4 << 30), Path(marks)

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        for row in range(units.num_rows):
            name = Path(units["uri"][row].as_py()).stem
            if name == "killer" or (name == "once" and not (self._marks / "once").exists()):
                (self._marks / name).touch()
                os._exit(9)
            if name == "sleeper":
                hang()
            if name == "outage" and not (self._marks / "outage").exists():
                (self._marks / name).touch()
                raise StorageUnavailable("the store is away")
            yield from self._decode(units.slice(row, 1))


def work(archive: Path, output: Path, names: list[str], deadlines: Deadlines, tell: Callable[[str], None] = print) -> Session:
    archive.mkdir()
    for number, name in enumerate(names):
        write_video(archive / f"{name}.mp4", textured(30, seed=number))
    config = JobConfig.model_validate({"input": {"uri": str(archive)}, "output": str(output)})
    session = Session.open(Store(str(output)), config, [])
    for sources in Discovery(config.input).batches():
        session.expect(units_of(session.due(sources), config.clips))
    steps = [
        Step("decode", DeadlyDecode, (config.clips, str(archive.parent)), cpus=0.45),
        Step("stage parts", StageParts, (str(output), session.run_id), cpus=0.01),
    ]
    publisher = Publisher(session, str(output), config.resources, Here())
    try:
        Rounds(session, steps, str(output), 2, deadlines, session.receive, publisher.tick, tell).run()
    finally:
        publisher.finish()
        session.close(complete=not session.sums.open)
    return session


def statuses(output: Path) -> dict[str, tuple[str, str | None]]:
    ledger = ds.dataset(output / "videos").to_table(columns=["uri", "status", "error_code"]).to_pylist()
    return {Path(row["uri"]).stem: (row["status"], row["error_code"]) for row in ledger}


def test_promise_4_a_video_that_kills_its_worker_is_quarantined_and_costs_no_neighbour(tmp_path: Path) -> None:
    told: list[str] = []
    work(tmp_path / "archive", tmp_path / "out", ["a", "killer", "b", "once", "c"], Deadlines(None, 120), told.append)
    assert [line.rpartition(" ")[2] for line in told if "killer.mp4" in line] == ["alone", "alone", "up"]
    assert statuses(tmp_path / "out") == {
        "a": ("ok", None),
        "b": ("ok", None),
        "c": ("ok", None),
        "once": ("ok", None),
        "killer": ("quarantined", "killed"),
    }


def test_a_run_without_receipts_stops_ends_what_hangs_and_publishes_what_is_complete(tmp_path: Path) -> None:
    with pytest.raises(StoppedEarly, match="stalled") as stopped:
        work(tmp_path / "archive", tmp_path / "out", ["a", "sleeper"], Deadlines(None, 12))
    assert statuses(tmp_path / "out") == {"a": ("ok", None)}
    (told,) = [line for line in stopped.value.details if "sleeper.mp4: decode since" in line]
    pid = int(re.search(r"pid (\d+)", told)[1])  # type: ignore[index]
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}/exe").exists():
        assert time.monotonic() < until, "the worker that hangs outlives its run, though its driver lives"
        time.sleep(0.1)


def test_promise_4_while_the_storage_is_away_nobody_is_blamed(tmp_path: Path) -> None:
    told: list[str] = []
    work(tmp_path / "archive", tmp_path / "out", ["a", "outage"], Deadlines(None, 120), told.append)
    assert statuses(tmp_path / "out") == {"a": ("ok", None), "outage": ("ok", None)}
    assert told == []
