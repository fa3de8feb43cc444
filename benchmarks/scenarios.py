"""What the contenders go through: plain values. Another scenario is one more entry in `scenarios`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.server import Changing

from lamella.testing import FixedWindow, Limit, SlidingWindow, TokenBucket

__all__ = ["Crowd", "Outage", "Scenario", "scenarios"]

LATENCY = 0.02
AT_ONCE = 500
AT_ONCE_OF_MANY = 32
PERIOD_OF_MANY = 4.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """The calls of one account: `at_once` at a time, each followed by the next; or `rate` a second, come what may."""

    calls: int
    limit: Limit | None = None
    at_once: int = AT_ONCE
    rate: float | None = None

    def arrival(self, number: int) -> float:
        """When a call (from 0) is there to be sent at the earliest, in seconds from the start."""
        return number / self.rate if self.rate else 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """From `start` to `end`, in seconds from the first request, every answer is a 500."""

    start: float
    end: float

    def covers(self, moment: float) -> bool:
        """Whether the server is down at a moment, in seconds from the first request."""
        return self.start <= moment < self.end


@dataclass(frozen=True, slots=True)
class Scenario:
    """One storm. `errors` is the chance of a random 500, `refusals` that of a random 429, `deadline` how many seconds a
    call may take in all.

    `refusal` is the status of a request beyond the limit, `states` whether each answer has X-RateLimit-*. `paths`: the
    crowds are those of the paths of one account, and not of accounts. `points`: a request takes 1 to 9 of the limit.
    `stated`: whether lamella has `scope=` or `cost=` then.

    `name` is for the command line, `title` for the plot, where room is short, `about` for the page.
    """

    name: str
    title: str
    about: str
    crowds: tuple[Crowd, ...]
    errors: float = 0.0
    refusals: float = 0.0
    outage: Outage | None = None
    deadline: float | None = None
    wait: float = 1.0
    latency: float = LATENCY
    refusal: int = 429
    states: bool = False
    paths: bool = False
    points: bool = False
    stated: bool = True

    def costs(self) -> Iterator[int]:
        """The points of each request, in the order in which they are made."""
        draw = random.Random(1)
        while True:
            yield draw.randint(1, 9) if self.points else 1

    @property
    def calls(self) -> int:
        """How many calls all accounts make."""
        return sum(crowd.calls for crowd in self.crowds)

    @property
    def peaceful(self) -> bool:
        """Whether nothing is refused, and nothing fails."""
        return not (self.limited or self.errors or self.refusals or self.outage)

    @property
    def limited(self) -> bool:
        """Whether there is a rate limit."""
        return any(crowd.limit is not None for crowd in self.crowds)


def scenarios(*, quick: bool = False) -> tuple[Scenario, ...]:
    """All of them, in the order of the report. `quick`: a quarter as long, to try something out."""
    windows, many_windows = (5, 3) if quick else (20, 12)
    calls = 100 * windows
    fixed = FixedWindow(100, 1.0, retry_after=False)
    half = FixedWindow(50, 1.0, retry_after=False)
    halved_after = windows * 2 // 5
    outage = Outage(windows / 4, windows * 3 / 4)

    def alone(name: str, title: str, about: str, limit: Limit, errors: float = 0.0, **more: Any) -> Scenario:
        about += f" {calls:,} calls, {AT_ONCE} at a time."
        return Scenario(name, title, about, (Crowd(calls, limit),), errors, **more)

    return (
        alone("fixed", "Fixed window", "100 requests in each second.", fixed),
        alone(
            "fixed-retry-after",
            "Fixed window, Retry-After",
            "100 requests in each second, and a 429 says how many seconds to wait.",
            FixedWindow(100, 1.0, retry_after=True),
        ),
        alone(
            "sliding",
            "Sliding window",
            "100 requests in any second that one may pick.",
            SlidingWindow(100, 1.0, retry_after=False),
        ),
        alone(
            "bucket",
            "Token bucket, burst 100",
            "100 requests at once, and 100 more a second.",
            TokenBucket(100, 100, retry_after=False),
        ),
        alone(
            "halved",
            f"Limit halved after {halved_after} s",
            f"100 requests in each second, and 50 from {halved_after} s after the first one on.",
            Changing(fixed, half, halved_after),
        ),
        alone(
            "errors",
            "5 % random 500s",
            "100 requests in each second; of those that are let in, 5 % end in a 500.",
            fixed,
            errors=0.05,
        ),
        Scenario(
            "chance",
            "2 % random 429s",
            f"No limit; 2 % of all requests are refused by chance. {calls:,} calls, {AT_ONCE} at a time. In the "
            "ideal time none is.",
            (Crowd(calls),),
            refusals=0.02,
        ),
        Scenario(
            "in-flight",
            "10 in flight",
            "A request is refused while 10 others are in flight; an answer takes 0.05 s. "
            f"{calls:,} calls, {AT_ONCE} at a time.",
            # Each request that is let in is in flight for as long as its answer takes.
            (Crowd(calls, SlidingWindow(10, 0.05, retry_after=False)),),
            latency=0.05,
        ),
        alone(
            "unavailable",
            "503, Retry-After",
            "100 requests in each second; any other is answered with 503, and how many seconds to wait.",
            FixedWindow(100, 1.0, retry_after=True),
            refusal=503,
        ),
        alone(
            "stated",
            "X-RateLimit-*",
            "100 requests in each second, and each answer says what is left.",
            fixed,
            states=True,
        ),
        Scenario(
            "paths",
            "A limit for each of four paths",
            "100 requests in each second for each of four paths of one account; lamella has `scope=`. "
            f"{calls:,} calls for each, {AT_ONCE // 4} at a time.",
            (Crowd(calls, fixed, AT_ONCE // 4),) * 4,
            paths=True,
        ),
        alone(
            "points",
            "Points, stated",
            "500 points in each second, a request takes 1 to 9; lamella has `cost=`.",
            FixedWindow(500, 1.0, retry_after=False),
            points=True,
        ),
        alone(
            "points-not-stated",
            "Points, not stated",
            "500 points in each second, a request takes 1 to 9.",
            FixedWindow(500, 1.0, retry_after=False),
            points=True,
            stated=False,
        ),
        Scenario(
            "unlimited",
            "No limit, slow answers",
            "No limit; an answer takes a second. 100 calls at once.",
            (Crowd(100),),
            latency=1.0,
        ),
        Scenario(
            "quick",
            "No limit, quick answers",
            "No limit; 1,000 calls, 500 at a time. What each takes beyond the ideal time is its own, and aiohttp's.",
            (Crowd(1000),),
        ),
        Scenario(
            "accounts",
            f"50 accounts, 12 to 100 in {PERIOD_OF_MANY:g} s",
            "Each account has a limit of its own, a fixed window, a sliding one or a bucket, of 12 to 100 requests in "
            f"{PERIOD_OF_MANY:g} seconds, and calls for {many_windows} times that, {AT_ONCE_OF_MANY} at a time. All "
            "run at once. All waits are four times as long, as the periods are: with two seconds, two cores were too "
            "busy at the beginning of each period.",
            many_accounts(many_windows),
            wait=PERIOD_OF_MANY,
        ),
        Scenario(
            "outage",
            f"Outage of {outage.end - outage.start:g} s",
            f"No limit; 100 calls a second for {windows} s, whatever becomes of them; from {outage.start:g} to "
            f"{outage.end:g} s every answer is a 500. A call may take {windows * 1.5:g} s, where that can be said.",
            (Crowd(calls, rate=100),),
            outage=outage,
            deadline=windows * 1.5,
        ),
    )


def many_accounts(windows: int) -> tuple[Crowd, ...]:
    """50 accounts, each with calls for so many periods: most are small, and all three kinds of limit are among them."""
    rates = [12] * 30 + [16] * 12 + [24] * 5 + [40] * 2 + [100]
    return tuple(
        Crowd(windows * rate, limit, AT_ONCE_OF_MANY)
        for rate, limit in zip(rates, map(_limit, range(len(rates)), rates), strict=True)
    )


def _limit(number: int, rate: int) -> Limit:
    return (
        FixedWindow(rate, PERIOD_OF_MANY, retry_after=False),
        SlidingWindow(rate, PERIOD_OF_MANY, retry_after=False),
        TokenBucket(rate / PERIOD_OF_MANY, rate, retry_after=False),
    )[number % 3]
