"""A fleet of processes against a server with a limit, with a real store between them."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
from aiohttp import web
from tests.fleet.places import Place, RedisPlace, store_of

from lamella import Backoff, Limit, Rule, RuleBook, stack
from lamella.testing import FixedWindow

REQUESTS, PER = 20, 1.0
RULES = RuleBook(Rule(429, retry=Backoff(initial=1, maximum=60)))
PROCESS_SECONDS = 60.0


def call(url: str, store_url: str, calls: int, pipe: Connection) -> None:
    """Be one of the processes: make so many calls when told to, and say how many were lost."""
    pipe.send(asyncio.run(_call(url, store_url, calls, pipe)))


async def _call(url: str, store_url: str, calls: int, pipe: Connection) -> int:
    lost, numbers = 0, iter(range(calls))

    async def some(session: aiohttp.ClientSession) -> None:
        nonlocal lost
        for _ in numbers:
            try:
                async with session.get(url):
                    pass
            except aiohttp.ClientError:
                lost += 1

    async with store_of(store_url) as store:
        layers = stack(RULES, account=lambda _: "one", store=store, limits=Limit(REQUESTS, per=PER))
        async with aiohttp.ClientSession(middlewares=layers) as session:
            pipe.send("ready")
            await asyncio.to_thread(pipe.recv)
            await asyncio.gather(*(some(session) for _ in range(16)))
    return lost


def call_in_forks(url: str, store_url: str, calls: int, pipe: Connection) -> None:
    """Make a call, and so many calls through the same layers in each of two forks, and say how many forks failed."""
    layers = stack(RULES, account=lambda _: "one", store=store_of(store_url), limits=Limit(REQUESTS, per=PER))

    async def make(calls: int) -> None:
        async with aiohttp.ClientSession(middlewares=layers) as session:
            await asyncio.gather(*(session.get(url) for _ in range(calls)))

    asyncio.run(make(1))
    pipe.send("ready")
    pipe.recv()
    forks = []
    for _ in range(2):
        if (forked := os.fork()) == 0:
            asyncio.run(make(calls))
            os._exit(0)  # not the end of the other process
        forks.append(forked)
    pipe.send(sum(os.waitpid(forked, 0)[1] != 0 for forked in forks))


def fork_during_calls(url: str, store_url: str, calls: int, pipe: Connection) -> None:
    """Fork while so many calls are in flight or wait, make as many in the fork, and return how much has failed."""
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lamella").addHandler(handler)
    store = store_of(store_url)
    layers = stack(RULES, account=lambda _: "one", store=store, limits=Limit(REQUESTS, per=PER))

    async def make() -> None:
        async with asyncio.timeout(PROCESS_SECONDS / 2), store, aiohttp.ClientSession(middlewares=layers) as session:
            await asyncio.gather(*(session.get(url) for _ in range(calls)))

    async def both() -> int:
        making = asyncio.create_task(make())
        await asyncio.sleep(0.5)
        if (forked := os.fork()) == 0:
            try:
                asyncio.run(make())
                os._exit(len(warnings))
            finally:
                os._exit(1)
        await making
        _, status = await asyncio.to_thread(os.waitpid, forked, 0)
        return len(warnings) + (status != 0)

    pipe.send("ready")
    pipe.recv()
    pipe.send(asyncio.run(both()))


@dataclass
class Server:
    """Refuses what exceeds its limit."""

    came: int = 0
    refused: int = 0
    limiter: Any = field(default_factory=lambda: FixedWindow(REQUESTS, PER, retry_after=False).limiter())

    async def answer(self, _: web.Request) -> web.Response:
        self.came += 1
        refused = self.limiter.allow(asyncio.get_running_loop().time()) > 0
        self.refused += refused
        await asyncio.sleep(0.01)
        return web.Response(status=429 if refused else 200)


async def run(
    server: Server,
    store_url: str,
    *,
    processes: int,
    calls: int,
    meanwhile: Callable[[list[Any]], Any] | None = None,
    target: Callable[[str, str, int, Connection], None] = call,
) -> list[int | None]:
    """Return how many calls each process has lost. None: it was killed."""
    application = web.Application()
    application.router.add_get("/", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(processes)]
    started = [context.Process(target=target, args=(url, store_url, calls, theirs), daemon=True) for _, theirs in pipes]
    try:
        for process in started:
            process.start()
        for ours, theirs in pipes:
            theirs.close()
            assert await asyncio.to_thread(ours.recv) == "ready"
        for ours, _ in pipes:
            ours.send("go")
        if meanwhile is not None:
            await meanwhile(started)
        return [await asyncio.to_thread(_result, ours) for ours, _ in pipes]
    finally:
        for process in started:
            process.kill()
            process.join()
        for ours, _ in pipes:
            ours.close()
        await runner.cleanup()


def _result(pipe: Connection) -> int | None:
    try:
        assert pipe.poll(PROCESS_SECONDS), "a process does not end"
        return int(pipe.recv())
    except EOFError:
        return None


async def test_all_real_processes_respect_a_stated_limit(place: Place) -> None:
    server = Server()
    assert await run(server, place.url, processes=4, calls=40) == [0] * 4
    assert (server.came, server.refused) == (160, 0)


async def test_the_forks_of_a_process_respect_a_stated_limit(redis_place: RedisPlace) -> None:
    server = Server()
    assert await run(server, redis_place.url, processes=1, calls=15, target=call_in_forks) == [0]
    assert (server.came, server.refused) == (31, 0)


async def test_a_fork_during_calls_shares_the_limit_and_no_connection(place: Place) -> None:
    server = Server()
    assert await run(server, place.url, processes=1, calls=50, target=fork_during_calls) == [0]
    assert (server.came, server.refused) == (100, 0)


async def test_other_processes_continue_after_a_kill(redis_place: RedisPlace) -> None:
    server = Server()

    async def kill(started: list[Any]) -> None:
        while server.came < 2 * REQUESTS:  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.01)
        os.kill(started[0].pid, signal.SIGKILL)

    lost = await run(server, redis_place.url, processes=3, calls=40, meanwhile=kill)
    assert lost == [None, 0, 0]
    assert server.refused == 0


async def test_a_store_that_forgets_everything_loses_no_call(place: Place) -> None:
    server = Server()

    async def forget(_: list[Any]) -> None:
        for times in (1, 2, 3):
            while server.came < 2 * times * REQUESTS:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            await place.forget()

    assert await run(server, place.url, processes=4, calls=40, meanwhile=forget) == [0] * 4
    assert server.came <= 160 * 1.03
