"""The spans and metrics that a test records by the real SDK, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from tests.telemetry.conformance import EPISODE

__all__ = ["Metering", "Tracing", "given", "value_of"]

Point = HistogramDataPoint | NumberDataPoint


@dataclass(frozen=True)
class Tracing:
    """The spans of a test: the fixture ``tracing``."""

    provider: TracerProvider
    exporter: InMemorySpanExporter

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def call(self) -> ReadableSpan:
        [span] = [span for span in self.spans if span.kind is SpanKind.INTERNAL and span.name != EPISODE]
        return span

    @property
    def sends(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.CLIENT]


@dataclass(frozen=True)
class Metering:
    """The metrics of a test: the fixture ``metering``."""

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
        """Return attributes and value of each point of a metric; of a histogram, the sum is the value."""
        metric = self.metrics.get(name)
        return [(dict(point.attributes or {}), value_of(point)) for point in metric.data.data_points] if metric else []

    def value(self, name: str) -> float:
        """Return the sum over all points."""
        return sum(value for _, value in self.points(name))

    def count(self, name: str) -> int:
        """Return how many values a histogram has, over all points."""
        points = self.metrics[name].data.data_points if name in self.metrics else ()
        return sum(point.count for point in points if isinstance(point, HistogramDataPoint))


def value_of(point: object) -> float:
    """Return the value of a point, or the sum of a histogram's."""
    assert isinstance(point, HistogramDataPoint | NumberDataPoint)
    return point.sum if isinstance(point, HistogramDataPoint) else point.value


def given(of: ReadableSpan | Event) -> dict[str, object]:
    """Return the attributes of a span or an event."""
    return dict(of.attributes or {})
