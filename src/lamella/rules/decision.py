"""Try again or stop, how long to wait, and why: one pure function."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from lamella.rules.backoff import Random
from lamella.rules.rule import Failure, Outcome, Rule

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110, section 9.2.2: sending one of these twice does what sending it once does."""

# What an attempt that a deadline cuts short ends in.
_CUT_SHORT: frozenset[Outcome] = frozenset({Failure.ATTEMPT_TIMEOUT, Failure.CONNECT_FAILED})


class StopReason(StrEnum):
    """Why there was no further try."""

    NOT_RETRYABLE = "not_retryable"
    """The rule says that another try would fail the same way."""
    ATTEMPTS_USED_UP = "attempts_used_up"
    """The call has no attempts left, or there were as many as the rule allows."""
    DEADLINE = "deadline"
    """The wait would end after the call's deadline."""
    WAIT_TOO_LONG = "wait_too_long"
    """The server asks for a longer wait than the rule's maximum."""
    UNSAFE_METHOD = "unsafe_method"
    """It may have been carried out, and the method is not idempotent."""
    BODY_NOT_REPLAYABLE = "body_not_replayable"
    """The request's body was a stream, and is used up."""
    RETRY_BUDGET_EMPTY = "retry_budget_empty"
    """Retries have had their share of the traffic."""
    CIRCUIT_OPEN = "circuit_open"
    """The service is known to be down."""
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105 - a name
    """The fetch of its token failed."""
    TOO_MANY_ERRORS = "too_many_errors"
    """Calls like it have failed too often."""
    CANCELLED = "cancelled"
    """The caller does not want the answer any more."""

    @property
    def phrase(self) -> str:
        """The reason in words."""
        return self.value.replace("_", " ")


class WaitSource(StrEnum):
    """Where the length of a wait came from."""

    RULE = "rule"
    RETRY_AFTER = "retry_after"
    IMMEDIATE = "immediate"
    """No wait: a connection that the server had closed while it was idle."""
    REFRESH = "refresh"
    """No wait: the token was refused, and there is another one."""


class Decision(NamedTuple):
    """What to do about one failed attempt: stop, or wait and send again."""

    rule: Rule
    wait: float | None = None
    """Seconds. Where the ``stop`` is for a wait that would have been too long, that wait; with another one, None."""
    source: WaitSource | None = None
    stop: StopReason | None = None
    """Why there is no further try. None: there is one, after ``wait``."""


def decide(
    rule: Rule,
    outcome: Outcome,
    *,
    number: int,
    same: int = 1,
    attempts: int | None,
    method: str,
    replayable: bool,
    elapsed: float,
    deadline: float | None,
    random: Random,
    retry_after: float | None = None,
    idempotent: bool = False,
    stale: bool = False,
    refused: bool = False,
) -> Decision:
    """Decide about attempt *number* (from 1), which ended in *outcome*.

    Args:
        rule: What the outcome means.
        outcome: The status of the answer, or why there was none.
        number: Which attempt of the call this was, from 1.
        same: How many attempts of the call have ended in this rule, with this one.
        attempts: How often a call may be sent. None means as often as it takes.
        method: The request's method, in capitals.
        replayable: Whether the body can be sent again.
        elapsed: Seconds since the call began.
        deadline: Seconds after its beginning by which the call must have ended. None means no limit.
        random: Uniform floats in [0, 1).
        retry_after: Seconds that the server asked for. None means that it did not.
        idempotent: The caller vouches that a repeat does no harm, whatever the method.
        stale: The connection may have been closed while it was idle; then the next try need not wait.
        refused: The token was refused, so nothing was carried out, and there is another one. That try counts as none.
    """
    if refused and deadline is not None and elapsed >= deadline:
        return Decision(rule, stop=StopReason.DEADLINE)
    if refused:
        again = Decision(rule, 0.0, WaitSource.REFRESH)
        return again if replayable else Decision(rule, stop=StopReason.BODY_NOT_REPLAYABLE)
    if outcome in _CUT_SHORT and deadline is not None and elapsed >= deadline:
        # It was the deadline itself that cut the attempt short.
        return Decision(rule, stop=StopReason.DEADLINE)
    if rule.retry is None:
        return Decision(rule, stop=StopReason.NOT_RETRYABLE)
    if not idempotent and method not in IDEMPOTENT_METHODS and rule.may_be_carried_out(outcome):
        return Decision(rule, stop=StopReason.UNSAFE_METHOD)
    if not replayable:
        return Decision(rule, stop=StopReason.BODY_NOT_REPLAYABLE)
    if (attempts is not None and number >= attempts) or (rule.attempts is not None and same >= rule.attempts):
        return Decision(rule, stop=StopReason.ATTEMPTS_USED_UP)
    if stale:
        wait, source = 0.0, WaitSource.IMMEDIATE
    else:
        wait, source = rule.retry.wait(number, random), WaitSource.RULE
        if retry_after is not None and retry_after > wait:
            wait, source = retry_after, WaitSource.RETRY_AFTER
    if wait > rule.retry.maximum:
        return Decision(rule, wait, source, StopReason.WAIT_TOO_LONG)
    if deadline is not None and elapsed + wait >= deadline:
        return Decision(rule, wait, source, StopReason.DEADLINE)
    return Decision(rule, wait, source)
