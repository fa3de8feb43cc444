"""``Throttle`` and slow answers: where nothing was refused no call waits for them, and after a refusal not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web
from tests.json_store import JsonStore
from tests.layers.accounts import MINUTE, at_rest, client, now, throttle_in
from tests.servers import Serve

from lamella import Limit, maesn, stack
from lamella.call import Call
from lamella.store.memory import MemoryStore
from lamella.testing import FixedWindow, VirtualClock
from lamella.throttle.account import Account
from lamella.throttle.estimate import Permit, Wait

Connect = Callable[[str], aiohttp.ClientSession]


class Server:
    """Takes as long as a request asks for, or until the first request for ``/event``."""

    def __init__(self) -> None:
        self.limiter = FixedWindow(10**9, 60).limiter()
        self.event = asyncio.Event()
        self.came: list[tuple[float, str]] = []
        self.refused = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.came.append((now(), request.path_qs))
        if self.limiter.allow(now()) > 0:
            self.refused += 1
            return web.Response(status=429)
        if request.path.endswith("/event"):
            self.event.set()
        elif request.path.endswith("/poll"):
            await self.event.wait()
        else:
            await asyncio.sleep(float(request.query.get("seconds", "0")))
        return web.Response()


def plain(url: str) -> aiohttp.ClientSession:
    return client(url, *stack(MINUTE))


def of_maesn(url: str) -> aiohttp.ClientSession:
    return maesn.session("api key", "account key", url, connector=aiohttp.TCPConnector(limit=0))


def shared(url: str) -> aiohttp.ClientSession:
    """With a store that is not in memory, and has a clock of its own."""
    return client(url, *stack(MINUTE, store=JsonStore(slow=0.0)))


async def get(session: aiohttp.ClientSession, seconds: float = 0.0, path: str = "call") -> float:
    """Return how many seconds it took, an hour at most: a deadlock is a failure then."""
    began = now()
    url = session._base_url
    assert url is not None
    async with asyncio.timeout(3600), session.get(url / path, params={"seconds": str(seconds)}) as response:
        assert response.status == 200
    return now() - began


async def crowd(session: aiohttp.ClientSession, calls: int, at_once: int, seconds: float) -> float:
    """Make so many calls, so many at a time. Return how many seconds all of them took."""
    numbers = iter(range(calls))

    async def work() -> None:
        for _ in numbers:
            await get(session, seconds)

    began = now()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return now() - began


SESSIONS = pytest.mark.parametrize("connect", [plain, of_maesn, shared])


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("connect", "calls", "at_once", "seconds", "most"),
    [
        *((connect, 100, 100, 1.0, 1.3) for connect in (plain, of_maesn, shared)),
        pytest.param(plain, 1000, 500, 0.02, 0.2, marks=pytest.mark.slow),
        pytest.param(of_maesn, 1000, 500, 0.02, 0.2, marks=pytest.mark.slow),
        (plain, 20, 20, 1.0, 1.3),
        pytest.param(plain, 500, 500, 1.0, 1.5, marks=pytest.mark.slow),
        pytest.param(plain, 1000, 1000, 3.0, 3.6, marks=pytest.mark.slow),
        (plain, 100, 100, 0.5, 0.8),
        (plain, 200, 100, 1.0, 2.3),  # the second hundred need not find anything out
        (plain, 300, 100, 0.3, 1.2),
        (plain, 100, 100, 0.2, 1.0),  # the answers are not slow, but so many calls would wait long for them
        (plain, 300, 300, 0.15, 0.95),
    ],
)
async def test_many_slow_calls_take_little_longer_than_one(
    serve: Serve, virtual_time: VirtualClock, connect: Connect, calls: int, at_once: int, seconds: float, most: float
) -> None:
    async with connect(await serve(Server())) as session:
        assert await crowd(session, calls, at_once, seconds) <= most
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("known", [0.0, 0.1, 1.0])
async def test_many_slow_calls_are_not_delayed_after_some_answers(
    serve: Serve, virtual_time: VirtualClock, known: float
) -> None:
    """Quick ones before do not make the slow ones wait, nor do slow ones."""
    async with plain(await serve(Server())) as session:
        await get(session, known)
        assert await crowd(session, 100, 100, 1.0) <= 1.35
        assert await crowd(session, 100, 100, 2.0) <= 2.35


@pytest.mark.sampled(1)
@SESSIONS
@pytest.mark.parametrize("polls", [4, 12, 100])
@pytest.mark.parametrize("later", [0.0, 0.1, 50.0])
async def test_a_fast_call_does_not_wait_for_a_long_poll(
    serve: Serve, virtual_time: VirtualClock, connect: Connect, polls: int, later: float
) -> None:
    async with connect(await serve(Server())) as session:
        polling = [asyncio.create_task(get(session, 1000.0)) for _ in range(polls)]
        await asyncio.sleep(later)
        assert await get(session) <= 0.25
        assert await get(session) <= 0.25
        for task in polling:
            task.cancel()
        await asyncio.wait(polling)
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


@pytest.mark.sampled(1)
@SESSIONS
@pytest.mark.parametrize("polls", [4, 12, 100])
async def test_polls_that_wait_for_another_call_are_no_deadlock(
    serve: Serve, virtual_time: VirtualClock, connect: Connect, polls: int
) -> None:
    async with connect(await serve(Server())) as session:
        polling = [asyncio.create_task(get(session, path="poll")) for _ in range(polls)]
        await asyncio.sleep(0)
        assert await get(session, path="event") < 0.5
        assert max(await asyncio.gather(*polling)) < 0.5
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


async def test_slow_calls_do_not_delay_fast_calls(serve: Serve, virtual_time: VirtualClock) -> None:
    async with plain(await serve(Server())) as session:
        slow = [asyncio.create_task(get(session, 10.0)) for _ in range(50)]
        await asyncio.sleep(0.3)
        took = [await get(session, 0.05) for _ in range(20)]
        assert max(took[1:]) < 0.06
        assert max(await asyncio.gather(*slow)) < 10.3


@pytest.mark.slow
@pytest.mark.parametrize("connect", [plain, pytest.param(shared, marks=pytest.mark.slow)])
async def test_slow_start_grows_with_answers_if_they_are_fast(
    serve: Serve, virtual_time: VirtualClock, connect: Connect
) -> None:
    """Time does not let the crowd go while answers come: a limit costs few refusals."""
    server = Server()
    server.limiter = FixedWindow(30, 60).limiter()
    async with connect(await serve(server)) as session:
        await crowd(session, 300, 300, 0.2)
        assert server.refused <= 30


@pytest.mark.sampled(1)
@pytest.mark.parametrize("store", [None, MemoryStore(), JsonStore(slow=0.001)], ids=["none", "memory", "slow"])
async def test_a_slow_call_causes_only_a_few_checks(
    serve: Serve,
    virtual_time: VirtualClock,
    store: MemoryStore | JsonStore | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    server.limiter = FixedWindow(5, 60).limiter()
    async with client(await serve(server), *stack(MINUTE, store=store)) as session:
        asked: list[float] = []
        take = Account.take

        async def counted(account: Account, call: Call) -> Permit | Wait:
            asked.append(now())
            return await take(account, call)

        monkeypatch.setattr(Account, "take", counted)
        # A limit of five is learned; then five polls use it up, and others wait for a minute.
        await crowd(session, 20, 20, 0.01)
        asked.clear()
        calls = [asyncio.create_task(get(session, seconds)) for seconds in (200.0,) * 5 + (0.0,) * 20]
        await asyncio.wait(calls)
        assert len(asked) < 200
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


class Refusing(Server):
    """Refuses the next requests."""

    def __init__(self) -> None:
        super().__init__()
        self.refusing = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if self.refusing:
            self.refusing -= 1
            self.refused += 1
            return web.Response(status=429)
        return await super().__call__(request)


@pytest.mark.parametrize("slow", [False, True])
async def test_polls_from_before_a_refusal_do_not_delay_calls_after_the_wait(
    serve: Serve, virtual_time: VirtualClock, slow: bool
) -> None:
    server, store = Refusing(), JsonStore(slow=0.0) if slow else None
    async with client(await serve(server), *stack(MINUTE, store=store, attempt_timeout=None)) as session:
        polling = [asyncio.create_task(get(session, path="poll")) for _ in range(4)]
        await asyncio.sleep(1)
        server.refusing = 1
        assert await get(session) == pytest.approx(60, abs=1)  # refused once, then it passes
        assert await get(session, path="event") < 0.1
        assert max(await asyncio.gather(*polling)) < 62
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


@pytest.mark.sampled
@pytest.mark.parametrize("polls", [1, 4, 12])
@pytest.mark.parametrize("limit", [None, Limit(1000, 60)])
async def test_polls_that_are_sent_after_the_wait_are_no_deadlock(
    serve: Serve, virtual_time: VirtualClock, polls: int, limit: Limit | None
) -> None:
    """One goes alone, until it passes or has taken its time: a second where answers are quick."""
    server = Refusing()
    server.refusing = 1
    async with client(await serve(server), *stack(MINUTE, limits=limit, attempt_timeout=None)) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get("/", params={}, middlewares=stack(MINUTE, throttle_in(session), attempts=1))
        polling = [asyncio.create_task(get(session, path="poll")) for _ in range(polls)]
        await asyncio.sleep(0)
        assert await get(session, path="event") < 60 + polls + 1
        await asyncio.gather(*polling)
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


async def test_polls_that_use_up_a_learned_limit_delay_others_for_one_period(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    """They were counted when they were sent, however long they take."""
    server = Server()
    server.limiter = FixedWindow(6, 60).limiter()
    async with client(await serve(server), *stack(MINUTE, attempt_timeout=None)) as session:
        await crowd(session, 30, 30, 0.01)
        await asyncio.sleep(200)
        refused = server.refused
        polling = [asyncio.create_task(get(session, path="poll")) for _ in range(6)]
        await asyncio.sleep(20)
        assert await get(session) <= 61
        assert await get(session, path="event") <= 61
        await asyncio.gather(*polling)
        assert server.refused - refused <= 2
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)
