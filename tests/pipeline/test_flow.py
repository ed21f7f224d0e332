"""Steps as a Ray dataset: real workers, small stages."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import worknotes
from pipeline.flow import NICENESS, Receipts, dataset, faults_folder
from pipeline.plan import Step
from pipeline.raydata import KEEP_ACTOR_S, OUTPUT_POLL_S, WholeNode, _coordinate, configure
from stages.models.adapter import BrokenDevice

pytestmark = pytest.mark.ray


class Expand:
    """Two rows for each; ends its worker at the video called `killer`, raises at the one called `bug`."""

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        for video in units["video_id"].to_pylist():
            if video == "killer":
                os._exit(7)
            if video == "bug":
                raise KeyError("nobody expected this")
            frames = pa.table({"frames": pa.array([b"abc", b"def"], pa.large_binary())})
            yield pa.concat_tables([unit_of(video)] * 2).append_column("frames", frames["frames"])


class Measure:
    def __init__(self, column: str) -> None:
        self._column = column

    def __call__(self, rows: pa.Table) -> pa.Table:
        lengths = [len(value) for value in rows[self._column].to_pylist()]
        return rows.drop_columns([self._column]).append_column("bytes", pa.array(lengths))


class Fragile(Measure):
    """Ends its process at the video called `poison`, every time."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        if "poison" in rows["video_id"].to_pylist():
            os._exit(7)
        return super().__call__(rows)


class OnDevice(Measure):
    """Its device breaks at the video called `assert`; leaves a file where it is asked again after that."""

    def __init__(self, column: str, asked_again: Path) -> None:
        super().__init__(column)
        self._asked_again, self._is_broken = asked_again, False

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self._is_broken:
            self._asked_again.touch()
        self._is_broken |= "assert" in rows["video_id"].to_pylist()
        if self._is_broken:
            raise BrokenDevice("CUDA error: device-side assert triggered")
        return super().__call__(rows)


class Slow(Measure):
    """A batch takes half a second; rows say which process they went through."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(0.5)
        return super().__call__(rows).append_column("pid", pa.array([os.getpid()] * rows.num_rows))


class Timed:
    """A table takes half a second; rows say when it came and when it went."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        came = time.monotonic()
        time.sleep(0.5)
        for name, at in (("came", came), ("went", time.monotonic())):
            rows = rows.append_column(name, pa.array([at] * rows.num_rows))
        return rows.drop_columns(["frames"])


STEPS = [Step("expand", Expand, (), cpus=0.45), Step("measure", Measure, ("frames",), cpus=0.05, actors=(1, 1))]


def unit_of(video: str) -> pa.Table:
    return pa.table({"video_id": [video], "uri": [f"/videos/{video}"], "unit": [0], "units": [1]})


def receipts_of(videos: list[str], folder: Path, steps: list[Step] = STEPS, run: str = "run") -> list[dict[str, object]]:
    receipts = Receipts(dataset([unit_of(video) for video in videos], steps, str(folder), run, 1))
    rows: list[dict[str, object]] = []
    while True:
        try:
            table = receipts.wait(5)
        except StopIteration:
            return rows
        rows += table.to_pylist() if table is not None else []


@pytest.mark.usefixtures("ray_session")
def test_rows_pass_from_generating_tasks_through_actors(tmp_path: Path) -> None:
    rows = receipts_of(["a", "b", "c"], tmp_path)
    assert sorted(row["video_id"] for row in rows) == ["a", "a", "b", "b", "c", "c"]
    assert {row["bytes"] for row in rows} == {3}


@pytest.mark.usefixtures("ray_session")
def test_a_video_that_ends_its_worker_costs_only_its_own_block(tmp_path: Path) -> None:
    rows = receipts_of(["a", "killer", "b"], tmp_path)
    assert {row["video_id"] for row in rows} == {"a", "b"}


class Patience:
    """Rows with the niceness of the process that they went through."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        return rows.append_column(f"niceness {len(rows.columns)}", pa.array([niceness] * rows.num_rows))


@pytest.mark.usefixtures("ray_session")
def test_decoding_leaves_the_processors_to_whatever_waits_for_them(tmp_path: Path) -> None:
    steps = [Step("decode", Patience, (), cpus=0.45), Step("models", Patience, (), cpus=0.05, actors=(1, 1))]
    (row,) = receipts_of(["a"], tmp_path, steps)
    decoding, models = (value for name, value in row.items() if name.startswith("niceness"))
    assert decoding == NICENESS > models


@pytest.mark.usefixtures("ray_session")
def test_no_process_collects_figures_for_a_dashboard_that_is_not_there(tmp_path: Path) -> None:
    import ray
    from ray.data._internal.stats import STATS_ACTOR_NAME, STATS_ACTOR_NAMESPACE

    receipts_of(["a"], tmp_path)
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(STATS_ACTOR_NAME, namespace=STATS_ACTOR_NAMESPACE)


@pytest.mark.usefixtures("ray_session")
def test_on_a_node_of_our_own_nobody_coordinates_and_all_of_it_is_the_dataset_s(tmp_path: Path) -> None:
    import ray

    coordinators = ("AutoscalingCoordinator", "ActorLocationTracker")
    for name in coordinators:  # other tests may have had some
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=name))
    receipts_of(["a", "b"], tmp_path)
    for name in coordinators:
        with pytest.raises(ValueError, match="Failed to look up actor"):
            ray.get_actor(name, namespace=name)
    (resources,) = WholeNode().get_reserved_resources().values()
    assert resources == {kind: ray.cluster_resources()[kind] for kind in ("CPU", "memory", "object_store_memory")}


def test_a_process_that_attaches_to_a_cluster_later_has_ray_s_own_coordinators_again() -> None:
    from ray.data._internal.cluster_autoscaler import DefaultAutoscalingCoordinator
    from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler

    _coordinate(nothing=True)
    assert autoscaler.DefaultAutoscalingCoordinator is WholeNode
    _coordinate(nothing=False)
    assert autoscaler.DefaultAutoscalingCoordinator is DefaultAutoscalingCoordinator


@pytest.mark.usefixtures("ray_session")
def test_a_pool_grows_while_batches_wait_for_it_and_not_beyond_its_most(tmp_path: Path) -> None:
    steps = [STEPS[0], Step("measure", Slow, ("frames",), cpus=0.05, actors=(1, 2))]
    rows = receipts_of([str(number) for number in range(16)], tmp_path, steps)
    assert len(rows) == 32
    assert len({row["pid"] for row in rows}) == 2


@pytest.mark.usefixtures("ray_session")
def test_of_the_tasks_of_a_step_no_more_run_at_a_time_than_it_says(tmp_path: Path) -> None:
    steps = [STEPS[0], Step("timed", Timed, (), cpus=0.01, tasks=2)]
    rows = receipts_of([str(number) for number in range(12)], tmp_path, steps)
    assert len(rows) == 24
    spans = {(row["came"], row["went"]) for row in rows}
    assert max(sum(came <= at < went for came, went in spans) for at, _ in spans) == 2


def test_an_actor_that_was_added_is_kept_for_minutes_and_ended_at_once_when_all_is_done() -> None:
    from ray.data._internal.actor_autoscaler.autoscaling_actor_pool import ActorPoolScalingRequest, AutoscalingActorConfig
    from ray.data._internal.execution.interfaces import ExecutionResources
    from ray.data._internal.execution.operators.actor_pool_map_operator import _NodeAwareActorPool

    configure(1 << 20)
    configure(1 << 20)  # as a run does for every round
    pool = _NodeAwareActorPool(lambda *_: None, AutoscalingActorConfig(1, 2, 1, 4, 1, ExecutionResources(cpu=1)))
    assert pool._can_apply_request(ActorPoolScalingRequest.downscale(delta=-1))  # none was added
    for ago_s, may_end in ((30.0, False), (KEEP_ACTOR_S + 1, True)):
        pool._last_upscaled_at = time.time() - ago_s
        assert pool._can_apply_request(ActorPoolScalingRequest.downscale(delta=-1)) is may_end
        assert pool._can_apply_request(ActorPoolScalingRequest.downscale(delta=-1, force=True))


@pytest.mark.usefixtures("ray_session")
def test_once_receipts_are_stopped_no_thread_of_theirs_asks_ray_for_anything(tmp_path: Path) -> None:
    steps = [STEPS[0], Step("measure", Slow, ("frames",), cpus=0.05, actors=(1, 1))]
    receipts = Receipts(dataset([unit_of(str(number)) for number in range(8)], steps, str(tmp_path), "run", 1))
    while receipts.wait(5) is None:
        pass
    receipts.stop()
    assert "receipts" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("ray_session")
def test_ray_data_asks_for_output_ten_times_a_second_and_not_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data import DataContext
    from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
    from ray.data._internal.execution.streaming_executor_state import OpState

    configure(1 << 20)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise InterruptedError

    monkeypatch.setattr(time, "sleep", sleep)
    state = OpState(InputDataBuffer(DataContext.get_current(), []), [])
    with pytest.raises(InterruptedError):
        state.get_output_blocking(None)
    assert slept == [OUTPUT_POLL_S]


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_dies_mid_batch_costs_only_what_it_held_and_the_dataset_ends(tmp_path: Path) -> None:
    steps = [STEPS[0], Step("measure", Fragile, ("frames",), cpus=0.05, actors=(1, 1))]
    run = secrets.token_hex(8)  # what it leaves on the node is there for a while
    rows = receipts_of(["a", "poison", "b", "c"], tmp_path, steps, run)
    assert {row["video_id"] for row in rows} <= {"a", "b", "c"}
    (note,) = [note for _, note in worknotes.read(run) if note.has_died]
    assert ([unit.uri for unit in note.units], note.step) == (["/videos/poison"], "measure")


@pytest.mark.usefixtures("ray_session")
def test_a_process_whose_device_is_broken_gets_nothing_more_to_do(tmp_path: Path) -> None:
    asked_again, run = tmp_path / "asked again", secrets.token_hex(8)
    steps = [STEPS[0], Step("measure", OnDevice, ("frames", asked_again), cpus=0.05, actors=(1, 1))]
    receipts_of(["assert", *map(str, range(8))], tmp_path, steps, run)
    assert not asked_again.exists()
    (note,) = [note for _, note in worknotes.read(run) if note.state == "failed"]
    assert ([unit.uri for unit in note.units], note.error) == (
        ["/videos/assert"],
        "BrokenDevice: CUDA error: device-side assert triggered",
    )


@pytest.mark.usefixtures("ray_session")
def test_an_unexpected_error_is_written_down_with_its_traceback(tmp_path: Path) -> None:
    rows = receipts_of(["a", "bug"], tmp_path)
    assert {row["video_id"] for row in rows} == {"a"}
    (note,) = (tmp_path / faults_folder("run")).iterdir()
    assert "at videos bug" in note.read_text()
    assert "nobody expected this" in note.read_text()


@pytest.mark.usefixtures("ray_session")
def test_an_actor_that_cannot_be_built_ends_the_run_with_its_reason_written_down(tmp_path: Path) -> None:
    from ray.exceptions import RayError

    steps = [STEPS[0], Step("measure", Measure, (), cpus=0.05, actors=(1, 1))]
    with pytest.raises(RayError):
        receipts_of(["a"], tmp_path, steps)
    assert any("while the stage was built" in note.read_text() for note in (tmp_path / faults_folder("run")).iterdir())
