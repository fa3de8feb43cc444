"""What is in a store, and that states survive what happens to it: the same with Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from scripts.fleet import PASSWORD, Server
from tests.fleet.places import Place, PostgresPlace, RedisPlace, store_of

from lamella import Breaker, Limit, RedisStore, RetryBudget, stack
from lamella.store.network import NetworkStore, Swapped
from lamella.store.protocol import StoreUnavailable

SECRET = PASSWORD
SECONDS = 20.0


@dataclass
class Tally:
    count: int = 0


def add(tally: Tally, _now: float, number: int) -> int:
    tally.count += number
    return tally.count


async def swapped_in_the_end(store: NetworkStore, key: str) -> Swapped:
    """Read a state as soon as the store is back."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await store.swap(key, "")
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_changes_of_several_stores_are_all_applied(place: Place) -> None:
    async with place.store() as here, place.store() as there:
        await asyncio.gather(*(store.update("key", Tally, add, 1) for store in (here, there) for _ in range(20)))
        assert await here.update("key", Tally, add, 0) == await there.update("key", Tally, add, 0) == 40


async def test_what_the_store_has_forgotten_is_put_back(place: Place) -> None:
    async with place.store() as store:
        for number in range(3):
            assert await store.update("key", Tally, add, 1) == number + 1
            await place.forget()


async def test_a_state_expires_and_a_swap_compares(place: Place) -> None:
    async with place.store(ttl=7) as store:
        first = await store.swap("key", "", "one")
        assert first.done
        assert 6 < await place.lifetime("key") <= 7
        other = await store.swap("key", "", "two")
        assert (other.done, other.version, other.state) == (False, first.version, "one")
        second = await store.swap("key", first.version, "two")
        assert second.done
        assert (await store.swap("key", "")).state == "two"
        assert abs(second.server - first.server) < 5
        assert not (await store.swap("key", first.version, "three")).done
        assert not (await store.swap("another key", first.version, "three")).done
        await place.expire("key")
        gone = await store.swap("key", second.version, "three")
        assert (gone.done, gone.version, gone.state) == (False, "", "")
        assert (await store.swap("key", "", "four")).done
        assert (await store.swap("key", "")).state == "four"


async def test_swaps_of_one_key_in_one_batch_do_not_undo_each_other(place: Place) -> None:
    async with place.store() as store:
        replies = await asyncio.gather(*(store.swap("key", "", state) for state in ("one", "two", "three")))
        assert [reply.done for reply in replies] == [True, False, False]
        assert [(reply.version, reply.state) for reply in replies[1:]] == [(replies[0].version, "one")] * 2
        read, written = await asyncio.gather(store.swap("key", ""), store.swap("key", replies[0].version, "four"))
        assert written.done
        assert read.state in {"one", "four"}


async def test_swaps_of_one_loop_iteration_are_sent_together(redis_place: RedisPlace) -> None:
    redis = redis_place.client
    async with redis_place.store() as store:
        await store.swap("key", "")
        before = (await redis.info("stats"))["total_reads_processed"]
        await asyncio.gather(*(store.swap(f"key {number}", "", "state") for number in range(100)))
        assert (await redis.info("stats"))["total_reads_processed"] - before <= 5


async def calls_with_secrets(store: NetworkStore) -> None:
    """Make calls of an account, a retry budget and a breaker whose keys are secrets."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=200)

    server = web.AppRunner(web.Application())
    server.app.router.add_get("/", answer)
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    try:
        layers = stack(account=lambda _: SECRET, store=store, limits=Limit(1000, per=1), retry_budget=RetryBudget())
        breaker = Breaker(key=lambda _: SECRET, store=store)
        url = f"http://127.0.0.1:{server.addresses[0][1]}/"
        async with aiohttp.ClientSession(middlewares=layers) as session:
            for _ in range(5):
                async with session.get(url, headers={"Authorization": SECRET}) as response:
                    assert response.status == 200
        async with aiohttp.ClientSession(middlewares=(breaker,)) as session, session.get(url):
            pass
    finally:
        await server.cleanup()


async def test_redis_receives_no_secret(redis_place: RedisPlace) -> None:
    redis = redis_place.client
    async with redis_place.store() as store, redis.monitor() as monitor:
        await calls_with_secrets(store)
        await redis.ping()
        seen = []
        async for command in monitor.listen():
            seen.append(command["command"])
            if command["command"] == "PING":
                break
    keys = await redis_place.keys()
    assert len(keys) >= 3
    assert all([await redis_place.lifetime(key) > 0 for key in keys])
    assert not [each for each in seen if SECRET in each or "Authorization" in each]
    assert any("lamella:lease:" in each for each in seen)


def postgres_log() -> str:
    return Path(os.environ["LAMELLA_POSTGRES_LOG"]).read_text(encoding="utf-8")


async def test_nothing_that_postgresql_sees_is_secret(postgres_place: PostgresPlace) -> None:
    before = len(postgres_log())
    options = quote("-c log_statement=all -c log_min_messages=info")
    async with store_of(f"{postgres_place.url}?options={options}") as store:
        await calls_with_secrets(store)
    keys = await postgres_place.keys()
    assert len(keys) >= 3
    assert all([await postgres_place.lifetime(key) > 0 for key in keys])
    seen = postgres_log()[before:]
    assert "lease:" in seen
    assert SECRET not in seen
    assert "Authorization" not in seen


async def test_a_redis_that_does_not_answer_is_reported_once_and_asked_again(
    redis_place: RedisPlace, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_place.store() as store:
        await store.swap("key", "", "state")
        await redis_place.client.client_pause(1800, all=True)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.swap("key", "")
        [line] = caplog.records
        assert vars(line)["lamella.store_error"] == "TimeoutError"
        assert (await swapped_in_the_end(store, "key")).state == "state"
        assert len(caplog.records) == 1


async def test_a_full_store_is_reported_once_although_it_answers(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.store() as store:
        assert await store.update("key", Tally, add, 3) == 3
        for episode in (1, 2):
            async with place.full():
                for _ in range(3):
                    with pytest.raises(StoreUnavailable):
                        await store.update("another key", Tally, add, 1)
                    assert (await swapped_in_the_end(store, "key")).state
            assert len(caplog.records) == episode
            assert await store.update("key", Tally, add, 1) == 3 + episode


async def test_a_value_of_another_kind_affects_only_its_own_key(
    redis_place: RedisPlace, caplog: pytest.LogCaptureFixture
) -> None:
    await redis_place.client.rpush("lamella:lease:list", "value")
    await redis_place.client.set("lamella:lease:bytes", b"\xff" * 20)
    await redis_place.client.set("lamella:lease:short", b"\xff")
    async with redis_place.store() as store:
        for key in ("lease:list", "lease:bytes", "lease:short"):
            found, other = await asyncio.gather(store.swap(key, "", "state"), store.swap("key " + key, "", "state"))
            assert (found.done, other.done) == (False, True)
            with pytest.raises(json.JSONDecodeError):
                json.loads(found.state)
            assert not (await store.swap(key, found.version, "state")).done
        assert sorted((await store.stored("lease:", 10)).states) == ["lease:bytes", "lease:list", "lease:short"]
    assert not caplog.records
    assert await redis_place.client.lrange("lamella:lease:list", 0, -1) == ["value"]


async def test_a_frozen_server_is_reported_once_and_asked_again(
    server: Server, own_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_place.store() as store:
        done = await store.swap("key", "", "state")
        server.freeze()
        began = asyncio.get_running_loop().time()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.swap("key", done.version, "another")
        assert asyncio.get_running_loop().time() - began < 2
        [line] = caplog.records
        assert vars(line)["lamella.store_error"] == "TimeoutError"
        await asyncio.sleep(0.3)  # and once more while it is frozen: it does not take the connection
        with pytest.raises(StoreUnavailable):
            await store.swap("key", "")
        server.thaw()
        assert (await swapped_in_the_end(store, "key")).state in {"state", "another"}
        assert len(caplog.records) == 1


async def test_a_store_that_is_frozen_at_the_end_is_closed(server: Server, own_place: Place) -> None:
    async with asyncio.timeout(5):
        async with own_place.store() as store:
            await store.swap("key", "", "state")
            server.freeze()


async def test_a_server_that_restarts_empty_gets_the_states_back(
    server: Server, own_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_place.store() as store:
        assert await store.update("key", Tally, add, 3) == 3
        server.kill()
        with pytest.raises(StoreUnavailable):
            await store.update("key", Tally, add, 1)
        await asyncio.to_thread(server.start)
        assert (await swapped_in_the_end(store, "key")).version == ""
        assert await store.update("key", Tally, add, 1) == 4
        assert len(caplog.records) == 1


async def test_a_server_that_was_restarted_between_two_swaps_is_not_reported(
    server: Server, own_place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_place.store() as store:
        assert await store.update("key", Tally, add, 3) == 3
        server.stop()
        await asyncio.to_thread(server.start)
        assert await store.update("key", Tally, add, 1) == 4
        assert not caplog.records


async def test_connections_that_were_closed_while_the_process_stood_still_are_not_reported(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.store() as store:
        await store.swap("key", "", "state")
        with ThreadPoolExecutor() as threads:  # this thread waits, so its event loop does not read the end
            threads.submit(asyncio.run, type(place)(place.url).cut_all()).result()
        assert (await store.swap("key", "")).state == "state"
    assert not caplog.records


@pytest.mark.parametrize("url", ["redis://user:{}@127.0.0.1:9", "postgresql://user:{}@127.0.0.1:9/postgres"])
async def test_a_server_that_is_not_there_says_nothing_of_its_address(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with store_of(url.format(SECRET)) as store:
        with pytest.raises(StoreUnavailable):
            await store.swap("key", "")
        assert SECRET not in caplog.text + repr(store)
        assert len(caplog.records) == 1


async def test_a_prefix_is_that_of_all_keys(redis_place: RedisPlace) -> None:
    async with RedisStore(redis_place.url, prefix="of-mine:") as store:
        await store.swap("key", "", "one")
    assert await redis_place.client.keys() == ["of-mine:key"]


async def test_a_process_that_closes_its_store_leaves_no_permit_open(place: Place) -> None:
    async with place.store() as store:
        await calls_with_secrets(store)
    async with place.store() as store:
        leases = [key for key in await place.keys() if key.startswith("lease:")]
        states = [json.loads((await store.swap(key, "")).state) for key in leases]
    assert states
    assert [each["open"] for state in states for each in state["holders"].values()] == [[] for _ in states]


async def test_what_is_reported_after_the_end_opens_no_connection(
    place: Place, recwarn: pytest.WarningsRecorder
) -> None:
    async with place.store() as store:
        await calls_with_secrets(store)
    await asyncio.sleep(0.6)  # a lease reports what its attempts have ended in within 0.25 s
    del store
    gc.collect()
    assert not recwarn.list
