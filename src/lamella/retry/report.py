"""Report decisions about a call: stop reason, span events, the final log line, and the user's hook."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeAlias

import aiohttp
from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from lamella.attempt_record import AttemptRecord
from lamella.call import Call, Stop
from lamella.checks import check_kind
from lamella.credentials import secrets_of
from lamella.errors import AttemptTimeout, LamellaError
from lamella.logger import LOGGER
from lamella.pipeline import Result
from lamella.redaction import redact_text
from lamella.rules import Decision, RuleBook, StopReason
from lamella.telemetry.attributes import error_type
from lamella.telemetry.log import log_failure
from lamella.telemetry.names import (
    ATTEMPT,
    ATTEMPTS_LEFT,
    DEADLINE_LEFT,
    ERROR_TYPE,
    RULE,
    STATUS,
    STOP_EVENT,
    STOP_REASON,
    WAIT,
    WAIT_SOURCE,
)

OnAttempt: TypeAlias = Callable[[aiohttp.ClientRequest, aiohttp.ClientResponse | LamellaError, AttemptRecord], object]
"""The type of ``Retry(on_attempt=…)``: a function, plain or async."""


def reporter(hook: OnAttempt) -> Callable[[Call, Result, Decision | None], Awaitable[None]]:
    """Return a function that calls *hook* with the last attempt of a call, and logs the first failure of *hook*.

    Raises:
        ValueError: *hook* is not a function.
    """
    check_kind("on_attempt", hook, Callable, "a function of request, result and record")
    logged = False

    async def report(call: Call, result: Result, decision: Decision | None) -> None:
        nonlocal logged
        if not call.records or not isinstance(result, aiohttp.ClientResponse | LamellaError):
            return
        record = call.records[-1]
        if decision is not None and decision.wait is not None:
            record = record._replace(waited=decision.wait, wait_source=decision.source)
        try:
            waiting = hook(call.request, result, record)
            if isawaitable(waiting):
                await waiting
        except Exception as exc:  # noqa: BLE001 - of the user's own
            if not logged:
                logged = True
                said = redact_text(f"{type(exc).__name__}: {exc}", secrets_of(call))
                LOGGER.warning("on_attempt failed and was ignored; later failures are not logged: %s", said)

    return report


def out_of_time(call: Call, rules: RuleBook, seconds: float) -> LamellaError:
    """End *call*, whose deadline of *seconds* passed before the attempt was sent. Return its error."""
    request, rule = call.request, rules.rule_for(AttemptTimeout.failure)
    message = deadline_passed(seconds)
    return reject(call, AttemptTimeout(request.method, request.url, rule, message, secrets=secrets_of(call)))


def reject(call: Call, error: LamellaError) -> LamellaError:
    """End *call* with *error* for an attempt that was not sent, because of the deadline unless *error* says why."""
    error.stopped = error.stopped or StopReason.DEADLINE
    call.stop = Stop(error.stopped, error.rule)
    error.attempts = call.records
    add_event(call, STOP_EVENT, error, None, reason=error.stopped)
    log_failure(error, call.span)
    return error


def deadline_passed(seconds: float) -> str:
    """Return the message for a passed deadline of *seconds*."""
    return f"the call's deadline of {seconds:.4g} s has passed"


def deadline_left(call: Call) -> float | None:
    """Return the seconds until the deadline; None if there is none."""
    return None if call.deadline is None else max(call.deadline - call.request.loop.time(), 0.0)


def add_event(
    call: Call,
    name: str,
    error: LamellaError | None,
    decision: Decision | None,
    *,
    timestamp: int | None = None,
    reason: StopReason | None = None,
) -> None:
    """Add an event about *decision* to the span of *call*. *timestamp* is in nanoseconds; None means now."""
    span = call.span or trace.get_current_span()
    if not span.is_recording() or error is None:
        return
    record = call.records[-1] if call.records else None
    given: dict[str, AttributeValue | None] = {
        ATTEMPT: record.number if record else None,
        RULE: error.rule.title,
        STATUS: record.status if record else None,
        ERROR_TYPE: error_type(error),
        WAIT: None if decision is None else decision.wait,
        WAIT_SOURCE: decision.source.value if decision and decision.source else None,
        ATTEMPTS_LEFT: record.attempts_left if record else None,
        DEADLINE_LEFT: record.deadline_left if record and timestamp else deadline_left(call),
        STOP_REASON: None if reason is None else reason.value,
    }
    span.add_event(name, {key: value for key, value in given.items() if value is not None}, timestamp)
