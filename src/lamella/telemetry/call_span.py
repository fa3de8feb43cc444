"""``RequestSpan``: one span for the whole call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from lamella.call import Call, Stop
from lamella.classify.failures import ERROR_STATUS
from lamella.errors import LamellaError, RequestRejected
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import Rule, StopReason, WaitSource
from lamella.telemetry.attributes import UrlTemplate, described, error_type, known_methods, last_shown_url
from lamella.telemetry.log import log_failure
from lamella.telemetry.metrics import Instruments
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
from lamella.telemetry.others import give_back, take_over
from lamella.telemetry.redirects import earlier_hops
from lamella.telemetry.tracing import SILENT, Tracing, hands_on_nothing, unrecorded

__all__ = ["RequestSpan"]


class _Outcome(NamedTuple):
    """How a call has ended."""

    name: str
    error: str | None = None
    """The type of what went wrong."""
    cause: LamellaError | None = None
    """The same itself, if it is one of ours."""


_SUCCESS: Final = _Outcome("success")
_CANCELLED: Final = _Outcome("cancelled")


def _outcome_of(exc: BaseException) -> _Outcome:
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        return _CANCELLED
    error = error_type(exc) if isinstance(exc, Exception) else None
    return _Outcome("failure", error, exc if isinstance(exc, LamellaError) else None)


class _Waits:
    """Counts the waits of one call between its attempts."""

    __slots__ = ("_instruments", "_server", "_waiting")

    def __init__(self, instruments: Instruments, server: Mapping[str, AttributeValue]) -> None:
        self._instruments = instruments
        self._server = server
        self._waiting: dict[str, AttributeValue] | None = None
        """The attributes under which the call counts among those that wait. None: it does not wait."""

    def wait_begins(self, rule: Rule, source: WaitSource | None) -> None:
        self._waiting = {**self._server, RULE: rule.title}
        self._instruments.waiting.add(1, self._waiting)
        if source is not None:
            self._instruments.retries.add(1, {**self._waiting, WAIT_SOURCE: source.value})

    def wait_ends(self) -> None:
        if self._waiting is not None:
            self._instruments.waiting.add(-1, self._waiting)
            self._waiting = None


class RequestSpan(Layer):
    """One INTERNAL span around all the sends and waits of a call, with an event for each decision.

    It also measures whole calls: their duration, sends and waits, and why they were given up. It stands outermost,
    so that it sees everything. It ends when the layers hand the answer on, with the outcome: success, failure (and
    why there was no further try), or cancelled, which is no error.

    Args:
        tracer_provider: None means the global one.
        meter_provider: None means the global one.
        url_template: What the path of a request looks like with its variable parts named. None means that nobody
            knows: then the span's name has the method alone.
    """

    slot = Slot.REQUEST_SPAN
    single = True

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        url_template: UrlTemplate | None = None,
    ) -> None:
        self.shared: Mapping[str, object] = {
            "tracer_provider": tracer_provider,
            "meter_provider": meter_provider,
            "url_template": url_template,
        }
        self._tracing = Tracing(tracer_provider)
        self._instruments = Instruments(meter_provider)
        self._known = known_methods()
        self._template = url_template
        self._global = tracer_provider is None and meter_provider is None
        self._began: dict[Call, tuple[float, Mapping[str, AttributeValue]]] = {}
        """When the call began, by the loop's clock, and what its metrics say of the server."""

    def before(self, call: Call) -> None:
        silent = self._tracing.silent
        if not silent:
            take_over(call)
        counted = not self._instruments.silent
        if silent and not counted:
            # Nothing is recorded: what other layers and the log need, and no more.
            call.span = SILENT if self._global and hands_on_nothing() else unrecorded()
            return
        said = described(call, self._template, self._known)
        call.span = self._tracing.start(f"lamella {said.name}", None, SpanKind.INTERNAL, said.asked)
        if counted:
            call.observer = _Waits(self._instruments, said.server)
        self._began[call] = call.request.loop.time(), said.server

    def after(self, call: Call, result: Result) -> None:
        began = self._began.pop(call, None)
        if began is None and call.attempts and not isinstance(result, BaseException):
            return
        if not call.attempts:
            give_back(call)
        if not isinstance(result, BaseException):
            outcome = _SUCCESS if result.status < ERROR_STATUS else _Outcome("failure", str(result.status))
        else:
            outcome = _outcome_of(result)
            if outcome is _CANCELLED:
                call.stop = Stop(StopReason.CANCELLED, None if call.stop is None else call.stop.rule)
            elif outcome.cause is not None and outcome.cause.stopped is None:
                # There is no Retry to report it.
                log_failure(outcome.cause, call.span)
        if began is not None:
            self._report(call, outcome, call.request.loop.time() - began[0], began[1])

    def _report(self, call: Call, outcome: _Outcome, seconds: float, server: Mapping[str, AttributeValue]) -> None:
        """Record how the call has ended, after so many *seconds*."""
        span = call.span
        if span is None:
            return
        recording = span.is_recording()
        if recording or call.observer is not None:
            least = 0 if isinstance(outcome.cause, RequestRejected) else 1
            attempts = max(call.attempts - earlier_hops(call), len(call.records), least)
            waited = sum((record.waited for record in call.records), 0.0) if call.records else 0.0
            end: dict[str, AttributeValue] = {OUTCOME: outcome.name}
            if outcome.error is not None:
                end[ERROR_TYPE] = outcome.error
            if call.observer is not None:
                self._measure(call, {**server, **end}, seconds, attempts, waited)
            if recording:
                if outcome.name == "failure":
                    # Only our own messages are known to hold no secret.
                    message = None if outcome.cause is None else str(outcome.cause)
                    span.set_status(Status(StatusCode.ERROR, message))
                if call.stop is not None:
                    end[STOP_REASON] = call.stop.reason.value
                end[URL_FULL] = last_shown_url(call)
                end[ATTEMPTS] = attempts
                end[WAIT] = waited
                if call.queued:
                    end[QUEUE_WAIT] = call.queued
                span.set_attributes(end)
        span.end()

    def _measure(
        self, call: Call, attributes: Mapping[str, AttributeValue], seconds: float, attempts: int, waited: float
    ) -> None:
        self._instruments.call_duration.record(seconds, attributes)
        self._instruments.attempts.record(attempts, attributes)
        self._instruments.wait.record(waited, attributes)
        if call.stop is not None:
            why = {STOP_REASON: call.stop.reason.value}
            if call.stop.rule is not None:
                why[RULE] = call.stop.rule.title
            self._instruments.stops.add(1, {**attributes, **why})

    def __repr__(self) -> str:
        return "RequestSpan()"
