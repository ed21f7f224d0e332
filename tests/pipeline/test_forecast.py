"""What `plan` says, without Ray and without a trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.machines import ClusterSize, Group, Machine
from pipeline import settings
from pipeline.forecast import Forecast, describe
from pipeline.measured import Took, to_record
from pipeline.preflight import resolved
from pipeline.recipe import Recipe
from pipeline.run import Request
from schemas.errors import BadRequest
from stages.storage import Store
from tests.pipeline import tables as made

HERE = ClusterSize.of([Machine(4.0)])


@pytest.fixture(autouse=True)
def cpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.forecast.multiplies_bfloat16", lambda: False)


def forecast(
    archive: Path,
    output: Path,
    *sets: str,
    request: Request = Request(),  # noqa: B008 - frozen
    cluster: ClusterSize = HERE,
) -> Forecast:
    config = settings.load(preset="embedded", input_uri=str(archive), output=str(output), sets=sets)
    return describe(config, resolved(config), request, cluster)


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
    assert [step.name for step in found.steps] == ["decode", "classify + embed + caption + stage parts"]
    assert found.steps[1].runs_as == "1 actor"
    assert all(step.gpus == 0 for step in found.steps)
    text = "\n".join(found.lines())
    assert "3 listed, 3 due" in text
    assert json.loads(json.dumps(found.to_json()))["device"] == "cpu"


def test_a_plan_says_where_models_would_be_faster_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path / "archive")
    for cpu_has_it in (True, False):
        monkeypatch.setattr("pipeline.forecast.multiplies_bfloat16", lambda has=cpu_has_it: has)
        lines = forecast(archive, tmp_path / "out").lines()
        assert any("resources.dtype=bfloat16" in line for line in lines) is cpu_has_it
        assert forecast(archive, tmp_path / "out", "resources.dtype=float32").hint is None
        assert forecast(archive, tmp_path / "out", "classify=[]", "embed=[]", "caption=[]").hint is None


def test_a_limit_and_an_empty_folder(tmp_path: Path) -> None:
    assert forecast(make_archive(tmp_path / "archive"), tmp_path / "out", request=Request(limit=2)).due == 2
    (tmp_path / "empty").mkdir()
    assert forecast(tmp_path / "empty", tmp_path / "out").units == 0


L4, A100 = Machine(8.0, 1.0, "L4"), Machine(96.0, 8.0, "A100")


def steps_of(found: Forecast) -> list[str]:
    lines = found.lines()
    return [line.strip() for line in lines[lines.index("steps") + 1 :]]


def test_a_plan_without_gpus_shares_the_cpus(tmp_path: Path) -> None:
    found = forecast(make_archive(tmp_path / "archive"), tmp_path / "out")
    assert "machines           1 of 4 CPUs" in found.lines()
    assert steps_of(found) == [
        "1. decode: tasks, up to 4 at a time, 0.9 CPU each",
        "2. classify + embed + caption + stage parts: 1 to 2 actors, 0.05 CPU each",
        "speed: not known until a run has measured it",
    ]


def test_a_plan_on_machines_of_several_kinds_names_them_and_the_kind_that_actors_insist_on(tmp_path: Path) -> None:
    cluster = ClusterSize.of([Machine(0.0), L4, L4, A100, Machine(32.0)])
    found = forecast(make_archive(tmp_path / "archive"), tmp_path / "out", cluster=cluster)
    assert steps_of(found)[2] == "3. stage parts: tasks, up to 18 at a time, 0.01 CPU each"
    assert found.machines == ["1 of 96 CPUs and 8 A100", "2 of 8 CPUs and 1 L4", "1 of 32 CPUs"]
    assert steps_of(found)[1] == "2. classify + embed + caption: 10 actors, 1 CPU, 1 GPU each"
    sets = ("resources.accelerator_type=A100", "resources.gpus_per_actor=0.5")
    found = forecast(tmp_path / "archive", tmp_path / "out", *sets, cluster=cluster)
    assert steps_of(found)[1] == "2. classify + embed + caption: 16 actors, 1 CPU, 0.5 A100 each"
    with pytest.raises(BadRequest, match=r"resources\.accelerator_type: no machine has H100; GPUs are A100, L4"):
        forecast(tmp_path / "archive", tmp_path / "out", "resources.accelerator_type=H100", cluster=cluster)


def test_a_plan_for_a_head_alone_counts_what_may_come(tmp_path: Path) -> None:
    cluster = ClusterSize.of([Machine(0.0)], [Group(L4, 2), Group(Machine(32.0), 3)])
    found = forecast(make_archive(tmp_path / "archive"), tmp_path / "out", cluster=cluster)
    lines = found.lines()
    assert "machines           none yet" in lines
    assert "may come           2 of 8 CPUs and 1 L4, 3 of 32 CPUs" in lines
    assert steps_of(found)[0] == f"1. decode: tasks, up to {2 * 15 + 3 * 71} at a time, 0.45 CPU each"
    assert steps_of(found)[1] == "2. classify + embed + caption: 1 to 2 actors, 1 CPU, 1 GPU each"


def test_what_a_run_has_measured_gives_speeds_and_the_step_that_limits(tmp_path: Path) -> None:
    archive, store = make_archive(tmp_path / "archive"), Store(str(tmp_path / "out"))
    config = settings.load(preset="embedded", input_uri=str(archive), output=store.root)
    recipe = Recipe.of(config.clips.fingerprint(), resolved(config))
    made.write_log(store, ("open", "r1"), ("close", "r1"))
    took = {"decode": Took(50, 60), "classify + embed + caption + stage parts": Took(30, 70)}
    body = {"recipe": recipe.to_json(), "summary": to_record("cpu", 1000, took)}
    store.write("_runs/r1/run.json", json.dumps(body).encode())
    found = forecast(archive, tmp_path / "out")
    assert found.speed is not None
    assert steps_of(found) == [
        "1. decode: tasks, up to 4 at a time, 0.9 CPU each; up to 80 clips/s",
        "2. classify + embed + caption + stage parts: 1 to 2 actors, 0.05 CPU each; up to 67 clips/s",
        "speed: about 50 clips/s, limited by decode; measured by run r1",
    ]
    assert json.loads(json.dumps(found.to_json()))["speed"]["limit"] == "decode"
    on_gpus = forecast(archive, tmp_path / "out", cluster=ClusterSize.of([L4]))
    assert on_gpus.speed is None  # another kind of device
