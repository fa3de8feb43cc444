"""``Retry``: decide, wait, send again."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from math import inf, isfinite

import aiohttp
import stamina
from aiohttp.helpers import TimerNoop
from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from lamella import telemetry
from lamella.answer_body import finish_error_body
from lamella.call import ORDER, Call, Circuit, Layer, Send, secrets_of
from lamella.classification import (
    ERROR_STATUS,
    api_error,
    last_send,
    rate_limited,
    require_open,
    shown_cause,
    timed_out,
    transport_error,
)
from lamella.cookies import keep_cookies, note_held_cookies, renew_cookies
from lamella.deadlines import inherited, inherited_deadline
from lamella.errors import (
    ApiError,
    AttemptRecord,
    AttemptTimeout,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    LamellaError,
    NotSent,
)
from lamella.policy import Decision, RetryBudget, RuleBook, StopReason, WaitSource, decide, is_rate_limit
from lamella.policy.budget import Spent, take
from lamella.request_body import is_replayable, note_interruption, rewind
from lamella.state import SharedState, Store

__all__ = ["Retry"]

_BUDGET = "retry-budget"
_NAME = f"{__name__}.Retry"
"""By which stamina's hooks are told of a retry."""

# A session's total timeout ends our wait and our attempt first, so that the caller gets our error for it.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.05, 0.1


class Retry(Layer):
    """Sends a request again while the rules, the deadline and the safety of a repeat allow it.

    stamina drives the waits: ``stamina.set_active(False)`` sends everything once, ``stamina.set_testing`` takes
    the waits out, and stamina's hooks are told of each retry. With its *default* hooks, stamina writes a line
    per retry; Retry lets those through at DEBUG only (logger ``stamina``).

    It stands outside of everything that makes an attempt. With :class:`lamella.Classify` in the stack it raises
    the last error; without, it returns the last answer at once, its body unread, and decides by the status alone.
    A connection failure is an error always.

    Args:
        rules: What each outcome means, and the waits.
        attempts: How often a call may be sent in all, the first time included. None means as often as it takes
            until *deadline*.
        deadline: How many seconds a call may take in all, the waits included. None means no limit, except for a
            total timeout of the session, which is taken as one. A call that is made inside of another one, or of
            :func:`lamella.deadline`, has no longer than is left there.
        budget: How much retries may add to the load of the session. None means as much as they like.
        store: Where the budget is kept. None means in this process.
        retry_writes: Send methods that are not idempotent (POST, PATCH) again, too, though the first one may have
            been carried out. Without, they are where nothing can have been carried out (429, no connection) and
            where an ``Idempotency-Key`` header makes a repeat harmless.
        random: A source of uniform floats in [0, 1), for the waits.

    Raises:
        ValueError: *attempts* is less than 1, *deadline* is not greater than 0, or both are None.
    """

    rank = ORDER.index("Retry")

    def __init__(
        self,
        rules: RuleBook,
        *,
        attempts: int | None = 5,
        deadline: float | None = None,
        retry_writes: bool = False,
        budget: RetryBudget | None = None,
        store: Store | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        if attempts is not None and attempts < 1:
            raise ValueError(f"attempts must be None or at least 1, not {attempts!r}")
        if deadline is not None and (not isfinite(deadline) or deadline <= 0):
            raise ValueError(f"deadline must be None or a finite number of seconds greater than 0, not {deadline!r}")
        if attempts is None and deadline is None:
            raise ValueError("attempts and deadline must not both be None: such a call might never end")
        self.shared = {"store": store}
        self._rules = rules
        self._attempts = attempts
        self._deadline = deadline
        self._retry_writes = retry_writes
        self._budget = budget
        self._state = SharedState(store)
        self._calls = 0
        """How many calls have brought in their share of a retry that is not in the budget yet."""
        self._random = random

    def _limit(self, request: aiohttp.ClientRequest, now: float) -> float | None:
        """The seconds that a call may take: the least of our deadline, the session's total and what is inherited."""
        own, outer = self._own_limit(request), inherited()
        if outer is None:
            return own
        return outer - now if own is None else min(own, outer - now)

    def _own_limit(self, request: aiohttp.ClientRequest) -> float | None:
        total = request.session.timeout.total
        # A timeout given with the request can lift the session's; the request only shows that there is none.
        if not total or isinstance(getattr(request, "_timer", None), TimerNoop):
            return self._deadline
        total -= min(total * _MARGIN_SHARE, _MARGIN_SECONDS)
        return total if self._deadline is None else min(total, self._deadline)

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.work_in(loop)

    def begin(self, request: aiohttp.ClientRequest, call: Call, now: float) -> bool:
        if self._deadline is not None or request.session.timeout.total or inherited() is not None:
            return False
        if call.first_send is not None:
            # Some versions of aiohttp run the layers once more when the session was closed in the middle of a send.
            require_open(request)
        self._calls += 1
        note_held_cookies(request, call)
        call.deadline = None
        call.first_send = now, getattr(request, "response", None), call.gate_wait
        return True

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        # Most calls end well with the first send, and then nothing need be known of it.
        return response.status < ERROR_STATUS and not call.records

    async def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        first: aiohttp.ClientResponse | Exception | None = None
        try:
            first = await send(request, call)
        except Exception as exc:  # noqa: BLE001 - to be judged below
            first = exc
        finally:
            note_interruption(request)
        if not isinstance(first, Exception) and first.status < ERROR_STATUS and not call.records:
            return first
        began, before, parked = call.first_send or (request.loop.time(), None, 0.0)
        series = _Series(self, request, call, send, before, began=began, limit=None, parked_before=parked)
        try:
            return await _carried_out(series, first)
        finally:
            # An exception holds on to this frame, and so to what is here: they must not keep each other alive.
            first = None

    async def wait(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        """As `complete`, for a call that may have a deadline."""
        require_open(request)
        self._calls += 1
        note_held_cookies(request, call)
        began = request.loop.time()
        limit = self._limit(request, began)
        call.deadline = None if limit is None else began + limit
        parked = call.gate_wait
        series = _Series(self, request, call, send, last_send(request), began=began, limit=limit, parked_before=parked)
        return await _carried_out(series, None)

    def __repr__(self) -> str:
        return (
            f"Retry({self._rules!r}, attempts={self._attempts}, deadline={self._deadline}, "
            f"retry_writes={self._retry_writes}, budget={self._budget})"
        )


async def _carried_out(series: _Series, first: aiohttp.ClientResponse | Exception | None) -> aiohttp.ClientResponse:
    """The end of *series*. *first* is what has come of its first send, where that is made already."""
    try:
        # stamina costs more than all of ours together: it is not entered before there is something to retry.
        try:
            return await series.send(first)
        except LamellaError as error:
            if not series.owns(error):
                raise
            return await series.go_on(error)
    except BaseException:
        series.let_go()
        raise
    finally:
        first = None  # as above
        series.forget()


class _Series:
    """The sends of one call."""

    __slots__ = (
        "_answer",
        "_before",
        "_began",
        "_call",
        "_deadline",
        "_decided_at",
        "_decision",
        "_error",
        "_failed",
        "_loop",
        "_overdue",
        "_parked_before",
        "_request",
        "_retry",
        "_send",
        "_started",
        "_waited_already",
        "_waiting",
        "_was_stale",
    )

    def __init__(
        self,
        retry: Retry,
        request: aiohttp.ClientRequest,
        call: Call,
        send: Send,
        before: object,
        *,
        began: float,
        limit: float | None,
        parked_before: float,
    ) -> None:
        self._retry = retry
        self._request = request
        self._send = send
        self._before = before
        """What tells whether anything was sent since."""
        self._call = call
        self._loop = request.loop
        self._started = self._began = began
        self._deadline = limit
        self._failed = 0.0
        self._parked_before = parked_before
        self._error: LamellaError | None = None
        """The failure of the last send."""
        self._answer: aiohttp.ClientResponse | None = None
        """The answer it is about, where no layer below has turned it into an error."""
        self._decision: Decision | None = None
        self._decided_at = 0
        self._waited_already = 0.0
        """How many seconds of the wait have passed already."""
        self._waiting: dict[str, AttributeValue] | None = None
        """Under which attributes this call counts among those that wait."""
        self._was_stale = False
        self._overdue = False
        """Whether it was the deadline that ended the last send."""

    def forget(self) -> None:
        """The call is over: what stamina leaves behind, a cycle that holds on to us, is to hold nothing else."""
        self._error = self._answer = None
        del self._request, self._send, self._call

    def owns(self, error: LamellaError) -> bool:
        """Whether *error* is the failure of our last send, and not something that a layer below did meanwhile."""
        return error is self._error

    async def send(self, made: aiohttp.ClientResponse | Exception | None = None) -> aiohttp.ClientResponse:
        """Send once. A failure is raised as a LamellaError that we own; anything else is none of ours.

        *made* is what has come of the send, where it is made already.
        """
        request, call = self._request, self._call
        if made is None:
            self._before = last_send(request)
        try:
            if made is None:
                try:
                    response = await (
                        self._send(request, call) if call.deadline is None else self._within(call.deadline)
                    )
                finally:
                    note_interruption(request)
            elif isinstance(made, Exception):
                raise made
            else:
                response = made
        except NotSent as exc:
            if exc is call.refusal:
                self._refuse(exc)
            raise
        except LamellaError as exc:
            # One that says why it stopped is the end of another call, which a layer below made meanwhile.
            if exc.stopped is None:
                self._own(exc)
            raise
        except (aiohttp.ClientError, TimeoutError) as exc:
            unsent = last_send(request) is self._before
            failure = transport_error(request, exc, self._retry._rules, unsent=unsent)
            if failure is None:
                raise
            self._own(failure)
            try:
                raise failure from shown_cause(exc)
            finally:
                del failure  # as above
        finally:
            made = None  # as above
        if response.status < ERROR_STATUS:
            if call.records:
                self._record(response.status, None)
            return response
        self._answer = response
        keep_cookies(request, call, response)
        # The body is the caller's: it may be slow, or broken.
        error = await api_error(response, self._retry._rules, call.secrets, until=-inf)
        self._own(error)
        try:
            raise error
        finally:
            del error  # as above

    async def go_on(self, first: LamellaError) -> aiohttp.ClientResponse:
        """Let stamina send again and again after *first* has failed, to the end of the call."""
        try:
            await self._decide(first)
            if not self._goes_on():
                raise first
            return await self._send_again(first)
        except asyncio.CancelledError:
            self._note_retry()
            self._stop(StopReason.CANCELLED)
            raise
        except LamellaError as error:
            if not self.owns(error):
                raise
            # Without a reason of ours it was stamina that stopped: switched off, or in its test mode.
            decided = self._decision and self._decision.stop
            error.stopped = self._stop(decided or StopReason.ATTEMPTS_USED_UP)
            error.attempts = self._call.records
            telemetry.log_failure(error, self._call.span)
            if self._answer is None:
                raise
            return self._answer
        finally:
            # Whatever has ended it, a hook of the user's included: it waits no more.
            self._count_waiting(None)
            del first  # as in Retry.around

    async def _send_again(self, failure: LamellaError) -> aiohttp.ClientResponse:
        """Send each time that stamina has waited, beginning after *failure*."""
        # Not its decorator, which is made for functions that last: to decorate one for each call costs as much again.
        retrying = stamina.retry_context(on=self._decided, attempts=self._retry._attempts, timeout=None)
        # By this name `_quieten` knows them. Where none can be given any more, their lines are warnings, and no more.
        named = getattr(retrying, "with_name", None)
        turns = aiter(retrying if named is None else named(_NAME, (), {}))
        turn = await anext(turns)
        try:
            while True:
                # As if raised inside of `with turn`, but without a way through frames that it would keep alive.
                turn.__exit__(type(failure), failure, failure.__traceback__)
                turn = await anext(turns)
                require_open(self._request)
                if self._call.circuit is not None:
                    await self._readmit(self._call.circuit, failure)
                self._note_retry()
                # Nobody will raise it any more, and its traceback keeps all of that send alive until the next gc.
                failure.__traceback__ = None
                await rewind(self._request)
                renew_cookies(self._request, self._call)
                self._began = self._loop.time()
                self._parked_before = self._call.gate_wait
                try:
                    return await self.send()
                except LamellaError as error:
                    if not self.owns(error):
                        raise
                    await self._decide(error)
                    if not self._goes_on():
                        raise
                    failure = error
        finally:
            del failure  # as in Retry.around

    def _goes_on(self) -> bool:
        """Whether the last decision is to send again."""
        return self._decision is not None and self._decision.stop is None

    async def _within(self, moment: float) -> aiohttp.ClientResponse:
        """Send, until the deadline at *moment*."""
        if self._loop.time() >= moment:
            # What is inherited may be used up already: then nothing is sent.
            error = self._out_of_time()
            error.stopped = StopReason.DEADLINE
            self._refuse(error)
            raise error
        limit = asyncio.timeout_at(moment)
        try:
            with inherited_deadline(moment):
                async with limit:
                    self._call.at_deadline = limit
                    return await self._send(self._request, self._call)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise self._out_of_time(exc) from exc
        finally:
            self._call.at_deadline = None

    def _out_of_time(self, exc: BaseException | None = None) -> LamellaError:
        """Return the error for an attempt that the deadline ended by *exc*. None: it ended before it was begun."""
        call, request, rules = self._call, self._request, self._retry._rules
        if call.parked is not None:
            since, until = call.parked
            now = self._loop.time()
            call.refusal = rate_limited(request, rules, since=now - since, until=max(until - now, 0.0))
            return call.refusal
        self._overdue = True
        reason = f"the call's deadline of {self._deadline:.4g} s has passed"
        if exc is not None:
            return timed_out(request, exc, rules, reason, unsent=last_send(request) is self._before)
        rule = rules.rule_for(AttemptTimeout.failure)
        return AttemptTimeout(request.method, request.url, rule, reason, secrets=secrets_of(request))

    def _refuse(self, error: LamellaError) -> None:
        """It was not sent, and *error* says why: that is the end of the call."""
        self._call.stopped, self._call.rule = error.stopped, error.rule
        error.attempts = self._call.records
        reason = error.stopped or StopReason.DEADLINE
        self._event(telemetry.STOP_EVENT, None, {telemetry.STOP_REASON: reason.value}, error=error)
        telemetry.log_failure(error, self._call.span)

    def _own(self, error: LamellaError) -> None:
        self._error = error
        self._failed = self._loop.time()
        error.rule = self._retry._rules.rule_for(error.outcome)
        status = error.status if isinstance(error, ApiError) else None
        self._record(status, None if status else type(error).__name__)

    def _record(self, status: int | None, exception: str | None) -> None:
        attempts = self._retry._attempts
        number = len(self._call.records) + 1
        parked = self._call.gate_wait - self._parked_before
        failed = status is None or status >= ERROR_STATUS
        record = AttemptRecord(
            number,
            status,
            exception,
            took=self._loop.time() - self._began - parked,
            parked=parked,
            rule=self._error.rule.title if failed and self._error is not None else None,
            attempts_left=None if attempts is None else max(attempts - number, 0),
            deadline_left=self._deadline_left(),
        )
        self._call.records = (*self._call.records, record)

    def _decided(self, _exc: Exception) -> bool | float:
        """stamina's hook, which is asked only where it is decided to send again: the seconds to wait."""
        decision = self._decision
        if decision is None or decision.wait is None:
            return False
        return max(decision.wait - self._waited_already, 0.0)

    async def _decide(self, error: LamellaError) -> None:
        """Decide what to do about *error*, the end of our last send."""
        circuit = self._call.circuit
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
        request, retry = self._request, self._retry
        testing = stamina.is_testing()
        decision = decide(
            retry._rules,
            error.outcome,
            number=len(self._call.records),
            # In its test mode stamina sets the attempts, and takes the waits out.
            attempts=None if testing else retry._attempts,
            method=request.method,
            replayable=is_replayable(request, sent=not isinstance(error, ConnectFailed)),
            # To the clock's last digit it may be a little before the deadline that ended it.
            elapsed=inf if self._overdue else self._failed - self._started,
            deadline=None if testing else self._deadline,
            random=retry._random,
            retry_after=error.retry_after,
            idempotent=retry._retry_writes or "Idempotency-Key" in request.headers,
            stale=stale,
        )
        self._decided_at = time.time_ns()
        self._waited_already = 0.0
        if decision.stop is None and decision.wait is not None:
            if circuit is not None and await circuit.open_for() > decision.wait:
                decision = Decision(decision.rule, stop=StopReason.CIRCUIT_OPEN)
            elif retry._budget is not None and not await self._affordable(retry._budget, error, decision):
                decision = Decision(decision.rule, stop=StopReason.RETRY_BUDGET_EMPTY)
        self._decision = decision
        if decision.stop is not None:
            return
        self._was_stale = self._was_stale or stale
        if not testing:
            # Held during the wait it would hold its connection. (A test mode does not wait, and may still stop.)
            if self._answer is not None and decision.wait is not None:
                # It is a part of the wait: otherwise the deadline could pass.
                before = self._loop.time()
                await finish_error_body(self._answer, before + decision.wait)
                self._waited_already = self._loop.time() - before
            self.let_go()
            self._count_waiting(decision)

    async def _affordable(self, budget: RetryBudget, error: LamellaError, decision: Decision) -> bool:
        """Whether the *budget* of the session has a retry left, which is taken."""
        if is_rate_limit(error.outcome, error.retry_after) or decision.source is WaitSource.IMMEDIATE:
            return True
        if isinstance(error, ConnectTimeout) and error.in_pool:
            return True  # it did not reach the service
        retry = self._retry
        calls, retry._calls = retry._calls, 0
        return await retry._state.update(self._call.span, _BUDGET, Spent, take, budget, calls)

    async def _readmit(self, circuit: Circuit, failure: LamellaError) -> None:
        """After a wait: raise *failure*, the last one, if *circuit* is open by now."""
        try:
            if not await circuit.admit():
                self._note_retry()
                self._decision = Decision(failure.rule, stop=StopReason.CIRCUIT_OPEN)
                raise failure
        finally:
            del failure  # as in Retry.around

    def _count_waiting(self, decision: Decision | None) -> None:
        """Count this call among those that wait, because of *decision*; None: it waits no more."""
        instruments = self._call.instruments
        if instruments is None or (decision is None and self._waiting is None):
            return
        if decision is None:
            instruments.waiting.add(-1, self._waiting)
            self._waiting = None
            return
        self._waiting = {**self._call.server, telemetry.RULE: decision.rule.title}
        instruments.waiting.add(1, self._waiting)
        if decision.source is not None:
            instruments.retries.add(1, {**self._waiting, telemetry.WAIT_SOURCE: decision.source.value})

    def let_go(self) -> None:
        """Give the connection of an answer back that nobody will read."""
        if self._answer is not None:
            self._answer.release()
            self._answer = None

    def _note_retry(self) -> None:
        """The wait that was decided on is over: put it on record, if stamina did carry it out."""
        decision, records = self._decision, self._call.records
        if decision is None or decision.stop is not None or decision.wait is None or decision.source is None:
            return
        self.let_go()
        self._count_waiting(None)
        self._decision = None
        waited = self._loop.time() - self._failed
        self._call.records = (*records[:-1], _waited(records[-1], waited, decision.source))
        self._event(telemetry.RETRY_EVENT, decision, {}, self._decided_at)

    def _stop(self, reason: StopReason) -> StopReason:
        self._call.stopped = reason
        self._call.rule = None if self._error is None else self._error.rule
        decided = self._decision if self._decision is not None and self._decision.stop is reason else None
        self._event(telemetry.STOP_EVENT, decided, {telemetry.STOP_REASON: reason.value})
        return reason

    def _event(
        self,
        name: str,
        decision: Decision | None,
        more: dict[str, AttributeValue],
        timestamp: int | None = None,
        error: LamellaError | None = None,
    ) -> None:
        span = self._call.span or trace.get_current_span()
        error = error or self._error
        if not span.is_recording() or error is None:
            return
        record = self._call.records[-1] if self._call.records else None
        given: dict[str, AttributeValue | None] = {
            telemetry.ATTEMPT: record.number if record else None,
            telemetry.RULE: error.rule.title,
            telemetry.STATUS: record.status if record else None,
            telemetry.ERROR_TYPE: telemetry.error_type(error),
            telemetry.WAIT: None if decision is None else decision.wait,
            telemetry.WAIT_SOURCE: decision.source.value if decision and decision.source else None,
            telemetry.ATTEMPTS_LEFT: record.attempts_left if record else None,
            telemetry.DEADLINE_LEFT: record.deadline_left if record and timestamp else self._deadline_left(),
            **more,
        }
        span.add_event(name, {key: value for key, value in given.items() if value is not None}, timestamp)

    def _deadline_left(self) -> float | None:
        """Seconds, from now on."""
        deadline = self._call.deadline
        return None if deadline is None else max(deadline - self._loop.time(), 0.0)


def _waited(record: AttemptRecord, seconds: float, source: WaitSource) -> AttemptRecord:
    """*record* after a wait. As ``dataclasses.replace`` would make it, in half of the time."""
    return AttemptRecord(
        record.number,
        record.status,
        record.exception,
        record.took,
        seconds,
        record.rule,
        source,
        record.attempts_left,
        record.deadline_left,
        record.parked,
    )


def _quieten(record: logging.LogRecord) -> bool:
    """Let stamina's default line for a retry of ours through at DEBUG only: in a storm there are thousands."""
    ours = getattr(record, "stamina.callable", "") == _NAME
    if ours and record.levelno == logging.WARNING:
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
    return True


logging.getLogger("stamina").addFilter(_quieten)
