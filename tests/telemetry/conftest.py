"""A real SDK for metrics, and what the tests of this folder look up in spans and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint
from opentelemetry.sdk.trace import Event, ReadableSpan

Point = HistogramDataPoint | NumberDataPoint


@dataclass(frozen=True)
class Metering:
    """Where the metrics of a test go, and come back from."""

    provider: MeterProvider
    reader: InMemoryMetricReader

    @property
    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        resources = data.resource_metrics if data else ()
        return {
            metric.name: metric
            for resource in resources
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[tuple[dict[str, object], float]]:
        """Attributes and value (of a histogram the sum) of each point of a metric."""
        metric = self.metrics.get(name)
        return [(dict(point.attributes or {}), value_of(point)) for point in metric.data.data_points] if metric else []

    def value(self, name: str) -> float:
        """The sum over all points."""
        return sum(value for _, value in self.points(name))


def value_of(point: object) -> float:
    assert isinstance(point, HistogramDataPoint | NumberDataPoint)
    return point.sum if isinstance(point, HistogramDataPoint) else point.value


def given(of: ReadableSpan | Event) -> dict[str, object]:
    """The attributes of a span or an event."""
    return dict(of.attributes or {})


@pytest.fixture
def metering() -> Iterator[Metering]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    yield Metering(provider, reader)
    provider.shutdown()
