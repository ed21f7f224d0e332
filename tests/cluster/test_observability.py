"""The dashboard, the alerts and the scrape configuration: against the declared metrics, and with Prometheus itself."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.metrics import METRICS, RAY_LABELS, Kind, Metric
from cluster.observability import dashboard
from cluster.observability.document import metrics_table, renewed
from pipeline import settings
from pipeline.preflight import preflight
from pipeline.progress import Progress
from pipeline.run import Request, run
from tests.cluster.prometheus import Server, prometheus, promtool
from tests.cluster.promql import named
from tests.media import textured, write_video

HERE = Path(__file__).parents[2] / "cluster" / "observability"
PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
SERIES = {series: metric for metric in METRICS for series in metric.series}
VARIABLES = {"$run_id": ".*", "$__rate_interval": "1m"}
FOUND_WITHIN_S = 120.0


def committed_panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((HERE / "dashboard.json").read_text())["panels"]
    return panels


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in committed_panels() for target in panel.get("targets", [])]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((HERE / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alert_queries() -> list[str]:
    return [rule["expr"] for rule in alerts()]


def problems(query: str) -> Iterator[str]:
    """What a query names that does not exist."""
    found = named(query)
    known: set[str] = set()
    for series, labels in found.series.items():
        metric = SERIES.get(series)
        if metric is None:
            yield f"there is no {series}"
            continue
        own = labels_of(metric, series)
        known |= own
        yield from (f"{series} has no label {label}" for label in sorted(labels - own))
    yield from (f"no series of it has a label {label}" for label in sorted(found.grouped - known))


def labels_of(metric: Metric, series: str) -> set[str]:
    return {*metric.labels, *RAY_LABELS, *(["le"] if series.endswith("_bucket") else [])}


# --- against the declarations ---


def test_the_committed_dashboard_is_what_its_code_makes() -> None:
    assert (HERE / "dashboard.json").read_text() == dashboard.page(), (
        "stale: python -m cluster.observability.dashboard > cluster/observability/dashboard.json"
    )


@pytest.mark.parametrize("query", [*dashboard_queries(), *alert_queries()])
def test_every_query_names_metrics_that_are_declared_with_labels_that_they_have(query: str) -> None:
    assert list(problems(query)) == []
    assert named(query).series


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(ray_clipmill_clips[5m])", "there is no ray_clipmill_clips"),
        ("ray_clipmill_stage_seconds", "there is no ray_clipmill_stage_seconds"),
        ('ray_clipmill_due_units{run_id="a", video="b"}', "ray_clipmill_due_units has no label video"),
        ("sum by (stage) (ray_clipmill_due_units)", "no series of it has a label stage"),
        ('ray_clipmill_stage_seconds_count{le="1"}', "ray_clipmill_stage_seconds_count has no label le"),
        ("1 + on (rum_id) ray_clipmill_due_units", "no series of it has a label rum_id"),
    ],
)
def test_a_query_that_names_something_else_is_found(query: str, problem: str) -> None:
    assert list(problems(query)) == [problem]


def test_a_query_in_unknown_words_is_refused_rather_than_passed() -> None:
    for query in ("clipmill_due_units", "summ(ray_clipmill_due_units)", "ray_clipmill_due_units @ 3"):
        with pytest.raises(ValueError, match="what is"):
            named(query)


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {SERIES[series].name for query in dashboard_queries() for series in named(query).series}
    assert shown == {metric.name for metric in METRICS}


def test_histograms_are_shown_by_their_buckets() -> None:
    for query in dashboard_queries():
        for series in named(query).series:
            assert series.endswith("_bucket") == (SERIES[series].kind is Kind.HISTOGRAM)


def test_panels_have_places_of_their_own_and_numbers_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in committed_panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= dashboard.WIDTH
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in committed_panels()]
    assert len(set(numbers)) == len(numbers) > 20


def test_the_scrape_configuration_names_rays_file_our_rules_and_the_port_of_the_page() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    cluster, local = config["scrape_configs"]
    assert [Path(name).name for name in cluster["file_sd_configs"][0]["files"]] == [PROMETHEUS_SERVICE_DISCOVERY_FILE]
    assert all((HERE / name).exists() for name in config["rule_files"])
    (port,) = re.findall(r"resources\.metrics_port=(\d+)", PAGE.read_text())
    assert local["static_configs"] == [{"targets": [f"localhost:{port}"]}]


def test_the_page_has_the_table_as_declared_and_a_runbook_for_every_alert() -> None:
    page = PAGE.read_text()
    assert page == renewed(page), "stale: python -m cluster.observability.document docs/observability.md"
    assert all(f"| `{metric.exported}` | {metric.kind} |" in metrics_table() for metric in METRICS)
    for rule in alerts():
        assert rule["annotations"]["runbook_url"] == f"docs/observability.md#{rule['alert'].lower()}"
        runbook = page.partition(f"\n### {rule['alert']}\n")[2].partition("\n#")[0]
        assert len(runbook.split()) > 40, rule["alert"]


# --- with Prometheus ---


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", HERE / "prometheus.yml")


def test_alerts_are_raised_when_they_should_be_and_only_then(tmp_path: Path) -> None:
    shutil.copy(HERE / "alerts.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    promtool("test", "rules", tmp_path / "alerts_test.yml")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_prometheus_scrapes_a_real_run_and_answers_every_query(tmp_path: Path) -> None:
    with prometheus(scraping_this_ray(tmp_path), tmp_path) as server:
        archive = tmp_path / "archive"
        archive.mkdir()
        for number in range(2):
            write_video(archive / f"{number}.mp4", [*textured(30, seed=number), *textured(30, seed=number + 7)])
        (archive / "empty.mp4").touch()
        config = settings.load(preset="embedded", input_uri=str(archive), output=str(tmp_path / "out"))
        with Progress(live=False, every_s=1000) as progress:
            result = run(config, preflight(config).entries, Request(), progress)
        of_run = f'{{run_id="{result.run_id}"}}'
        wait_for(server, f"sum(ray_clipmill_published_videos_total{of_run})", 3)
        by_status = server.ask(f"sum by (status) (ray_clipmill_published_videos_total{of_run}) > 0.5")
        assert {one["metric"]["status"]: float(one["value"][1]) for one in by_status} == {"ok": 2, "failed": 1}
        assert server.value(f"sum(ray_clipmill_published_clips_total{of_run})") == result.clips
        assert server.value(f"sum(ray_clipmill_published_video_seconds_total{of_run})") == pytest.approx(4.8)
        assert_labels(server, result.run_id)
        for query in dashboard_queries():
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            server.ask(query)  # an AssertionError where Prometheus does not understand it
        rules = [rule for group in server.get("/api/v1/rules")["groups"] for rule in group["rules"]]
        assert [rule["name"] for rule in rules] == [rule["alert"] for rule in alerts()]
        assert not [rule for rule in rules if rule["health"] == "err"]


def scraping_this_ray(folder: Path) -> Path:
    """Our configuration, on the tests' Ray and every second."""
    import ray

    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    shutil.copy(HERE / "alerts.yml", folder)
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    (folder / "targets.json").write_text(json.dumps([{"labels": {"job": "ray"}, "targets": targets}]))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = config["scrape_configs"][:1]
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(folder / "targets.json")]
    made = folder / "prometheus.yml"
    made.write_text(yaml.safe_dump(config))
    return made


def assert_labels(server: Server, run_id: str) -> None:
    """What Prometheus keeps of a series is what we declared and what Ray adds, and no more."""
    for one in server.ask(f'ray_clipmill_published_clips_total{{run_id="{run_id}"}}'):
        assert set(one["metric"]) == {"__name__", "instance", "job", "run_id", *RAY_LABELS}


def wait_for(server: Server, query: str, value: float) -> None:
    until_s = time.monotonic() + FOUND_WITHIN_S
    while server.value(query) != value:
        assert time.monotonic() < until_s, server.ask(query)
        time.sleep(0.2)
