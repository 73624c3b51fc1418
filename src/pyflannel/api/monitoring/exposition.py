"""The metrics of a daemon in the text format of Prometheus. Only this module loads prometheus-client."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyflannel.api.monitoring.families import FAMILIES, Family
from pyflannel.model.status import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Source: Prometheus, exposition formats, text format."""


def expose(statuses: Mapping[str, Status], utc: float) -> bytes:
    """Return the text of all metrics, including those of this process.

    With several networks, each sample has the label `network`.

    Args:
        statuses: status by name of the network; "" for a single network.
        utc: current time in seconds since the epoch.
    """
    registry = CollectorRegistry()
    registry.register(_Statuses(statuses, utc))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Statuses(Collector):
    def __init__(self, statuses: Mapping[str, Status], utc: float) -> None:
        self._statuses = statuses
        self._utc = utc

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            metric = self._metric(family)
            if metric.samples:
                yield metric

    def _metric(self, family: Family) -> Metric:
        are_named = any(self._statuses)
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        labels = [*(["network"] if are_named else []), *family.labels]
        metric = kind(family.name, family.help, labels=labels)
        for name, status in self._statuses.items():
            for values, value in family.samples(status, self._utc):
                metric.add_metric([*([name] if are_named else []), *values], value)
        return metric
