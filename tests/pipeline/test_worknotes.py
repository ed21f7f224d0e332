"""What workers note of their work, and what an operator is told from it. No Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import worknotes
from pipeline.lease import Owner
from pipeline.witness import Answers, outstanding
from pipeline.worknotes import AtUnit, Note, Notebook
from schemas.identity import unit_id
from stages.storage import StorageUnavailable

VIDEO, OTHER = "a" * 32, "b" * 32
END = pa.struct([("clips", pa.int32())])


def rows(*units: tuple[str, int], ended: bool = False) -> pa.Table:
    videos, numbers = [video for video, _ in units], [unit for _, unit in units]
    base = {"video_id": videos, "unit": numbers, "units": [3] * len(units), "uri": [f"/{video[0]}.mp4" for video in videos]}
    return pa.table({**base, "end": pa.array([{"clips": 0} if ended else None] * len(units), END)})


@pytest.fixture
def notebook(tmp_path: Path) -> Notebook:
    return Notebook("run-1", 1, "node", "decode", tmp_path)


@pytest.fixture
def noted(tmp_path: Path) -> Callable[[], list[Note]]:
    return lambda: [note for _, note in worknotes.read("run-1", ["node"], tmp_path)]


def test_a_note_names_the_units_until_they_are_done(notebook: Notebook, noted: Callable[[], list[Note]]) -> None:
    with notebook.at(rows((VIDEO, 0), (VIDEO, 1))) as page:
        assert [[unit.name for unit in note.units] for note in noted()] == [[unit_id(VIDEO, 0), unit_id(VIDEO, 1)]]
        page.handing_over(rows((VIDEO, 0), ended=True))
        (waiting,) = noted()
        assert (waiting.state, [unit.unit for unit in waiting.units]) == ("waiting", [1])
        page.going_on()
        assert noted()[0].state == "working"
    assert noted() == []


def test_rows_that_end_nothing_leave_the_unit_in_the_note(notebook: Notebook, noted: Callable[[], list[Note]]) -> None:
    with notebook.at(rows((VIDEO, 0))) as page:
        page.handing_over(rows((VIDEO, 0)))
        assert [unit.unit for unit in noted()[0].units] == [0]


def test_an_exception_stays_in_the_note_and_one_of_the_storage_is_marked(
    notebook: Notebook, noted: Callable[[], list[Note]]
) -> None:
    with pytest.raises(KeyError), notebook.at(rows((VIDEO, 0))):
        raise KeyError("x")
    with pytest.raises(StorageUnavailable), notebook.at(rows((OTHER, 0))):
        raise StorageUnavailable("s3://bucket: 503")
    found = {note.units[0].uri: (note.state, note.error, note.is_storage) for note in noted()}
    assert found["/a.mp4"] == ("failed", "KeyError: 'x'", False)
    assert found["/b.mp4"][2]


def test_a_generator_that_nobody_finishes_leaves_no_note(notebook: Notebook, noted: Callable[[], list[Note]]) -> None:
    def work() -> Iterator[int]:
        with notebook.at(rows((VIDEO, 0))):
            yield 1

    working = work()
    next(working)
    working.close()
    assert noted() == []


def test_old_notes_of_dead_workers_of_other_runs_are_cleared_away_and_those_of_this_run_are_evidence(
    notebook: Notebook, noted: Callable[[], list[Note]], tmp_path: Path
) -> None:
    code = (
        "import os, sys; from tests.pipeline.test_worknotes import *\n"
        "at = [Notebook(run, 1, 'node', 'decode', Path(sys.argv[1])).at(rows((VIDEO, 0))) for run in ('run-0', 'run-1')]\n"
        "for page in at: page.__enter__()\n"
        "os._exit(9)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    Notebook("run-1", 2, "node", "decode", tmp_path)
    ((fresh, _),) = worknotes.read("run-0", base=tmp_path)  # a run beside this one may still ask for it
    os.utime(fresh, (0, 0))
    Notebook("run-1", 2, "node", "decode", tmp_path)
    assert worknotes.read("run-0", base=tmp_path) == []
    (note,) = noted()
    assert note.has_died
    assert Answers({"here": [note]}).troubled(1).keys() == {unit_id(VIDEO, 0)}
    assert not Answers({"here": [note]}).troubled(2), "what happened in an earlier round does not count"


def test_a_worker_that_dies_while_it_waits_to_hand_over_is_no_evidence() -> None:
    gone = Owner("here", Owner.here().machine, 2**22 + 1, "1")
    note = Note("run-1", 1, "node", "decode", gone, 0.0, (AtUnit("x", "/x.mp4", 0, 1),), "waiting")
    assert not Answers({"here": [note]}).troubled(1)


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"clipmill-work-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with Notebook("run-1", 1, "node", "decode", tmp_path).at(rows((VIDEO, 0))) as page:
        page.handing_over(rows((VIDEO, 0)))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_note_that_is_just_being_written_is_passed_over(
    notebook: Notebook, noted: Callable[[], list[Note]], tmp_path: Path
) -> None:
    with notebook.at(rows((VIDEO, 0))):
        ((path, _),) = worknotes.read("run-1", base=tmp_path)
        line = path.read_bytes()
        path.write_bytes(line[:20])
        assert noted() == []
        path.write_bytes(line + b"left of a longer line")
        assert len(noted()) == 1


def note_at(uri: str, step: str, since: float, unit: int = 0, units: int = 1) -> Note:
    here = Owner.here()
    return Note("run-1", 1, "node", step, here, since, (AtUnit(unit_id(uri[1] * 32, unit), uri, unit, units),))


def test_an_operator_reads_which_unit_is_where_since_when_and_how_many_wait() -> None:
    hour = 3600.0
    decoding = note_at("/a\n.mp4", "decode", since=0.0, unit=1, units=3)
    asking = note_at("/b.mp4", "classify + embed", since=hour)
    answers = Answers({"gpu-07 (10.0.0.7)": [asking, decoding]}, silent=["10.0.0.9"])
    missing = {unit_id("a" * 32, 1), unit_id("b" * 32, 0), *(unit_id("c" * 32, number) for number in range(17))}
    pid = os.getpid()
    assert outstanding(answers, missing, now=2 * hour)[:-1] == [
        f"/a .mp4, unit 2 of 3: decode since 00:00:00 UTC (2 h 00 min), pid {pid} on gpu-07 (10.0.0.7)",
        f"/b.mp4: classify + embed since 01:00:00 UTC (1 h 00 min), pid {pid} on gpu-07 (10.0.0.7)",
        "node 10.0.0.9 does not answer",
        "17 more wait",
    ]


def test_where_no_worker_is_at_anything_the_cluster_is_what_to_look_at() -> None:
    lines = outstanding(Answers({}), {"x", "y"}, now=time.time())
    assert lines[0] == "2 wait, and no worker is at any of them"
    assert "ray status" in lines[1]


def test_a_note_survives_its_way_through_the_file(notebook: Notebook, tmp_path: Path) -> None:
    with notebook.at(rows((VIDEO, 0), (OTHER, 2))):
        ((path, note),) = worknotes.read("run-1", base=tmp_path)
        assert json.loads(path.read_text())["step"] == note.step == "decode"
        assert note.owner == Owner.here()
        assert [unit.uri for unit in note.units] == ["/a.mp4", "/b.mp4"]
