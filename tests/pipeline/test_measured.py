"""What a run measures of its steps, and the speed that a plan makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.machines import Machine
from pipeline.flow import Receipts, dataset
from pipeline.measured import Measured, Took, added, latest, speed, to_record
from pipeline.plan import Step
from pipeline.recipe import Recipe
from stages.storage import Store
from tests.pipeline import tables as made

RECIPE = Recipe.of("cclips00", [])
CPUS = {Machine(10.0): 2}  # 20 in all


def step(name: str, gpus: float = 0.0, actors: tuple[int, int] | None = None) -> Step:
    return Step(name, lambda: None, (), cpus=0.45, gpus=gpus, actors=actors)


def test_on_cpus_all_steps_share_the_cores_and_the_dearest_one_limits() -> None:
    found = Measured("r1", 100, {"decode": Took(30, 40), "embed": Took(9, 12), "stage parts": Took(1, 5)})
    speeds = speed(found, [step("decode"), step("embed", actors=(1, 20)), step("stage parts")], CPUS)
    assert speeds is not None
    assert speeds.total == pytest.approx(20 * 100 / 40)
    assert speeds.limit == "decode"
    assert speeds.steps["decode"] == pytest.approx(20 * 100 / 30)
    assert speeds.measured_in == "r1"


def test_actors_that_cannot_keep_up_limit_however_many_cpus_there_are() -> None:
    beside_gpus = Measured("r1", 100, {"decode": Took(1, 2), "embed": Took(4, 50)})
    speeds = speed(beside_gpus, [step("decode"), step("embed", gpus=1, actors=(2, 2))], CPUS)
    assert speeds is not None
    assert (speeds.limit, speeds.total) == ("embed", pytest.approx(2 * 100 / 50))
    on_cpus = Measured("r1", 100, {"decode": Took(1, 2), "embed": Took(10, 50)})  # waited for a core most of the time
    speeds = speed(on_cpus, [step("decode"), step("embed", actors=(1, 1))], CPUS)
    assert speeds is not None
    assert (speeds.limit, speeds.total) == ("embed", pytest.approx(100 / 10))


def test_a_step_that_was_not_measured_leaves_the_speed_unknown() -> None:
    found = Measured("r1", 100, {"decode": Took(30, 40)})
    assert speed(found, [step("decode"), step("embed")], CPUS) is None


def test_rounds_add_up() -> None:
    assert added({"a": Took(1, 2)}, {"a": Took(3, 4), "b": Took(5, 6)}) == {"a": Took(4, 6), "b": Took(5, 6)}
    assert to_record("cpu", 0, {"a": Took(1, 2)}) == {} == to_record("cpu", 5, {})


def record(store: Store, run: str, recipe: Recipe, device: str = "cpu", clips: int = 7) -> None:
    body = {"recipe": recipe.to_json(), "summary": to_record(device, clips, {"decode": Took(1.5, 2.5)})}
    store.write(f"_runs/{run}/run.json", json.dumps(body).encode())


def test_the_latest_run_of_the_same_recipe_on_the_same_device_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    events = [(kind, f"r{number}") for number in range(1, 7) for kind in ("open", "close")]
    made.write_log(store, *events, ("open", "r7"))
    record(store, "r1", RECIPE, clips=1)
    record(store, "r2", RECIPE, clips=2)
    record(store, "r3", RECIPE, clips=0)  # nothing was measured
    record(store, "r4", Recipe.of("cother00", []))
    record(store, "r5", RECIPE, device="cuda", clips=5)  # r6 left no record: another run closed it
    record(store, "r7", RECIPE)  # is not over
    assert latest(store, RECIPE, "cpu") == Measured("r2", 2, {"decode": Took(1.5, 2.5)})
    assert latest(store, RECIPE, "cuda") == Measured("r5", 5, {"decode": Took(1.5, 2.5)})
    assert latest(store, Recipe.of("cnone000", []), "cpu") is None


class Burn:
    """Takes CPU time, so many seconds a row."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, rows: pa.Table) -> pa.Table:
        until = time.process_time() + self._seconds * rows.num_rows
        while time.process_time() < until:
            pass
        return rows


class Sleep(Burn):
    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(self._seconds * rows.num_rows)
        return rows


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_ray_tells_what_each_step_took_of_cpu_and_of_time(tmp_path: Path) -> None:
    steps = [
        Step("decode", Burn, (0.2,), cpus=0.45),
        Step("embed", Sleep, (0.3,), cpus=0.05, actors=(1, 1)),
        Step("stage parts", Burn, (0.0,), cpus=0.01),
    ]
    blocks = [pa.table({"video_id": [name] * 2, "uri": [name] * 2, "unit": [0, 1], "units": [2, 2]}) for name in "abc"]
    receipts = Receipts(dataset(blocks, steps, str(tmp_path), "run", 1))
    rows = 0
    try:
        while True:
            table = receipts.wait(5)
            rows += table.num_rows if table is not None else 0
    except StopIteration:
        pass
    took: Mapping[str, Took] = receipts.took(steps)
    assert rows == 6
    assert list(took) == [one.name for one in steps]
    assert took["decode"].cpu_s >= 6 * 0.2
    assert took["embed"].busy_s >= 6 * 0.3
    assert took["embed"].cpu_s < took["decode"].cpu_s
    assert receipts.took(steps[1:]) == {}
