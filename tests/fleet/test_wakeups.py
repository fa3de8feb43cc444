"""Messages that wake a process which waits for another one, through a real store."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.environment import HANGS
from tests.fleet.places import Place, RedisPlace
from tests.leftovers import tasks_of_lamella
from tests.servers import serving

from lamella import Limit, RedisStore, stack
from lamella.store.network import NetworkStore, Swap, Swapped

_numbers = count()


class Sleeper:
    """A holder that waits."""

    waits = True

    def __init__(self, store: NetworkStore) -> None:
        self.woken = asyncio.Queue[None]()
        self.name = store.wakeups.add(self)

    def wake(self) -> None:
        self.woken.put_nowait(None)

    async def wakes(self, sender: NetworkStore) -> None:
        """Wait until a swap of *sender* has woken it, and only that."""
        key = f"wake {next(_numbers)}"
        async with asyncio.timeout(HANGS):
            assert self.woken.empty()
            done = await sender.swap(key, "", "one", [self.name])
            await self.woken.get()
            assert not (await sender.swap(key, "", "two", [self.name])).done
            assert (await sender.swap(key, done.version, "three", ["of another process"])).done
            await sender.swap(key, "")
            assert self.woken.empty()


async def listening(store: NetworkStore) -> Sleeper:
    """Return a holder of *store*, as soon as there is a connection for messages."""
    sleeper = Sleeper(store)
    store.listen_here()
    async with asyncio.timeout(HANGS):
        await sleeper.woken.get()
    return sleeper


async def no_listener(place: Place) -> None:
    async with asyncio.timeout(HANGS):
        while await place.listeners():  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.02)


async def test_a_swap_that_is_done_wakes_a_holder_of_another_process(place: Place) -> None:
    async with place.store() as here, place.store() as there:
        sleeper = await listening(there)
        await sleeper.wakes(here)
        assert await place.listeners() == 1
    await no_listener(place)


async def test_a_connection_that_breaks_is_opened_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async with place.store() as here, place.store() as there:
        sleeper = await listening(there)
        await place.cut()
        async with asyncio.timeout(HANGS):
            await sleeper.woken.get()  # messages may have been lost
        await sleeper.wakes(here)
        assert not caplog.records


class Counted:
    """Counts the batches of a store."""

    def __init__(self, store: NetworkStore) -> None:
        self.trips = 0
        self._send = store.send
        store.send = self.send  # type: ignore[method-assign, assignment]

    async def send(self, swaps: list[Swap]) -> list[Swapped]:
        self.trips += 1
        return await self._send(swaps)


async def test_the_call_of_another_process_is_sent_after_the_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: Any
) -> None:
    answers: list[asyncio.Future[None]] = []
    came = asyncio.Queue[str]()

    async def answer(request: web.Request) -> web.Response:
        answers.append(asyncio.get_running_loop().create_future())
        came.put_nowait(request.path)
        await answers[-1]
        return web.Response()

    async def get(session: aiohttp.ClientSession, path: str) -> None:
        async with session.get(path):
            pass

    async def one_after_the_other(seconds: float, trips: int) -> None:
        """Make a call in each process, of which the second one waits."""
        calls = [asyncio.create_task(get(here, "/first"))]
        assert await came.get() == "/first"
        calls.append(asyncio.create_task(get(there, "/second")))
        await asyncio.sleep(0.1)
        before = counted.trips
        await asyncio.sleep(seconds)
        assert counted.trips - before <= trips
        for path in ("/second", ""):
            answers.pop().set_result(None)
            if path:
                assert await came.get() == path
        await asyncio.gather(*calls)

    async with asyncio.timeout(HANGS), serving(answer) as url, AsyncExitStack() as opened:
        stores = [await opened.enter_async_context(place.store()) for _ in range(2)]
        counted = Counted(stores[1])
        here, there = [
            await opened.enter_async_context(
                aiohttp.ClientSession(url, middlewares=stack(store=store, limits=Limit(concurrent=1)))
            )
            for store in stores
        ]
        await one_after_the_other(1.0, 16)
        assert await place.listeners() == 2
        # Only a message can wake it now.
        monkeypatch.setattr("lamella.throttle.holding._POLL", 2 * HANGS)
        monkeypatch.setattr("lamella.throttle.holding._KEEP", 2 * HANGS)
        await one_after_the_other(0.2, 2)
        await place.cut()
        while await place.listeners() < 2:  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.02)
        await one_after_the_other(0.2, 2)
        for store in stores:
            await store.aclose()
        assert not tasks_of_lamella()
        await no_listener(place)
    gc.collect()
    assert not recwarn.list
    assert not caplog.records


async def test_a_user_without_a_right_to_the_channels_shares_the_states(
    redis_place: RedisPlace, caplog: pytest.LogCaptureFixture
) -> None:
    await redis_place.client.execute_command(
        "ACL", "SETUSER", "quiet", "on", ">zq-pa55word", "~*", "+@all", "resetchannels"
    )
    try:
        async with RedisStore(redis_place.url.replace("redis://", "redis://quiet:zq-pa55word@")) as store:
            store.listen_here()
            assert (await store.swap("key", "", "state", ["holder"])).done
            await asyncio.sleep(0.1)
            assert (await store.swap("key", "")).state == "state"
        assert not caplog.records
    finally:
        await redis_place.client.execute_command("ACL", "DELUSER", "quiet")
