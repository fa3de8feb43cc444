from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.layering import together
from tests.leftovers import timers_of_lamella
from tests.servers import Serve

from lamella import AttemptTimeout, Backoff, Failure, HeaderAuth, Rule, RuleBook, Timeout, stack
from lamella.testing import VirtualClock
from lamella.testing.virtual_time import run_virtual


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(1_000_000)
    return web.Response()


async def test_timeout_ends_a_slow_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), connector=connector, middlewares=(Timeout(90),)
    ) as session:
        with pytest.raises(AttemptTimeout, match="90 s") as caught:
            await session.get("/")
        assert isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, aiohttp.ClientError)
        assert not connector._acquired
    assert virtual_time.elapsed == pytest.approx(90, abs=0.5)


async def test_each_attempt_has_its_own_timeout(serve: Serve, virtual_time: VirtualClock) -> None:
    rules = RuleBook(Rule(Failure.ATTEMPT_TIMEOUT, "Too slow", retry=Backoff(initial=10, jitter=0)))
    layers = stack(rules, attempts=3, attempt_timeout=60)
    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=layers
    ) as session:
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/")
    assert [round(record.took) for record in caught.value.attempts] == [60, 60, 60]
    assert [round(record.waited) for record in caught.value.attempts] == [10, 20, 0]
    assert caught.value.rule.title == "Too slow"


async def test_timeouts_of_other_code_pass_unchanged(serve: Serve, virtual_time: VirtualClock) -> None:
    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Timeout(90),)
    ) as session:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(10):
                await session.get("/")
    assert not isinstance(caught.value, AttemptTimeout)
    assert virtual_time.elapsed < 11


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_bad_timeout_seconds_are_rejected(seconds: float) -> None:
    with pytest.raises(ValueError, match=str(seconds)):
        Timeout(seconds)


async def test_one_timer_serves_all_calls_with_their_own_limits(serve: Serve, virtual_time: VirtualClock) -> None:
    ended: dict[int, float] = {}

    async def some_answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1_000_000 if request.query["n"] in {"0", "3"} else 5)
        return web.Response()

    timeout = Timeout(90)
    async with aiohttp.ClientSession(
        await serve(some_answer), timeout=aiohttp.ClientTimeout(), middlewares=(timeout,)
    ) as session:

        async def call(number: int) -> None:
            await asyncio.sleep(10 * number)
            try:
                await session.get("/", params={"n": number})
            except AttemptTimeout:
                ended[number] = virtual_time.elapsed

        calls = [asyncio.create_task(call(number)) for number in range(5)]
        await asyncio.sleep(35)
        assert len(timers_of_lamella()) == 1
        await asyncio.gather(*calls)
        assert len(timers_of_lamella()) == 0
    assert ended == {0: pytest.approx(90, abs=0.5), 3: pytest.approx(120, abs=0.5)}


async def test_a_cancellation_passes_and_leaves_no_timer(serve: Serve, virtual_time: VirtualClock) -> None:
    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Timeout(90),)
    ) as session:
        task = asyncio.ensure_future(session.get("/"))
        await asyncio.sleep(10)
        assert len(timers_of_lamella()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(timers_of_lamella()) == 0


async def test_a_cancellation_at_the_very_moment_of_the_timeout_wins(serve: Serve, virtual_time: VirtualClock) -> None:
    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Timeout(90),)
    ) as session:
        task = asyncio.ensure_future(session.get("/"))
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() + 89, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_timeout_is_no_cancellation_of_its_task(serve: Serve, virtual_time: VirtualClock) -> None:
    """By the rules of ``asyncio.timeout``: who goes on after it can use timeouts and groups of his own."""
    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Timeout(90),)
    ) as session:
        with pytest.raises(AttemptTimeout):
            await session.get("/")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await asyncio.sleep(2)


async def test_a_replaced_timeout_is_not_logged_as_a_cancellation(serve: Serve, virtual_time: VirtualClock) -> None:
    async def hides(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        except asyncio.CancelledError:
            raise KeyError("hidden") from None

    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Timeout(90), hides)
    ) as session:
        with pytest.raises(KeyError):
            await session.get("/")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_response_that_replaces_a_timeout_is_passed_on(
    serve: Serve, virtual_time: VirtualClock, wrapped: bool
) -> None:
    """It came too late, but it came; and the task is no longer cancelled."""

    async def once_more(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        except asyncio.CancelledError:
            return await handler(request)

    async def late(request: web.Request) -> web.StreamResponse:
        return web.Response() if virtual_time.elapsed > 80 else await never(request)

    timeout = Timeout(90)
    middlewares = (together((timeout,)) if wrapped else timeout, once_more)
    async with aiohttp.ClientSession(
        await serve(late), timeout=aiohttp.ClientTimeout(), middlewares=middlewares
    ) as session:
        async with session.get("/") as response:
            assert response.status == 200
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert len(timers_of_lamella()) == 0


async def test_an_attempt_timeout_shows_no_secret(serve: Serve, virtual_time: VirtualClock) -> None:
    layers = (Timeout(1), HeaderAuth({"X-A": "s3cret-value"}))
    async with aiohttp.ClientSession(await serve(never), middlewares=layers) as session:
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/s3cret-value")
    assert "s3cret" not in f"{caught.value} {caught.value!r} {caught.value.url}"


async def test_an_immediately_following_call_has_a_timer(serve: Serve, virtual_time: VirtualClock) -> None:
    """The timer of the one before is put away a round later, when somebody else may need it."""

    async def answers(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if request.url.path == "/raises":
            raise KeyError("at once")
        return await handler(request)

    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Timeout(90), answers)
    ) as session:
        for _ in range(2):
            with pytest.raises(KeyError):
                await session.get("/raises")
        with pytest.raises(AttemptTimeout):
            await session.get("/")
        # And when it has rung, the next one begins anew.
        with pytest.raises(AttemptTimeout):
            await session.get("/")
    assert virtual_time.elapsed == pytest.approx(180, abs=0.5)


async def test_an_unused_timer_is_cancelled(serve: Serve, virtual_time: VirtualClock) -> None:
    async def at_once(request: web.Request) -> web.StreamResponse:
        return web.Response()

    async with aiohttp.ClientSession(await serve(at_once), middlewares=(Timeout(90),)) as session:
        for _ in range(2):
            async with session.get("/"):
                pass
            await asyncio.sleep(0)
            assert len(timers_of_lamella()) == 0


def test_a_call_can_be_discarded_after_its_loop_closed() -> None:
    async def hang(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await asyncio.sleep(1000)
        raise AssertionError

    async def half() -> Coroutine[Any, Any, object]:
        async with aiohttp.ClientSession("http://127.0.0.1:9", middlewares=(Timeout(90), hang)) as session:
            call: Coroutine[Any, Any, object] = session._request("GET", "/")
            call.send(None)
            return call

    run_virtual(half()).close()
