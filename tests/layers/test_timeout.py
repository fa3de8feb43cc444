from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from tests.conftest import Handler

from lamella import AttemptTimeout, Backoff, Failure, Rule, RuleBook, Timeout, stack
from lamella.testing import VirtualClock

Serve = Callable[[Handler], Awaitable[str]]


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(1_000_000)
    return web.Response()


async def test_it_ends_an_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
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


async def test_each_attempt_has_its_own(serve: Serve, virtual_time: VirtualClock) -> None:
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


async def test_timeouts_of_others_pass_as_they_are(serve: Serve, virtual_time: VirtualClock) -> None:
    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Timeout(90),)
    ) as session:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(10):
                await session.get("/")
    assert not isinstance(caught.value, AttemptTimeout)
    assert virtual_time.elapsed < 11


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_bad_seconds(seconds: float) -> None:
    with pytest.raises(ValueError, match=str(seconds)):
        Timeout(seconds)
