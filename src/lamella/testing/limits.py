"""Rate limits of a server: how many requests it admits, and for how long it rejects others.

A limit (`FixedWindow`, `SlidingWindow`, `TokenBucket`) is a value; its `limiter()` is the state of one account.
A limiter has no clock: the time is an argument, so that a test can hit a boundary exactly.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from lamella.checks import check_number, check_seconds, check_whole

RetryAfter = bool | Literal["date"]
"""The Retry-After header of a 429: True for whole seconds, "date" for an HTTP date, False for none."""


class Limiter(Protocol):
    """The state of one limit for one account."""

    def allow(self, now: float) -> float:
        """Admit a request at `now` (monotonic seconds) and return 0, or reject it and return the seconds to wait.

        A request exactly that much later is admitted, unless others came first. A rejected one does not count against
        the limit.
        """
        ...


class Limit(Protocol):
    """Protocol of a limit; implement it for other kinds of limits."""

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

    A window opens with the first request after the last window ended and lasts `per` seconds, like the expiring counter
    of most gateways. A burst around the boundary can have 2 x `requests`.

    Raises ValueError if `requests` is below 1 or `per` is not above 0.
    """

    def limiter(self) -> Limiter:
        """Return a fresh state, for one account."""
        return _FixedWindowLimiter(self)


@dataclass(frozen=True, slots=True)
class SlidingWindow(_Window):
    """`requests` in any `per` seconds: no burst around a boundary.

    Raises ValueError if `requests` is below 1 or `per` is not above 0.
    """

    def limiter(self) -> Limiter:
        """Return a fresh state, for one account."""
        return _SlidingWindowLimiter(self)


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket of `burst` tokens, initially full, refilled with `rate` tokens per second; a request takes one.

    Raises ValueError if `rate` is not above 0 or `burst` is below 1.
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
        self._frees: deque[float] = deque()  # when each used slot becomes free again

    def allow(self, now: float) -> float:
        while self._frees and now >= self._frees[0]:
            self._frees.popleft()
        if len(self._frees) < self._limit.requests:
            self._frees.append(now + self._limit.per)
            return 0.0
        return _until(self._frees[0], now)


class _TokenBucketLimiter:
    """The state of a token bucket: whole tokens taken since it was last full, so that no fractions are rounded."""

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
    """Return the seconds from `now` to `moment`, never too few by a rounding error."""
    wait = moment - now
    while now + wait < moment:
        wait = math.nextafter(wait, math.inf)
    return wait


def _check_retry_after(value: object) -> None:
    if not (isinstance(value, bool) or value == "date"):
        raise ValueError(f'retry_after must be True, False or "date", got {value!r}')
