"""Log a failed call."""

from __future__ import annotations

import logging
from typing import Final

from opentelemetry import trace

from lamella.errors import LamellaError

LOGGER: Final = logging.getLogger("lamella")
"""The logger has no handler, because the application decides where log lines go."""
LOGGER.addHandler(logging.NullHandler())


def log_failure(error: LamellaError, span: trace.Span | None) -> None:
    """Log one line for a call that failed with *error*, with the ids of *span*; None means the current span."""
    if not LOGGER.isEnabledFor(logging.WARNING):
        return
    fields = {
        "lamella.method": error.method,
        "lamella.url": error.url,
        "lamella.outcome": str(error.outcome),
        "lamella.attempts": len(error.attempts),
        "lamella.wait": sum((record.waited for record in error.attempts), 0.0),
        "lamella.stop_reason": error.stopped and error.stopped.value,
        **ids_of(span or trace.get_current_span()),
    }
    LOGGER.warning("%s", error, extra=fields)


def log_broken(exc: Exception) -> None:
    """Log an exception of a sampler or a span processor, which does not affect the call."""
    LOGGER.error("telemetry failed", exc_info=exc)


def ids_of(span: trace.Span) -> dict[str, str]:
    """Return the fields of a log record that identify *span*."""
    context = span.get_span_context()
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }
