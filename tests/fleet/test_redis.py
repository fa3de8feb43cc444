"""What is in Redis, and that states survive what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web
from redis.asyncio import Redis

from lamella import Breaker, Limit, RedisStore, RetryBudget, stack
from lamella.store.network import StoreUnavailable

SECRET = "zq-pa55word"


@dataclass
class Tally:
    count: int = 0


def add(tally: Tally, _now: float, number: int) -> int:
    tally.count += number
    return tally.count


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url, decode_responses=True) as client:
        await client.flushall()
        yield client


async def test_changes_of_several_stores_are_all_applied(redis: Redis, redis_url: str) -> None:
    async with RedisStore(redis_url) as here, RedisStore(redis_url) as there:
        await asyncio.gather(*(store.update("key", Tally, add, 1) for store in (here, there) for _ in range(20)))
        assert await here.update("key", Tally, add, 0) == await there.update("key", Tally, add, 0) == 40


async def test_what_redis_has_forgotten_is_put_back(redis: Redis, redis_url: str) -> None:
    async with RedisStore(redis_url) as store:
        for number in range(3):
            assert await store.update("key", Tally, add, 1) == number + 1
            await redis.flushall()
            await redis.script_flush()


async def test_a_state_expires_and_a_swap_compares(redis: Redis, redis_url: str) -> None:
    async with RedisStore(redis_url, prefix="of-mine:", ttl=7) as store:
        first = await store.swap("key", "", "one")
        assert first.done
        assert 6000 < await redis.pttl("of-mine:key") <= 7000
        other = await store.swap("key", "", "two")
        assert (other.done, other.version, other.state) == (False, first.version, "one")
        second = await store.swap("key", first.version, "two")
        assert second.done
        assert (await store.swap("key", "")).state == "two"
        assert abs(second.server - first.server) < 5


async def test_swaps_of_one_turn_are_sent_together(redis: Redis, redis_url: str) -> None:
    async with RedisStore(redis_url) as store:
        await store.swap("key", "")
        before = (await redis.info("stats"))["total_reads_processed"]
        await asyncio.gather(*(store.swap(f"key {number}", "", "state") for number in range(100)))
        assert (await redis.info("stats"))["total_reads_processed"] - before <= 5


async def test_nothing_that_redis_sees_is_secret(redis: Redis, redis_url: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=200)

    server = web.AppRunner(web.Application())
    server.app.router.add_get("/", answer)
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    try:
        async with RedisStore(redis_url) as store, redis.monitor() as monitor:
            layers = stack(account=lambda _: SECRET, store=store, limits=Limit(1000, per=1), retry_budget=RetryBudget())
            breaker = Breaker(key=lambda _: SECRET, store=store)
            url = f"http://127.0.0.1:{server.addresses[0][1]}/"
            async with aiohttp.ClientSession(middlewares=layers) as session:
                for _ in range(5):
                    async with session.get(url, headers={"Authorization": SECRET}) as response:
                        assert response.status == 200
            async with aiohttp.ClientSession(middlewares=(breaker,)) as session, session.get(url):
                pass
            await redis.ping()
            seen = []
            async for command in monitor.listen():
                seen.append(command["command"])
                if command["command"] == "PING":
                    break
    finally:
        await server.cleanup()
    keys = await redis.keys()
    assert len(keys) >= 3
    assert all([await redis.pttl(key) > 0 for key in keys])
    assert not [each for each in seen if SECRET in each or "Authorization" in each]
    assert any("lamella:lease:" in each for each in seen)


async def test_a_redis_that_does_not_answer_is_reported_once_and_asked_again(
    redis: Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisStore(redis_url) as store:
        await store.swap("key", "", "state")
        await redis.client_pause(1800, all=True)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.swap("key", "")
        [line] = caplog.records
        assert vars(line)["lamella.store_error"] == "TimeoutError"
        loop = asyncio.get_running_loop()
        ends = loop.time() + 20
        while loop.time() < ends:
            await asyncio.sleep(0.05)
            try:
                assert (await store.swap("key", "")).state == "state"
                break
            except StoreUnavailable:
                pass
        else:
            raise AssertionError("it did not come back")
        assert len(caplog.records) == 1


async def test_a_redis_that_is_not_there_says_nothing_of_its_address(caplog: pytest.LogCaptureFixture) -> None:
    async with RedisStore(f"redis://user:{SECRET}@127.0.0.1:9") as store:
        with pytest.raises(StoreUnavailable):
            await store.swap("key", "")
        assert SECRET not in caplog.text + repr(store)
        assert len(caplog.records) == 1
