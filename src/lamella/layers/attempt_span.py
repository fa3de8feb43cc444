"""``AttemptSpan``: one span a send."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import aiohttp
from opentelemetry import propagate
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.util.types import AttributeValue

from lamella import telemetry
from lamella.call import ORDER, Call, note_redirect, secrets_of, sent_before
from lamella.classification import ERROR_STATUS
from lamella.errors import AttemptTimeout

__all__ = ["AttemptSpan"]

# A timer may be due this many seconds early.
_CLOCK = 0.002


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
        template = telemetry.template_of(request, self._template)
        parent = None if call.span is None else set_span_in_context(call.span)
        name = telemetry.span_name(request.method, template, self._known)
        server = telemetry.server_attributes(request, self._known)
        span = self._tracer.start_span(name, parent, SpanKind.CLIENT, server)
        ended: dict[str, AttributeValue] = {}
        clock = asyncio.get_running_loop().time
        began = clock()
        self._instruments.in_flight.add(1, server)
        try:
            if not call.sends:
                call.sends = call.sent_before = sent_before(request)
            if span.is_recording():
                span.set_attributes(telemetry.request_attributes(request, self._known, template))
                if call.sends:
                    span.set_attribute(telemetry.RESEND_COUNT, call.sends)
            call.sends += 1
            call.answer = None
            propagate.inject(request.headers, set_span_in_context(span))
            call.answer = response = await handler(request)
            note_redirect(request, response, call.sends)
            if response.status >= ERROR_STATUS:
                ended[telemetry.ERROR_TYPE] = str(response.status)
            return response
        except Exception as exc:
            ended[telemetry.ERROR_TYPE] = telemetry.error_type(exc)
            raise
        finally:
            call.inside = outside
            seconds = clock() - began
            self._instruments.in_flight.add(-1, server)
            if call.answer is not None:
                ended |= telemetry.response_attributes(call.answer)
            elif not ended and call.deadline is not None and clock() >= call.deadline - _CLOCK:
                # What looks like a cancellation from in here is the deadline of the call.
                ended[telemetry.ERROR_TYPE] = AttemptTimeout.__name__
            # Without an answer and without an error it was cancelled.
            if ended:
                self._instruments.send_duration.record(seconds, {**server, **ended})
            if span.is_recording():
                self._describe(span, request, call, ended)
            span.end()
            call.answer = None

    def _describe(
        self, span: Span, request: aiohttp.ClientRequest, call: Call, ended: Mapping[str, AttributeValue]
    ) -> None:
        span.set_attributes(ended)
        if telemetry.ERROR_TYPE in ended:
            span.set_status(Status(StatusCode.ERROR))
        if call.answer is not None:
            span.set_attributes(telemetry.peer_attributes(call.answer))
        span.set_attribute(telemetry.URL_FULL, telemetry.shown_url(request))
        for prefix, headers, names in (
            (telemetry.REQUEST_HEADER, request.headers, self._request_headers),
            (telemetry.RESPONSE_HEADER, call.answer.headers if call.answer else None, self._response_headers),
        ):
            if names and headers is not None:
                span.set_attributes(telemetry.header_attributes(prefix, headers, names, call, secrets_of(request)))

    def __repr__(self) -> str:
        return "AttemptSpan()"
