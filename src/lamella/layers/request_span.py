"""``RequestSpan``: one span for the whole call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from lamella import telemetry
from lamella.call import ORDER, Call, Layer, Send
from lamella.classification import ERROR_STATUS
from lamella.errors import LamellaError, NotSent
from lamella.policy import StopReason

__all__ = ["RequestSpan"]


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
        self._tracing = telemetry.Tracing(tracer_provider)
        self._instruments = telemetry.Instruments(meter_provider)
        self._known = telemetry.known_methods()
        self._template = url_template

    def around(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> Awaitable[aiohttp.ClientResponse]:
        telemetry.take_over(request, call)
        if self._instruments.silent:
            if self._tracing.silent:
                return self._untold(request, call, send)
        else:
            call.instruments = self._instruments
        return self._told(request, call, send)

    async def _untold(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        """Where nobody listens: what other layers and the log need, and no more."""
        call.span = telemetry.unrecorded()
        try:
            return await send(request, call)
        except LamellaError as exc:
            if exc.stopped is None:
                telemetry.log_failure(exc, call.span)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            call.stopped = StopReason.CANCELLED
            raise
        finally:
            if not call.sends:
                telemetry.give_back(call)

    async def _told(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        template = telemetry.template_of(request, self._template)
        name = telemetry.span_name(request.method, template, self._known)
        call.server = telemetry.server_attributes(request, self._known)
        asked = telemetry.asked_attributes(request, call.server, template)
        span = call.span = self._tracing.tracer.start_span(f"lamella {name}", None, SpanKind.INTERNAL, asked)
        clock = request.loop.time
        began = clock()
        outcome, error, description, refused = "failure", None, None, False
        try:
            response = await send(request, call)
            if response.status < ERROR_STATUS:
                outcome = "success"
            else:
                error = str(response.status)
            return response
        except Exception as exc:
            error = telemetry.error_type(exc)
            # Only our own messages are known to hold no secret.
            if isinstance(exc, LamellaError):
                refused = isinstance(exc, NotSent)
                description = str(exc) if span.is_recording() else None
                if exc.stopped is None:
                    # There is no Retry to tell of it.
                    telemetry.log_failure(exc, span)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            call.stopped = StopReason.CANCELLED
            outcome = "cancelled"
            raise
        finally:
            if not call.sends:
                telemetry.give_back(call)
            recording = span.is_recording()
            if recording or call.instruments is not None:
                seconds = clock() - began
                attempts = max(call.sends - call.sent_before, len(call.records), 0 if refused else 1)
                waited = sum((record.waited for record in call.records), 0.0)
                end: dict[str, AttributeValue] = {telemetry.OUTCOME: outcome}
                if error is not None:
                    end[telemetry.ERROR_TYPE] = error
                if call.instruments is not None:
                    self._measure(call, {**call.server, **end}, seconds, attempts, waited)
                if recording:
                    if outcome == "failure":
                        span.set_status(Status(StatusCode.ERROR, description))
                    if call.stopped:
                        end[telemetry.STOP_REASON] = call.stopped.value
                    end[telemetry.URL_FULL] = telemetry.shown_url(request, call)
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
