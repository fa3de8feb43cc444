"""Living with OpenTelemetry's own instrumentation of aiohttp, which may be on in the same process."""

from __future__ import annotations

from typing import Any, Final

import aiohttp
from opentelemetry import context, trace

from lamella._aiohttp import trace_states
from lamella.call import Call, PerCall
from lamella.telemetry.tracing import unrecorded

__all__ = ["give_back", "take_over", "without_other_instrumentation"]

_TAKEN_OVER: Final = PerCall[list[tuple[Any, trace.Span]]](list)
"""What another instrumentation had begun for a call, and the span that it had begun."""


def take_over(call: Call) -> None:
    """Take away what OpenTelemetry's own instrumentation of aiohttp has begun for this call.

    Its one CLIENT span would stand around all our sends, and be the parent of ours in place of the caller's span.
    It takes no offence: a call of which it has no span is none of its business. Where we make no spans of our own its
    span is left to it: the server is told of that one.
    """
    for config, state in trace_states(call.request):
        if getattr(config, _INSTRUMENTED, False) and getattr(state, "token", None) is not None:
            context.detach(state.token)
            if call.span is not None and call.span.get_span_context() == state.span.get_span_context():
                call.span = unrecorded()  # it stood for that one, for a RequestSpan that makes none
            _TAKEN_OVER.of(call).append((state, state.span))
            state.token = state.span = None


def give_back(call: Call) -> None:
    """For a call without an attempt: the span that is in its ``traceparent`` must be ended by who began it."""
    for state, span in _TAKEN_OVER.of(call):
        state.span = span


def without_other_instrumentation(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """*session*, which is ours, without what OpenTelemetry's own instrumentation has added to it."""
    session.trace_configs[:] = [each for each in session.trace_configs if not getattr(each, _INSTRUMENTED, False)]
    return session


# How that instrumentation marks its own.
_INSTRUMENTED: Final = "_is_instrumented_by_opentelemetry"
