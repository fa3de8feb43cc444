"""``RequestSpan``: one span for the whole call."""

from __future__ import annotations

import asyncio

import aiohttp
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from lamella import telemetry
from lamella.call import ORDER, Call
from lamella.classification import ERROR_STATUS
from lamella.errors import LamellaError
from lamella.policy import StopReason

__all__ = ["RequestSpan"]


class RequestSpan:
    """One INTERNAL span around all the sends and waits of a call, with an event for each decision.

    It stands outermost, so that it sees everything. It ends when the layers hand the answer on, with the outcome:
    success, failure (and why there was no further try), or cancelled, which is no error.

    Args:
        tracer_provider: None means the global one.
    """

    rank = ORDER.index("RequestSpan")

    def __init__(self, *, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = telemetry.tracer(tracer_provider)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        call = Call.of(request)
        outside = call.enter(self.rank)
        span = call.span = self._tracer.start_span(f"lamella {request.method}", kind=SpanKind.INTERNAL)
        end: dict[str, AttributeValue] = {telemetry.OUTCOME: "failure"}
        description = None
        try:
            if span.is_recording():
                span.set_attributes(telemetry.request_attributes(request))
            response = await handler(request)
            if response.status < ERROR_STATUS:
                end[telemetry.OUTCOME] = "success"
            else:
                end[telemetry.ERROR_TYPE] = str(response.status)
            return response
        except Exception as exc:
            end[telemetry.ERROR_TYPE] = telemetry.error_type(exc)
            # Only our own messages are known to hold no secret.
            description = str(exc) if isinstance(exc, LamellaError) else None
            raise
        except (asyncio.CancelledError, GeneratorExit):
            call.stopped = StopReason.CANCELLED
            end[telemetry.OUTCOME] = "cancelled"
            raise
        finally:
            call.inside = outside
            if span.is_recording():
                if end[telemetry.OUTCOME] == "failure":
                    span.set_status(Status(StatusCode.ERROR, description))
                if call.stopped:
                    end[telemetry.STOP_REASON] = call.stopped.value
                end[telemetry.ATTEMPTS] = max(call.sends, len(call.records), 1)
                end[telemetry.WAIT] = sum(record.waited for record in call.records)
                span.set_attributes(end)
            span.end()

    def __repr__(self) -> str:
        return "RequestSpan()"
