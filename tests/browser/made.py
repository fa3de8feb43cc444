"""Runs of made-up calls, recorded by the real SDK: the same spans each time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, cycle, islice

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from lamella.cli.traces import Collector
from lamella.rules import StopReason, WaitSource
from lamella.telemetry.names import (
    ATTEMPTS,
    ATTEMPTS_LEFT,
    ERROR_TYPE,
    METHOD,
    OUTCOME,
    QUEUED_BY,
    QUEUED_EVENT,
    RESEND_COUNT,
    RETRY_EVENT,
    RULE,
    STATUS,
    STOP_EVENT,
    STOP_REASON,
    URL_FULL,
    WAIT,
    WAIT_SOURCE,
)

START = 1_700_000_000 * 10**9
MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class Call:
    """A call: the status or error of each attempt, and why it stopped. None: it ended well."""

    ends: tuple[str, ...]
    stop: StopReason | None = None
    path: str = "/accounting/invoices?limit=20"
    method: str = "GET"
    queued: float = 0.0
    """Seconds in the queue before the first attempt."""


WELL = Call(("200",))
KINDS = (
    *[WELL] * 8,
    Call(("500", "200")),
    Call(("500", "503", "200")),
    Call(("ConnectionLost", "200"), path="/accounting/bills/7"),
    Call(("429", "200"), queued=0.5),
    Call(("500", "503", "429", "200")),
    Call(("500",), StopReason.UNSAFE_METHOD, "/accounting/contacts", "POST"),
    Call(("400",), StopReason.NOT_RETRYABLE, "/accounting/invoices?limit=7&page=0"),
    Call(("404",), StopReason.NOT_RETRYABLE, "/accounting/unicorns"),
)
MOST = Call(("500",) * MOST_ATTEMPTS, StopReason.ATTEMPTS_USED_UP)
"""It has more attempts than all others."""


class _Counting(IdGenerator):
    def __init__(self) -> None:
        self._ids = count(1)

    def generate_span_id(self) -> int:
        return next(self._ids)

    def generate_trace_id(self) -> int:
        return next(self._ids)


def recorded(calls: int, name: str | None = None) -> Collector:
    """So many calls, 10 ms one after the other. *name* None means that each call has its own."""
    kept = Collector(most=calls)
    provider = TracerProvider(sampler=ALWAYS_ON, id_generator=_Counting(), shutdown_on_exit=False)
    provider.add_span_processor(kept)
    tracer = provider.get_tracer("lamella")
    for number, call in enumerate(_calls(calls)):
        _record(tracer, call, START + number * 10**7, name or f"lamella {call.method} {call.path}")
    return kept


def _calls(many: int) -> Iterable[Call]:
    calls = list(islice(cycle(KINDS), many))
    calls[many // 2] = MOST
    return calls


def _record(tracer: trace.Tracer, call: Call, now: int, name: str) -> None:
    url = f"http://127.0.0.1:1{call.path}"
    span = tracer.start_span(name, attributes={METHOD: call.method, URL_FULL: url}, start_time=now)
    context = trace.set_span_in_context(span)
    waited = call.queued
    if call.queued:
        now += _nanoseconds(call.queued)
        span.add_event(QUEUED_EVENT, {WAIT: call.queued, QUEUED_BY: "refusal"}, now)
    for number, end in enumerate(call.ends, 1):
        attempt = tracer.start_span(
            name, context, SpanKind.CLIENT, {METHOD: call.method, URL_FULL: url}, start_time=now
        )
        if number > 1:
            attempt.set_attribute(RESEND_COUNT, number - 1)
        if end.isdecimal():
            attempt.set_attribute(STATUS, int(end))
        if end != "200":
            attempt.set_attribute(ERROR_TYPE, end)
        now += 20 * 10**6
        attempt.end(now)
        decision: dict[str, AttributeValue] = {
            ERROR_TYPE: end,
            RULE: "Server Error",
            ATTEMPTS_LEFT: MOST_ATTEMPTS - number,
        }
        if number < len(call.ends):
            wait, source = _wait(end)
            span.add_event(RETRY_EVENT, {**decision, WAIT: wait, WAIT_SOURCE: source}, now)
            waited += wait
            now += _nanoseconds(wait) + 10**6
        elif call.stop is not None:
            span.add_event(STOP_EVENT, {**decision, STOP_REASON: call.stop}, now)
            span.set_attribute(STOP_REASON, call.stop)
    span.set_attributes({OUTCOME: "failure" if call.stop else "success", ATTEMPTS: len(call.ends), WAIT: waited})
    span.end(now)


def _wait(end: str) -> tuple[float, WaitSource]:
    if end == "ConnectionLost":
        return 0.0, WaitSource.IMMEDIATE
    return (2.0, WaitSource.RETRY_AFTER) if end == "429" else (0.5, WaitSource.RULE)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 10**9)
