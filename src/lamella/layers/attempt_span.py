"""``AttemptSpan``: one span a send."""

from __future__ import annotations

import aiohttp
from opentelemetry import propagate
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider, set_span_in_context

from lamella import telemetry
from lamella.call import ORDER, Call
from lamella.classification import ERROR_STATUS

__all__ = ["AttemptSpan"]


class AttemptSpan:
    """One CLIENT span for each send, by the HTTP semantic conventions; its id goes out in ``traceparent``.

    It stands inside of ``Retry``, so that each send has one, and outside of ``Timeout``, so that it sees the
    timeout too. Its parent is the call's span, or the current one where there is no ``RequestSpan``.

    Args:
        tracer_provider: None means the global one.
    """

    rank = ORDER.index("AttemptSpan")

    def __init__(self, *, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = telemetry.tracer(tracer_provider)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        call = Call.of(request)
        outside = call.enter(self.rank)
        parent = None if call.span is None else set_span_in_context(call.span)
        span = self._tracer.start_span(request.method, parent, SpanKind.CLIENT)
        try:
            if span.is_recording():
                span.set_attributes(telemetry.request_attributes(request))
                if call.sends:
                    span.set_attribute(telemetry.RESEND_COUNT, call.sends)
            call.sends += 1
            propagate.inject(request.headers, set_span_in_context(span))
            response = await handler(request)
            if span.is_recording():
                span.set_attribute(telemetry.STATUS, response.status)
                if version := response.version:
                    span.set_attribute(telemetry.PROTOCOL_VERSION, f"{version.major}.{version.minor}")
                if response.status >= ERROR_STATUS:
                    span.set_attribute(telemetry.ERROR_TYPE, str(response.status))
                    span.set_status(Status(StatusCode.ERROR))
            return response
        except Exception as exc:
            if span.is_recording():
                status = getattr(exc, "status", None)
                if isinstance(status, int) and status:
                    span.set_attribute(telemetry.STATUS, status)
                span.set_attribute(telemetry.ERROR_TYPE, telemetry.error_type(exc))
                span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            call.inside = outside
            # A cancelled send ends here too, and is no error.
            span.end()

    def __repr__(self) -> str:
        return "AttemptSpan()"
