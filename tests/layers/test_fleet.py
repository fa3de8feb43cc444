"""Throttles of several processes on one store: here each is a session of its own, with its own store client."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count

import aiohttp
import pytest
from aiohttp import web
from tests.local_store import Database, LocalStore
from tests.servers import Serve

from lamella import Backoff, Limit, Rule, RuleBook, Throttle, stack
from lamella.store.network import VERSION, Swap, Swapped
from lamella.testing import FixedWindow, Limiter, SlidingWindow, TokenBucket, VirtualClock, run_virtual
from lamella.testing import Limit as ServersLimit
from lamella.throttle.estimate import Permit
from lamella.throttle.fleet import Lease
from lamella.throttle.lease import of_text
from lamella.throttle.lease_policy import Learned, Stated

RULES = RuleBook(Rule(429, retry=Backoff(initial=1, maximum=60)))
REQUESTS = 40


def limit_of(kind: str) -> ServersLimit:
    if kind == "bucket":
        return TokenBucket(REQUESTS, REQUESTS, retry_after=False)
    return (FixedWindow if kind == "fixed" else SlidingWindow)(REQUESTS, 1.0, retry_after=False)


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Server:
    """Refuses what exceeds its limit."""

    limiter: Limiter | None
    latency: float = 0.02
    came: int = 0
    refused: int = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.came += 1
        until = 0.0 if self.limiter is None else self.limiter.allow(now())
        await asyncio.sleep(self.latency)
        self.refused += until > 0
        return web.Response(status=429 if until > 0 else 200)


@dataclass
class Fleet:
    """Sessions that call one account, and what has come of it."""

    url: str
    database: Database = field(default_factory=Database)
    limits: Limit | None = None
    at_once: int = 32
    lost: int = 0
    ends: list[float] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    async def run(self, processes: int, calls: int) -> float:
        """Make *calls* in each of the processes. Return how long that took."""
        began = now()
        async with AsyncExitStack() as stores, AsyncExitStack() as opened:
            for _ in range(processes):
                store = await stores.enter_async_context(LocalStore(self.database))
                layers = stack(RULES, account=lambda _: "one", store=store, limits=self.limits)
                session = aiohttp.ClientSession(self.url, middlewares=layers, connector=aiohttp.TCPConnector(limit=0))
                await opened.enter_async_context(session)
                opened.callback(self.ends.append, 0.0)
                task = asyncio.create_task(self._process(session, iter(range(calls))))
                opened.push_async_callback(asyncio.wait, {task})
        return now() - began

    async def _process(self, session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        await asyncio.gather(*(self._calls(session, numbers) for _ in range(self.at_once)))

    async def _calls(self, session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        for _ in numbers:
            try:
                async with session.get("/"):
                    pass
            except aiohttp.ClientError:
                self.lost += 1


@pytest.fixture(autouse=True)
def quick(virtual_time: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_time.grace = 0.003  # the server is in this process
    seeded = random.Random(1)
    monkeypatch.setattr("os.urandom", seeded.randbytes)  # names holders, whose order decides who gets a permit first
    monkeypatch.setattr("random.random", seeded.random)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["fixed", "sliding", "bucket"])
async def test_all_processes_respect_a_stated_limit(serve: Serve, kind: str) -> None:
    server = Server(limit_of(kind).limiter())
    fleet = Fleet(await serve(server), limits=Limit(REQUESTS, per=1))
    took = await fleet.run(3, 50)
    assert (fleet.lost, server.refused, server.came) == (0, 0, 150)
    # A fixed window lets 40 pass at 0, 1, 2 and the rest at 3; at most one period is lost by permits of one that ends.
    assert took <= 1.15 * 3 + 1.0
    assert fleet.database.asked <= 150


async def test_a_jump_of_the_clock_of_the_store_lets_no_more_calls_pass(serve: Serve) -> None:
    server = Server(limit_of("fixed").limiter())
    fleet = Fleet(await serve(server), limits=Limit(REQUESTS, per=1))
    for seconds, jump in ((0.5, 3600.0), (1.6, -3600.0), (2.3, 3600.0)):
        asyncio.get_running_loop().call_later(seconds, fleet.database.jump, jump)
    took = await fleet.run(3, 50)
    assert (fleet.lost, server.refused, server.came) == (0, 0, 150)
    assert took <= 1.15 * 3 + 2.0


@pytest.mark.slow
async def test_all_processes_learn_a_limit_together(serve: Serve) -> None:
    server = Server(limit_of("fixed").limiter())
    fleet = Fleet(await serve(server), at_once=16)
    took = await fleet.run(3, 100)
    assert fleet.lost == 0
    assert server.refused <= 40
    assert took <= 1.15 * 7 + 2.0  # two refusals, of a second each


@pytest.mark.slow
async def test_without_a_limit_a_process_rarely_asks_the_store(serve: Serve) -> None:
    server = Server(None)
    fleet = Fleet(await serve(server))
    await fleet.run(1, 600)
    assert fleet.database.asked <= 0.25 * 600
    assert server.came == 600


@pytest.mark.parametrize("how", ["fails", *(pytest.param(how, marks=pytest.mark.slow) for how in ("hangs", "forgets"))])
async def test_a_failing_store_fails_no_call(serve: Serve, how: str, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(limit_of("fixed").limiter())
    fleet = Fleet(await serve(server), limits=Limit(REQUESTS, per=1))
    database = fleet.database

    async def play() -> None:
        await asyncio.sleep(1.5)
        if how == "forgets":
            database.texts.clear()
        elif how == "hangs":
            database.hangs = True
        else:
            database.fails = ConnectionError("redis://user:pa55word@redis.example")
        await asyncio.sleep(1.5)
        database.hangs, database.fails = False, None

    playing = asyncio.create_task(play())
    with caplog.at_level(logging.WARNING, "lamella"):
        took = await fleet.run(3, 80)
    await playing
    assert fleet.lost == 0
    assert (server.refused, server.came) == (0, 240)
    assert took <= 1.25 * 5 + 1.0
    assert "pa55word" not in caplog.text
    # One for each process.
    assert len(caplog.records) == (0 if how == "forgets" else 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits", [Limit(REQUESTS, per=1), pytest.param(None, marks=pytest.mark.slow)], ids=["stated", "learned"]
)
async def test_a_store_that_is_there_late_costs_no_call(serve: Serve, limits: Limit | None) -> None:
    await asyncio.sleep(100_000)  # since when the machine is up: the clock of a new state says less
    server = Server(limit_of("fixed").limiter())
    fleet = Fleet(await serve(server), limits=limits, at_once=16)
    fleet.database.fails = ConnectionRefusedError()
    asyncio.get_running_loop().call_later(0.4, setattr, fleet.database, "fails", None)
    took = await fleet.run(3, 80)
    assert fleet.lost == 0
    assert took <= 1.25 * 5 + 2.0


class ReadOnlyStore(LocalStore):
    """Fails at each write."""

    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        if any(swap.replacement is not None for swap in swaps):
            raise ConnectionError
        return await super().send(swaps)


async def test_a_store_that_fails_a_new_process_delays_it_by_one_period(virtual_time: VirtualClock) -> None:
    policy, database = Stated((Limit(30, per=1),)), Database()
    await asyncio.sleep(60)  # the clock of the loop is far from that of the state
    await Lease(LocalStore(database), "one", policy).exchange(50, 0.0, 1.0)
    grant = await Lease(ReadOnlyStore(database), "one", policy).exchange(5, 0.0, 1.0)
    assert grant is not None
    assert grant.wait is not None
    assert 0 < (grant.wait.seconds or 0) <= 1.1


async def test_a_process_that_closes_its_store_returns_its_permits(virtual_time: VirtualClock) -> None:
    policy, database = Stated((Limit(30, per=60),)), Database()
    store = LocalStore(database)
    lease = Lease(store, "one", policy)
    for _ in range(10):
        permit = await lease.take(30, 0.0, 1.0)
        assert isinstance(permit, Permit)
        if lease.holding.spent % 2:
            lease.ended(permit, passed=True)
    await store.aclose()
    grant = await Lease(LocalStore(database), "one", policy).exchange(30, 0.0, 1.0)
    assert grant is not None
    assert len(grant.permits) == 20  # of the others, five have passed, and five are in flight


class CountingStore(LocalStore):
    """Counts writes, and those that another process has overtaken."""

    writes = overtaken = 0

    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        replies = await super().send(swaps)
        self.writes += sum(swap.replacement is not None for swap in swaps)
        self.overtaken += sum(
            swap.replacement is not None and not reply.done for swap, reply in zip(swaps, replies, strict=True)
        )
        return replies


async def test_an_exchange_after_that_of_another_process_does_not_overwrite_it(virtual_time: VirtualClock) -> None:
    policy, database = Stated((Limit(1000, per=1),)), Database()
    stores = [CountingStore(database) for _ in range(3)]
    leases = [Lease(store, "one", policy) for store in stores]
    for _ in range(5):
        for lease in leases:
            await lease.exchange(3, 0.0, 1.0)
            await asyncio.sleep(0.3)
    assert [store.overtaken for store in stores] == [1] * 3  # then it reads first
    assert [store.writes for store in stores] == [6] * 3


async def test_processes_that_exchange_at_the_same_time_seldom_overtake_one_another(virtual_time: VirtualClock) -> None:
    policy, database = Stated((Limit(1000, per=1),)), Database()
    stores = [CountingStore(database) for _ in range(16)]
    leases = [Lease(store, "one", policy) for store in stores]
    for _ in range(5):
        await asyncio.gather(*(lease.exchange(3, 0.0, 1.0) for lease in leases))
        await asyncio.sleep(0.3)
    assert sum(store.overtaken for store in stores) <= 3 * 5 * 16


async def test_a_process_that_asks_in_vain_stores_nothing(virtual_time: VirtualClock) -> None:
    policy, database = Stated((Limit(6, per=60),)), Database()
    store = CountingStore(database)
    lease = Lease(store, "one", policy)
    await Lease(LocalStore(database), "one", policy).exchange(5, 0.0, 1.0)

    async def exchange() -> int:
        """Exchange after another process has changed the state. Return the number of writes."""
        await Lease(LocalStore(database), "one", policy).exchange(0, 0.0, 1.0)
        before = store.writes
        grant = await lease.exchange(5, 0.0, 1.0)
        assert grant is not None
        assert grant.wait is not None
        return store.writes - before

    assert [await exchange() for _ in range(5)] == [1, 0, 0, 0, 0]
    await asyncio.sleep(0.3)  # it reports all the same, so that it is not considered lost
    assert await exchange() == 1
    await store.aclose()


async def test_permits_that_another_process_has_issued_are_read(virtual_time: VirtualClock) -> None:
    policy, database = Stated((Limit(10, per=1),)), Database()
    here, there = CountingStore(database), CountingStore(database)
    first, second = Lease(here, "one", policy), Lease(there, "one", policy)
    taken = []
    for lease in (first, second):
        while isinstance(permit := await lease.take(30, 0.0, 1.0), Permit):
            taken.append((lease, permit))
    await second.exchange(30, 0.0, 1.0)
    for lease, permit in taken:
        lease.ended(permit, passed=True)
    await asyncio.sleep(0.95)
    await second.exchange(30, 0.0, 1.0)
    await first.exchange(30, 0.0, 1.0)  # it issues permits to both
    before = there.writes
    await second.exchange(1, 0.0, 1.0)
    assert there.writes == before
    assert second.holding.pool
    await there.aclose()  # these are returned all the same
    assert there.writes == before + 1
    state = of_text(database.texts["lease:one"][VERSION:], policy)
    assert state.holders[second.holding.name].open == []
    await here.aclose()


async def test_a_store_that_hangs_is_closed_without_the_last_report(virtual_time: VirtualClock) -> None:
    store = LocalStore(Database())
    await Lease(store, "one", Stated((Limit(30, per=60),))).exchange(5, 0.0, 1.0)
    store.database.hangs = True
    began = now()
    await store.aclose()
    assert now() - began <= 2


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        "[]",
        '{"known": 3}',
        '{"known":{"unheard":1},"clock":1,"server":1,"holders":{},"serial":1,"closed_until":0}',
        '{"known":{"log":3,"period":"x"},"clock":1,"server":1,"holders":{},"serial":9999,"closed_until":0}',
    ],
)
async def test_a_state_that_is_not_valid_fails_no_call(
    text: str, serve: Serve, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Another version of lamella may have written it."""
    server = Server(None)
    fleet = Fleet(await serve(server))
    async with AsyncExitStack() as opened:
        store = await opened.enter_async_context(LocalStore(fleet.database))
        layers = stack(RULES, account=lambda _: "one", store=store)
        session = await opened.enter_async_context(aiohttp.ClientSession(fleet.url, middlewares=layers))
        async with session.get("/") as response:
            assert response.status == 200
        await asyncio.sleep(1)
        [key] = [key for key in fleet.database.texts if key.startswith("lease:")]
        fleet.database.texts[key] = "x" * VERSION + text
        for _ in range(10):
            async with session.get("/") as response:
                assert response.status == 200
            await asyncio.sleep(0.3)
        assert server.came == 11
        [message] = [record.getMessage() for record in caplog.records]
        assert message.startswith("the state of a rate limit in the store is not valid (")
        del fleet.database.texts[key]
        await asyncio.sleep(1)
        async with session.get("/") as response:
            assert response.status == 200
        await asyncio.sleep(3)
        assert of_text(fleet.database.texts[key][VERSION:], Learned(60.0, learns=True)).holders


def test_a_throttle_reports_in_another_loop() -> None:
    database = Database()
    throttle = Throttle(RULES, store=LocalStore(database))

    async def fail(_: aiohttp.ClientRequest, __: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise TimeoutError

    async def main(seconds: float) -> float:
        async with aiohttp.ClientSession(middlewares=(throttle, fail)) as session:
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await session.get("http://127.0.0.1:9/")
        await asyncio.sleep(seconds)
        [text] = database.texts.values()
        log: list[list[float]] = json.loads(text[VERSION:])["known"]["log"]
        return sum(points for _, _, points in log)

    assert run_virtual(main(0.0)) < 2
    assert run_virtual(main(2.0)) == 4
