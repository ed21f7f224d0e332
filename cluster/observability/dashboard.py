"""The dashboard for Grafana: `python -m cluster.observability.dashboard > cluster/observability/dashboard.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import metrics
from cluster.metrics import Metric

TITLE, UID = "Clipmill runs", "clipmill-runs"
WIDTH = 24  # columns of a Grafana dashboard
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_OF_RUN = 'run_id=~"$run_id"'
_WINDOW = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One panel: what it shows, and its queries with their legends."""

    title: str
    queries: Sequence[tuple[str, str]]  # PromQL, legend
    unit: str = "short"
    about: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    warn_above: float | None = None
    stacked: bool = False


def _now(metric: Metric, *matchers: str) -> str:
    """The series of a metric; of the chosen runs where they are known."""
    chosen = ", ".join([*([_OF_RUN] if metric.is_of_the_driver else []), *matchers])
    return f"{metric.exported}{{{chosen}}}" if chosen else metric.exported


def _rate(metric: Metric, by: str) -> str:
    return f"sum by ({by}) (rate({_now(metric)}{_WINDOW}))"


def _quantile(share: float, metric: Metric, by: str) -> str:
    buckets = _now(metric).replace(metric.exported, f"{metric.exported}_bucket")
    return f"histogram_quantile({share:g}, sum by (le, {by}) (rate({buckets}{_WINDOW})))"


def _failed_share() -> str:
    failed = _now(metrics.COMPLETED_VIDEOS, 'outcome="failed"')
    # Of the runs that live: their counters stay behind when they end.
    return f"sum({failed} and on (run_id) {_LIVE}) / sum({_now(metrics.COMPLETED_VIDEOS)} and on (run_id) {_LIVE})"


_LIVE = metrics.RUN_INFO.exported
ROWS: Sequence[tuple[str, Sequence[Panel]]] = (
    ("Now", (
        Panel("Runs", [(f"count({_now(metrics.RUN_INFO)})", "")], kind="stat", width=3, height=4),
        Panel("Videos done", [(f"sum({_now(metrics.COMPLETED_VIDEOS)} and on (run_id) {_LIVE})"
                               f" / sum({_now(metrics.DUE_VIDEOS)})", "")],
              "percentunit", "Of those due in the runs that live", "stat", 4, 4),
        Panel("Units due", [(f"sum({_now(metrics.DUE_UNITS)})", "")], kind="stat", width=3, height=4),
        Panel("Failed", [(_failed_share(), "")], "percentunit", "Exit code 3 above 5%", "stat", 3, 4, 0.05),
        Panel("Last receipt", [(f"max(time() - {_now(metrics.LAST_RECEIPT_AT)})", "")], "s", "Ago", "stat", 4, 4, 900),
        Panel("Oldest unpublished", [(f"max({_now(metrics.OLDEST_UNPUBLISHED_S)})", "")], "s",
              "Complete, and not in the tables yet", "stat", 4, 4),
        Panel("Storage retries", [(f"sum(rate({_now(metrics.STORAGE_RETRIES)}{_WINDOW}))", "")], "reqps", "", "stat", 3, 4, 1),
    )),
    ("Throughput", (
        Panel("Hours of video per hour", [(_rate(metrics.RECEIVED_VIDEO_S, "run_id"), "{{run_id}}")],
              about="Of units that came back; 1 is real time"),
        Panel("Clips per second", [(_rate(metrics.RECEIVED_CLIPS, "run_id"), "{{run_id}}")]),
        Panel("Videos per second", [(_rate(metrics.COMPLETED_VIDEOS, "outcome"), "{{outcome}}")], stacked=True),
        Panel("Frames decoded per second", [(_rate(metrics.DECODED_FRAMES, "run_id"), "{{run_id}}")]),
        Panel("Cores that decode", [(_rate(metrics.DECODE_CPU_S, "run_id"), "{{run_id}}")],
              about="CPU seconds of decoding per second"),
        Panel("Units per second", [(_rate(metrics.RECEIVED_UNITS, "run_id"), "{{run_id}}"),
                                   (_rate(metrics.RETRIED_UNITS, "run_id"), "again, {{run_id}}")],
              about="Those that run again were lost with a worker or a node, or left incomplete"),
    )),
    ("Queue", (
        Panel("Units due", [(_now(metrics.DUE_UNITS), "{{run_id}}")], width=12),
        Panel("Units in progress", [(f"sum by (step) ({_now(metrics.UNITS_IN_PROGRESS)})", "{{step}}")], width=12,
              about="Held by workers of all runs right now", stacked=True),
    )),
    ("Stages", (
        Panel("Latency, median", [(_quantile(0.5, metrics.STAGE_S, "stage, model"), "{{stage}} {{model}}")], "s",
              "decode: a unit; others: a table of clips"),
        Panel("Latency, 95 of 100", [(_quantile(0.95, metrics.STAGE_S, "stage, model"), "{{stage}} {{model}}")], "s"),
        Panel("Clips per forward pass, median",
              [(_quantile(0.5, metrics.FORWARD_CLIPS, "stage, model"), "{{stage}} {{model}}")],
              about="Small ones starve a GPU"),
    )),
    ("Publishing", (
        Panel("Lag of publishing", [
            (_quantile(0.95, metrics.PUBLISH_LAG_S, "run_id"), "95 of 100, {{run_id}}"),
            (_now(metrics.OLDEST_UNPUBLISHED_S), "oldest, {{run_id}}"),
            (_now(metrics.PUBLISH_INTERVAL_S), "interval, {{run_id}}"),
        ], "s"),
        Panel("Plan to commit, 95 of 100", [(_quantile(0.95, metrics.PUBLISH_S, "run_id"), "{{run_id}}")], "s"),
        Panel("Waiting", [
            (_now(metrics.UNPUBLISHED_VIDEOS), "videos, {{run_id}}"), (_now(metrics.EPOCHS_IN_FLIGHT), "epochs, {{run_id}}"),
        ]),
        Panel("Videos published", [(f"sum by (status) ({_now(metrics.PUBLISHED_VIDEOS)})", "{{status}}")], stacked=True),
        Panel("Clips published", [(f"sum by (run_id) ({_now(metrics.PUBLISHED_CLIPS)})", "{{run_id}}")]),
        Panel("Hours of video published", [(f"sum by (run_id) ({_now(metrics.PUBLISHED_VIDEO_S)}) / 3600", "{{run_id}}")], "h"),
    )),
    ("Trouble", (
        Panel("Errors of published videos", [(f"sum by (code) ({_now(metrics.PUBLISHED_ERRORS)})", "{{code}}")],
              width=12, stacked=True),
        Panel("Storage retries per second", [(_rate(metrics.STORAGE_RETRIES, "reason"), "{{reason}}")], "reqps", width=12,
              stacked=True),
    )),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": UID, "title": TITLE, "tags": ["clipmill"], "schemaVersion": 39, "version": 1, "editable": True,
        "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "timezone": "utc", "graphTooltip": 1,
        "annotations": {"list": []}, "templating": {"list": [_datasource(), _runs()]}, "panels": list(_panels()),
    }  # fmt: skip


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "current": {}}


def _runs() -> dict[str, Any]:
    question = f"label_values({metrics.RUN_INFO.exported}, run_id)"
    return {
        "name": "run_id", "type": "query", "label": "Run", "datasource": _SOURCE, "definition": question,
        "query": {"query": question, "refId": "runs"}, "refresh": 2, "sort": 2, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _place(0, top, WIDTH, 1),
        }
        top, left = top + 1, 0
        for panel in panels:
            if left + panel.width > WIDTH:
                top, left = top + panel.height, 0
            number += 1
            yield {"id": number, "gridPos": _place(left, top, panel.width, panel.height), **_body(panel)}
            left += panel.width
        top += panels[-1].height


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _body(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, "datasource": _SOURCE, "range": True}
        for place, (query, legend) in enumerate(panel.queries)
    ]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.warn_above is not None:
        steps.append({"color": "red", "value": panel.warn_above})
    look: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        look["custom"] = {"fillOpacity": 20 if panel.stacked else 0, "stacking": stacking, "showPoints": "auto"}
    return {
        "type": panel.kind, "title": panel.title, "description": panel.about, "datasource": _SOURCE, "targets": targets,
        "fieldConfig": {"defaults": look, "overrides": []}, "options": _options(panel.kind),
    }  # fmt: skip


def _options(kind: str) -> dict[str, Any]:
    if kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value"}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def page() -> str:
    """The JSON as it is committed."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    print(page(), end="")
