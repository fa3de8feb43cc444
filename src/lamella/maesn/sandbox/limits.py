"""Enforce the limits of a sandbox: several at once, and a block after too many errors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from lamella.maesn.published.systems import COUNTED_ERRORS, Quota
from lamella.maesn.sandbox.choices import BLOCKED_FOR
from lamella.testing.limits import Limit, Limiter, RetryAfter

_HOUR = 3600.0
_Key = tuple[Quota, *tuple[str, ...]]


class Where(NamedTuple):
    """The account and path that a request counts against. `account` None: the request concerns no account."""

    account: str | None
    path: str


class Limits:
    """All limits of a sandbox.

    - `own`: the rate limit of each account, by its key. None: no limit.
    - `quotas`: further limits that apply at the same time.
    - `errors_an_hour`: how many errors on one path block the account there. None: no block.
    """

    def __init__(self, own: dict[str, Limit | None], quotas: Iterable[Quota], errors_an_hour: int | None) -> None:
        self._own = own
        self._limiters: dict[str, Limiter] = {}
        self._quotas = tuple(quotas)
        self._most_errors = errors_an_hour
        self._counted: dict[_Key, deque[float]] = {}
        self._under_way: dict[_Key, int] = {}
        self._errors: dict[Where, deque[float]] = {}
        self._blocked: dict[Where, float] = {}
        self.blocks: int = 0

    def replace(self, limit: Limit | None, keys: Iterable[str]) -> None:
        """Replace the rate limit of some accounts and restart their count."""
        for key in keys:
            self._own[key] = limit
            self._limiters.pop(key, None)

    def admit(self, where: Where, now: float) -> tuple[float, RetryAfter] | None:
        """Count a request, or return for how many seconds it is refused (inf: unknown) and whether the response says
        so.

        A refused request does not count.
        """
        if wait := self._wait(where, now):
            return wait, wait < math.inf
        if where.account is not None and (limit := self._own.get(where.account)) is not None:
            limiter = self._limiters.get(where.account)
            if limiter is None:
                limiter = self._limiters[where.account] = limit.limiter()
            if (wait := limiter.allow(now)) > 0:
                return wait, limit.retry_after
        for quota in self._quotas:
            key = _key(quota, where)
            if key is not None and quota.seconds is None:
                self._under_way[key] = self._under_way.get(key, 0) + 1
            elif key is not None:
                self._counted.setdefault(key, deque(maxlen=quota.requests)).append(now)
        return None

    def _wait(self, where: Where, now: float) -> float:
        longest = 0.0
        for quota in self._quotas:
            key = _key(quota, where)
            if key is None:
                continue
            if quota.seconds is None:
                longest = math.inf if self._under_way.get(key, 0) >= quota.requests else longest
                continue
            counted = self._counted.get(key)
            if counted is not None and len(counted) >= quota.requests and now - counted[0] < quota.seconds:
                longest = max(longest, quota.seconds - (now - counted[0]))
        return longest

    def end(self, where: Where) -> None:
        """Record that a counted request has been answered."""
        for quota in self._quotas:
            key = _key(quota, where)
            if key is not None and quota.seconds is None:
                self._under_way[key] -= 1

    def blocked(self, where: Where, now: float) -> bool:
        """Return whether the account is blocked on this path."""
        return now < self._blocked.get(where, -math.inf)

    def answered(self, where: Where, status: int, now: float) -> None:
        """Count a response if it is an error, and block the account on the path after too many."""
        if self._most_errors is None or where.account is None or status not in COUNTED_ERRORS:
            return
        errors = self._errors.setdefault(where, deque(maxlen=self._most_errors + 1))
        errors.append(now)
        if len(errors) > self._most_errors and now - errors[0] < _HOUR:
            self.blocks += not self.blocked(where, now)
            self._blocked[where] = now + BLOCKED_FOR


def _key(quota: Quota, where: Where) -> _Key | None:
    """Return the key by which a quota counts a request; None if the quota does not apply."""
    if quota.per == "integrator":
        return (quota,)
    if where.account is None:
        return None
    return (quota, where.account) if quota.per == "account" else (quota, where.account, where.path)
