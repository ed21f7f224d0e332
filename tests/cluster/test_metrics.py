"""The declarations of metrics, their way to Ray, and what Ray's endpoint says of a real run."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import metrics
from cluster.metrics import METRICS, RAY_LABELS, Board, Kind, Metric, ToRay
from pipeline import settings
from pipeline.flow import Receipts, dataset
from pipeline.plan import Step
from pipeline.preflight import preflight
from pipeline.progress import Progress
from pipeline.run import Request, run
from schemas.errors import BadRequest
from tests.cluster import measuring
from tests.media import textured, write_video
from tests.metrics import Recorded, by_label, scraped_once, total
from tests.pipeline.published import table

UNITS_IN_NAMES = {"seconds": "_seconds", "seconds since 1970": "_timestamp_seconds"}
FEW = {"run_id", "output", "version", "status", "outcome", "code", "stage", "model", "step", "reason"}


# --- declarations ---


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"clipmill_[a-z][a-z_]*[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        stem = metric.name.removesuffix("_total")
        assert stem.endswith(UNITS_IN_NAMES.get(metric.unit, "")), metric.name
        assert not stem.endswith(("_bucket", "_count", "_sum"))
        assert len(metric.help) > 15
        assert metric.help[0].isupper()
        assert not metric.help.endswith(".")


def test_no_name_is_declared_twice_and_every_declaration_is_listed() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert {metric.name for metric in declared} == {metric.name for metric in METRICS}
    assert len({metric.name for metric in METRICS}) == len(METRICS) == len(declared)


def test_labels_have_few_values_and_the_run_is_a_label_of_the_driver_alone() -> None:
    for metric in METRICS:
        assert set(metric.labels) <= FEW
        assert not set(metric.labels) & set(RAY_LABELS)
        assert metric.is_of_the_driver == ("run_id" in metric.labels)
    assert metrics.RUN_INFO.is_of_the_driver
    assert not metrics.STAGE_S.is_of_the_driver


def test_buckets_rise_from_above_zero_and_only_histograms_have_them() -> None:
    for metric in METRICS:
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert all(bound > 0 for bound in metric.buckets)


# --- the board ---


def test_amounts_go_out_once_and_gauges_every_time() -> None:
    sink = Recorded()
    board = Board(sink, run_id="r")
    board.add(metrics.RECEIVED_UNITS, 2)
    board.add(metrics.RECEIVED_UNITS, 3)
    board.put(metrics.DUE_UNITS, 7)
    board.observe(metrics.PUBLISH_LAG_S, 4.0, 3)
    board.export()
    board.export()
    assert sink.value(metrics.RECEIVED_UNITS, run_id="r") == 5
    assert (sink.value(metrics.DUE_UNITS), sink.gauges_set) == (7, 2)
    assert sink.observations(metrics.PUBLISH_LAG_S) == [4.0] * 3


def test_a_zero_makes_a_series_appear_and_says_nothing_later() -> None:
    sink = Recorded()
    board = Board(sink, run_id="r")
    for _ in range(3):
        board.add(metrics.RECEIVED_UNITS, 0)
        board.export()
    assert sink.recorded == 1
    assert sink.value(metrics.RECEIVED_UNITS) == 0


def test_what_is_counted_before_ray_is_there_goes_out_when_it_is() -> None:
    sink = Recorded()
    sink.is_ready = False
    board = Board(sink, run_id="r")
    board.add(metrics.RECEIVED_UNITS, 2)
    board.export()
    assert sink.values == {}
    sink.is_ready = True
    board.export()
    assert sink.value(metrics.RECEIVED_UNITS) == 2


def test_the_run_is_put_on_the_drivers_metrics_and_kept_off_the_workers() -> None:
    sink = Recorded()
    board = Board(sink, run_id="r")
    board.add(metrics.STORAGE_RETRIES, 1, reason="throttled")
    board.add(metrics.COMPLETED_VIDEOS, 1, outcome="usable")
    board.export()
    assert {labels for _, labels in sink.values} == {
        frozenset({("reason", "throttled")}),
        frozenset({("run_id", "r"), ("outcome", "usable")}),
    }


@pytest.mark.parametrize("labels", [{}, {"stage": "decode"}, {"stage": "decode", "model": "", "video": "a"}])
def test_labels_that_were_not_declared_are_refused(labels: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match="clipmill_stage_seconds is a histogram with the labels"):
        Board(Recorded()).observe(metrics.STAGE_S, 1.0, **labels)
    with pytest.raises(ValueError, match="not a counter"):
        Board(Recorded()).add(metrics.STAGE_S, 1.0, stage="decode", model="")


def test_figures_added_from_threads_while_others_go_out_are_all_counted() -> None:
    sink = Recorded()
    board = Board(sink)

    def work() -> None:
        for _ in range(500):
            board.add(metrics.STORAGE_RETRIES, 1, reason="throttled")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        board.export()
    board.export()
    assert sink.value(metrics.STORAGE_RETRIES) == 2000


# --- Ray ---


def test_without_ray_nothing_is_recorded_and_nothing_is_imported() -> None:
    code = (
        "import sys\nfrom cluster.metrics import *\nboard = Board(run_id='r')\nboard.add(RECEIVED_UNITS, 1)\nboard.export()\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_while_ray_is_being_imported_figures_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    assert not ToRay().is_ready


class Broken(ToRay):
    """As if Ray had changed."""

    @property
    def is_ready(self) -> bool:
        return not self._is_off

    def _make(self, metric: Metric) -> object:
        del metric
        raise AttributeError("ray.util.metrics has gone")


def test_a_ray_that_takes_no_metrics_is_told_of_once_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    board = Board(Broken(), run_id="r")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            board.add(metrics.RECEIVED_UNITS, 1)
            board.put(metrics.DUE_UNITS, 1)
            board.export()
    (said,) = (record.message for record in caplog.records)
    assert said == "metrics are off from here on: AttributeError: ray.util.metrics has gone"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_figures_stand_at_rays_endpoint_with_their_names_labels_and_exact_values() -> None:
    board = Board(run_id="a run of this test")
    board.put(metrics.RUN_INFO, 1, output='/räume/"quoted" \\ and\nbroken', version="1")
    board.add(metrics.COMPLETED_VIDEOS, 0, outcome="failed")
    board.add(metrics.COMPLETED_VIDEOS, 0, outcome="usable")
    board.add(metrics.RECEIVED_VIDEO_S, 0.1)
    board.observe(metrics.PUBLISH_LAG_S, 45.0, 3)
    board.observe(metrics.PUBLISH_LAG_S, 1e6)
    board.export()
    board.add(metrics.RECEIVED_VIDEO_S, 0.2)
    board.add(metrics.COMPLETED_VIDEOS, 3, outcome="usable")
    ours = {"run_id": "a run of this test"}

    def is_there(found: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> bool:
        board.export()  # gauges live for two report intervals only
        has_all = total(found, "ray_clipmill_completed_videos_total", **ours) >= 3 and total(
            found, "ray_clipmill_run_info", **ours
        )
        return bool(has_all and total(found, "ray_clipmill_publish_lag_seconds_count", **ours) == 4)

    found = scraped_once(is_there)
    outcomes = by_label(found, "ray_clipmill_completed_videos_total", "outcome", **ours)
    assert outcomes == {"usable": 3.0, "failed": pytest.approx(0, abs=1e-300)}
    assert total(found, "ray_clipmill_received_video_seconds_total", **ours) == pytest.approx(0.3)
    buckets = by_label(found, "ray_clipmill_publish_lag_seconds_bucket", "le", **ours)
    assert (buckets["30.0"], buckets["60.0"], buckets["14400.0"], buckets["+Inf"]) == (0, 3, 3, 4)
    (info,) = (labels for name, labels in found if name == "ray_clipmill_run_info" and ours.items() <= dict(labels).items())
    assert dict(info)["output"] == '/r\\xe4ume/"quoted" \\ and\nbroken'
    assert set(dict(info)) == {*metrics.RUN_INFO.labels, *RAY_LABELS}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_real_run_is_told_exactly(tmp_path: Path) -> None:
    archive, output = tmp_path / "archive", str(tmp_path / "tables")
    archive.mkdir()
    write_video(archive / "one.mp4", [*textured(40, seed=1), *textured(40, seed=2)])
    write_video(archive / "two.mp4", textured(60, seed=3))
    (archive / "empty.mp4").touch()
    (archive / "text.mp4").write_text("no video at all\n" * 100)
    config = settings.load(preset="embedded", input_uri=str(archive), output=output)
    with Progress(live=False, every_s=1000) as progress:
        result = run(config, preflight(config).entries, Request(), progress)
    ours = {"run_id": result.run_id}
    found = scraped_once(lambda found: total(found, "ray_clipmill_published_videos_total", **ours) >= 4)
    ledger = table(output, "videos")

    def count(name: str, label: str) -> dict[str, float]:
        return {key: value for key, value in by_label(found, f"ray_clipmill_{name}", label, **ours).items() if value >= 1e-9}

    def figure(name: str) -> float:
        return total(found, f"ray_clipmill_{name}", **ours)

    assert count("published_videos_total", "status") == {"ok": 2, "failed": 2}
    assert count("published_errors_total", "code") == {"empty": 1, "unreadable": 1}
    assert count("completed_videos_total", "outcome") == {"usable": 2, "failed": 2}
    clips = len(table(output, "clips"))
    assert figure("published_clips_total") == figure("received_clips_total") == clips == result.clips
    seconds = sum(row["decoded_s"] or 0.0 for row in ledger)
    assert figure("published_video_seconds_total") == pytest.approx(seconds, rel=1e-12)
    assert figure("received_video_seconds_total") == pytest.approx(80 / 25 + 60 / 25)
    assert figure("decoded_frames_total") == 140
    assert (figure("received_units_total"), figure("retried_units_total")) == (4, pytest.approx(0, abs=1e-300))
    assert figure("publish_lag_seconds_count") == 4
    assert figure("publish_seconds_count") >= 1
    assert figure("decode_cpu_seconds_total") > 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_stages_measure_in_rays_workers_stands_at_its_endpoint() -> None:
    import ray

    worker = ray.remote(num_cpus=0)(measuring.Worker).remote()
    ray.get(worker.work.remote(5))
    labels = {"stage": "embed", "model": "a-model-of-this-test"}
    found = scraped_once(lambda found: total(found, "ray_clipmill_stage_seconds_count", **labels) == 1)
    assert by_label(found, "ray_clipmill_units_in_progress", "step")["a step"] == 2
    ray.get(worker.end.remote())
    found = scraped_once(lambda found: by_label(found, "ray_clipmill_units_in_progress", "step").get("a step") == 0)
    assert total(found, "ray_clipmill_storage_retries_total", reason="a reason of this test") == 5
    ray.kill(worker)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_a_step_of_a_run_holds_and_measures_is_seen_while_it_holds_it(tmp_path: Path) -> None:
    go = tmp_path / "go"
    units = [pa.table({"video_id": [name], "uri": [f"/{name}"], "unit": [0], "units": [1]}) for name in "ab"]
    step = Step("a step that waits", measuring.Hold, (go,), cpus=0.1)
    receipts = Receipts(dataset(units, [step], str(tmp_path), "run", 1))
    try:
        found = scraped_once(lambda found: by_label(found, "ray_clipmill_units_in_progress", "step").get(step.name) == 2)
        found = scraped_once(lambda found: total(found, "ray_clipmill_stage_seconds_count", stage="held") == 2)
        buckets = by_label(found, "ray_clipmill_stage_seconds_bucket", "le", stage="held")
        assert (buckets["1.0"], buckets["3.0"]) == (0, 2)
    finally:
        go.touch()
        receipts.stop()


def test_a_port_that_is_taken_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = "resources.metrics_port: [0-9]+ cannot be had"
        with pytest.raises(BadRequest, match=said):
            metrics.check_port(port)
        config = settings.load(
            preset="embedded", input_uri=str(tmp_path), output=str(tmp_path / "out"), sets=[f"resources.metrics_port={port}"]
        )
        with pytest.raises(BadRequest, match=said):
            run(config, (), Request(), Progress(live=False))
    assert not (tmp_path / "out").exists()
    metrics.check_port(port)
    metrics.check_port(None)


def test_without_rays_packages_for_metrics_a_port_is_refused_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(BadRequest, match="clipmill\\[cluster\\]"):
        metrics.check_port(9464)
