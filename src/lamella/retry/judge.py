"""Judge the result of an attempt: a failure to decide about, or the end of the call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from typing import NamedTuple

import aiohttp

from lamella.attempt_record import AttemptRecord
from lamella.call import Call
from lamella.classify.failures import ERROR_STATUS, failure_of, rejected, timed_out
from lamella.classify.judge import Judged, api_error, judge
from lamella.cookies import keep_cookies
from lamella.errors import ApiError, LamellaError, RateLimited
from lamella.limits import not_cancelled
from lamella.pipeline import Result
from lamella.retry.report import deadline_passed, reject
from lamella.rules import Decision, Rule, RuleBook, StopReason
from lamella.throttle.queue import waiting_of


class Settings(NamedTuple):
    """The settings that all calls of one ``Retry`` share."""

    rules: RuleBook
    attempts: int | None
    retry_writes: bool
    random: Callable[[], float]
    afford: Callable[[Call], Awaitable[bool]] | None
    """Takes a retry from the budget, if one is left. None: no budget."""
    report: Callable[[Call, Result, Decision | None], Awaitable[None]] | None
    """Calls the user's hook after an attempt, with the decision if there is another attempt. None: no hook."""


class Judge:
    """The last attempt of one call, and its result."""

    __slots__ = (
        "_call",
        "_rules",
        "_settings",
        "answer",
        "attempt_began",
        "began",
        "error",
        "failed_at",
        "overdue",
        "queued_before",
        "repeats",
        "same",
    )

    def __init__(self, call: Call, settings: Settings, *, began: float, queued_before: float) -> None:
        self._call = call
        self._settings = settings
        self.began: float = began
        """When the call began, by the loop's clock."""
        self.error: LamellaError | None = None
        """The failure of the last attempt. Any other result, a response or a foreign exception, ends the call."""
        self.failed_at: float = 0.0
        self.answer: aiohttp.ClientResponse | None = None
        """The response of *error*, if no inner layer has turned it into an error."""
        self.same: int = 0
        """How many attempts of the call, including the last one, have ended in the rule of *error*."""
        self._rules: list[Rule] = []
        """The rules in which the attempts ended."""
        self.overdue: bool = False
        """Whether the deadline has ended the last attempt."""
        self.repeats: int = 0
        """How many attempts were repeated with a new token because theirs was rejected. They do not count."""
        self.attempt_began: float = began
        """When the attempt began, by the loop's clock."""
        self.queued_before: float = queued_before
        """How many seconds the call was queued before the attempt."""

    async def look_at(self, result: Result, *, overdue: bool) -> Result:
        """Return the failure that *result* represents, storing it in `error`, or *result* itself if it ends the
        call."""
        call = self._call
        if overdue and isinstance(result, BaseException):
            return self._end_by_deadline(result)
        if not isinstance(result, BaseException):
            if result.status < ERROR_STATUS and result.status not in self._settings.rules.below_400:
                self._record(result.status, None, None)
                return result
            try:
                judged = await judge(call, result, self._settings.rules)
            except (aiohttp.ClientError, TimeoutError) as exc:
                keep_cookies(call, result)
                result.close()
                result = exc
            else:
                if judged is None:
                    self._record(result.status, None, None)
                    return result
                error = await self._error(result, judged)
                call.now = call.request.loop.time()
                return self._fail(error)
        if isinstance(result, LamellaError):
            if call.stop is not None and result is call.stop.error:
                return reject(call, result)
            # An error with a stop reason is the end of another call, made by an inner layer.
            return self._fail(result) if result.stopped is None else result
        if isinstance(result, aiohttp.ClientError | TimeoutError):
            failure = failure_of(call, result, self._settings.rules)
            if failure is not None:
                return self._fail(failure)
        return result

    async def _error(self, answer: aiohttp.ClientResponse, judged: Judged) -> ApiError:
        """Return the error that *answer* represents, if no inner layer has made it."""
        call, rules = self._call, self._settings.rules
        keep_cookies(call, answer)
        if answer.status >= ERROR_STATUS:
            self.answer = answer
            # The body belongs to the caller and may be slow or broken.
            return await api_error(answer, rules, call.secrets, until=-inf, judged=judged)
        # By its status alone the caller would see a success.
        try:
            with not_cancelled(call) as until:
                return await api_error(answer, rules, call.secrets, until=until, judged=judged)
        finally:
            answer.release()

    def discount(self) -> None:
        """Do not count the last attempt, which is repeated."""
        self.repeats += 1
        self._rules.pop()

    def release(self) -> None:
        """Release the connection of a response that is not read."""
        if self.answer is not None:
            self.answer.release()
            self.answer = None

    def forget(self) -> None:
        """Forget the failure and its response, which keep an attempt alive."""
        self.error = self.answer = None
        del self._call

    def _end_by_deadline(self, exc: BaseException) -> LamellaError:
        call, rules = self._call, self._settings.rules
        now = call.request.loop.time()
        waiting = waiting_of(call)
        if waiting is not None:
            since, until = now - waiting[0], max(waiting[1] - now, 0.0)
            return reject(
                call, rejected(RateLimited, call, rules, since=since, until=until, stopped=StopReason.DEADLINE)
            )
        self.overdue = True
        seconds = 0.0 if call.deadline is None else call.deadline - self.began
        return self._fail(timed_out(call, exc, rules, deadline_passed(seconds)))

    def _fail(self, error: LamellaError) -> LamellaError:
        self.error = error
        self.failed_at = self._call.now
        status = error.status if isinstance(error, ApiError) else None
        error.rule = self._settings.rules.unless_built_in(error.rule, status or error.outcome)
        self._rules.append(error.rule)
        self.same = self._rules.count(error.rule)
        self._record(status, None if status else type(error).__name__, error.rule.title)
        return error

    def _record(self, status: int | None, exception: str | None, rule: str | None) -> None:
        call, attempts = self._call, self._settings.attempts
        number = len(call.records) + 1
        left = [] if attempts is None else [attempts - number + self.repeats]
        if self.error is not None and self.error.rule.attempts is not None:
            left.append(self.error.rule.attempts - self.same)
        queued = call.queued - self.queued_before
        took = call.now - self.attempt_began - queued
        attempts_left = max(min(left), 0) if left else None
        seconds_left = None if call.deadline is None else max(call.deadline - call.now, 0.0)
        # Keywords would double the time.
        record = AttemptRecord(number, status, exception, took, 0.0, rule, None, attempts_left, seconds_left, queued)
        call.records = (*call.records, record)
