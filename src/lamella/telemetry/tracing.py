"""The tracer of lamella, the current span, and how a trace is propagated."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextvars import Token
from functools import lru_cache
from typing import Final, NamedTuple

from multidict import istr
from opentelemetry import context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from lamella.call import Call, PerCall
from lamella.telemetry.attributes import last_shown_url
from lamella.telemetry.names import SCHEMA, URL_FULL, version_of_lamella

__all__ = ["OFF", "SILENT", "Current", "Tracing", "hands_on_nothing", "inject", "is_suppressed", "unrecorded"]


class Current(NamedTuple):
    """The span of a call or an attempt, which is current until :meth:`leave`."""

    span: trace.Span
    url: str = ""
    """The URL that it was started with."""
    token: Token[Context] | None = None
    """None: there is no SDK, and the span only stands for one."""

    def leave(self, result: object) -> None:
        """Make the span current that was so before. The call or attempt has ended in *result*."""
        # What the event loop throws away may end in another context, where the token is of no use.
        if self.token is not None and (not isinstance(result, GeneratorExit) or trace.get_current_span() is self.span):
            context.detach(self.token)


class Tracing:
    """The tracer of lamella, made by *provider*. None means the global one, even if it is set later."""

    __slots__ = ("_late", "_never", "tracer")

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self.tracer: trace.Tracer = trace.get_tracer(
            "lamella", version_of_lamella(), tracer_provider=provider, schema_url=SCHEMA
        )
        self._never = isinstance(self.tracer, trace.NoOpTracer)
        self._late = isinstance(self.tracer, trace.ProxyTracer)

    def start(self, call: Call, name: str, kind: trace.SpanKind, attributes: Mapping[str, AttributeValue]) -> Current:
        """Start a span for *call* inside the current one, and make it current."""
        if self.silent:
            return Current(unrecorded())
        url = last_shown_url(call)
        span = self.tracer.start_span(name, None, kind, {**attributes, URL_FULL: url})
        return Current(span, url, context.attach(trace.set_span_in_context(span)))

    @property
    def silent(self) -> bool:
        """Whether there is no SDK (yet), so that no span need be described."""
        # The public function for this reads the environment each time. Without the private name, everything is
        # described, for nothing.
        return self._never or (self._late and getattr(trace, "_TRACER_PROVIDER", self) is None)


SILENT: Final = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
"""Stands for the span of a call that nothing records, and that has no context to propagate."""


def unrecorded() -> trace.Span:
    """Return what stands for a span while there is no SDK: it has the context of the current span.

    Events that are added to it are not added to the current span, which is somebody else's.
    """
    if not context.get_current():
        return trace.INVALID_SPAN  # the same result, which get_current_span() takes 2 µs for
    current = trace.get_current_span()
    return (
        current if isinstance(current, trace.NonRecordingSpan) else trace.NonRecordingSpan(current.get_span_context())
    )


OFF: Final = PerCall[bool](lambda: True)
"""Is there for a call that gets neither spans nor metrics, because somebody has said so."""


def is_suppressed() -> bool:
    """Return whether this is inside ``suppress_instrumentation()`` or ``suppress_http_instrumentation()``."""
    current = context.get_current()
    return bool(current) and bool(current.get(_ALL_SUPPRESSED) or current.get(_HTTP_SUPPRESSED))


# Private names, which OpenTelemetry's own instrumentations use as well.
_ALL_SUPPRESSED: Final[str] = context._SUPPRESS_INSTRUMENTATION_KEY
_HTTP_SUPPRESSED: Final[str] = context._SUPPRESS_HTTP_INSTRUMENTATION_KEY


def hands_on_nothing() -> bool:
    """Return whether there is no context to propagate, which propagators take 3 µs to find out."""
    return not context.get_current() and _is_w3c(propagate.get_global_textmap())


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the current context into *headers*, as the global propagator does it."""
    current, propagator = context.get_current(), propagate.get_global_textmap()
    if not _is_w3c(propagator) or len(current) > 1:
        propagate.inject(headers)
    elif current:
        at = trace.get_current_span(current).get_span_context()
        if at.is_valid:
            # A span and nothing else. W3C Trace Context, section 3.2: the propagators take 7 µs for it, this 1.
            headers[_TRACEPARENT] = f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"
            if at.trace_state:
                headers[_TRACESTATE] = at.trace_state.to_header()
        else:
            propagate.inject(headers)


_TRACEPARENT: Final = istr("traceparent")
_TRACESTATE: Final = istr("tracestate")


def _is_w3c(propagator: TextMapPropagator) -> bool:
    """Return whether *propagator* writes traces and baggage alone; one of the user's might write other headers."""
    return type(propagator) is CompositePropagator and _are_w3c(propagator)


@lru_cache(maxsize=1)
def _are_w3c(propagator: CompositePropagator) -> bool:
    parts = getattr(propagator, "_propagators", [None])
    return all(type(part) in {TraceContextTextMapPropagator, W3CBaggagePropagator} for part in parts)
