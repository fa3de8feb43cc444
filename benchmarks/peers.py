"""The contenders, each as its own documentation sets it up for this purpose: five sends at most, a second at first.

The report prints these functions as the configuration. All of them keep a session open, send the same request, and
count as a success what ends with a 200. What is imported is imported inside, so that each process has only its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from benchmarks.server import API_KEY, account_key, path_of

__all__ = ["CONTENDERS", "Call", "Contender", "Place"]

ATTEMPTS = 5

Call = Callable[[int], Awaitable[int]]
"""Make one call for an account, whatever it takes; gives the status in the end, or raises."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to send the calls, and how many seconds each may take (None: as many as it likes)."""

    url: str
    deadline: float | None = None
    wait: float = 1.0
    paths: bool = False
    costs: Iterator[int] | None = None
    stated: bool = True

    def path(self, number: int) -> str:
        """The path of the calls of a crowd."""
        return f"{path_of(number if self.paths else 0)}?limit=5"

    def headers(self, number: int) -> dict[str, str]:
        """What says for whom a request is, and how many points it takes."""
        key = {"X-ACCOUNT-KEY": account_key(0 if self.paths else number)}
        return key if self.costs is None else {**key, "X-Points": str(next(self.costs))}


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to make calls. `packages` are those whose versions matter."""

    name: str
    packages: tuple[str, ...]
    connect: Callable[[Place], AbstractAsyncContextManager[Call]]


def aiohttp_session(place: Place, **options: Any) -> aiohttp.ClientSession:
    """A session of aiohttp, the same for all who use one: as many connections as there are calls."""
    return aiohttp.ClientSession(
        place.url, headers={"X-API-KEY": API_KEY}, connector=aiohttp.TCPConnector(limit=0), **options
    )


@asynccontextmanager
async def lamella(place: Place) -> AsyncIterator[Call]:
    """`lamella.stack` with its defaults, and `account=`. The rules are Maesn's, scaled."""
    from lamella import Backoff, Rule, RuleBook, stack

    rules = RuleBook(
        Rule(429, "Too Many Requests", retry=Backoff(initial=place.wait)),
        Rule(500, "Internal Server Error", retry=Backoff(initial=(0.15, 0.30))),
        Rule(503, "Service Unavailable", retry=Backoff(initial=place.wait)),
    )
    layers = stack(
        rules,
        attempts=ATTEMPTS,
        deadline=place.deadline,
        account=lambda request: request.headers["X-ACCOUNT-KEY"],
        scope=(lambda request: request.url.path) if place.paths and place.stated else None,
        cost=(lambda request: float(request.headers["X-Points"])) if place.costs and place.stated else None,
    )
    # The total of a session would include the waits: lamella has limits of its own.
    async with aiohttp_session(place, middlewares=layers, timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def call(account: int) -> int:
            async with session.get(place.path(account), headers=place.headers(account)) as response:
                await response.read()
                return response.status

        yield call


@asynccontextmanager
async def aiohttp_retry(place: Place) -> AsyncIterator[Call]:
    """`JitterRetry`, which has neither Retry-After nor a deadline."""
    from aiohttp_retry import JitterRetry, RetryClient

    # It doubles before the first wait, too: from half a second comes one, and up to 4 s of jitter on top.
    options = JitterRetry(
        attempts=ATTEMPTS, start_timeout=place.wait / 2, random_interval_size=2.0 * place.wait, statuses={429}
    )
    async with RetryClient(aiohttp_session(place), retry_options=options) as client:

        async def call(account: int) -> int:
            async with client.get(place.path(account), headers=place.headers(account)) as response:
                await response.read()
                return int(response.status)

        yield call


@asynccontextmanager
async def stamina_loop(place: Place) -> AsyncIterator[Call]:
    """The loop of stamina's tutorial around a plain session; a hook tells it what to retry, and of Retry-After."""
    import stamina

    def retryable(error: Exception) -> bool | float:
        if not isinstance(error, aiohttp.ClientResponseError):
            return isinstance(error, aiohttp.ClientError)
        seconds = error.headers.get("Retry-After") if error.headers else None
        return float(seconds) if seconds else error.status == 429 or error.status >= 500

    async with aiohttp_session(place, raise_for_status=True) as session:

        async def call(account: int) -> int:
            async for attempt in stamina.retry_context(
                retryable,
                attempts=ATTEMPTS,
                timeout=place.deadline,
                wait_initial=place.wait,
                wait_max=30.0,
                wait_jitter=place.wait,
            ):
                with attempt:
                    async with session.get(place.path(account), headers=place.headers(account)) as response:
                        await response.read()
                        return response.status
            raise AssertionError("unreachable")

        yield call


@asynccontextmanager
async def redress(place: Place) -> AsyncIterator[Call]:
    """Its session for aiohttp, with the classifiers that belong to it."""
    from redress import AsyncPolicy, AsyncRetry
    from redress.contrib.aiohttp import AsyncRetryingAiohttpSession, default_result_classifier
    from redress.extras.aiohttp import aiohttp_classifier
    from redress.strategies import equal_jitter, retry_after_or

    # The exponential one of its strategies: from 1 to 2 s, doubling. Its default, decorrelated jitter, loses more.
    policy = AsyncPolicy(
        retry=AsyncRetry(
            classifier=aiohttp_classifier,
            result_classifier=default_result_classifier,
            strategy=retry_after_or(equal_jitter(base_s=place.wait, max_s=30.0)),
            max_attempts=ATTEMPTS,
            deadline_s=place.deadline or 3600.0,
        )
    )
    async with AsyncRetryingAiohttpSession(aiohttp_session(place), policy) as session:

        async def call(account: int) -> int:
            async with await session.get(place.path(account), headers=place.headers(account)) as response:
                await response.read()
                return int(response.status)

        yield call


@asynccontextmanager
async def httpx_retries(place: Place) -> AsyncIterator[Call]:
    """`RetryTransport`, with half its default jitter."""
    import httpx
    from httpx_retries import Retry, RetryTransport

    # From 1 to 2 s, doubling. Full jitter, its default, could wait no time at all after a 429, and loses more.
    retry = Retry(
        total=ATTEMPTS - 1,  # it counts retries
        backoff_factor=place.wait,
        backoff_jitter=0.5,
        status_forcelist=[429, 500, 502, 503, 504],
        total_timeout=place.deadline,
    )
    # With hundreds of calls at a time the pool of httpcore takes a second of CPU for a few dozen requests
    # (encode/httpcore#1035), and nothing else would be to be seen. With a connection for each it is ten times faster.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    transport = RetryTransport(httpx.AsyncHTTPTransport(limits=limits), retry=retry)
    async with httpx.AsyncClient(
        transport=transport, base_url=place.url, headers={"X-API-KEY": API_KEY}, timeout=60.0
    ) as client:

        async def call(account: int) -> int:
            response = await client.get(place.path(account), headers=place.headers(account))
            return int(response.status_code)

        yield call


@asynccontextmanager
async def bare(place: Place) -> AsyncIterator[Call]:
    """aiohttp alone, which tries nothing again: to compare with where nothing is refused."""
    async with aiohttp_session(place) as session:

        async def call(account: int) -> int:
            async with session.get(place.path(account), headers=place.headers(account)) as response:
                await response.read()
                return response.status

        yield call


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("lamella", ("lamella", "aiohttp", "stamina"), lamella),
        Contender("aiohttp-retry", ("aiohttp-retry", "aiohttp"), aiohttp_retry),
        Contender("stamina", ("stamina", "aiohttp"), stamina_loop),
        Contender("redress", ("redress", "aiohttp"), redress),
        Contender("aiohttp", ("aiohttp",), bare),
        Contender("httpx-retries", ("httpx-retries", "httpx"), httpx_retries),
    )
}
