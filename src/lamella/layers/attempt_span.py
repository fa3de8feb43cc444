"""``AttemptSpan``: one span a send."""

from __future__ import annotations

from collections.abc import Iterable

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
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
        self._request_headers = frozenset(name.lower() for name in request_headers)
        self._response_headers = frozenset(name.lower() for name in response_headers)

    def begin(self, request: aiohttp.ClientRequest, call: Call, now: float) -> bool:
        if not call.sends and call.silent == self._providers:
            # The layer of the call has found out a moment ago that there is nothing to be done.
            call.sends = 1
            return True
        silent, counted = self._tracing.silent, not self._instruments.silent
        if not silent:
            telemetry.take_over(request, call)
        call.answer = call.attempt = None
        if counted or not silent:
            self._start(request, call, now, counted=counted)
        else:
            # Where nobody listens: a trace that somebody else has begun goes on all the same.
            call.sends += 1
            telemetry.inject(telemetry.unrecorded(call.span), request.headers)
        return True

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        if call.attempt is not None:
            call.answer = response
            note_redirect(request, response, call.sends)
            self._finish(request, call, now, str(response.status) if response.status >= ERROR_STATUS else None)
        call.answer = call.attempt = None
        return True

    async def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        try:
            response = await send(request, call)
        except BaseException as exc:
            error = telemetry.error_type(exc) if isinstance(exc, Exception) else None
            self._finish(request, call, request.loop.time(), error)
            call.answer = call.attempt = None
            raise
        self.end(request, call, response, request.loop.time())
        return response

    def _start(self, request: aiohttp.ClientRequest, call: Call, now: float, *, counted: bool) -> None:
        said = telemetry.described(request, call, self._template, self._known)
        if not call.sends:
            call.sends = call.sent_before = sent_before(request)
        asked = {**said.asked, telemetry.RESEND_COUNT: call.sends} if call.sends else said.asked
        span = self._tracing.start(said.name, call.span, SpanKind.CLIENT, asked)
        call.sends += 1
        call.attempt = span, now, said.server if counted else None
        if counted:
            self._instruments.in_flight.add(1, said.server)
        try:
            telemetry.inject(span, request.headers)
        except BaseException as exc:
            self._finish(request, call, now, telemetry.error_type(exc))
            raise

    def _finish(self, request: aiohttp.ClientRequest, call: Call, now: float, error: str | None) -> None:
        """How the send has ended: with the answer that the call has, if any; *error* is its type."""
        if call.attempt is None:
            return
        span, began, counted = call.attempt
        if counted is not None:
            self._instruments.in_flight.add(-1, counted)
        recording = span.is_recording()
        if counted is not None or recording:
            if call.answer is None and error is None and call.deadline is not None and now >= call.deadline - _CLOCK:
                # What looks like a cancellation from in here is the deadline of the call.
                error = AttemptTimeout.__name__
            ended = {} if call.answer is None else telemetry.response_attributes(call.answer)
            if error is not None:
                ended[telemetry.ERROR_TYPE] = error
            # Without an answer and without an error it was cancelled.
            if counted is not None and ended:
                self._instruments.send_duration.record(now - began, {**counted, **ended})
            if recording:
                self._describe(span, request, call, ended)
        span.end()

    def _describe(
        self, span: Span, request: aiohttp.ClientRequest, call: Call, ended: dict[str, AttributeValue]
    ) -> None:
        if telemetry.ERROR_TYPE in ended:
            span.set_status(Status(StatusCode.ERROR))
        if call.answer is not None:
            ended |= telemetry.peer_attributes(call.answer)
        ended[telemetry.URL_FULL] = telemetry.shown_url(request, call)
        if self._request_headers:
            ended |= telemetry.header_attributes(
                telemetry.REQUEST_HEADER, request.headers, self._request_headers, call, secrets_of(request)
            )
        if self._response_headers and call.answer is not None:
            ended |= telemetry.header_attributes(
                telemetry.RESPONSE_HEADER, call.answer.headers, self._response_headers, call, secrets_of(request)
            )
        span.set_attributes(ended)

    def __repr__(self) -> str:
        return "AttemptSpan()"
