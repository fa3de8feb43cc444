"""What ``RequestSpan`` and ``AttemptSpan`` have in common."""

from __future__ import annotations

from typing import TypedDict

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lamella.call import Call
from lamella.telemetry.attributes import Described, UrlTemplate, described, known_methods
from lamella.telemetry.metrics import instruments_of
from lamella.telemetry.others import take_over
from lamella.telemetry.tracing import Tracing

__all__ = ["SpanOptions", "Telemetry"]


class SpanOptions(TypedDict, total=False):
    """The options of both layers, which :class:`lamella.RequestSpan` explains."""

    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    url_template: UrlTemplate | None


class Telemetry:
    """Where spans and metrics go, and how they describe a request."""

    __slots__ = ("_known", "_template", "instruments", "is_global", "tracing")

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        url_template: UrlTemplate | None = None,
    ) -> None:
        self.tracing = Tracing(tracer_provider)
        self.instruments = instruments_of(meter_provider)
        self.is_global = tracer_provider is None and meter_provider is None
        self._template = url_template
        self._known = known_methods()

    def describe(self, call: Call) -> Described | None:
        """Return what spans and metrics say about the request of *call*. None: there is neither, without an SDK."""
        if not self.tracing.silent:
            take_over(call)
        elif self.instruments.silent:
            return None
        return described(call, self._template, self._known)
