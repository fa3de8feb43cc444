"""Work beside OpenTelemetry's own instrumentation of aiohttp, which may be on in the same process."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
from opentelemetry import context, trace

from lamella._aiohttp import trace_states
from lamella.call import Call, PerCall
from lamella.telemetry.tracing import unrecorded

_TAKEN_OVER: Final = PerCall[list[tuple[Any, trace.Span]]](list)
"""The states of another instrumentation for a call, each with the span that it had started."""


def take_over(call: Call) -> None:
    """Take over *call* from OpenTelemetry's own instrumentation of aiohttp, if that has started a span for it.

    That one CLIENT span would be around all attempts, and the parent of lamella's spans in place of the caller's span.
    The instrumentation ignores a call without a span. Where lamella makes no spans, do not call this: then the other
    span stays, and is the one in ``traceparent``.
    """
    for config, state in trace_states(call.request):
        if getattr(config, _INSTRUMENTED, False) and getattr(state, "token", None) is not None:
            context.detach(state.token)
            if call.span is not None and call.span.get_span_context() == state.span.get_span_context():
                call.span = unrecorded()  # it stood for the other span, of a RequestSpan that makes none
            _TAKEN_OVER.of(call).append((state, state.span))
            state.token = state.span = None


def give_back(call: Call) -> None:
    """Return the spans that were taken over, for a *call* without an attempt: who started them has to end them."""
    for state, span in _TAKEN_OVER.of(call):
        state.span = span


def without_other_instrumentation(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """Return *session*, made by lamella, without what OpenTelemetry's own instrumentation has added to it."""
    session.trace_configs[:] = [each for each in session.trace_configs if not getattr(each, _INSTRUMENTED, False)]
    return session


# The mark of that instrumentation on its trace configurations.
_INSTRUMENTED: Final = "_is_instrumented_by_opentelemetry"
