"""What `plan` says, without Ray and without a trace."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import settings
from pipeline.forecast import Forecast, describe
from pipeline.preflight import resolved
from pipeline.run import Request


def forecast(archive: Path, output: Path, *sets: str, request: Request = Request()) -> Forecast:  # noqa: B008 - frozen
    config = settings.load(preset="embedded", input_uri=str(archive), output=str(output), sets=sets)
    return describe(config, resolved(config), request)


def make_archive(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(b"x" * 1000)
    return folder


def test_a_plan_counts_the_work_and_writes_nothing(tmp_path: Path) -> None:
    found = forecast(make_archive(tmp_path / "archive"), tmp_path / "out")
    assert (found.listed, found.due, found.units, found.source_bytes) == (3, 3, 3, 3000)
    assert set(found.due_by_stage) == {"clips", "classify action", "classify object", "embed embedding", "caption caption"}
    assert set(found.due_by_stage.values()) == {3}
    assert not (tmp_path / "out").exists()


def test_a_plan_names_the_steps_with_what_they_ask_for(tmp_path: Path) -> None:
    found = forecast(make_archive(tmp_path / "archive"), tmp_path / "out", "resources.device=cpu", "resources.actors=1")
    assert [step.name for step in found.steps] == ["decode", "classify + embed + caption", "stage parts"]
    assert found.steps[1].runs_as == "1 actor"
    assert all(step.gpus == 0 for step in found.steps)
    text = "\n".join(found.lines())
    assert "3 listed, 3 due" in text
    assert json.loads(json.dumps(found.to_json()))["device"] == "cpu"


def test_a_limit_and_an_empty_folder(tmp_path: Path) -> None:
    assert forecast(make_archive(tmp_path / "archive"), tmp_path / "out", request=Request(limit=2)).due == 2
    (tmp_path / "empty").mkdir()
    assert forecast(tmp_path / "empty", tmp_path / "out").units == 0
