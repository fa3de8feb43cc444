"""``AttemptSpan``: one span a send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp
from opentelemetry import propagate
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.util.types import AttributeValue

from lamella import telemetry
from lamella.call import ORDER, Call, note_redirect, sent_before
from lamella.classification import ERROR_STATUS

__all__ = ["AttemptSpan"]


class AttemptSpan:
    """One CLIENT span for each send, by the HTTP semantic conventions; its id goes out in ``traceparent``.

    It also measures the duration of each send and counts those in flight. It stands inside of ``Retry``, so that
    each send has a span, and outside of ``Timeout``, so that it sees the timeout too. Its parent is the call's span,
    or the current one where there is no ``RequestSpan``.

    Args:
        tracer_provider: None means the global one.
        meter_provider: None means the global one.
        url_template: What the path of a request looks like with its variable parts named. None means that nobody
            knows: then the span's name is the method.
        request_headers: Names of headers whose values are put on the span; never one that ``HeaderAuth`` set.
        response_headers: The same for the answer's.
    """

    rank = ORDER.index("AttemptSpan")

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        url_template: telemetry.UrlTemplate | None = None,
        request_headers: Iterable[str] = (),
        response_headers: Iterable[str] = (),
    ) -> None:
        self._tracer = telemetry.tracer(tracer_provider)
        self._instruments = telemetry.Instruments(meter_provider)
        self._known = telemetry.known_methods()
        self._template = url_template
        self._request_headers = frozenset(name.lower() for name in request_headers)
        self._response_headers = frozenset(name.lower() for name in response_headers)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        call = Call.of(request)
        outside = call.enter(self.rank)
        telemetry.take_over(request)
        template = self._template and self._template(request)
        parent = None if call.span is None else set_span_in_context(call.span)
        name = telemetry.span_name(request.method, template, self._known)
        span = self._tracer.start_span(name, parent, SpanKind.CLIENT)
        server = telemetry.server_attributes(request, self._known)
        ended: dict[str, AttributeValue] = {}
        clock = asyncio.get_running_loop().time
        began = clock()
        self._instruments.in_flight.add(1, server)
        try:
            call.sends = call.sends or sent_before(request)
            if span.is_recording():
                span.set_attributes(telemetry.request_attributes(request, self._known, template))
                if call.sends:
                    span.set_attribute(telemetry.RESEND_COUNT, call.sends)
            call.sends += 1
            propagate.inject(request.headers, set_span_in_context(span))
            response = await handler(request)
            note_redirect(response, call.sends)
            ended = self._answered(span, response)
            if response.status >= ERROR_STATUS:
                ended[telemetry.ERROR_TYPE] = str(response.status)
            return response
        except Exception as exc:
            if call.answer is not None:
                ended = self._answered(span, call.answer)
                call.answer = None
            ended[telemetry.ERROR_TYPE] = telemetry.error_type(exc)
            raise
        finally:
            call.inside = outside
            self._instruments.in_flight.add(-1, server)
            # Without either it was cancelled: no answer, and no error.
            if ended:
                self._instruments.send_duration.record(clock() - began, {**server, **ended})
            if span.is_recording():
                span.set_attributes(ended)
                if telemetry.ERROR_TYPE in ended:
                    span.set_status(Status(StatusCode.ERROR))
                if self._request_headers:
                    # At the end, when it is known which of them an auth layer has set.
                    shown = telemetry.header_attributes(
                        telemetry.REQUEST_HEADER, request.headers, self._request_headers, call.auth_headers
                    )
                    span.set_attributes(shown)
            span.end()

    def _answered(self, span: Span, response: aiohttp.ClientResponse) -> dict[str, AttributeValue]:
        """What span and metric share of an answer; what is the span's alone is put on it."""
        if span.is_recording():
            span.set_attributes(telemetry.peer_attributes(response))
            if self._response_headers:
                shown = telemetry.header_attributes(telemetry.RESPONSE_HEADER, response.headers, self._response_headers)
                span.set_attributes(shown)
        return telemetry.response_attributes(response)

    def __repr__(self) -> str:
        return "AttemptSpan()"
