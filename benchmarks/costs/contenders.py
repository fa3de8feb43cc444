"""Who makes the calls: sessions with this and that on top, set up for five sends at most and waits of no time at all.

What is imported is imported inside, so that each process has only its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from benchmarks.costs.providers import meter_provider, tracer_provider

__all__ = ["CONTENDERS", "FAILED", "Call", "Contender", "stamina_retry"]

ATTEMPTS = 5
FAILED = 503
KEYS = {"X-API-KEY": "cost-api-key", "X-ACCOUNT-KEY": "cost-account-key"}

Call = Callable[[str], Awaitable[int]]
"""Make one call to a path, and read the answer; gives its status."""

Connect = Callable[[str, str], AbstractAsyncContextManager[Call]]
"""By the URL of the server and where telemetry goes."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to make calls. `packages` are those whose versions matter."""

    name: str
    packages: tuple[str, ...]
    connect: Connect
    telemetry: str = "none"
    retries: bool = True
    share: float = 1.0
    """Of the calls that the others make: for one that takes so long that fewer have to do."""


def aiohttp_session(url: str, **options: Any) -> aiohttp.ClientSession:
    """A session of aiohttp, the same for all who use one: as many connections as there are calls."""
    return aiohttp.ClientSession(
        url,
        headers=KEYS,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        **options,
    )


def _get(session: Any) -> Call:
    async def call(path: str) -> int:
        async with session.get(path) as response:
            await response.read()
            return int(response.status)

    return call


@asynccontextmanager
async def bare(url: str, _telemetry: str) -> AsyncIterator[Call]:
    """aiohttp by itself."""
    async with aiohttp_session(url) as session:
        yield _get(session)


@asynccontextmanager
async def lamella(url: str, telemetry: str) -> AsyncIterator[Call]:
    """`maesn.session` with all that it has on by default, but for the budget: here every call may be sent again."""
    from lamella import maesn

    async with maesn.session(
        KEYS["X-API-KEY"],
        KEYS["X-ACCOUNT-KEY"],
        url,
        rules=maesn.RULES.scaled(0),
        attempts=ATTEMPTS,
        retry_budget=None,
        connector=aiohttp.TCPConnector(limit=0),
        tracer_provider=tracer_provider(telemetry, export=True),
        meter_provider=meter_provider(telemetry),
    ) as session:
        yield _get(session)


@asynccontextmanager
async def aiohttp_retry(url: str, telemetry: str) -> AsyncIterator[Call]:
    """`ExponentialRetry` from no time on; with contrib's instrumentation where there is telemetry."""
    from aiohttp_retry import ExponentialRetry, RetryClient

    options = ExponentialRetry(attempts=ATTEMPTS, start_timeout=0.0, statuses={FAILED})
    async with RetryClient(aiohttp_session(url, **_instrumented(telemetry)), retry_options=options) as client:
        yield _get(client)


@asynccontextmanager
async def contrib(url: str, telemetry: str) -> AsyncIterator[Call]:
    """OpenTelemetry's own instrumentation of aiohttp."""
    async with aiohttp_session(url, **_instrumented(telemetry)) as session:
        yield _get(session)


def _instrumented(telemetry: str) -> dict[str, Any]:
    """What a session is given for OpenTelemetry's own instrumentation: one span a send."""
    if telemetry == "none":
        return {}
    from opentelemetry.instrumentation.aiohttp_client import create_trace_config

    config = create_trace_config(
        tracer_provider=None if telemetry == "no SDK" else tracer_provider(telemetry, export=True),
        meter_provider=meter_provider(telemetry),
    )
    return {"trace_configs": [config]}


async def stamina_retry(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """stamina's loop as a middleware."""
    import stamina

    async for attempt in stamina.retry_context(
        on=aiohttp.ClientError, attempts=ATTEMPTS, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0
    ):
        with attempt:
            response = await handler(request)
            if response.status == FAILED:
                response.release()
                response.raise_for_status()
            return response
    raise AssertionError("unreachable")


@asynccontextmanager
async def stamina_middleware(url: str, _telemetry: str) -> AsyncIterator[Call]:
    """aiohttp with :func:`stamina_retry`."""
    async with aiohttp_session(url, middlewares=(stamina_retry,)) as session:
        yield _get(session)


@asynccontextmanager
async def redress(url: str, _telemetry: str) -> AsyncIterator[Call]:
    """Its session for aiohttp, with the classifiers that belong to it."""
    from redress import AsyncPolicy, AsyncRetry
    from redress.contrib.aiohttp import AsyncRetryingAiohttpSession, default_result_classifier
    from redress.extras.aiohttp import aiohttp_classifier

    policy = AsyncPolicy(
        retry=AsyncRetry(
            classifier=aiohttp_classifier,
            result_classifier=default_result_classifier,
            strategy=lambda _context: 0.0,
            max_attempts=ATTEMPTS,
            deadline_s=3600.0,
        )
    )
    async with AsyncRetryingAiohttpSession(aiohttp_session(url), policy) as session:

        async def call(path: str) -> int:
            async with await session.get(path) as response:
                await response.read()
                return int(response.status)

        yield call


@asynccontextmanager
async def httpx_retries(url: str, _telemetry: str) -> AsyncIterator[Call]:
    """`RetryTransport` on httpx."""
    import httpx
    from httpx_retries import Retry, RetryTransport

    retry = Retry(total=ATTEMPTS - 1, backoff_factor=0, status_forcelist=[FAILED])
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    transport = RetryTransport(httpx.AsyncHTTPTransport(limits=limits), retry=retry)
    async with httpx.AsyncClient(transport=transport, base_url=url, headers=KEYS, timeout=60.0) as client:

        async def call(path: str) -> int:
            return int((await client.get(path)).status_code)

        yield call


_CONTRIB = "opentelemetry-instrumentation-aiohttp-client"
_BOTH = "contrib and aiohttp-retry"

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("aiohttp", ("aiohttp",), bare, retries=False),
        Contender("lamella", ("lamella", "stamina", "opentelemetry-api"), lamella),
        Contender("lamella, sampled out", ("lamella",), lamella, "sampled out"),
        Contender("lamella, recorded", ("lamella", "opentelemetry-sdk"), lamella, "recorded"),
        Contender("lamella, recorded, metrics too", ("lamella",), lamella, "recorded, metrics too"),
        Contender("aiohttp-retry", ("aiohttp-retry",), aiohttp_retry),
        Contender("stamina as a middleware", ("stamina",), stamina_middleware),
        Contender("redress", ("redress",), redress),
        Contender("httpx-retries", ("httpx-retries", "httpx"), httpx_retries, share=0.1),
        Contender("contrib without an SDK", (_CONTRIB,), contrib, "no SDK", retries=False),
        Contender("contrib, recorded", (_CONTRIB,), contrib, "recorded", retries=False),
        Contender(f"{_BOTH}, recorded", (_CONTRIB,), aiohttp_retry, "recorded"),
        Contender(f"{_BOTH}, recorded, metrics too", (_CONTRIB,), aiohttp_retry, "recorded, metrics too"),
    )
}
