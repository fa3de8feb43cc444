"""``AttemptSpan``: one span a send."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.util.types import AttributeValue

from lamella import telemetry
from lamella.call import ORDER, Call, Layer, Send, note_redirect, secrets_of, sent_before
from lamella.classification import ERROR_STATUS
from lamella.errors import AttemptTimeout

__all__ = ["AttemptSpan"]

# A timer may be due this many seconds early.
_CLOCK = 0.002


class AttemptSpan(Layer):
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
        self._tracing = telemetry.Tracing(tracer_provider)
        self._instruments = telemetry.Instruments(meter_provider)
        self._known = telemetry.known_methods()
        self._template = url_template
        self._request_headers = frozenset(name.lower() for name in request_headers)
        self._response_headers = frozenset(name.lower() for name in response_headers)

    def around(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> Awaitable[aiohttp.ClientResponse]:
        telemetry.take_over(request, call)
        counted = not self._instruments.silent
        if self._tracing.silent and not counted:
            return self._untold(request, call, send)
        return self._told(request, call, send, counted)

    async def _told(
        self, request: aiohttp.ClientRequest, call: Call, send: Send, counted: bool
    ) -> aiohttp.ClientResponse:
        template = telemetry.template_of(request, self._template)
        name = telemetry.span_name(request.method, template, self._known)
        server = telemetry.server_attributes(request, self._known)
        if not call.sends:
            call.sends = call.sent_before = sent_before(request)
        asked = telemetry.asked_attributes(request, server, template)
        if call.sends:
            asked = {**asked, telemetry.RESEND_COUNT: call.sends}
        parent = None if call.span is None else set_span_in_context(call.span)
        span = self._tracing.tracer.start_span(name, parent, SpanKind.CLIENT, asked)
        call.sends += 1
        call.answer = None
        error: str | None = None
        clock = request.loop.time
        began = clock()
        if counted:
            self._instruments.in_flight.add(1, server)
        try:
            telemetry.inject(span, request.headers)
            call.answer = response = await send(request, call)
            note_redirect(request, response, call.sends)
            if response.status >= ERROR_STATUS:
                error = str(response.status)
            return response
        except Exception as exc:
            error = telemetry.error_type(exc)
            raise
        finally:
            if counted:
                self._instruments.in_flight.add(-1, server)
            recording = span.is_recording()
            if counted or recording:
                seconds = clock() - began
                if call.answer is None and error is None and call.deadline is not None:
                    # What looks like a cancellation from in here is the deadline of the call.
                    error = AttemptTimeout.__name__ if clock() >= call.deadline - _CLOCK else None
                ended = {} if call.answer is None else telemetry.response_attributes(call.answer)
                if error is not None:
                    ended[telemetry.ERROR_TYPE] = error
                # Without an answer and without an error it was cancelled.
                if counted and ended:
                    self._instruments.send_duration.record(seconds, {**server, **ended})
                if recording:
                    self._describe(span, request, call, ended)
            span.end()
            call.answer = None

    async def _untold(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        """Where nobody listens: a trace that somebody else has begun goes on all the same."""
        call.sends += 1
        call.answer = None
        telemetry.inject(telemetry.unrecorded(call.span), request.headers)
        try:
            return await send(request, call)
        finally:
            call.answer = None

    def _describe(
        self, span: Span, request: aiohttp.ClientRequest, call: Call, ended: dict[str, AttributeValue]
    ) -> None:
        if telemetry.ERROR_TYPE in ended:
            span.set_status(Status(StatusCode.ERROR))
        if call.answer is not None:
            ended |= telemetry.peer_attributes(call.answer)
        ended[telemetry.URL_FULL] = telemetry.shown_url(request, call)
        for prefix, headers, names in (
            (telemetry.REQUEST_HEADER, request.headers, self._request_headers),
            (telemetry.RESPONSE_HEADER, call.answer.headers if call.answer else None, self._response_headers),
        ):
            if names and headers is not None:
                ended |= telemetry.header_attributes(prefix, headers, names, call, secrets_of(request))
        span.set_attributes(ended)

    def __repr__(self) -> str:
        return "AttemptSpan()"
