"""``Retry``: decide, wait, send again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

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
from lamella.scope import NOTHING, SCOPE
from lamella.store.protocol import Store
from lamella.store.shared import SharedState

_BUDGET = "retry-budget"
_AT_ONCE: Final = 10  # maximum retries that are taken from a shared budget in one exchange


class Retry(Layer):
    """Retry a request while the rules and the deadline allow it and a repeat is safe.

    stamina carries out the waits: ``stamina.set_active(False)`` disables retries, ``stamina.set_testing`` removes the
    waits, and stamina's hooks are called for each retry. With its *default* hooks, stamina logs a line per retry; Retry
    lowers these lines to DEBUG (logger ``stamina``).

    It belongs outside all layers of an attempt. With :class:`lamella.Classify` in the stack it raises the last error.
    Without it, Retry judges responses itself and returns the last one at once, with its body unread unless a rule needs
    it. A transport failure is always raised, and so is a response below 400 that a rule calls an error.

    Args:
        rules: The meaning of each failure, and the waits.
        attempts: Maximum number of attempts of a call, including the first. None means as many as fit in *deadline*.
        deadline: Maximum duration of a call in seconds, waits included. None means no limit except the session's total
            timeout, which acts as a deadline. A longer total given with the request lets an attempt take that long. A
            call inside another call, or inside :func:`lamella.deadline`, also ends at that deadline.
        budget: Limits how much load retries may add. None means no limit.
        store: Stores the budget. None means memory of this process.
        retry_writes: Retry methods that are not idempotent (POST, PATCH) even if the first attempt may have been
            carried out. By default they are retried only if nothing was carried out (429, no connection), or if an
            ``Idempotency-Key`` header makes a repeat safe, provided that *rules* say that the API supports it.
        random: A source of uniform floats in [0, 1), for the waits.
        on_attempt: A function, plain or async, called after each attempt with the request, the result and the attempt's
            record. It runs before the wait for the next attempt, whose length is ``record.waited``, and at the end of
            the call. The result is the response or the error; at the end, ``error.stopped`` says why there was no
            further attempt. The call waits for the function. An exception in it is logged once and ignored. None means
            no hook.

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
            raise ValueError("attempts and deadline must not both be None, because a call might never end")
        self.shared: Mapping[str, object] = {"rules": rules, "store": store}
        afford, report = None if budget is None else self._afford, None if on_attempt is None else reporter(on_attempt)
        self._settings = Settings(rules, attempts, retry_writes, random, afford, report)
        self._below_400 = rules.below_400
        self._deadline = deadline
        self._budget = budget
        self._state = SharedState(store)
        self._calls = 0
        """How many calls were made since the last use of the budget; each adds a fraction of a retry."""
        self._taken = 0
        """Retries that are taken from the budget and not made yet."""
        self._asking = 0
        """How many calls are asking the store for a retry."""
        # A fifth: the others that share the budget may need the rest.
        self._at_once = 1 if budget is None else max(min(_AT_ONCE, int(budget.capacity / 5)), 1)
        self._begun: dict[Call, tuple[float, float, AttemptLimit | None, frozenset[int], int | None]] = {}
        """Per call: when it began by the loop's clock, how long it was queued before, the limit of its first attempt,
        the statuses below 400 that may be errors, and the number of attempts."""

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.work_in(loop)

    def before(self, call: Call) -> None:
        request = call.request
        if SENT_BEFORE in call.state:
            # An outer middleware sends the request again, and the session may be closed by now.
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
                raise ValueError("attempts and deadline must not both be None, because a call might never end")
        outer = None if SCOPE.get() is NOTHING else block_end(call)
        if own is None and outer is None and not request.session.timeout.total:
            limit = call.deadline = None
        else:
            # Some versions of aiohttp recreate the request if the session was closed during an attempt.
            require_open(request)
            seconds = seconds_left(call, own, outer, now)
            call.deadline = None if seconds is None else now + seconds
            if seconds is not None and seconds <= 0:
                # If the inherited deadline has already passed, nothing is sent.
                raise out_of_time(call, self._settings_of(call).rules, seconds)
            limit = None if call.deadline is None else AttemptLimit(call, call.deadline)
        self._begun[call] = now, call.queued, limit, below_400, attempts

    def after(self, call: Call, result: Result) -> Callable[[Again], Awaitable[Result]] | None:
        began, queued_before, limit, below_400, attempts = self._begun.pop(call)
        overdue = limit is not None and limit.stop() and isinstance(result, asyncio.CancelledError)
        if not isinstance(result, BaseException):
            # Most calls succeed at the first attempt, which then needs little bookkeeping.
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
            return None  # cancelled or discarded
        note_interruption(call)
        loop = Loop(call, self._settings_of(call), began=began, queued_before=queued_before)
        return partial(loop.run, result, overdue=overdue)

    def _settings_of(self, call: Call) -> Settings:
        """Return the settings of *call*: those of the layer, overridden by options()."""
        own = self._settings
        if OPTIONS not in call.state:
            return own
        given = OPTIONS.of(call)
        return own._replace(
            rules=given.get("rules", own.rules),
            attempts=given.get("attempts", own.attempts),
            retry_writes=given.get("retry_writes", own.retry_writes),
        )

    async def _afford(self, call: Call) -> bool:
        """Take a retry from the budget, if one is left."""
        if self._budget is None:
            return True
        if not self._taken:
            calls, self._calls = self._calls, 0
            wanted = 1 if self._asking or self._state.memory is not None else self._at_once
            self._asking += 1
            try:
                taken = await self._state.update(call.span, _BUDGET, Spent, take, self._budget, calls, wanted)
            finally:
                self._asking -= 1
            self._taken += taken
        if not self._taken:
            return False
        self._taken -= 1
        return True

    def __repr__(self) -> str:
        of = self._settings
        return (
            f"Retry({of.rules!r}, attempts={of.attempts}, deadline={self._deadline}, "
            f"retry_writes={of.retry_writes}, budget={self._budget})"
        )
