"""``AttemptSpan``: one span for each attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Unpack

from opentelemetry import context
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from lamella.call import Call
from lamella.classify.failures import ERROR_STATUS, was_connecting
from lamella.credentials import secrets_of
from lamella.errors import AttemptTimeout, ConnectTimeout
from lamella.pipeline import Layer, Result, Slot
from lamella.telemetry.attributes import (
    Described,
    error_type,
    header_attributes,
    peer_attributes,
    response_attributes,
    shown_url,
)
from lamella.telemetry.names import ERROR_TYPE, REQUEST_HEADER, RESEND_COUNT, RESPONSE_HEADER, URL_FULL
from lamella.telemetry.redirects import note_earlier_hops, note_redirect
from lamella.telemetry.shared import SpanOptions, Telemetry
from lamella.telemetry.tracing import SILENT, Current, inject

__all__ = ["AttemptSpan"]

# A timer may be due this many seconds early.
_CLOCK = 0.002


class _Begun(NamedTuple):
    """An attempt that is being made."""

    current: Current
    at: float
    """By the loop's clock."""
    counted: Mapping[str, AttributeValue] | None
    """What it is counted by. None: it is not."""


class AttemptSpan(Layer):
    """One CLIENT span for each attempt, by the HTTP semantic conventions; its id goes out in ``traceparent``.

    It also measures the duration of each attempt and counts those in flight. It is inside ``Retry``, so that each
    attempt has a span, and outside ``Timeout``, so that it sees the timeout as well. Its parent is the current span:
    that of the call, unless a middleware between them has one of its own.

    Args:
        request_headers: Names of headers whose values are put on the span; never one that ``HeaderAuth`` set.
        response_headers: The same for the headers of the answer.
        options: Those of :class:`lamella.RequestSpan`.
    """

    slot = Slot.ATTEMPT_SPAN
    single = True

    def __init__(
        self,
        *,
        request_headers: Iterable[str] = (),
        response_headers: Iterable[str] = (),
        **options: Unpack[SpanOptions],
    ) -> None:
        self.shared: Mapping[str, object] = dict(options)
        self._telemetry = Telemetry(**options)
        self._request_headers = frozenset(name.lower() for name in request_headers)
        self._response_headers = frozenset(name.lower() for name in response_headers)
        self._begun: dict[Call, _Begun] = {}

    def before(self, call: Call) -> None:
        telemetry = self._telemetry
        if telemetry.is_global and call.span is SILENT and not context.get_current():
            call.attempts += 1
        elif (said := telemetry.describe(call)) is not None:
            self._start(call, said)
        else:
            # A trace that has been begun elsewhere goes on, though nothing is recorded of the attempt.
            call.attempts += 1
            if not telemetry.is_off(call):
                inject(call.request.headers)

    def after(self, call: Call, result: Result) -> None:
        begun = self._begun.pop(call, None)
        if begun is None:
            return
        try:
            if not isinstance(result, BaseException):
                note_redirect(call, result)
                error = str(result.status) if result.status >= ERROR_STATUS else None
            else:
                error = error_type(result) if isinstance(result, Exception) else _deadline_error(call, result)
            self._finish(call, begun, error)
        finally:
            begun.current.leave(result)

    def _start(self, call: Call, said: Described) -> None:
        if not call.attempts:
            note_earlier_hops(call)
        asked = {**said.asked, RESEND_COUNT: call.attempts} if call.attempts else said.asked
        telemetry = self._telemetry
        current = telemetry.tracing.start(call, said.name, SpanKind.CLIENT, asked)
        call.attempts += 1
        counted = None if telemetry.instruments.silent else said.server
        begun = _Begun(current, call.request.loop.time(), counted)
        if counted is not None:
            telemetry.instruments.in_flight.add(1, counted)
        try:
            inject(call.request.headers)
        except BaseException as exc:
            self._finish(call, begun, error_type(exc))
            begun.current.leave(exc)
            raise
        self._begun[call] = begun

    def _finish(self, call: Call, begun: _Begun, error: str | None) -> None:
        """End the span of the attempt: with the answer of the call, if there is one; *error* is its type."""
        span, counted, answer = begun.current.span, begun.counted, call.answer
        if counted is not None:
            self._telemetry.instruments.in_flight.add(-1, counted)
        recording = span.is_recording()
        if counted is not None or recording:
            now = call.request.loop.time()
            ended = {} if answer is None else response_attributes(answer)
            if error is not None:
                ended[ERROR_TYPE] = error
            # Without an answer and without an error it was cancelled.
            if counted is not None and ended:
                self._telemetry.instruments.send_duration.record(now - begun.at, {**counted, **ended})
            if recording:
                self._describe(begun.current, call, ended)
        span.end()

    def _describe(self, current: Current, call: Call, ended: dict[str, AttributeValue]) -> None:
        request, answer, span = call.request, call.answer, current.span
        if ERROR_TYPE in ended:
            span.set_status(Status(StatusCode.ERROR))
        if answer is not None:
            ended |= peer_attributes(answer)
        if (url := shown_url(call)) != current.url:  # an auth layer may have added secrets
            ended[URL_FULL] = url
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
