"""Cooperate with OpenTelemetry's own instrumentation of aiohttp in the same process."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
from opentelemetry import context, trace

from lamella._aiohttp import trace_states
from lamella.call import Call, PerCall
from lamella.telemetry.tracing import unrecorded

_TAKEN_OVER: Final = PerCall[list[tuple[Any, trace.Span]]](list)
"""States of the other instrumentation for a call, each with the span that it started."""


def take_over(call: Call) -> None:
    """Take over *call* from OpenTelemetry's own instrumentation of aiohttp, if it has started a span.

    Its CLIENT span would enclose all attempts and replace the caller's span as parent of lamella's spans. The
    instrumentation ignores a call without a span. Do not use this if lamella records no spans: then the other span
    stays and is the one in ``traceparent``.
    """
    for config, state in trace_states(call.request):
        if getattr(config, _INSTRUMENTED, False) and getattr(state, "token", None) is not None:
            context.detach(state.token)
            if call.span is not None and call.span.get_span_context() == state.span.get_span_context():
                call.span = unrecorded()  # placeholder for the other span, from a RequestSpan that records none
            _TAKEN_OVER.of(call).append((state, state.span))
            state.token = state.span = None


def give_back(call: Call) -> None:
    """Return the taken-over spans of a *call* without an attempt, so that the instrumentation ends them."""
    for state, span in _TAKEN_OVER.of(call):
        state.span = span


def without_other_instrumentation(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """Return *session*, made by lamella, without the additions of OpenTelemetry's own instrumentation."""
    session.trace_configs[:] = [each for each in session.trace_configs if not getattr(each, _INSTRUMENTED, False)]
    return session


# Marks the trace configurations of that instrumentation.
_INSTRUMENTED: Final = "_is_instrumented_by_opentelemetry"
