"""``Retry``: decide, wait, send again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from aiohttp import hdrs

from lamella.attempt_record import RECORDS_KEY
from lamella.body.request import note_interruption
from lamella.call import OPTIONS, SENT_BEFORE, Call
from lamella.checks import check_seconds, check_whole
from lamella.classify.failures import ERROR_STATUS, require_open
from lamella.cookies import note_held_cookies
from lamella.pipeline import Again, Layer, Result, Slot
from lamella.retry.budget import RetryBudget, Spent, take
from lamella.retry.deadline import AttemptLimit, block_end, seconds_left
from lamella.retry.judge import Settings
from lamella.retry.loop import Loop
from lamella.retry.report import OnAttempt, out_of_time, reporter
from lamella.rules import RuleBook, check_rules
from lamella.store import Store
from lamella.store.shared import SharedState

_BUDGET = "retry-budget"


class Retry(Layer):
    """Sends a request again while the rules, the deadline and the safety of a repeat allow it.

    stamina drives the waits: ``stamina.set_active(False)`` sends everything once, ``stamina.set_testing`` takes
    the waits out, and stamina's hooks are called for each retry. With its *default* hooks, stamina writes a line
    per retry; Retry lets those through at DEBUG only (logger ``stamina``).

    It stands outside of everything that makes an attempt. With :class:`lamella.Classify` in the stack it raises
    the last error; without, it judges the answers itself, and returns the last one at once, its body unread unless a
    rule asks for it. A connection failure is always an error, and so is an answer below 400 that a rule calls one.

    Args:
        rules: What each failure means, and the waits.
        attempts: How many attempts a call has, the first one included. None means as many as fit in *deadline*.
        deadline: How many seconds a call may take, the waits included. None means no limit, except for a
            total timeout of the session, which is taken as one; an attempt may take as long as a longer total that
            is given with its request. A call that is made inside of another one, or of
            :func:`lamella.deadline`, has no longer than is left there.
        budget: How much retries may add to the load of the session. None means no limit.
        store: Where the budget is kept. None means in this process.
        retry_writes: Send methods that are not idempotent (POST, PATCH) again, too, though the first one may have
            been carried out. Without, they are where nothing can have been carried out (429, no connection) and
            where an ``Idempotency-Key`` header makes a repeat harmless, as far as *rules* say that the API knows it.
        random: A source of uniform floats in [0, 1), for the waits.
        on_attempt: A function, or an ``async`` one, that is called after each attempt with the request, the result and
            the attempt's record: before the call waits for the next attempt, when ``record.waited`` is the wait that
            follows, and at the end of the call. The result is the answer, or the error, whose ``stopped`` says at
            the end why there was no further attempt. The call waits for the function. If it raises an exception, that
            is logged once, and the call goes on. None means that nothing is called.

    Raises:
        ValueError: *attempts* is less than 1, *deadline* is not greater than 0, both are None, or *on_attempt* is not
            a function.
    """

    slot = Slot.RETRY
    single = True

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
        on_attempt: OnAttempt | None = None,
    ) -> None:
        check_rules(rules, "Retry(")
        if attempts is not None:
            check_whole("attempts", attempts)
        if deadline is not None:
            check_seconds("deadline", deadline)
        if attempts is None and deadline is None:
            raise ValueError("attempts and deadline must not both be None: such a call might never end")
        self.shared: Mapping[str, object] = {"rules": rules, "store": store}
        afford, report = None if budget is None else self._afford, None if on_attempt is None else reporter(on_attempt)
        self._settings = Settings(rules, attempts, retry_writes, random, afford, report)
        self._below_400 = rules.below_400
        self._deadline = deadline
        self._budget = budget
        self._state = SharedState(store)
        self._calls = 0
        """How many calls were made since the budget was asked last: each adds its share of a retry."""
        self._begun: dict[Call, tuple[float, float, AttemptLimit | None, frozenset[int], int | None]] = {}
        """When the call began, by the loop's clock, how long it was queued before, what ends its first attempt,
        which statuses below 400 may be an error, and how many attempts it has."""

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.work_in(loop)

    def before(self, call: Call) -> None:
        request = call.request
        if SENT_BEFORE in call.state:
            # A middleware further out sends the request once more, and the session may be closed by now.
            require_open(request)
        if hdrs.COOKIE in request.headers:
            note_held_cookies(call)
        self._calls += 1
        now = call.now
        own, below_400, attempts = self._deadline, self._below_400, self._settings.attempts
        if OPTIONS in call.state:
            given = OPTIONS.of(call)
            own = given.get("deadline", own)
            below_400 = given.get("rules", self._settings.rules).below_400
            attempts = given.get("attempts", attempts)
            if own is None and attempts is None:
                raise ValueError("attempts and deadline must not both be None: such a call might never end")
        if own is None and not request.session.timeout.total and block_end(call) is None:
            limit = None
            if call.deadline is not None:
                call.deadline = None
        else:
            # Some versions of aiohttp make the request anew when the session was closed in the middle of an attempt.
            require_open(request)
            seconds = seconds_left(call, own, now)
            call.deadline = None if seconds is None else now + seconds
            if seconds is not None and seconds <= 0:
                # What is inherited may be used up already: then nothing is sent.
                raise out_of_time(call, self._settings_of(call).rules, seconds)
            limit = None if call.deadline is None else AttemptLimit(call, call.deadline)
        self._begun[call] = now, call.queued, limit, below_400, attempts

    def after(self, call: Call, result: Result) -> Callable[[Again], Awaitable[Result]] | None:
        began, queued_before, limit, below_400, attempts = self._begun.pop(call)
        overdue = limit is not None and limit.stop() and isinstance(result, asyncio.CancelledError)
        if not isinstance(result, BaseException):
            # Most calls end well at the first attempt, and then little need be known of it.
            if (
                result.status < ERROR_STATUS
                and not call.records
                and result.status not in below_400
                and self._settings.report is None
            ):
                queued = call.queued - queued_before
                setattr(result, RECORDS_KEY, (began, call.now, queued, attempts, call.deadline))
                return None
        elif not isinstance(result, Exception) and not overdue:
            return None  # cancelled, or thrown away
        note_interruption(call)
        loop = Loop(call, self._settings_of(call), began=began, queued_before=queued_before)
        return partial(loop.run, result, overdue=overdue)

    def _settings_of(self, call: Call) -> Settings:
        """Return the settings of *call*: those of the layer, unless options() says otherwise."""
        given, own = OPTIONS.get(call), self._settings
        if given is None:
            return own
        return own._replace(
            rules=given.get("rules", own.rules),
            attempts=given.get("attempts", own.attempts),
            retry_writes=given.get("retry_writes", own.retry_writes),
        )

    async def _afford(self, call: Call) -> bool:
        """Take a retry from the budget, if there is one left."""
        if self._budget is None:
            return True
        calls, self._calls = self._calls, 0
        return await self._state.update(call.span, _BUDGET, Spent, take, self._budget, calls)

    def __repr__(self) -> str:
        of = self._settings
        return (
            f"Retry({of.rules!r}, attempts={of.attempts}, deadline={self._deadline}, "
            f"retry_writes={of.retry_writes}, budget={self._budget})"
        )
