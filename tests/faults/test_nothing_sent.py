"""Attempts that time out before their request is sent: in the pool, during DNS, connect, TLS handshake or CONNECT."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pytest
from tests.faults.catalogue import Names
from tests.faults.certificates import HOST, client_context
from tests.faults.wire import Line, Route, Wire, full_backlog
from tests.layering import together
from tests.sdk import Tracing

from lamella import (
    AttemptTimeout,
    Backoff,
    Breaker,
    Buffer,
    CircuitOpen,
    Classify,
    ConnectFailed,
    Failure,
    LamellaError,
    Retry,
    RetryBudget,
    Rule,
    RuleBook,
    StopReason,
    Timeout,
    stack,
)
from lamella.batch import Batch, ItemOutcome
from lamella.testing import VirtualClock

Layers = tuple[aiohttp.ClientMiddlewareType, ...]

SOON: Final = Backoff(initial=1, factor=1, jitter=0)
RULES: Final = RuleBook(
    Rule(Failure.CONNECT_FAILED, "Connection Failed", retry=SOON),
    Rule(Failure.ATTEMPT_TIMEOUT, "Timeout", retry=SOON),
)
BODY: Final = b"abc" * 10


@dataclass
class Place:
    """Where an attempt is kept waiting."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    """For the connector."""
    request: dict[str, Any] = field(default_factory=dict)
    """For the request."""
    in_pool: bool = False

    @asynccontextmanager
    async def session(self, layers: Layers = (), **limits: float | None) -> AsyncIterator[aiohttp.ClientSession]:
        """Open a session with *limits*. If the place is the pool, its only connection is in use."""
        connector = aiohttp.TCPConnector(ssl=client_context(), **self.options)
        given: dict[str, Any] = {"total": None, "sock_connect": None, **limits}
        timeout = aiohttp.ClientTimeout(**given)
        async with AsyncExitStack() as stack:
            if self.in_pool:
                # From another session with the same pool, so that the layers do not count it.
                other = aiohttp.ClientSession(
                    connector=connector, connector_owner=False, timeout=aiohttp.ClientTimeout()
                )
                await stack.enter_async_context(other)
                holding = asyncio.create_task(other._request("GET", f"{self.url}/hold"))
                stack.callback(holding.cancel)
                await asyncio.sleep(0.1)
            client = aiohttp.ClientSession(connector=connector, middlewares=layers, timeout=timeout)
            yield await stack.enter_async_context(client)


@asynccontextmanager
async def served(wire: Wire) -> AsyncIterator[Wire]:
    wire.listen()
    wire.begin(always=True)
    try:
        yield wire
    finally:
        await wire.end()
        await wire.close()


async def silent(line: Line) -> None:
    await line.silence()


async def silent_after_connect(line: Line) -> None:
    await line.open()
    await line.read_head()
    await line.silence()


async def holds(line: Line) -> None:
    """Answer at once, or after 1.5 s for the path /hold."""
    await line.request()
    if b"/hold" in line.head:
        await asyncio.sleep(1.5)
    line.answer(200, b"done")


async def never(line: Line) -> None:
    await line.request()
    await line.silence()


PLACES: Final = ("pool", "pool of the host", "name", "connect", "handshake", "CONNECT", "handshake in the tunnel")


@asynccontextmanager
async def waiting_at(name: str) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        if name.startswith("pool"):
            wire = await stack.enter_async_context(served(Wire(play=never)))
            limit = {"limit": 1} if name == "pool" else {"limit_per_host": 1}
            yield Place(f"http://127.0.0.1:{wire.port}", options=limit, in_pool=True)
        elif name == "name":
            yield Place(f"http://{HOST}", options={"resolver": Names(silent=True)})
        elif name == "connect":
            if not sys.platform.startswith("linux"):
                pytest.skip("elsewhere what comes to a full backlog is refused")
            yield Place(f"http://127.0.0.1:{stack.enter_context(full_backlog())}")
        elif name == "handshake":
            wire = await stack.enter_async_context(served(Wire(Route.TLS, greet=silent)))
            yield Place(f"https://127.0.0.1:{wire.port}")
        else:
            tunnel = silent_after_connect if name == "CONNECT" else _silent_in_the_tunnel
            wire = await stack.enter_async_context(served(Wire(Route.TUNNEL, greet=tunnel)))
            yield Place(f"https://{HOST}", request={"proxy": f"http://127.0.0.1:{wire.port}"})


async def _silent_in_the_tunnel(line: Line) -> None:
    await line.open()
    await line.read_head()
    line.send(b"HTTP/1.1 200 Connected\r\n\r\n")
    await line.silence()


async def stream(begun: list[str]) -> AsyncIterator[bytes]:
    begun.append("begun")
    yield BODY


Make = Callable[[], Layers]
# Layers, and limits of the session, that end an attempt after 1 s.
LIMITS: Final[dict[str, tuple[Make, dict[str, float]]]] = {
    "connect, Classify": (lambda: (Classify(RULES),), {"connect": 1}),
    "connect, Buffer and Classify": (lambda: (Buffer(), Classify(RULES)), {"connect": 1}),
    "connect, Retry": (lambda: (Retry(RULES, attempts=1),), {"connect": 1}),
    "connect, all": (lambda: stack(RULES, attempts=1), {"connect": 1}),
    "Timeout": (lambda: (Timeout(1),), {}),
    "Timeout and Classify": (lambda: (Timeout(1), Classify(RULES)), {}),
    "Retry and Timeout": (lambda: (Retry(RULES, attempts=1), Timeout(1)), {}),
    "Timeout, all": (lambda: stack(RULES, attempts=1, attempt_timeout=1), {}),
    "Timeout, all as one": (lambda: (together(stack(RULES, attempts=1, attempt_timeout=1)),), {}),
    "a deadline, Retry": (lambda: (Retry(RULES, deadline=1),), {}),
    "a deadline, all": (lambda: stack(RULES, deadline=1), {}),
    "a deadline, all as one": (lambda: (together(stack(RULES, deadline=1)),), {}),
    "total, Retry": (lambda: (Retry(RULES),), {"total": 1.05}),
    "total, all": (lambda: stack(RULES), {"total": 1.05}),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("place", PLACES)
async def test_an_attempt_that_takes_too_long_to_connect_was_not_sent(
    place: str, limit: str, virtual_time: VirtualClock
) -> None:
    make, limits = LIMITS[limit]
    begun: list[str] = []
    async with waiting_at(place) as where, where.session(make(), **limits) as session:
        with pytest.raises(ConnectFailed) as caught:
            await session.post(where.url, data=stream(begun), **where.request)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert isinstance(error, aiohttp.ClientConnectionError)
    assert error.outcome is error.rule.status is Failure.CONNECT_FAILED
    assert error.in_pool is where.in_pool  # type: ignore[attr-defined]
    assert ("waiting for a free connection in the pool" in str(error)) is where.in_pool
    if "deadline" in limit or "total" in limit:
        assert error.stopped is StopReason.DEADLINE
        assert len(error.attempts) == 1
    assert begun == []
    assert virtual_time.elapsed < 2


@pytest.mark.parametrize("layers", [(), (Classify(RULES),), (Timeout(60),)], ids=["bare", "Classify", "Timeout"])
async def test_without_retry_a_total_timeout_in_the_pool_is_aiohttps_error(
    layers: Layers, virtual_time: VirtualClock
) -> None:
    """aiohttp raises it outside of all layers."""
    async with waiting_at("pool") as where, where.session(layers, total=1) as session:
        with pytest.raises(TimeoutError) as caught:
            await session.get(where.url)
    assert not isinstance(caught.value, LamellaError)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("limit", ["connect", "sock_connect"])
async def test_aiohttp_timeouts_that_do_not_apply_end_nothing(
    place: str, limit: str, virtual_time: VirtualClock
) -> None:
    async with waiting_at(place) as where, where.session((Classify(RULES),), **{limit: 1}) as session:
        counts = limit == "connect" or place in {"connect", "handshake", "handshake in the tunnel"}
        with pytest.raises(ConnectFailed if counts else TimeoutError) as caught:
            async with asyncio.timeout(10):
                await session.get(where.url, **where.request)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, LamellaError) is counts


AGAIN: Final[dict[str, tuple[Make, dict[str, float]]]] = {
    "connect, Retry": (lambda: (Retry(RULES),), {"connect": 1}),
    "connect, Retry and Classify": (lambda: (Retry(RULES), Classify(RULES)), {"connect": 1}),
    "connect, all as one": (lambda: (together(stack(RULES)),), {"connect": 1}),
    "Timeout, Retry": (lambda: (Retry(RULES), Timeout(1)), {}),
    "Timeout, Retry and a deadline": (lambda: (Retry(RULES, deadline=100), Timeout(1), Buffer()), {}),
    "Timeout, all": (lambda: stack(RULES, attempt_timeout=1), {}),
    "Timeout, all as one": (lambda: (together(stack(RULES, attempt_timeout=1)),), {}),
}


@pytest.mark.sampled
@pytest.mark.parametrize("limit", AGAIN)
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "stream"])
async def test_an_attempt_queued_in_the_pool_is_sent_when_a_connection_is_free(
    limit: str, method: str, streamed: bool, virtual_time: VirtualClock
) -> None:
    make, limits = AGAIN[limit]
    begun: list[str] = []
    async with served(Wire(play=holds)) as wire:
        place = Place(f"http://127.0.0.1:{wire.port}", options={"limit": 1}, in_pool=True)
        async with place.session(make(), **limits) as session:
            data = stream(begun) if streamed else BODY
            async with session.request(method, place.url, data=data) as response:
                assert (response.status, await response.read()) == (200, b"done")
        assert wire.bodies == [b"", BODY]
    assert begun == ["begun"] * streamed


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_request_that_was_sent_once_stays_sent(wrapped: bool, virtual_time: VirtualClock) -> None:
    """The first attempt leaves, and the second one waits in the pool."""
    async with served(Wire(play=never)) as wire:
        url = f"http://127.0.0.1:{wire.port}"
        connector = aiohttp.TCPConnector(limit=1)
        layers = stack(RULES, attempts=2, attempt_timeout=1)
        async with aiohttp.ClientSession(
            connector=connector, middlewares=(together(layers),) if wrapped else layers, timeout=aiohttp.ClientTimeout()
        ) as session:
            with pytest.raises(AttemptTimeout) as lost:
                await session.post(url, data=BODY)
            assert lost.value.stopped is StopReason.UNSAFE_METHOD

            async def takes_the_connection() -> None:
                await asyncio.sleep(1.5)
                async with aiohttp.ClientSession(connector=connector, connector_owner=False) as other:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(10):
                            await other.get(url)

            taking = asyncio.create_task(takes_the_connection())
            with pytest.raises(ConnectFailed) as caught:
                await session.put(url, data=BODY)
            await taking
        assert caught.value.attempts[0].exception == "AttemptTimeout"
        assert caught.value.stopped is StopReason.ATTEMPTS_USED_UP


@pytest.mark.parametrize("layers", [(Timeout(1),), (Retry(RULES, deadline=1),), stack(RULES, attempt_timeout=1)])
async def test_a_middleware_that_sends_in_its_own_way_may_have_sent(layers: Layers, virtual_time: VirtualClock) -> None:
    """aiohttp's request does not change then, so it proves nothing."""
    async with served(Wire(play=never)) as wire:
        url = f"http://127.0.0.1:{wire.port}"
        other = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout())

        async def elsewhere(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            return await other.post(request.url, data=b"the same")

        async with other, aiohttp.ClientSession(middlewares=(*layers, elsewhere), timeout=aiohttp.ClientTimeout()) as s:
            with pytest.raises(AttemptTimeout):
                await s.post(url)
        assert wire.bodies == [b"the same"]


async def test_a_cancelled_call_stays_cancelled(virtual_time: VirtualClock) -> None:
    for layers in ((Timeout(60),), stack(RULES, deadline=60)):
        async with waiting_at("pool") as where, where.session(layers) as session:
            call = asyncio.create_task(session._request("POST", where.url))
            await asyncio.sleep(1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


@pytest.mark.parametrize("options", [{"attempt_timeout": 1}, {"deadline": 1}], ids=str)
async def test_the_span_of_a_connect_timeout_has_the_same_error_type(
    options: dict[str, Any], virtual_time: VirtualClock, tracing: Tracing
) -> None:
    layers = stack(RULES, attempts=1, tracer_provider=tracing.provider, **options)
    async with waiting_at("pool") as where, where.session(layers) as session:
        with pytest.raises(ConnectFailed) as caught:
            await session.get(where.url)
    kinds = [(span.attributes or {})["error.type"] for span in (tracing.call, *tracing.sends)]
    assert kinds == [type(caught.value).__name__] * 2


# Breaker, retry budget and batch.

BREAKERS: Final[dict[str, tuple[Callable[[Breaker], Layers], dict[str, float]]]] = {
    "alone": (lambda breaker: (breaker,), {"connect": 1}),
    "with Classify": (lambda breaker: (breaker, Classify(RULES)), {"connect": 1}),
    "with Timeout": (lambda breaker: (breaker, Timeout(1)), {}),
    "with Retry": (lambda breaker: (breaker, Retry(RULES, attempts=2)), {"connect": 1}),
    "with a deadline": (lambda breaker: (breaker, Retry(RULES, deadline=1)), {}),
    "with all": (lambda breaker: (together(stack(RULES, breaker, attempts=2, attempt_timeout=1)),), {}),
}


@pytest.mark.sampled
@pytest.mark.parametrize("place", ["pool", "pool of the host", "name", "connect", "handshake"])
@pytest.mark.parametrize("way", BREAKERS)
async def test_a_breaker_opens_for_failures_outside_the_pool(place: str, way: str, virtual_time: VirtualClock) -> None:
    make, limits = BREAKERS[way]
    async with waiting_at(place) as where, where.session(make(Breaker(minimum=3, failures=0.1)), **limits) as session:
        errors = [await failed(session.post(where.url)) for _ in range(4)]
    refused = [isinstance(error, CircuitOpen) for error in errors]
    assert any(refused) is not where.in_pool


async def test_a_refused_connection_opens_the_circuit(virtual_time: VirtualClock) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with aiohttp.ClientSession(middlewares=(Breaker(minimum=3), Classify(RULES))) as session:
            errors = [await failed(session.get(f"http://127.0.0.1:{bound.getsockname()[1]}")) for _ in range(4)]
    assert [type(error) for error in errors] == [ConnectFailed] * 3 + [CircuitOpen]


async def failed(call: Awaitable[object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the test checks its type
        await call
    return caught.value


async def test_a_wait_in_the_pool_costs_no_retry_of_the_budget(virtual_time: VirtualClock) -> None:
    """It does not reach the service, so it is no load."""
    layers = stack(RULES, attempts=4, attempt_timeout=1, retry_budget=RetryBudget(0.0, 1))
    for place, reason in (("pool", StopReason.ATTEMPTS_USED_UP), ("handshake", StopReason.RETRY_BUDGET_EMPTY)):
        async with waiting_at(place) as where, where.session(layers) as session:
            error = await failed(session.get(where.url))
        assert isinstance(error, LamellaError)
        assert error.stopped is reason


async def test_a_wait_in_the_pool_is_not_an_outage_for_a_batch(virtual_time: VirtualClock) -> None:
    """One call holds the only connection: the items fail, and none is paused."""
    layers = stack(RULES, Breaker(minimum=3), attempts=2, attempt_timeout=1, retry_budget=RetryBudget(0.0, 1))
    async with waiting_at("pool") as where, where.session(layers) as session:

        async def send(item: int) -> None:
            async with session.post(where.url, params={"item": item}):
                pass

        outcomes: list[ItemOutcome[int, None]] = []
        async with Batch(send, range(20), at_once=5) as batch:
            async for outcome in batch:
                outcomes.append(outcome)
                assert batch.outage is None
    assert len(outcomes) == 20
    assert {(type(outcome.error), outcome.paused, outcome.tries) for outcome in outcomes} == {
        (type(outcomes[0].error), 0.0, 1)
    }
    assert isinstance(outcomes[0].error, ConnectFailed)
