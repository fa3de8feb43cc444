"""Telemetry setups: no SDK, an SDK that samples nothing, or one that records."""

from __future__ import annotations

from typing import Any

__all__ = ["TELEMETRY", "meter_provider", "tracer_provider"]

TELEMETRY = ("none", "sampled out", "recorded", "recorded, metrics too")
"""Without an SDK; with one whose sampler drops all; with one that records all spans; with metrics beside them."""


def tracer_provider(telemetry: str, *, export: bool = False) -> Any:
    """None where there is no SDK. With *export*, what is recorded goes through a batch to an exporter that drops it."""
    if telemetry == "none":
        return None
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    class Dropping(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    if telemetry == "sampled out":
        return TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider = TracerProvider()
    if export:
        provider.add_span_processor(BatchSpanProcessor(Dropping()))
    return provider


def meter_provider(telemetry: str) -> Any:
    """Return the meter provider, or None without metrics."""
    if telemetry != "recorded, metrics too":
        return None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    return MeterProvider([InMemoryMetricReader()])
