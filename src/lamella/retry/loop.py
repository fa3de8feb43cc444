"""The retry loop of one call: judge the result of an attempt, decide, wait, send again."""

from __future__ import annotations

import asyncio
import time
from math import inf

import aiohttp
import stamina

from lamella._aiohttp import prepare_again
from lamella.attempt_record import RECORDS_KEY
from lamella.body.answer import finish_error_body
from lamella.body.request import is_replayable, note_interruption
from lamella.call import OBSERVER, Call, Stop
from lamella.classify.failures import require_open
from lamella.cookies import renew_cookies
from lamella.credentials import REFUSED
from lamella.errors import ConnectFailed, ConnectionLost, ConnectTimeout, LamellaError
from lamella.pipeline import Again, Result
from lamella.retry.connecting import connects_once
from lamella.retry.deadline import AttemptLimit
from lamella.retry.judge import Judge, Settings
from lamella.retry.report import add_event, out_of_time
from lamella.retry.stamina_log import NAME
from lamella.rules import Decision, StopReason, WaitSource, decide
from lamella.telemetry.log import log_failure
from lamella.telemetry.names import RETRY_EVENT, STOP_EVENT
from lamella.telemetry.tracing import SILENT


class Loop:
    """The attempts of one call after the first."""

    __slots__ = ("_again", "_call", "_decided_at", "_decision", "_last", "_settings", "_waited", "_was_stale")

    def __init__(self, call: Call, settings: Settings, *, began: float, queued_before: float) -> None:
        self._call = call
        self._settings = settings
        self._last = Judge(call, settings, began=began, queued_before=queued_before)
        self._decision: Decision | None = None
        self._decided_at = 0
        self._waited = 0.0
        """How many seconds of the wait have already passed."""
        self._was_stale = False

    async def run(self, result: Result, again: Again, *, overdue: bool) -> Result:
        """Return the final result of a call whose first attempt ended with *result*; *overdue*: by the deadline."""
        self._again = again
        try:
            result = await self._last.look_at(result, overdue=overdue)
            if isinstance(result, LamellaError) and result is self._last.error:
                result = await self._send_again(result)
            if not isinstance(result, LamellaError) or result is not self._last.error:
                if isinstance(result, aiohttp.ClientResponse):
                    setattr(result, RECORDS_KEY, self._call.records)
                if self._settings.report is not None:
                    await self._settings.report(self._call, result, None)
                return result
            # Without a stop reason of ours, stamina stopped: it is disabled or in test mode.
            decided = self._decision and self._decision.stop
            result.retried = False
            result.stopped = self._stop(decided or StopReason.ATTEMPTS_USED_UP)
            result.attempts = self._call.records
            log_failure(result, self._call.span)
            if self._settings.report is not None:
                await self._settings.report(self._call, result, None)
            if self._last.answer is None:
                return result
            setattr(self._last.answer, RECORDS_KEY, self._call.records)
            return self._last.answer
        except BaseException:
            self._last.release()
            raise
        finally:
            # stamina leaves a reference cycle that contains this object; drop everything else from it.
            self._end_wait()
            self._last.forget()
            del result, self._call, self._again

    async def _send_again(self, failure: LamellaError) -> Result:
        """Decide about *failure* and send again after each wait of stamina. Return the last failure or the final
        result."""
        call = self._call
        result: Result | None = None
        try:
            if not await self._decide(failure):
                return failure
            # Not stamina's decorator, which would double the cost if applied per call.
            # `decide` counts attempts; only stamina's test mode needs the number.
            attempts = self._settings.attempts if stamina.is_testing() else None
            retrying = stamina.retry_context(on=self._decided, attempts=attempts, timeout=None)
            # stamina_log recognizes this name. If a version takes no name, the lines stay warnings.
            named = getattr(retrying, "with_name", None)
            turns = aiter(retrying if named is None else named(NAME, (), {}))
            turn = await anext(turns)
            while True:
                failure.retried = True
                # As if raised inside `with turn`, but without keeping frames alive.
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
                # It is not raised again, and its traceback keeps the whole attempt alive until the next gc.
                failure.__traceback__ = None
                await prepare_again(call.request)
                renew_cookies(call)
                result = await self._attempt()
                if not isinstance(result, LamellaError) or result is not self._last.error:
                    return result
                failure = result
                if not await self._decide(failure):
                    return failure
        except asyncio.CancelledError:
            self._note_retry()
            self._stop(StopReason.CANCELLED)
            raise
        finally:
            del failure, result  # break the reference cycle of traceback and frame

    async def _attempt(self) -> Result:
        call = self._call
        self._last.attempt_began, self._last.queued_before = call.now, call.queued
        if call.deadline is not None and call.now >= call.deadline:
            return out_of_time(call, self._settings.rules, call.deadline - self._last.began)
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
            return await self._last.look_at(result, overdue=overdue and isinstance(result, asyncio.CancelledError))
        finally:
            del result  # break the reference cycle

    def _decided(self, _exc: Exception) -> bool | float:
        """Return the seconds to wait; stamina's hook, called only after a decision to send again."""
        decision = self._decision
        return False if decision is None or decision.wait is None else max(decision.wait - self._waited, 0.0)

    async def _decide(self, error: LamellaError) -> bool:
        """Decide what to do about *error*, the failure of the last attempt. Return whether to send again."""
        call, settings = self._call, self._settings
        circuit = call.circuit
        if circuit is not None:
            await circuit.failed(error)
        if not stamina.is_active():
            return False
        # A connection that the server closed while idle: once per call, and not for a truncated body.
        stale = (
            not self._was_stale
            and isinstance(error, ConnectionLost)
            and isinstance(error.__cause__, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        )
        testing = stamina.is_testing()
        key = settings.rules.idempotency_key
        number = len(call.records) - self._last.repeats
        attempts = settings.attempts
        if isinstance(error, ConnectFailed) and connects_once():
            attempts = number
        decision = decide(
            error.rule,
            error.outcome,
            number=number,
            same=self._last.same,
            # In test mode stamina sets the number of attempts and removes the waits.
            attempts=None if testing else attempts,
            method=call.request.method,
            replayable=is_replayable(call, sent=not isinstance(error, ConnectFailed)),
            # Within clock resolution it may seem to be just before the deadline that ended it.
            elapsed=inf if self._last.overdue else self._last.failed_at - self._last.began,
            deadline=None if testing or call.deadline is None else call.deadline - self._last.began,
            random=settings.random,
            retry_after=error.retry_after,
            idempotent=settings.retry_writes or (key is not None and key in call.request.headers),
            stale=stale,
            refused=bool(REFUSED.take(call)) and not self._last.repeats,
        )
        self._decided_at = time.time_ns()
        self._waited = 0.0
        if decision.stop is None and decision.wait is not None:
            if circuit is not None and await circuit.open_for() > decision.wait:
                decision = Decision(decision.rule, stop=StopReason.CIRCUIT_OPEN)
            elif settings.afford is not None and not (self._is_free(error, decision) or await settings.afford(call)):
                decision = Decision(decision.rule, stop=StopReason.RETRY_BUDGET_EMPTY)
        self._decision = decision
        if decision.stop is not None:
            return False
        self._was_stale = self._was_stale or stale
        if decision.source is WaitSource.REFRESH:
            self._last.discount()
        if settings.report is not None or self._last.answer is not None:
            await self._work_before_wait(error, decision, testing=testing)
        if not testing and (observer := OBSERVER.get(call)) is not None:
            observer.wait_begins(decision.rule, decision.source)
        return True

    async def _work_before_wait(self, error: LamellaError, decision: Decision, *, testing: bool) -> None:
        """Call the user's hook and release the response. This is part of the wait; otherwise the deadline could
        pass."""
        call, settings = self._call, self._settings
        before = call.request.loop.time()
        if settings.report is not None:
            await settings.report(call, error, decision)
        if testing:
            return  # there is no wait, and stamina may still stop
        # Keeping the response during the wait would keep its connection.
        if self._last.answer is not None and decision.wait is not None:
            await finish_error_body(self._last.answer, before + decision.wait)
        self._waited = call.request.loop.time() - before
        self._last.release()

    @staticmethod
    def _is_free(error: LamellaError, decision: Decision) -> bool:
        """Return whether the next retry takes nothing from the retry budget."""
        return (
            error.rule.is_rate_limit(error.outcome, error.retry_after)
            or decision.source in {WaitSource.IMMEDIATE, WaitSource.REFRESH}
            or (isinstance(error, ConnectTimeout) and error.in_pool)  # the attempt did not reach the service
        )

    def _note_retry(self) -> None:
        """Record the wait after it is over, if stamina carried it out."""
        decision, call = self._decision, self._call
        if decision is None or decision.stop is not None or decision.wait is None or decision.source is None:
            return
        self._last.release()
        self._end_wait()
        self._decision = None
        call.now = call.request.loop.time()
        last = call.records[-1]._replace(waited=call.now - self._last.failed_at, wait_source=decision.source)
        call.records = (*call.records[:-1], last)
        if call.span is not SILENT:
            add_event(call, RETRY_EVENT, self._last.error, decision, timestamp=self._decided_at)

    def _end_wait(self) -> None:
        if (observer := OBSERVER.get(self._call)) is not None:
            observer.wait_ends()

    def _stop(self, reason: StopReason) -> StopReason:
        call, error = self._call, self._last.error
        call.stop = Stop(reason, None if error is None else error.rule)
        decided = self._decision if self._decision is not None and self._decision.stop is reason else None
        add_event(call, STOP_EVENT, error, decided, reason=reason)
        return reason
