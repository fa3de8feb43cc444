"""What ``RequestSpan`` and ``AttemptSpan`` have in common."""

from __future__ import annotations

from typing import TypedDict

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lamella.call import Call
from lamella.telemetry.attributes import Described, UrlTemplate, described, known_methods
from lamella.telemetry.metrics import instruments_of
from lamella.telemetry.others import take_over
from lamella.telemetry.tracing import OFF, Tracing, is_suppressed

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
        """Return what spans and metrics say about the request of *call*. None: there is neither."""
        silent = self.tracing.silent
        if (silent and self.instruments.silent) or self.is_off(call):
            return None
        if not silent:
            take_over(call)
        return described(call, self._template, self._known)

    def is_off(self, call: Call) -> bool:
        """Return whether *call* gets neither spans nor metrics, and no context in its headers, with an SDK or not."""
        if OFF in call.state:
            return True
        if not is_suppressed():
            return False
        OFF.set(call, True)
        return True
