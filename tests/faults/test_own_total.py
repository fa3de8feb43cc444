"""A total timeout that is given with a request takes the place of the session's, which may be shorter."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import ClientTimeout, web
from tests.servers import Serve

from lamella import AttemptTimeout, Retry, StopReason, stack
from lamella.rules import RuleBook
from lamella.testing import VirtualClock

RULES = RuleBook()


async def slow(request: web.Request) -> web.Response:
    await asyncio.sleep(float(request.query["seconds"]))
    return web.Response(text="late")


@pytest.mark.parametrize("total", [3.0, 30.0])
@pytest.mark.parametrize("alone", [True, False])
async def test_a_request_total_may_exceed_the_session_total(
    serve: Serve, virtual_time: VirtualClock, total: float, alone: bool
) -> None:
    layers = (Retry(RULES),) if alone else stack(RULES, attempt_timeout=None)
    async with aiohttp.ClientSession(await serve(slow), timeout=ClientTimeout(total), middlewares=layers) as session:
        async with session.get("/?seconds=50", timeout=ClientTimeout(100)) as response:
            assert await response.text() == "late"


@pytest.mark.parametrize(("total", "own", "takes"), [(1.0, 1.3, 1.1), (30.0, 30.5, 30.2)])
async def test_a_request_total_may_be_slightly_longer(
    serve: Serve, virtual_time: VirtualClock, total: float, own: float, takes: float
) -> None:
    layers = stack(RULES, attempt_timeout=None)
    async with aiohttp.ClientSession(await serve(slow), timeout=ClientTimeout(total), middlewares=layers) as session:
        async with session.get(f"/?seconds={takes}", timeout=ClientTimeout(own)) as response:
            assert await response.text() == "late"


async def test_a_loop_without_a_list_of_timers_leaves_the_end_to_aiohttp(
    serve: Serve, virtual_time: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.retry.deadline.total_of", lambda _: None)
    layers = stack(RULES, attempt_timeout=None)
    async with aiohttp.ClientSession(await serve(slow), timeout=ClientTimeout(30), middlewares=layers) as session:
        async with session.get("/?seconds=50", timeout=ClientTimeout(100)) as response:
            assert await response.text() == "late"
        with pytest.raises(TimeoutError):
            await session.get("/?seconds=1000")


async def test_the_request_total_ends_its_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
    layers = stack(RULES, attempt_timeout=None)
    async with aiohttp.ClientSession(await serve(slow), timeout=ClientTimeout(30), middlewares=layers) as session:
        began = virtual_time.now
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/?seconds=1000", timeout=ClientTimeout(100))
    assert virtual_time.now - began == pytest.approx(100, abs=1)
    assert caught.value.stopped is StopReason.DEADLINE


async def test_an_earlier_deadline_ends_the_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
    layers = stack(RULES, attempt_timeout=None, deadline=60)
    async with aiohttp.ClientSession(await serve(slow), timeout=ClientTimeout(30), middlewares=layers) as session:
        began = virtual_time.now
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/?seconds=1000", timeout=ClientTimeout(100))
    assert virtual_time.now - began == pytest.approx(60, abs=0.1)
    assert caught.value.stopped is StopReason.DEADLINE
