"""Respect the limits that the server states, as long as its answers agree with them.

For each limit the state contains the remaining number from the newest answer. An attempt may be sent while fewer
attempts are in flight. A reset time in whole seconds may be wrong by one second. So after the reset Throttle sends one
attempt alone, and its answer states the new number.

A statement is in doubt if an attempt passes although nothing remains, or is refused although something remains.
Throttle ignores the limit after three doubts, or at once if the reset approaches faster than time passes (then its unit
is not seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from lamella.rules.retry_after import LONGEST
from lamella.throttle.estimate import Permit, RateEstimate, Wait

_ROUNDED: Final = 1.0  # seconds by which a reset in whole seconds may be wrong
_FASTER: Final = 2.0  # seconds by which the reset may approach faster than time passes
_DOUBTS: Final = 3.0
_MOST: Final = 8  # maximum number of limits of an account
_SOON: Final = 1e-6


class StatedLimit(NamedTuple):
    """One limit that an answer states."""

    remaining: float
    """The number of requests that still pass."""
    limit: float = 0.0
    """The total number of requests per period. 0: not stated."""
    reset: float | None = None
    """Seconds until the total is available again. None: not stated."""
    refill: float = 0.0
    """Requests added per second, for a bucket. 0: none before *reset*."""
    name: str = ""
    """The name of the limit, if an answer states several."""


class _Policy(NamedTuple):
    """The knowledge of one limit. The state stores it as a list of numbers."""

    limit: float
    remaining: float
    resets_at: float
    refill: float
    at: float  # when *remaining* was last raised or renewed. The answer to a later permit is newer
    doubts: float = 0.0


def hear(estimate: RateEstimate, now: float, permit: Permit, says: Sequence[StatedLimit], *, passed: bool) -> None:
    """Update the estimate by the limits that an answer states."""
    names = {each.name for each in says}
    for name, known in list(estimate.stated.items()):
        if name not in names and now >= _Policy(*known).resets_at:
            del estimate.stated[name]  # the server no longer states it
    for each in says[:_MOST]:
        old = _Policy(*estimate.stated[each.name]) if each.name in estimate.stated else None
        if old is None and len(estimate.stated) >= _MOST:
            continue
        if old is not None and old.doubts >= _DOUBTS:
            continue
        new = _renewed(old, now, permit, each, passed=passed)
        if new is not None:
            estimate.stated[each.name] = list(new)


def wait_for_stated(estimate: RateEstimate, now: float, in_flight: Sequence[float], too_long: float) -> Wait | None:
    """Return the wait while a stated limit is used up. None: an attempt may be sent.

    No call waits longer than *too_long* seconds.
    """
    longest = 0.0
    for known in estimate.stated.values():
        policy = _Policy(*known)
        if policy.doubts >= _DOUBTS or now >= policy.resets_at + _ROUNDED:
            continue
        if now >= policy.resets_at:
            if in_flight and in_flight[-1] >= policy.resets_at:
                longest = max(longest, policy.resets_at + _ROUNDED - now)
            continue
        remaining = policy.remaining + policy.refill * (now - policy.at)
        missing = len(in_flight) + 1 - (min(remaining, policy.limit) if policy.limit else remaining)
        if missing > 0:
            until_reset = policy.resets_at - now
            longest = max(longest, min(missing / policy.refill, until_reset) if policy.refill else until_reset)
    if not longest:
        return None
    if longest > too_long:
        return Wait(longest, blocked=True, too_long=True)
    return Wait(max(longest, _SOON), blocked=False)


def stated_now(estimate: RateEstimate, now: float) -> list[StatedLimit]:
    """Return what remains of the limits that the server states, except the ignored ones."""
    left = []
    for name, known in estimate.stated.items():
        policy = _Policy(*known)
        if policy.doubts < _DOUBTS and now < policy.resets_at:
            remaining = policy.remaining + policy.refill * (now - policy.at)
            remaining = min(remaining, policy.limit) if policy.limit else remaining
            reset = None if policy.refill else policy.resets_at - now
            left.append(StatedLimit(remaining, policy.limit, reset, policy.refill, name))
    return left


def _renewed(old: _Policy | None, now: float, permit: Permit, says: StatedLimit, *, passed: bool) -> _Policy | None:
    """Return the limit after another statement. None: the statement is not usable."""
    reset = LONGEST if says.reset is None and says.refill else says.reset
    if old is None or now >= old.resets_at:
        if not reset:
            return old  # the reset is unknown, or in the past
        # If other clients use the account, nothing may remain after the first attempt, but this does not happen every
        # time.
        empty = passed and not says.remaining and says.limit > 1
        doubts = old.doubts if old is not None else 0.0
        return _Policy(says.limit, says.remaining, now + reset, says.refill, now, doubts + 1 if empty else 0.0)
    resets_at = now + reset if reset else old.resets_at
    if resets_at < old.resets_at - _FASTER:
        return old._replace(doubts=_DOUBTS)
    doubts = old.doubts
    if (passed and not old.remaining and not says.remaining and not says.refill) or (not passed and says.remaining > 0):
        doubts += 1
    elif 0 <= says.remaining < old.remaining:
        doubts = 0.0
    if permit.at < old.at:  # a newer answer was received first
        return old._replace(remaining=min(old.remaining, says.remaining), doubts=doubts)
    if says.remaining <= old.remaining:  # same window: the reset is rounded up, so the earliest one is the most exact
        resets_at = min(resets_at, old.resets_at)
    return _Policy(says.limit, says.remaining, resets_at, says.refill, now, doubts)
