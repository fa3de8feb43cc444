"""``AttemptSpan``: one span for each attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Unpack

from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue
from yarl import URL

from lamella.call import Call
from lamella.classify.failures import ERROR_STATUS, was_connecting
from lamella.credentials import secrets_of
from lamella.error_body import request_id_in
from lamella.errors import AttemptTimeout, ConnectTimeout, LamellaError
from lamella.origins import Origin
from lamella.pipeline import Layer, Result, Slot
from lamella.redaction import redact_text
from lamella.telemetry.attributes import (
    Described,
    error_type,
    header_attributes,
    peer_attributes,
    response_attributes,
    shown_url,
    size_attributes,
)
from lamella.telemetry.log import log_broken, safely
from lamella.telemetry.metrics import Gauge
from lamella.telemetry.names import (
    ERROR_TYPE,
    REQUEST_HEADER,
    REQUEST_ID,
    RESEND_COUNT,
    RESPONSE_HEADER,
    RULE,
    URL_FULL,
)
from lamella.telemetry.propagation import Propagation
from lamella.telemetry.redirects import REDIRECTED, note_earlier_hops, note_redirect
from lamella.telemetry.shared import SpanOptions, Telemetry
from lamella.telemetry.tracing import SILENT, Current, current_context

# A timer may fire this many seconds early.
_CLOCK = 0.002


class _Begun(NamedTuple):
    """A running attempt."""

    current: Current
    measured: Mapping[str, AttributeValue] | None = None
    """Attributes of all metrics of the attempt. None: nothing is measured."""
    at: float = 0.0
    """When the attempt began, by the loop's clock, if measured."""


class AttemptSpan(Layer):
    """Record one CLIENT span per attempt by the HTTP semantic conventions, and send its id in ``traceparent``.

    It also measures the duration of attempts and counts those in flight. It belongs inside ``Retry``, so that each
    attempt has a span, and outside ``Timeout``, so that it sees timeouts. The parent is the current span: that of the
    call, unless a middleware between them has started one.

    Args:
        request_headers: Names of headers to record on the span; headers set by ``HeaderAuth`` are never recorded.
        response_headers: The same for response headers.
        body_sizes: Whether to record the sizes of both bodies, if their headers state them.
        propagate: The propagator that writes trace context and baggage into request headers. True means the global one,
            False means none.
        origins: Origins that get trace context and baggage, in addition to those of the stack's ``HeaderAuth`` layers.
            Without any, all requests get them except redirects.
        options: The options of :class:`lamella.RequestSpan`.

    Raises:
        ValueError: *propagate*, *origins* or an option is invalid.
    """

    slot = Slot.ATTEMPT_SPAN
    single = True

    def __init__(
        self,
        *,
        request_headers: Iterable[str] = (),
        response_headers: Iterable[str] = (),
        body_sizes: bool = False,
        propagate: TextMapPropagator | bool = True,
        origins: Iterable[str | URL] = (),
        **options: Unpack[SpanOptions],
    ) -> None:
        self.shared: Mapping[str, object] = dict(options)
        self._telemetry = Telemetry(**options)
        self._request_headers = frozenset(name.lower() for name in request_headers)
        self._response_headers = frozenset(name.lower() for name in response_headers)
        self._body_sizes = body_sizes
        self._propagation = Propagation(propagate, origins)
        self._is_default = self._telemetry.is_global and self._propagation.is_default
        """Whether nothing is recorded and written where that is so for the global providers and propagator."""
        self._in_flight = Gauge("in_flight", options.get("meter_provider"))
        self._begun: dict[Call, _Begun | None] = {}
        """None: the attempt is not recorded."""

    def inherit(self, origins: Iterable[Origin]) -> None:
        """Also propagate context to *origins* of the stack."""
        self._propagation.origins |= frozenset(origins)

    def before(self, call: Call) -> None:
        attempts = call.attempts
        silent = call.span is SILENT and self._is_default and not current_context()
        if silent and (attempts or REDIRECTED.get() is None):
            call.attempts = attempts + 1
            return
        telemetry, propagation = self._telemetry, self._propagation
        if not attempts and REDIRECTED.get() is not None:
            note_earlier_hops(call)
        begun: _Begun | None = None
        if (said := telemetry.describe(call)) is not None:
            begun = self._start(call, said)
        call.attempts += 1
        try:
            # A trace begun elsewhere continues even if the attempt is not recorded.
            propagation.inject(call, is_off=begun is None and telemetry.is_off(call))
        except BaseException as exc:
            if begun is not None:
                self._finish(call, begun, exc)
            raise
        self._begun[call] = begun

    def after(self, call: Call, result: Result) -> None:
        if not isinstance(result, BaseException) and 300 <= result.status < ERROR_STATUS:
            note_redirect(call, result)
        if call not in self._begun:
            return
        begun = self._begun.pop(call)
        if begun is not None:
            self._finish(call, begun, result)

    def _start(self, call: Call, said: Described) -> _Begun:
        asked = {**said.asked, RESEND_COUNT: call.attempts} if call.attempts else said.asked
        telemetry = self._telemetry
        current = telemetry.tracing.start(call, said.name, SpanKind.CLIENT, asked)
        measured = telemetry.measured(call, said)
        if measured is None:
            return _Begun(current)
        self._in_flight.add(1, measured)
        return _Begun(current, measured, call.now)

    def _finish(self, call: Call, begun: _Begun, result: Result) -> None:
        """End the span of an attempt that ended with *result*, possibly after a response."""
        span, measured, answer = begun.current.span, begun.measured, call.answer
        try:
            if measured is not None:
                self._in_flight.add(-1, measured)
            recording = span.is_recording()
            if measured is not None or recording:
                ended = {} if answer is None else response_attributes(answer)
                if (error := _error_of(call, result)) is not None:
                    ended[ERROR_TYPE] = error
                # Neither a response nor an error: cancelled.
                if measured is not None and ended:
                    took = call.now - begun.at
                    safely(self._telemetry.instruments.attempt_duration.record, took, {**measured, **ended})
                if recording:
                    self._describe(begun.current, call, result, ended)
            span.end()
        except Exception as exc:  # noqa: BLE001 - of a span processor
            log_broken(exc)
        finally:
            begun.current.leave(result)

    def _describe(self, current: Current, call: Call, result: Result, ended: dict[str, AttributeValue]) -> None:
        request, answer, span, secrets = call.request, call.answer, current.span, secrets_of(call)
        if ERROR_TYPE in ended:
            span.set_status(Status(StatusCode.ERROR))
        if isinstance(result, LamellaError):
            ended[RULE] = result.rule.title
        if (url := shown_url(call, secrets)) != current.url:  # an auth layer may have added secrets
            ended[URL_FULL] = url
        if self._request_headers:
            ended |= header_attributes(REQUEST_HEADER, request.headers, self._request_headers, call, secrets)
        if answer is not None:
            ended |= peer_attributes(answer)
            if (request_id := request_id_in(answer.headers)) is not None:
                ended[REQUEST_ID] = redact_text(request_id, secrets)
            if self._response_headers:
                ended |= header_attributes(RESPONSE_HEADER, answer.headers, self._response_headers, call, secrets)
        if self._body_sizes:
            ended |= size_attributes(request, answer)
        span.set_attributes(ended)

    def __repr__(self) -> str:
        return "AttemptSpan()"


def _error_of(call: Call, result: Result) -> str | None:
    """Return the error type of an attempt; None if it succeeded or was cancelled."""
    if not isinstance(result, BaseException):
        return str(result.status) if result.status >= ERROR_STATUS else None
    if isinstance(result, Exception):
        return error_type(result)
    # An apparent cancellation may be the deadline.
    if call.answer is None and call.deadline is not None and call.request.loop.time() >= call.deadline - _CLOCK:
        return (ConnectTimeout if was_connecting(result) else AttemptTimeout).__name__
    return None
