"""Decide whether to retry or stop, how long to wait, and why: one pure function."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from lamella.rules.backoff import Random
from lamella.rules.rule import Failure, Outcome, Rule

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Idempotent methods (RFC 9110, section 9.2.2): sending a request twice has the effect of sending it once."""

# The outcomes of an attempt that a deadline ends early.
_CUT_SHORT: frozenset[Outcome] = frozenset({Failure.ATTEMPT_TIMEOUT, Failure.CONNECT_FAILED})


class StopReason(StrEnum):
    """Why there was no further attempt."""

    NOT_RETRYABLE = "not_retryable"
    """The rule says that another attempt would fail in the same way."""
    ATTEMPTS_USED_UP = "attempts_used_up"
    """The call or the rule has no attempts left."""
    DEADLINE = "deadline"
    """The wait would end after the call's deadline."""
    WAIT_TOO_LONG = "wait_too_long"
    """The server asks for a longer wait than the rule's maximum."""
    UNSAFE_METHOD = "unsafe_method"
    """The request may have been carried out, and the method is not idempotent."""
    BODY_NOT_REPLAYABLE = "body_not_replayable"
    """The request's body was a stream and is consumed."""
    RETRY_BUDGET_EMPTY = "retry_budget_empty"
    """The retry budget is used up."""
    CIRCUIT_OPEN = "circuit_open"
    """The circuit is open."""
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105 - a name
    """The fetch of the token failed."""
    TOO_MANY_ERRORS = "too_many_errors"
    """Similar calls have failed too often."""
    CANCELLED = "cancelled"
    """The caller cancelled the call."""

    @property
    def phrase(self) -> str:
        """The reason in words."""
        return self.value.replace("_", " ")


class WaitSource(StrEnum):
    """The source of the length of a wait."""

    RULE = "rule"
    RETRY_AFTER = "retry_after"
    IMMEDIATE = "immediate"
    """No wait, because the server had closed the idle connection."""
    REFRESH = "refresh"
    """No wait, because the token was rejected and there is a new one."""


class Decision(NamedTuple):
    """What to do about one failed attempt: stop, or wait and send again."""

    rule: Rule
    wait: float | None = None
    """Seconds. If ``stop`` is due to a wait that would be too long, that wait; for any other ``stop``, None."""
    source: WaitSource | None = None
    stop: StopReason | None = None
    """Why there is no further attempt. None: there is one after ``wait``."""


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
    """Decide about attempt *number* (from 1), which failed with *outcome*.

    Args:
        rule: The rule for the outcome.
        outcome: The status of the response, or why there was none.
        number: Which attempt of the call this was, from 1.
        same: How many attempts of the call, including this one, have ended in this rule.
        attempts: Maximum number of attempts. None means no limit.
        method: The request's method, in capitals.
        replayable: Whether the body can be sent again.
        elapsed: Seconds since the call began.
        deadline: Maximum duration of the call in seconds. None means no limit.
        random: Uniform floats in [0, 1).
        retry_after: The wait in seconds that the server asked for. None means not stated.
        idempotent: The caller guarantees that a repeat is safe, whatever the method.
        stale: Whether the connection may have been closed while idle; then the next attempt need not wait.
        refused: Whether the token was rejected, so nothing was carried out, and a new one exists. The attempt does not
            count.
    """
    if refused and deadline is not None and elapsed >= deadline:
        return Decision(rule, stop=StopReason.DEADLINE)
    if refused:
        again = Decision(rule, 0.0, WaitSource.REFRESH)
        return again if replayable else Decision(rule, stop=StopReason.BODY_NOT_REPLAYABLE)
    if outcome in _CUT_SHORT and deadline is not None and elapsed >= deadline:
        # The deadline itself ended the attempt.
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
