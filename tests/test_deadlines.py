"""One total limit, through all layers and down into whatever they call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from contextlib import nullcontext

import aiohttp
import pytest
from tests.sdk import Tracing
from tests.servers import Serve, Statuses

from lamella import (
    AttemptTimeout,
    Backoff,
    HeaderAuth,
    LamellaError,
    RateLimited,
    Rule,
    RuleBook,
    StopReason,
    deadline,
    stack,
)
from lamella.scope import inherited
from lamella.testing import VirtualClock

RULES = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(60, jitter=0)),
    Rule(503, "Service Unavailable", retry=Backoff(10, jitter=0)),
)


def client(url: str, **options: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=stack(RULES, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, -1, -0.0, math.inf, -math.inf, math.nan])
async def test_a_deadline_must_be_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"greater than 0, got {seconds!r}"):
        with deadline(seconds):
            pass
    assert inherited() is None


def test_a_deadline_block_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        with deadline(1):
            pass


async def test_the_earlier_of_nested_deadlines_applies(virtual_time: VirtualClock) -> None:
    now = virtual_time.now
    with deadline(10):
        with deadline(5):
            assert inherited() == now + 5
            with deadline(100):
                assert inherited() == now + 5
        assert inherited() == now + 10
        with pytest.raises(LookupError), deadline(1):
            raise LookupError
        assert inherited() == now + 10
    assert inherited() is None


async def test_only_tasks_started_inside_inherit_a_deadline(virtual_time: VirtualClock) -> None:
    async def look() -> float | None:
        await asyncio.sleep(1)
        return inherited()

    now = virtual_time.now
    before = asyncio.create_task(look())
    with deadline(5):
        inside = asyncio.create_task(look())
    after = asyncio.create_task(look())
    assert [await before, await inside, await after] == [None, now + 5, None]


async def test_a_deadline_limits_waits_and_attempts_of_all_calls(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(503, 200, 503, 503, latency=1.0)
    async with client(await serve(server)) as session:
        began = virtual_time.now
        with deadline(30):
            await session.get("/")  # 1 + 10 + 1 s
            assert virtual_time.now - began == pytest.approx(12)
            with pytest.raises(LamellaError) as caught:
                await session.get("/")  # 1 + 10 + 1 s, and then no 20 s more
        assert virtual_time.now - began == pytest.approx(24)
        assert caught.value.stopped is StopReason.DEADLINE
        assert [record.status for record in caught.value.attempts] == [503, 503]
        await session.get("/")
    assert len(server.requests) == 5


async def test_an_earlier_total_of_the_session_is_kept(serve: Serve, virtual_time: VirtualClock) -> None:
    async with client(await serve(Statuses(latency=60.0)), deadline=3.0) as session:
        for outer, took in ((10.0, 3.0), (2.0, 2.0)):
            began = virtual_time.now
            with deadline(outer), pytest.raises(AttemptTimeout) as caught:
                await session.get("/")
            assert virtual_time.now - began == pytest.approx(took)
            assert caught.value.stopped is StopReason.DEADLINE


async def test_nothing_is_sent_after_a_passed_deadline(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    server = Statuses()
    async with client(await serve(server), tracer_provider=tracing.provider) as session:  # type: ignore[arg-type]
        with deadline(5):
            await asyncio.sleep(6)
            with pytest.raises(LamellaError) as caught:
                await session.get("/")
    assert len(server.requests) == 0
    assert caught.value.stopped is StopReason.DEADLINE
    assert caught.value.attempts == ()
    assert tracing.sends == []


async def test_a_nested_call_ends_at_the_outer_deadline(serve: Serve, virtual_time: VirtualClock) -> None:
    """A function for the auth headers fetches a token, through a session with layers of its own."""
    tokens = Statuses(503, 503, 503)
    main = Statuses(503)
    main_url = await serve(main)
    ends: list[float | None] = []

    async with client(await serve(tokens)) as other:

        async def token() -> str:
            ends.append(inherited())
            async with other.get("/token"):
                return "Bearer token"

        layers = stack(RULES, auth=HeaderAuth({"Authorization": token}, origin=main_url), deadline=35.0)
        async with aiohttp.ClientSession(main_url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
            began = virtual_time.now
            with pytest.raises(LamellaError) as caught:
                await session.get("/")  # the token after 10 s + 20 s, and then no 40 s more
            assert virtual_time.now - began == pytest.approx(30)
            assert ends == [began + 35]
            assert caught.value.stopped is StopReason.DEADLINE
            assert len(tokens.requests) == 3
            assert len(main.requests) == 0
            assert inherited() is None


async def test_a_task_started_inside_a_call_inherits_no_deadline(serve: Serve, virtual_time: VirtualClock) -> None:
    """Neither the call's nor that of a block around it; but that of a block that the task is started in."""
    url = await serve(Statuses())
    ends: list[float | None] = []

    async def look() -> None:
        ends.append(inherited())
        with deadline(20):
            ends.append(inherited())
            await asyncio.create_task(look_again())

    async def look_again() -> None:
        ends.append(inherited())

    async def token() -> str:
        await asyncio.create_task(look())
        with deadline(7):
            ends.append(inherited())
            await asyncio.create_task(look_again())
        return "Bearer token"

    layers = stack(RULES, auth=HeaderAuth({"Authorization": token}, origin=url), deadline=35.0)
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
        now = virtual_time.now
        await session.get("/")
        with deadline(5):
            await session.get("/")
    assert ends == [
        *(None, now + 20, now + 20, now + 7, now + 7),
        *(None, now + 20, now + 20, now + 5, now + 7),
    ]


@pytest.mark.parametrize("kind", ["deadline of a block", "deadline of the stack", "HeaderAuth alone in a block"])
@pytest.mark.parametrize("plain", [False, True], ids=["async function", "plain function"])
async def test_a_shared_token_fetch_ignores_the_first_callers_deadline(
    serve: Serve, virtual_time: VirtualClock, kind: str, plain: bool
) -> None:
    """The first caller's context is copied into the task that all of them wait for."""
    tokens = Statuses(503, 200)
    url = await serve(Statuses())
    fetching: list[asyncio.Task[str]] = []

    async with client(await serve(tokens)) as other:

        async def fetch() -> str:
            async with other.get("/token"):
                return "Bearer token"

        async def token() -> str:
            if not fetching:
                fetching.append(asyncio.create_task(fetch()))
            return await asyncio.shield(fetching[0])

        def start() -> Awaitable[str]:
            if not fetching:
                fetching.append(asyncio.create_task(fetch()))
            return asyncio.shield(fetching[0])

        auth = HeaderAuth({"Authorization": start if plain else token}, origin=url)

        async def call(seconds: float) -> int:
            layers: tuple[aiohttp.ClientMiddlewareType, ...] = stack(RULES, auth=auth)
            if kind == "deadline of the stack":
                layers = stack(RULES, auth=auth, deadline=seconds)
            elif kind == "HeaderAuth alone in a block":
                layers = (auth,)
            timeout = aiohttp.ClientTimeout()
            async with aiohttp.ClientSession(url, timeout=timeout, middlewares=layers) as session:
                with nullcontext() if kind == "deadline of the stack" else deadline(seconds):
                    async with session.get("/") as response:
                        return response.status

        results = await asyncio.gather(call(0.5), call(60), call(60), return_exceptions=True)
    # Alone, HeaderAuth has no deadline to keep: there the first caller waits as long as the others.
    first = int if kind == "HeaderAuth alone in a block" else AttemptTimeout
    assert [type(result) for result in results] == [first, int, int]
    assert len(tokens.requests) == 2


def client_with_auth(url: str, auth: HeaderAuth) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=stack(RULES, auth=auth))


async def test_a_background_task_started_inside_a_call_continues_after_its_deadline(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    """As a refresher that is started with the first token: each later refresh has the time that it needs."""
    url = await serve(Statuses())
    refreshed: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def refresh(other: aiohttp.ClientSession) -> None:
        for _ in range(3):
            await asyncio.sleep(60)
            async with other.get("/token") as response:
                refreshed.append(response.status)

    async with client(await serve(Statuses(latency=1.0))) as other:

        async def token() -> str:
            if not tasks:
                tasks.append(asyncio.create_task(refresh(other)))
            return "Bearer token"

        with deadline(5):
            async with client_with_auth(url, HeaderAuth({"Authorization": token}, origin=url)) as session:
                await session.get("/")
        await tasks[0]
    assert refreshed == [200, 200, 200]


async def test_a_deadline_includes_time_in_the_queue(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(429)
    async with client(await serve(server), attempts=1) as session:
        with pytest.raises(LamellaError):
            await session.get("/")
        with deadline(59), pytest.raises(RateLimited) as caught:
            await session.get("/")
        assert caught.value.stopped is StopReason.DEADLINE
        began = virtual_time.now
        with deadline(61):
            await session.get("/")
        assert virtual_time.now - began == pytest.approx(60)
    assert len(server.requests) == 2
