"""The retry loop of one call: judge what an attempt has ended in, decide, wait, send again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import inf
from typing import NamedTuple

import aiohttp
import stamina
from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from lamella._aiohttp import prepare_again
from lamella.body.answer import finish_error_body
from lamella.body.request import is_replayable, note_interruption
from lamella.classify.failures import ERROR_STATUS, api_error, failure_of, rate_limited, require_open, timed_out
from lamella.cookies import keep_cookies, renew_cookies
from lamella.credentials import secrets_of
from lamella.errors import (
    ApiError,
    AttemptRecord,
    AttemptTimeout,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    LamellaError,
)
from lamella.pipeline import Again, Call, Result, Stop
from lamella.retry.deadline import AttemptLimit
from lamella.retry.stamina_log import NAME
from lamella.rules import Decision, RuleBook, StopReason, WaitSource, decide, is_rate_limit
from lamella.telemetry.attributes import error_type
from lamella.telemetry.log import log_failure
from lamella.telemetry.names import (
    ATTEMPT,
    ATTEMPTS_LEFT,
    DEADLINE_LEFT,
    ERROR_TYPE,
    RETRY_EVENT,
    RULE,
    STATUS,
    STOP_EVENT,
    STOP_REASON,
    WAIT,
    WAIT_SOURCE,
)
from lamella.throttle.queue import waiting_of

__all__ = ["Loop", "Settings", "out_of_time"]


class Settings(NamedTuple):
    """What the loops of all calls have in common."""

    rules: RuleBook
    attempts: int | None
    retry_writes: bool
    random: Callable[[], float]
    afford: Callable[[Call], Awaitable[bool]] | None
    """Takes a retry from the budget, if there is one left. None: there is no budget."""


class Loop:
    """The attempts of one call, from the end of the first one on."""

    __slots__ = (
        "_again",
        "_answer",
        "_attempt_began",
        "_began",
        "_call",
        "_decided_at",
        "_decision",
        "_error",
        "_failed_at",
        "_overdue",
        "_queued_before",
        "_settings",
        "_waited",
        "_was_stale",
    )

    def __init__(self, call: Call, settings: Settings, *, began: float, queued_before: float) -> None:
        self._call = call
        self._settings = settings
        self._began = self._attempt_began = began
        self._queued_before = queued_before
        """How long the call had been queued before the last attempt."""
        self._failed_at = 0.0
        self._error: LamellaError | None = None
        """The failure of the last attempt. What is not it is the end of the call: an answer, or no failure of ours."""
        self._answer: aiohttp.ClientResponse | None = None
        """The answer that it is about, where no layer further in has turned it into an error."""
        self._decision: Decision | None = None
        self._decided_at = 0
        self._waited = 0.0
        """How many seconds of the wait have passed already."""
        self._was_stale = False
        self._overdue = False
        """Whether the deadline has ended the last attempt."""

    async def run(self, result: Result, again: Again, *, overdue: bool) -> Result:
        """Return the end of the call, whose first attempt has ended in *result*; *overdue*: by the deadline."""
        self._again = again
        try:
            result = await self._judge(result, overdue=overdue)
            if result is not self._error:
                return result
            result = await self._send_again(result)
            if result is not self._error:
                return result
            # Without a reason of ours it was stamina that stopped: switched off, or in its test mode.
            decided = self._decision and self._decision.stop
            result.stopped = self._stop(decided or StopReason.ATTEMPTS_USED_UP)
            result.attempts = self._call.records
            log_failure(result, self._call.span)
            return result if self._answer is None else self._answer
        except BaseException:
            self._release()
            raise
        finally:
            # What stamina leaves behind, a cycle that holds on to us, is to hold nothing else.
            self._wait_ends()
            self._error = self._answer = None
            del result, self._call, self._again

    async def _judge(self, result: Result, *, overdue: bool) -> Result:
        """Return the failure of ours that *result* is, or *result* itself where it ends the call."""
        call = self._call
        if overdue and isinstance(result, BaseException):
            return self._end_by_deadline(result)
        if not isinstance(result, BaseException):
            if result.status < ERROR_STATUS:
                if call.records:
                    self._record(result.status, None, None)
                return result
            self._answer = result
            keep_cookies(call, result)
            # The body is the caller's: it may be slow, or broken.
            return self._own(await api_error(result, self._settings.rules, call.secrets, until=-inf))
        if call.stop is not None and result is call.stop.error:
            return _refuse(call, call.stop.error)
        if isinstance(result, LamellaError):
            # One that says why it stopped is the end of another call, which a layer further in has made.
            return self._own(result) if result.stopped is None else result
        if isinstance(result, aiohttp.ClientError | TimeoutError):
            failure = failure_of(call, result, self._settings.rules)
            if failure is not None:
                return self._own(failure)
        return result

    def _end_by_deadline(self, exc: BaseException) -> LamellaError:
        call = self._call
        now = call.request.loop.time()
        waiting = waiting_of(call)
        if waiting is not None:
            since, until = waiting
            error = rate_limited(call, self._settings.rules, since=now - since, until=max(until - now, 0.0))
            return _refuse(call, error)
        self._overdue = True
        seconds = 0.0 if call.deadline is None else call.deadline - self._began
        return self._own(timed_out(call, exc, self._settings.rules, _deadline_passed(seconds)))

    async def _send_again(self, failure: LamellaError) -> Result:
        """Decide about *failure*, and send each time that stamina has waited. Return the last failure, or the end."""
        call = self._call
        result: Result | None = None
        try:
            await self._decide(failure)
            if not self._goes_on():
                return failure
            # Not its decorator, which is made for functions that last: decorating one per call doubles the cost.
            retrying = stamina.retry_context(on=self._decided, attempts=self._settings.attempts, timeout=None)
            # By this name stamina_log knows them. Where none can be given any more, their lines are warnings.
            named = getattr(retrying, "with_name", None)
            turns = aiter(retrying if named is None else named(NAME, (), {}))
            turn = await anext(turns)
            while True:
                # As if raised inside of `with turn`, but without a way through frames that it would keep alive.
                turn.__exit__(type(failure), failure, failure.__traceback__)
                try:
                    turn = await anext(turns)
                except LamellaError as exc:
                    if exc is failure:
                        return failure
                    raise
                require_open(call.request)
                if call.circuit is not None and not await call.circuit.admit():
                    self._note_retry()
                    self._decision = Decision(failure.rule, stop=StopReason.CIRCUIT_OPEN)
                    return failure
                self._note_retry()
                # It is raised no more, and its traceback keeps all of that attempt alive until the next gc.
                failure.__traceback__ = None
                await prepare_again(call.request)
                renew_cookies(call)
                result = await self._attempt()
                if result is not self._error:
                    return result
                failure = self._error
                await self._decide(failure)
                if not self._goes_on():
                    return failure
        except asyncio.CancelledError:
            self._note_retry()
            self._stop(StopReason.CANCELLED)
            raise
        finally:
            del failure, result  # their traceback holds on to this frame: they must not keep each other alive

    async def _attempt(self) -> Result:
        call, loop = self._call, self._call.request.loop
        self._attempt_began, self._queued_before = loop.time(), call.queued
        if call.deadline is not None and self._attempt_began >= call.deadline:
            return _refuse(call, _overdue(call, self._settings, call.deadline - self._began))
        limit = None if call.deadline is None else AttemptLimit(call, call.deadline)
        overdue = False
        try:
            result = await self._again()
        finally:
            overdue = limit is not None and limit.stop()
            note_interruption(call)
        try:
            if isinstance(result, asyncio.CancelledError) and not overdue:
                self._stop(StopReason.CANCELLED)
                return result
            return await self._judge(result, overdue=overdue and isinstance(result, asyncio.CancelledError))
        finally:
            del result  # as above

    def _goes_on(self) -> bool:
        """Return whether the last decision is to send again."""
        return self._decision is not None and self._decision.stop is None

    def _own(self, error: LamellaError) -> LamellaError:
        self._error = error
        self._failed_at = self._call.request.loop.time()
        error.rule = self._settings.rules.rule_for(error.outcome)
        status = error.status if isinstance(error, ApiError) else None
        self._record(status, None if status else type(error).__name__, error.rule.title)
        return error

    def _record(self, status: int | None, exception: str | None, rule: str | None) -> None:
        call, attempts = self._call, self._settings.attempts
        number = len(call.records) + 1
        queued = call.queued - self._queued_before
        record = AttemptRecord(
            number,
            status,
            exception,
            took=call.request.loop.time() - self._attempt_began - queued,
            queued=queued,
            rule=rule,
            attempts_left=None if attempts is None else max(attempts - number, 0),
            deadline_left=_deadline_left(call),
        )
        call.records = (*call.records, record)

    def _decided(self, _exc: Exception) -> bool | float:
        """Return the seconds to wait: stamina's hook, called only where it is decided to send again."""
        decision = self._decision
        return False if decision is None or decision.wait is None else max(decision.wait - self._waited, 0.0)

    async def _decide(self, error: LamellaError) -> None:
        """Decide what to do about *error*, the end of the last attempt."""
        call, settings = self._call, self._settings
        circuit = call.circuit
        if circuit is not None:
            await circuit.failed(error)
        if not stamina.is_active():
            return
        # A connection that the server closed while it was idle: once a call, and not for a body that broke off.
        stale = (
            not self._was_stale
            and isinstance(error, ConnectionLost)
            and isinstance(error.__cause__, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        )
        testing = stamina.is_testing()
        decision = decide(
            settings.rules,
            error.outcome,
            number=len(call.records),
            # In its test mode stamina sets the attempts, and takes the waits out.
            attempts=None if testing else settings.attempts,
            method=call.request.method,
            replayable=is_replayable(call, sent=not isinstance(error, ConnectFailed)),
            # To the clock's last digit it may be a little before the deadline that ended it.
            elapsed=inf if self._overdue else self._failed_at - self._began,
            deadline=None if testing or call.deadline is None else call.deadline - self._began,
            random=settings.random,
            retry_after=error.retry_after,
            idempotent=settings.retry_writes or "Idempotency-Key" in call.request.headers,
            stale=stale,
        )
        self._decided_at = time.time_ns()
        self._waited = 0.0
        if decision.stop is None and decision.wait is not None:
            if circuit is not None and await circuit.open_for() > decision.wait:
                decision = Decision(decision.rule, stop=StopReason.CIRCUIT_OPEN)
            elif not await self._affordable(error, decision):
                decision = Decision(decision.rule, stop=StopReason.RETRY_BUDGET_EMPTY)
        self._decision = decision
        if decision.stop is not None:
            return
        self._was_stale = self._was_stale or stale
        if not testing:
            # Held during the wait it would hold its connection. (A test mode does not wait, and may still stop.)
            if self._answer is not None and decision.wait is not None:
                # It is a part of the wait: otherwise the deadline could pass.
                before = call.request.loop.time()
                await finish_error_body(self._answer, before + decision.wait)
                self._waited = call.request.loop.time() - before
            self._release()
            if call.observer is not None:
                call.observer.wait_begins(decision.rule, decision.source)

    async def _affordable(self, error: LamellaError, decision: Decision) -> bool:
        """Return whether the budget of the session has a retry left, which is taken."""
        free = (
            is_rate_limit(error.outcome, error.retry_after)
            or decision.source is WaitSource.IMMEDIATE
            or (isinstance(error, ConnectTimeout) and error.in_pool)  # it did not reach the service
        )
        return free or self._settings.afford is None or await self._settings.afford(self._call)

    def _wait_ends(self) -> None:
        if self._call.observer is not None:
            self._call.observer.wait_ends()

    def _release(self) -> None:
        """Release the connection of an answer that is not read."""
        if self._answer is not None:
            self._answer.release()
            self._answer = None

    def _note_retry(self) -> None:
        """The wait that was decided on is over: record it, if stamina did carry it out."""
        decision, call = self._decision, self._call
        if decision is None or decision.stop is not None or decision.wait is None or decision.source is None:
            return
        self._release()
        self._wait_ends()
        self._decision = None
        waited = call.request.loop.time() - self._failed_at
        last = replace(call.records[-1], waited=waited, wait_source=decision.source)
        call.records = (*call.records[:-1], last)
        _add_event(call, RETRY_EVENT, self._error, decision, timestamp=self._decided_at)

    def _stop(self, reason: StopReason) -> StopReason:
        call, error = self._call, self._error
        call.stop = Stop(reason, None if error is None else error.rule)
        decided = self._decision if self._decision is not None and self._decision.stop is reason else None
        _add_event(call, STOP_EVENT, error, decided, reason=reason)
        return reason


def out_of_time(call: Call, settings: Settings, seconds: float) -> LamellaError:
    """Return the error for a call whose deadline has passed before anything was sent."""
    return _refuse(call, _overdue(call, settings, seconds))


def _overdue(call: Call, settings: Settings, seconds: float) -> AttemptTimeout:
    request = call.request
    rule = settings.rules.rule_for(AttemptTimeout.failure)
    return AttemptTimeout(request.method, request.url, rule, _deadline_passed(seconds), secrets=secrets_of(call))


def _deadline_passed(seconds: float) -> str:
    return f"the call's deadline of {seconds:.4g} s has passed"


def _refuse(call: Call, error: LamellaError) -> LamellaError:
    """End *call* by *error*: the attempt was not sent, because of the deadline unless it says why."""
    error.stopped = error.stopped or StopReason.DEADLINE
    call.stop = Stop(error.stopped, error.rule)
    error.attempts = call.records
    _add_event(call, STOP_EVENT, error, None, reason=error.stopped)
    log_failure(error, call.span)
    return error


def _deadline_left(call: Call) -> float | None:
    """Return the seconds until the deadline, from now on. None: there is none."""
    return None if call.deadline is None else max(call.deadline - call.request.loop.time(), 0.0)


def _add_event(
    call: Call,
    name: str,
    error: LamellaError | None,
    decision: Decision | None,
    *,
    timestamp: int | None = None,
    reason: StopReason | None = None,
) -> None:
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
        DEADLINE_LEFT: record.deadline_left if record and timestamp else _deadline_left(call),
        STOP_REASON: None if reason is None else reason.value,
    }
    span.add_event(name, {key: value for key, value in given.items() if value is not None}, timestamp)
