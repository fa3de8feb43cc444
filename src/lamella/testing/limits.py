"""Rate limits of a server: how many requests it admits, and for how long it rejects others.

A limit (`FixedWindow`, `SlidingWindow`, `TokenBucket`) is a value; its `limiter()` is the state of one account.
A limiter has no clock: the time is an argument, so that a test can be exactly on a boundary.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from lamella.checks import check_number, check_seconds, check_whole

RetryAfter = bool | Literal["date"]
"""Whether a 429 has a Retry-After header: True in whole seconds, "date" as an HTTP date, False not at all."""


class Limiter(Protocol):
    """The state of one limit for one account."""

    def allow(self, now: float) -> float:
        """Admit a request at `now` (monotonic seconds) and return 0, or reject it and return the seconds to wait.

        A request that comes exactly that much later is admitted, unless others took its place. A rejected one does
        not count against the limit.
        """
        ...


class Limit(Protocol):
    """What a server needs of a limit: implement it for another kind of limit."""

    @property
    def retry_after(self) -> RetryAfter:
        """The form of the Retry-After header of a 429."""
        ...

    def limiter(self) -> Limiter:
        """Return a fresh state, for one account."""
        ...


@dataclass(frozen=True, slots=True)
class _Window:
    requests: int
    per: float
    retry_after: RetryAfter = True

    def __post_init__(self) -> None:
        check_whole("requests", self.requests)
        check_seconds("per", self.per)
        _check_retry_after(self.retry_after)


@dataclass(frozen=True, slots=True)
class FixedWindow(_Window):
    """`requests` in each window of `per` seconds.

    A window opens with the first request after the last window has ended, and ends `per` seconds later, as the
    expiring counter of most gateways does. A burst around the boundary can have 2 x `requests`.

    Raises ValueError for a `requests` below 1 or a `per` that is not above 0.
    """

    def limiter(self) -> Limiter:
        """Return a fresh state, for one account."""
        return _FixedWindowLimiter(self)


@dataclass(frozen=True, slots=True)
class SlidingWindow(_Window):
    """`requests` in any `per` seconds: no burst over a boundary.

    Raises ValueError for a `requests` below 1 or a `per` that is not above 0.
    """

    def limiter(self) -> Limiter:
        """Return a fresh state, for one account."""
        return _SlidingWindowLimiter(self)


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket of `burst` tokens, full at first, refilled with `rate` tokens a second; a request takes one.

    Raises ValueError for a `rate` that is not above 0 or a `burst` below 1.
    """

    rate: float
    burst: int = 1
    retry_after: RetryAfter = True

    def __post_init__(self) -> None:
        check_number("rate", self.rate, 0, above=True)
        check_whole("burst", self.burst)
        _check_retry_after(self.retry_after)

    def limiter(self) -> Limiter:
        """Return a fresh state, for one account."""
        return _TokenBucketLimiter(self)


class _FixedWindowLimiter:
    def __init__(self, limit: FixedWindow) -> None:
        self._limit = limit
        self._ends = -math.inf
        self._admitted = 0

    def allow(self, now: float) -> float:
        if now >= self._ends:
            self._ends = now + self._limit.per
            self._admitted = 0
        if self._admitted < self._limit.requests:
            self._admitted += 1
            return 0.0
        return _until(self._ends, now)


class _SlidingWindowLimiter:
    def __init__(self, limit: SlidingWindow) -> None:
        self._limit = limit
        self._frees: deque[float] = deque()  # when each place that is taken becomes free again

    def allow(self, now: float) -> float:
        while self._frees and now >= self._frees[0]:
            self._frees.popleft()
        if len(self._frees) < self._limit.requests:
            self._frees.append(now + self._limit.per)
            return 0.0
        return _until(self._frees[0], now)


class _TokenBucketLimiter:
    """The bucket as a whole number, the tokens taken since it was last full: no fraction of a token to round."""

    def __init__(self, limit: TokenBucket) -> None:
        self._limit = limit
        self._full_at = -math.inf
        self._taken = 0

    def allow(self, now: float) -> float:
        rate, burst = self._limit.rate, self._limit.burst
        if now >= self._full_at + self._taken / rate:
            self._full_at = now
            self._taken = 0
        if self._taken >= burst:
            refilled_at = self._full_at + (self._taken + 1 - burst) / rate
            if now < refilled_at:
                return _until(refilled_at, now)
        self._taken += 1
        return 0.0


def _until(moment: float, now: float) -> float:
    """Return the seconds from `now` to `moment`, never a rounding error too few."""
    wait = moment - now
    while now + wait < moment:
        wait = math.nextafter(wait, math.inf)
    return wait


def _check_retry_after(value: object) -> None:
    if not (isinstance(value, bool) or value == "date"):
        raise ValueError(f'retry_after must be True, False or "date", got {value!r}')
