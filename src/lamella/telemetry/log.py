"""Log a failed call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVarTuple

from opentelemetry import trace

from lamella.errors import LamellaError
from lamella.logger import LOGGER

_Ts = TypeVarTuple("_Ts")


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
    """Log an exception of a part of the SDK, such as a sampler or a view, which does not affect the work."""
    LOGGER.error("telemetry failed", exc_info=exc)


def safely(report: Callable[[*_Ts], object], *args: *_Ts) -> None:
    """Call *report*, a function of the SDK, and log its exception."""
    try:
        report(*args)
    except Exception as exc:  # noqa: BLE001 - of a part of the SDK
        log_broken(exc)


def ids_of(span: trace.Span) -> dict[str, str]:
    """Return the fields of a log record that identify *span*."""
    context = span.get_span_context()
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }
