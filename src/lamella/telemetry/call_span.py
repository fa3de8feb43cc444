"""``RequestSpan``: one span for the whole call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple, Unpack

from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from lamella.call import OBSERVER, Call, Stop
from lamella.classify.failures import ERROR_STATUS
from lamella.errors import LamellaError, RequestRejected
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import Rule, StopReason, WaitSource
from lamella.telemetry.attributes import error_type, last_shown_url
from lamella.telemetry.log import log_failure, safely
from lamella.telemetry.metrics import Gauge, Instruments
from lamella.telemetry.names import (
    ATTEMPTS,
    ERROR_TYPE,
    OUTCOME,
    QUEUE_WAIT,
    RULE,
    STOP_REASON,
    URL_FULL,
    WAIT,
    WAIT_SOURCE,
)
from lamella.telemetry.others import give_back
from lamella.telemetry.propagation import hands_on_nothing
from lamella.telemetry.redirects import earlier_hops, note_earlier_secrets
from lamella.telemetry.shared import SpanOptions, Telemetry
from lamella.telemetry.tracing import SILENT, Current, unrecorded


class _Outcome(NamedTuple):
    """The outcome of a call."""

    name: str
    error: str | None = None
    """The type of the error."""
    cause: LamellaError | None = None
    """The error, if it is a LamellaError."""


_SUCCESS: Final = _Outcome("success")
_CANCELLED: Final = _Outcome("cancelled")


def _outcome_of(exc: BaseException) -> _Outcome:
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        return _CANCELLED
    error = error_type(exc) if isinstance(exc, Exception) else None
    return _Outcome("failure", error, exc if isinstance(exc, LamellaError) else None)


class _Begun(NamedTuple):
    """A running call."""

    current: Current
    measured: Mapping[str, AttributeValue] | None
    """Attributes of all metrics of the call. None: nothing is measured."""
    at: float
    """When the call began, by the loop's clock, if measured."""


class _Waits:
    """Count the waits of one call between its attempts."""

    __slots__ = ("_gauge", "_instruments", "_server", "_waiting")

    def __init__(self, instruments: Instruments, gauge: Gauge, server: Mapping[str, AttributeValue]) -> None:
        self._instruments = instruments
        self._gauge = gauge
        self._server = server
        self._waiting: dict[str, AttributeValue] | None = None
        """Attributes under which the call is counted as waiting. None: it is not waiting."""

    def wait_begins(self, rule: Rule, source: WaitSource | None) -> None:
        self._waiting = {**self._server, RULE: rule.title}
        self._gauge.add(1, self._waiting)
        if source is not None:
            safely(self._instruments.retries.add, 1, {**self._waiting, WAIT_SOURCE: source.value})

    def wait_ends(self) -> None:
        if self._waiting is not None:
            self._gauge.add(-1, self._waiting)
            self._waiting = None


class RequestSpan(Layer):
    """Record one INTERNAL span around all attempts and waits of a call, with an event for each decision.

    It also measures whole calls: duration, waits, and why they were given up. It belongs outermost, so that it covers
    everything. The span ends when the layers return the response, with the outcome: success, failure (with the reason
    for stopping), or cancelled, which is not an error.

    Args:
        tracer_provider: None means the global one.
        meter_provider: None means the global one.
        url_template: Returns the path template of a request for span names. None means that names contain only the
            method.
        excluded_urls: Regular expressions; calls to matching URLs have no spans, metrics or trace context in headers.
            None means the comma-separated list in ``OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS`` or
            ``OTEL_PYTHON_EXCLUDED_URLS``.
        max_servers: How many servers the metrics of one meter provider distinguish; ``server.address`` of all others is
            ``_OTHER``. None means unchanged, initially 100.

    Raises:
        ValueError: *excluded_urls* are not regular expressions, or *max_servers* is less than 1.
    """

    slot = Slot.REQUEST_SPAN
    single = True

    def __init__(self, **options: Unpack[SpanOptions]) -> None:
        self.shared: Mapping[str, object] = dict(options)
        self._telemetry = Telemetry(**options)
        self._waiting = Gauge("waiting", options.get("meter_provider"))
        self._begun: dict[Call, _Begun] = {}

    def before(self, call: Call) -> None:
        telemetry = self._telemetry
        silent = telemetry.tracing.silent and telemetry.instruments.silent
        said = None if silent else telemetry.describe(call)
        if said is None:
            # Nothing is recorded: set only what other layers and the log need.
            call.span = SILENT if telemetry.is_global and hands_on_nothing() else unrecorded()
            return
        note_earlier_secrets(call)
        measured, now = telemetry.measured(call, said), 0.0
        if measured is not None:
            OBSERVER.set(call, _Waits(telemetry.instruments, self._waiting, measured))
            now = call.now
        current = telemetry.tracing.start(call, f"lamella {said.name}", SpanKind.INTERNAL, said.asked)
        call.span = current.span
        self._begun[call] = _Begun(current, measured, now)

    def after(self, call: Call, result: Result) -> None:
        begun = self._begun.pop(call, None)
        if begun is None and call.attempts and not isinstance(result, BaseException):
            return
        try:
            self._end(call, result, begun)
        finally:
            if begun is not None:
                begun.current.leave(result)

    def _end(self, call: Call, result: Result, begun: _Begun | None) -> None:
        """Report that *call* ended with *result*. *begun* None means that the call is not recorded."""
        if not call.attempts:
            give_back(call)
        if not isinstance(result, BaseException):
            outcome = _SUCCESS if result.status < ERROR_STATUS else _Outcome("failure", str(result.status))
        else:
            outcome = _outcome_of(result)
            if outcome is _CANCELLED:
                call.stop = Stop(StopReason.CANCELLED, None if call.stop is None else call.stop.rule)
            elif outcome.cause is not None and outcome.cause.stopped is None:
                # Without Retry nothing else reports it.
                log_failure(outcome.cause, call.span)
        if begun is not None:
            safely(self._report, call, outcome, begun)

    def _report(self, call: Call, outcome: _Outcome, begun: _Begun) -> None:
        """Record the outcome of the call."""
        span = begun.current.span
        recording = span.is_recording()
        if recording or begun.measured is not None:
            waited = sum((record.waited for record in call.records), 0.0) if call.records else 0.0
            end: dict[str, AttributeValue] = {OUTCOME: outcome.name}
            if outcome.error is not None:
                end[ERROR_TYPE] = outcome.error
            if begun.measured is not None:
                safely(self._measure, call, {**begun.measured, **end}, call.now - begun.at, waited)
            if recording:
                least = 0 if isinstance(outcome.cause, RequestRejected) else 1
                if outcome.name == "failure":
                    # Only a LamellaError is known to have no secrets in its message.
                    message = None if outcome.cause is None else str(outcome.cause)
                    span.set_status(Status(StatusCode.ERROR, message))
                if call.stop is not None:
                    end[STOP_REASON] = call.stop.reason.value
                if (url := last_shown_url(call)) != begun.current.url:
                    end[URL_FULL] = url
                end[ATTEMPTS] = max(call.attempts - earlier_hops(call), len(call.records), least)
                end[WAIT] = waited
                if call.queued:
                    end[QUEUE_WAIT] = call.queued
                span.set_attributes(end)
        span.end()

    def _measure(self, call: Call, attributes: Mapping[str, AttributeValue], seconds: float, waited: float) -> None:
        instruments = self._telemetry.instruments
        instruments.call_duration.record(seconds, attributes)
        if waited:
            instruments.wait.record(waited, attributes)
        if call.stop is not None:
            why = {STOP_REASON: call.stop.reason.value}
            if call.stop.rule is not None:
                why[RULE] = call.stop.rule.title
            instruments.stops.add(1, {**attributes, **why})

    def __repr__(self) -> str:
        return "RequestSpan()"
