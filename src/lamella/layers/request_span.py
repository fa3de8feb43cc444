"""``RequestSpan``: one span for the whole call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import INVALID_SPAN, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from lamella import telemetry
from lamella.call import ORDER, Call, Layer, Send
from lamella.classification import ERROR_STATUS
from lamella.errors import LamellaError, NotSent
from lamella.policy import StopReason

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
    error = telemetry.error_type(exc) if isinstance(exc, Exception) else None
    return _Outcome("failure", error, exc if isinstance(exc, LamellaError) else None)


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

    rank = ORDER.index("RequestSpan")

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        url_template: telemetry.UrlTemplate | None = None,
    ) -> None:
        self.shared = {
            "tracer_provider": tracer_provider,
            "meter_provider": meter_provider,
            "url_template": url_template,
        }
        self._providers = tracer_provider, meter_provider
        self._tracing = telemetry.Tracing(tracer_provider)
        self._instruments = telemetry.Instruments(meter_provider)
        self._known = telemetry.known_methods()
        self._template = url_template

    def begin(self, request: aiohttp.ClientRequest, call: Call, now: float) -> bool:
        silent = self._tracing.silent
        if not silent:
            telemetry.take_over(request, call)
        call.began = None
        if not self._instruments.silent:
            call.instruments = self._instruments
        elif silent:
            # Where nobody listens: what other layers and the log need, and no more.
            if telemetry.hands_on_nothing():
                call.span, call.silent = INVALID_SPAN, self._providers
            else:
                call.span = telemetry.unrecorded()
            return True
        said = telemetry.described(request, call, self._template, self._known)
        call.server = said.server
        call.span = self._tracing.start(f"lamella {said.name}", None, SpanKind.INTERNAL, said.asked)
        call.began = now
        return True

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        if not call.sends:
            telemetry.give_back(call)
        if call.began is not None:
            if response.status < ERROR_STATUS:
                self._tell(request, call, _SUCCESS, now - call.began)
            else:
                self._tell(request, call, _Outcome("failure", str(response.status)), now - call.began)
        return True

    async def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        try:
            response = await send(request, call)
        except BaseException as exc:
            self._failed(request, call, exc)
            raise
        self.end(request, call, response, request.loop.time())
        return response

    # A function of its own: what it calls *exc* by is in no frame that a traceback holds on to.
    def _failed(self, request: aiohttp.ClientRequest, call: Call, exc: BaseException) -> None:
        if not call.sends:
            telemetry.give_back(call)
        outcome = _outcome_of(exc)
        if outcome is _CANCELLED:
            call.stopped = StopReason.CANCELLED
        elif isinstance(exc, LamellaError) and exc.stopped is None:
            # There is no Retry to tell of it.
            telemetry.log_failure(exc, call.span)
        if call.began is not None:
            self._tell(request, call, outcome, request.loop.time() - call.began)

    def _tell(self, request: aiohttp.ClientRequest, call: Call, outcome: _Outcome, seconds: float) -> None:
        """How the call has ended, after so many *seconds*."""
        span = call.span
        if span is None:
            return
        recording = span.is_recording()
        if recording or call.instruments is not None:
            least = 0 if isinstance(outcome.cause, NotSent) else 1
            attempts = max(call.sends - call.sent_before, len(call.records), least)
            waited = sum((record.waited for record in call.records), 0.0) if call.records else 0.0
            end: dict[str, AttributeValue] = {telemetry.OUTCOME: outcome.name}
            if outcome.error is not None:
                end[telemetry.ERROR_TYPE] = outcome.error
            if call.instruments is not None:
                self._measure(call, {**call.server, **end}, seconds, attempts, waited)
            if recording:
                if outcome.name == "failure":
                    # Only our own messages are known to hold no secret.
                    message = None if outcome.cause is None else str(outcome.cause)
                    span.set_status(Status(StatusCode.ERROR, message))
                if call.stopped:
                    end[telemetry.STOP_REASON] = call.stopped.value
                end[telemetry.URL_FULL] = telemetry.last_shown_url(request, call)
                end[telemetry.ATTEMPTS] = attempts
                end[telemetry.WAIT] = waited
                if call.gate_wait:
                    end[telemetry.GATE_WAIT] = call.gate_wait
                span.set_attributes(end)
        span.end()

    def _measure(
        self, call: Call, attributes: Mapping[str, AttributeValue], seconds: float, attempts: int, waited: float
    ) -> None:
        self._instruments.call_duration.record(seconds, attributes)
        self._instruments.attempts.record(attempts, attributes)
        self._instruments.wait.record(waited, attributes)
        if call.stopped:
            why = {telemetry.STOP_REASON: call.stopped.value}
            if call.rule is not None:
                why[telemetry.RULE] = call.rule.title
            self._instruments.stops.add(1, {**attributes, **why})

    def __repr__(self) -> str:
        return "RequestSpan()"
