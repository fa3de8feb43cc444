"""A process that waits for the answer of another one is woken by a message of the store."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp
import pytest
from tests.layers.test_fleet import RULES, Server, now
from tests.leftovers import tasks_of_lamella, timers_of_lamella
from tests.local_store import Database, LocalStore
from tests.servers import Serve

from lamella import Limit, stack
from lamella.store.network import NetworkStore, Swap, Swapped
from lamella.testing import VirtualClock, run_virtual
from lamella.throttle.estimate import Permit
from lamella.throttle.fleet import Lease
from lamella.throttle.lease_policy import Stated

POLICY = Stated((Limit(concurrent=1),))


@dataclass
class Processes:
    """Sessions that call one account, which allows one attempt at a time."""

    url: str
    opened: AsyncExitStack
    database: Database = field(default_factory=Database)
    stores: list[LocalStore] = field(default_factory=list)

    async def start(self) -> aiohttp.ClientSession:
        store = await self.opened.enter_async_context(LocalStore(self.database))
        self.stores.append(store)
        layers = stack(RULES, account=lambda _: "one", store=store, limits=Limit(concurrent=1))
        return await self.opened.enter_async_context(aiohttp.ClientSession(self.url, middlewares=layers))


async def get(session: aiohttp.ClientSession, after: float = 0.0) -> float:
    """Make a call after some seconds. Return when it was answered."""
    await asyncio.sleep(after)
    async with session.get("/") as response:
        assert response.status == 200
    return now()


@pytest.fixture(autouse=True)
def quick(virtual_time: VirtualClock) -> None:
    virtual_time.grace = 0.003  # the server is in this process


async def test_a_call_is_sent_when_one_of_another_process_is_answered(serve: Serve) -> None:
    url = await serve(Server(None, latency=1.0))
    async with AsyncExitStack() as opened:
        processes = Processes(url, opened)
        here, there = await processes.start(), await processes.start()
        for _ in range(2):
            calls = [asyncio.create_task(get(here)), asyncio.create_task(get(there, 0.01))]
            await asyncio.sleep(0.1)
            before = processes.database.asked
            await asyncio.sleep(0.8)
            assert processes.database.asked - before <= 16  # of both, with the leases of the account
            first, second = await asyncio.gather(*calls)
            assert second - first <= 1.0 + 10 * processes.database.slow


@pytest.mark.parametrize("latency", [0.02, 0.1, 0.2, 0.4])
async def test_the_first_answer_that_another_process_waits_for_comes_at_once(serve: Serve, latency: float) -> None:
    url = await serve(Server(None, latency=latency))
    async with AsyncExitStack() as opened:
        processes = Processes(url, opened)
        here, there = await processes.start(), await processes.start()
        first, second = await asyncio.gather(get(here), get(there, 0.01))
        assert second - first <= latency + 10 * processes.database.slow


@pytest.mark.parametrize("how", ["refused", "lost", "not offered"])
async def test_without_messages_a_process_asks_every_250_ms(
    serve: Serve, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await serve(Server(None, latency=1.0))
    if how == "not offered":
        monkeypatch.setattr(LocalStore, "listen", NetworkStore.listen)
    async with AsyncExitStack() as opened:
        processes = Processes(url, opened)
        here, there = await processes.start(), await processes.start()
        processes.database.refuses = how == "refused"
        calls = [asyncio.create_task(get(here)), asyncio.create_task(get(there, 0.01))]
        await asyncio.sleep(0.9)
        if how == "lost":
            assert len(processes.database.listeners) == 2
            processes.database.refuses = True
            for _, lost in processes.database.listeners.values():
                lost.set_result(None)
        first, second = await asyncio.gather(*calls)
        assert second - first <= 1.3
    assert not caplog.records


async def test_a_lost_connection_is_opened_again(serve: Serve) -> None:
    url = await serve(Server(None, latency=1.0))
    async with AsyncExitStack() as opened:
        processes = Processes(url, opened)
        here, there = await processes.start(), await processes.start()
        calls = [asyncio.create_task(get(here)), asyncio.create_task(get(there, 0.01))]
        await asyncio.sleep(0.6)
        assert len(processes.database.listeners) == 2
        for _, lost in processes.database.listeners.values():
            lost.set_result(None)
        await asyncio.sleep(0.3)
        assert len(processes.database.listeners) == 2
        first, second = await asyncio.gather(*calls)
        assert second - first <= 1.0 + 10 * processes.database.slow


async def test_a_call_that_no_longer_waits_leaves_its_turn_to_another_process(serve: Serve) -> None:
    url = await serve(Server(None, latency=1.0))
    async with AsyncExitStack() as opened:
        processes = Processes(url, opened)
        here, there, third = [await processes.start() for _ in range(3)]
        calls = [asyncio.create_task(get(here)), asyncio.create_task(get(third, 0.02))]
        gone = asyncio.create_task(get(there, 0.01))
        asyncio.get_running_loop().call_later(0.99, gone.cancel)
        first, second = await asyncio.gather(*calls)
        assert second - first <= 1.05


@pytest.mark.parametrize("closed", [False, True])
async def test_a_process_that_ends_leaves_nothing_behind(serve: Serve, closed: bool) -> None:
    url = await serve(Server(None, latency=1.0))
    async with AsyncExitStack() as opened:
        processes = Processes(url, opened)
        here, there = await processes.start(), await processes.start()
        calls = [asyncio.create_task(get(here)), asyncio.create_task(get(there, 0.01))]
        await asyncio.sleep(0.6)
        assert processes.database.listeners
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        if closed:
            for store in processes.stores:
                await store.aclose()
    await asyncio.sleep(0.6)  # a timer that finds nothing to do
    assert not processes.database.listeners
    assert not tasks_of_lamella()
    assert not timers_of_lamella()


async def test_a_process_that_closes_its_store_wakes_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_waiting", 1)
    database = Database()
    store = LocalStore(database)
    first, second = Lease(store, "one", POLICY), Lease(LocalStore(database), "one", POLICY)
    permit = await first.take(1, 0.0, 1.0)
    assert isinstance(permit, Permit)
    await second.take(1, 0.0, 1.0)
    await asyncio.sleep(0.01)
    first.ended(permit, passed=True)
    await store.aclose()
    assert database.woken[-1] == second.holding.name
    async with asyncio.timeout(0.01):
        while not isinstance(await second.take(1, 0.0, 1.0), Permit):  # noqa: ASYNC110 - as its queue does
            await asyncio.sleep(0.001)


class Slow(LocalStore):
    """Sends a name before the answer to the swap is here."""

    async def send(self, swaps: list[Swap]) -> list[Swapped]:  # type: ignore[override]
        replies = await super().send(swaps)
        await asyncio.sleep(0.1)
        return replies


async def test_a_message_during_an_exchange_is_not_lost() -> None:
    database = Database()
    first, second = Lease(LocalStore(database), "one", POLICY), Lease(Slow(database), "one", POLICY)
    permit = await first.take(1, 0.0, 1.0)
    assert isinstance(permit, Permit)
    waiting = asyncio.create_task(second.exchange(1, 0.0, 1.0))
    await asyncio.sleep(0.15)  # its state is stored, and the answer is on the way
    second.wake()
    await waiting
    assert second.holding.due <= second.now()


def test_a_store_listens_in_a_second_loop() -> None:
    database = Database()
    store = LocalStore(database)

    async def main(name: str) -> int:
        first, second = Lease(LocalStore(database), name, POLICY), Lease(store, name, POLICY)
        permit = await first.take(1, 0.0, 1.0)
        assert isinstance(permit, Permit)
        await second.take(1, 0.0, 1.0)
        await asyncio.sleep(0.01)
        return len(database.listeners)

    assert run_virtual(main("one")) == 2
    assert not database.listeners
    assert run_virtual(main("two")) == 2
