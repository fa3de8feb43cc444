"""The tracer of lamella, and the current span."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token
from typing import Final, NamedTuple

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.util.types import AttributeValue

from lamella.call import Call, PerCall
from lamella.telemetry.attributes import last_shown_url
from lamella.telemetry.log import log_broken, safely
from lamella.telemetry.names import SCHEMA, URL_FULL, version_of_lamella


class Current(NamedTuple):
    """The span of a call or an attempt, current until :meth:`leave`."""

    span: trace.Span
    url: str = ""
    """The URL at its start."""
    token: Token[Context] | None = None
    """None: there is no SDK, and the span is a placeholder."""

    def leave(self, result: object) -> None:
        """Restore the previous current span after the call or attempt ended with *result*."""
        # A call that the event loop discards may end in another context, where the token is invalid.
        if self.token is not None and (not isinstance(result, GeneratorExit) or trace.get_current_span() is self.span):
            context.detach(self.token)


class Tracing:
    """The tracer of lamella from *provider*. None means the global provider, even if it is set later.

    Raises:
        ValueError: *provider* is not a tracer provider.
    """

    __slots__ = ("_late", "_never", "tracer")

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        if provider is not None and not hasattr(provider, "get_tracer"):
            raise ValueError(f"tracer_provider must be a TracerProvider or None, got {type(provider).__name__}")
        self.tracer: trace.Tracer = trace.get_tracer(
            "lamella", version_of_lamella(), tracer_provider=provider, schema_url=SCHEMA
        )
        self._never = isinstance(self.tracer, trace.NoOpTracer)
        # The public function for this reads the environment each time. Without the private name everything is
        # described, only slower.
        self._late = isinstance(self.tracer, trace.ProxyTracer) and hasattr(trace, "_TRACER_PROVIDER")

    def start(self, call: Call, name: str, kind: trace.SpanKind, attributes: Mapping[str, AttributeValue]) -> Current:
        """Start a span for *call* as a child of the current one, and make it current."""
        if self.silent:
            return Current(unrecorded())
        url, within = last_shown_url(call), current_context()
        try:
            span = self.tracer.start_span(name, within, kind, {**attributes, URL_FULL: url})
        except Exception as exc:  # noqa: BLE001 - of a sampler or a span processor
            log_broken(exc)
            return Current(unrecorded())
        return Current(span, url, context.attach(Context(within, **{SPAN_KEY: span})))

    @contextmanager
    def around(
        self, name: str, attributes: Mapping[str, AttributeValue] | None = None, parent: Context | None = None
    ) -> Iterator[trace.Span]:
        """Enclose work that is not a call in a current span, a child of that in *parent*; None means the current
        one."""
        span: trace.Span = trace.NonRecordingSpan(trace.get_current_span(parent).get_span_context())
        try:
            if not is_suppressed():
                span = self.tracer.start_span(name, parent, attributes=attributes)
        except Exception as exc:  # noqa: BLE001 - as above
            log_broken(exc)
        try:
            # The message of an exception may contain a credential.
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        except Exception as exc:
            span.set_status(trace.StatusCode.ERROR, type(exc).__name__)
            raise
        finally:
            safely(span.end)

    @property
    def silent(self) -> bool:
        """Whether there is no SDK (yet), so that spans need no description."""
        return self._never or (self._late and trace._TRACER_PROVIDER is None)


SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""The key of the span in a context; direct access takes a third of the API's 1 µs."""

SILENT: Final = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
"""Placeholder span of a call that is not recorded and has no context to propagate."""


def unrecorded() -> trace.Span:
    """Return a placeholder span without an SDK, with the context of the current span.

    Events added to it are not added to the current span, which belongs to other code.
    """
    if not current_context():
        return trace.INVALID_SPAN  # the result of get_current_span(), which takes 2 µs
    current = trace.get_current_span()
    return (
        current if isinstance(current, trace.NonRecordingSpan) else trace.NonRecordingSpan(current.get_span_context())
    )


current_context: Final[Callable[[], Context]] = getattr(context, "_RUNTIME_CONTEXT", context).get_current
"""Returns the current context: without the private name it takes half as long again."""

OFF: Final = PerCall[bool](lambda: True)
"""Placeholder for a call with telemetry switched off."""


def is_suppressed() -> bool:
    """Return whether the current code is inside ``suppress_instrumentation()`` or
    ``suppress_http_instrumentation()``."""
    current = current_context()
    return bool(current.get(_ALL_SUPPRESSED) or current.get(_HTTP_SUPPRESSED))


def suppression() -> Context:
    """Return a context that contains only the keys of :func:`is_suppressed` from the current one."""
    current = current_context()
    return Context({key: True for key in (_ALL_SUPPRESSED, _HTTP_SUPPRESSED) if current.get(key)})


# Private names that OpenTelemetry's own instrumentations use as well.
_ALL_SUPPRESSED: Final[str] = context._SUPPRESS_INSTRUMENTATION_KEY
_HTTP_SUPPRESSED: Final[str] = context._SUPPRESS_HTTP_INSTRUMENTATION_KEY
