"""``AttemptSpan``: one span a send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from opentelemetry import context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from lamella.call import Call
from lamella.classify.failures import ERROR_STATUS, was_connecting
from lamella.credentials import secrets_of
from lamella.errors import AttemptTimeout, ConnectTimeout
from lamella.pipeline import Layer, Result, Slot
from lamella.telemetry.attributes import (
    UrlTemplate,
    described,
    error_type,
    header_attributes,
    known_methods,
    peer_attributes,
    response_attributes,
    shown_url,
)
from lamella.telemetry.metrics import Instruments
from lamella.telemetry.names import ERROR_TYPE, REQUEST_HEADER, RESEND_COUNT, RESPONSE_HEADER, URL_FULL
from lamella.telemetry.others import take_over
from lamella.telemetry.redirects import note_earlier_hops, note_redirect
from lamella.telemetry.tracing import SILENT, Tracing, inject, unrecorded

__all__ = ["AttemptSpan"]

# A timer may be due this many seconds early.
_CLOCK = 0.002


class _Begun(NamedTuple):
    """An attempt that is being made."""

    span: Span
    at: float
    """By the loop's clock."""
    counted: Mapping[str, AttributeValue] | None
    """What it is counted by. None: it is not."""


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

    slot = Slot.ATTEMPT_SPAN
    single = True

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        url_template: UrlTemplate | None = None,
        request_headers: Iterable[str] = (),
        response_headers: Iterable[str] = (),
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
        self._request_headers = frozenset(name.lower() for name in request_headers)
        self._response_headers = frozenset(name.lower() for name in response_headers)
        self._begun: dict[Call, _Begun] = {}
        self._global = tracer_provider is None and meter_provider is None

    def before(self, call: Call) -> None:
        if self._global and call.span is SILENT and not context.get_current():
            call.attempts += 1
            return
        silent, counted = self._tracing.silent, not self._instruments.silent
        if not silent:
            take_over(call)
        if counted or not silent:
            self._start(call, counted=counted)
        else:
            # A trace that has been begun elsewhere goes on, though nothing is recorded of the attempt.
            call.attempts += 1
            inject(unrecorded(call.span), call.request.headers)

    def after(self, call: Call, result: Result) -> None:
        begun = self._begun.pop(call, None)
        if begun is None:
            return
        if not isinstance(result, BaseException):
            note_redirect(call, result)
            error = str(result.status) if result.status >= ERROR_STATUS else None
        else:
            error = error_type(result) if isinstance(result, Exception) else _deadline_error(call, result)
        self._finish(call, begun, error)

    def _start(self, call: Call, *, counted: bool) -> None:
        said = described(call, self._template, self._known)
        if not call.attempts:
            note_earlier_hops(call)
        asked = {**said.asked, RESEND_COUNT: call.attempts} if call.attempts else said.asked
        span = self._tracing.start(said.name, call.span, SpanKind.CLIENT, asked)
        call.attempts += 1
        begun = _Begun(span, call.request.loop.time(), said.server if counted else None)
        if counted:
            self._instruments.in_flight.add(1, said.server)
        try:
            inject(span, call.request.headers)
        except BaseException as exc:
            self._finish(call, begun, error_type(exc))
            raise
        self._begun[call] = begun

    def _finish(self, call: Call, begun: _Begun, error: str | None) -> None:
        """End the span of the attempt: with the answer of the call, if there is one; *error* is its type."""
        span, counted, answer = begun.span, begun.counted, call.answer
        if counted is not None:
            self._instruments.in_flight.add(-1, counted)
        recording = span.is_recording()
        if counted is not None or recording:
            now = call.request.loop.time()
            ended = {} if answer is None else response_attributes(answer)
            if error is not None:
                ended[ERROR_TYPE] = error
            # Without an answer and without an error it was cancelled.
            if counted is not None and ended:
                self._instruments.send_duration.record(now - begun.at, {**counted, **ended})
            if recording:
                self._describe(span, call, ended)
        span.end()

    def _describe(self, span: Span, call: Call, ended: dict[str, AttributeValue]) -> None:
        request, answer = call.request, call.answer
        if ERROR_TYPE in ended:
            span.set_status(Status(StatusCode.ERROR))
        if answer is not None:
            ended |= peer_attributes(answer)
        ended[URL_FULL] = shown_url(call)
        if self._request_headers:
            ended |= header_attributes(REQUEST_HEADER, request.headers, self._request_headers, call, secrets_of(call))
        if self._response_headers and answer is not None:
            ended |= header_attributes(RESPONSE_HEADER, answer.headers, self._response_headers, call, secrets_of(call))
        span.set_attributes(ended)

    def __repr__(self) -> str:
        return "AttemptSpan()"


def _deadline_error(call: Call, exc: BaseException) -> str | None:
    """Return the type of error that *exc*, which looks like a cancellation, is. None: it is a cancellation."""
    if call.answer is None and call.deadline is not None and call.request.loop.time() >= call.deadline - _CLOCK:
        return (ConnectTimeout if was_connecting(exc) else AttemptTimeout).__name__
    return None
