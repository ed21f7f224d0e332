"""What Ray's metrics endpoints say, and a sink that keeps figures for itself."""

from __future__ import annotations

import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from cluster.metrics import RAY_LABELS, Kind, Metric

Labels = frozenset[tuple[str, str]]
WAIT_S = 120.0  # for a figure on its way through Ray


class Recorded:
    """Keeps figures as Prometheus would. Refuses labels that a metric was not declared with."""

    def __init__(self) -> None:
        self.is_ready = True
        self.values: dict[tuple[str, Labels], float] = {}
        self.observed: dict[tuple[str, Labels], list[float]] = defaultdict(list)
        self.gauges_set = self.recorded = 0

    def record(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        assert set(labels) == set(metric.labels)
        self.recorded += 1
        key = (metric.name, frozenset(labels.items()))
        if metric.kind is Kind.HISTOGRAM:
            self.observed[key].append(value)
        elif metric.kind is Kind.COUNTER:
            assert value >= 0
            self.values[key] = self.values.get(key, 0) + value
        else:
            self.values[key] = value
            self.gauges_set += 1

    def value(self, metric: Metric, **labels: str) -> float:
        """Of the one series that has these labels."""
        (found,) = self.by_label(metric, **labels)
        return found

    def by_label(self, metric: Metric, **labels: str) -> list[float]:
        return [
            value for (name, own), value in self.values.items() if name == metric.name and labels.items() <= dict(own).items()
        ]

    def observations(self, metric: Metric, **labels: str) -> list[float]:
        keys = [key for key in self.observed if key[0] == metric.name and labels.items() <= dict(key[1]).items()]
        return sorted(value for key in keys for value in self.observed[key])


def scraped(prefix: str = "ray_clipmill_") -> dict[tuple[str, Labels], float]:
    """Every sample of every node's endpoint, by name and labels; those that only say who measured are left out."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[tuple[str, Labels], float] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(prefix):
                    labels = {name: value for name, value in sample.labels.items() if not name.startswith("otel_")}
                    found[sample.name, frozenset(labels.items())] = sample.value
    return found


def by_label(found: Mapping[tuple[str, Labels], float], name: str, label: str, **labels: str) -> dict[str, float]:
    """Of the series of `name` that have `labels`: their sums by another label."""
    sums: dict[str, float] = defaultdict(float)
    for (other, own), value in found.items():
        known = dict(own)
        if other == name and labels.items() <= known.items():
            sums[known[label]] += value
    return dict(sums)


def total(found: Mapping[tuple[str, Labels], float], name: str, **labels: str) -> float:
    return sum(by_label(found, name, RAY_LABELS[0], **labels).values())


def scraped_once(is_there: Callable[[Any], bool]) -> dict[tuple[str, Labels], float]:
    """What the endpoints say as soon as `is_there`; an AssertionError with what they said at last where that never is."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            found = scraped()
        except OSError:  # an agent that is still starting
            found = {}
        if is_there(found):
            return found
        assert time.monotonic() < until_s, found
        time.sleep(0.2)
