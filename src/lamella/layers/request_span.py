"""``RequestSpan``: one span for the whole call."""

from __future__ import annotations

import asyncio

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import Attributes, AttributeValue

from lamella import telemetry
from lamella.call import ORDER, Call
from lamella.classification import ERROR_STATUS
from lamella.errors import LamellaError, NotSent
from lamella.policy import StopReason

__all__ = ["RequestSpan"]


class RequestSpan:
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
        self._tracer = telemetry.tracer(tracer_provider)
        self._instruments = telemetry.Instruments(meter_provider)
        self._known = telemetry.known_methods()
        self._template = url_template

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        call = Call.of(request)
        outside = call.enter(self.rank)
        telemetry.take_over(request)
        template = telemetry.template_of(request, self._template)
        name = telemetry.span_name(request.method, template, self._known)
        server = telemetry.server_attributes(request, self._known)
        span = call.span = self._tracer.start_span(f"lamella {name}", kind=SpanKind.INTERNAL, attributes=server)
        call.instruments = self._instruments
        call.server = server
        clock = asyncio.get_running_loop().time
        began = clock()
        end: dict[str, AttributeValue] = {telemetry.OUTCOME: "failure"}
        description, refused = None, False
        try:
            if span.is_recording():
                span.set_attributes(telemetry.request_attributes(request, self._known, template))
            response = await handler(request)
            if response.status < ERROR_STATUS:
                end[telemetry.OUTCOME] = "success"
            else:
                end[telemetry.ERROR_TYPE] = str(response.status)
            return response
        except Exception as exc:
            end[telemetry.ERROR_TYPE] = telemetry.error_type(exc)
            # Only our own messages are known to hold no secret.
            if isinstance(exc, LamellaError):
                refused = isinstance(exc, NotSent)
                description = str(exc)
                if exc.stopped is None:
                    # There is no Retry to tell of it.
                    telemetry.log_failure(exc, span)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            call.stopped = StopReason.CANCELLED
            end[telemetry.OUTCOME] = "cancelled"
            raise
        finally:
            call.inside = outside
            seconds = clock() - began
            if not call.sends:
                telemetry.give_back(call)
            attempts = max(call.sends - call.sent_before, len(call.records), 0 if refused else 1)
            waited = sum((record.waited for record in call.records), 0.0)
            self._measure({**server, **end}, seconds, attempts, waited)
            if call.stopped:
                why = {telemetry.STOP_REASON: call.stopped.value}
                if call.rule is not None:
                    why[telemetry.RULE] = call.rule.title
                self._instruments.stops.add(1, {**server, **end, **why})
            if span.is_recording():
                if end[telemetry.OUTCOME] == "failure":
                    span.set_status(Status(StatusCode.ERROR, description))
                if call.stopped:
                    end[telemetry.STOP_REASON] = call.stopped.value
                end[telemetry.URL_FULL] = telemetry.shown_url(request)
                end[telemetry.ATTEMPTS] = attempts
                end[telemetry.WAIT] = waited
                if call.gate_wait:
                    end[telemetry.GATE_WAIT] = call.gate_wait
                span.set_attributes(end)
            span.end()

    def _measure(self, attributes: Attributes, seconds: float, attempts: int, waited: float) -> None:
        self._instruments.call_duration.record(seconds, attributes)
        self._instruments.attempts.record(attempts, attributes)
        self._instruments.wait.record(waited, attributes)

    def __repr__(self) -> str:
        return "RequestSpan()"
