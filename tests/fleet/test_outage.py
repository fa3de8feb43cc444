"""A fleet of processes that call a service which goes down, with a real store between them."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from tests.fleet.places import Place, store_of

from lamella import Backoff, Breaker, CircuitOpen, LamellaError, RetryBudget, Rule, RuleBook, stack
from lamella.store import network

RULES = RuleBook(Rule(503, retry=Backoff(initial=0.05, factor=1)))
PROCESSES = 8
CALLS = 80
AT_ONCE = 8
PAUSE = 0.05
PROCESS_SECONDS = 300.0


class Ended(NamedTuple):
    """What a process has seen. Times are by the clock of all processes."""

    opened: list[float]
    """When it has opened the circuit."""
    rejected: float
    """When its first call was rejected."""
    late: float
    """Maximum seconds for which it did not run although it could."""
    attempts: int
    """Attempts of the calls without a breaker."""


def call(url: str, store_url: str, pipe: Connection) -> None:
    """Be one of the processes."""
    pipe.send(asyncio.run(_call(url, store_url, pipe)))


async def _call(url: str, store_url: str, pipe: Connection) -> Ended:
    network._PATIENCE = 30.0  # eight processes that start together may keep a machine busy for longer than a second
    opened: list[float] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: opened.append(time.monotonic()) if "opened" in record.getMessage() else None  # type: ignore[method-assign]
    logging.getLogger("lamella").addHandler(handler)
    async with store_of(store_url) as store:
        breaker = Breaker(minimum=40, window=1, open_for=60)
        layers = stack(RULES, breaker, store=store, throttle=False, retry_budget=None, attempts=1)
        async with aiohttp.ClientSession(url, middlewares=layers) as session:
            await _get(session)
            pipe.send("ready")
            await asyncio.to_thread(pipe.recv)
            rejected, late = await _until_rejected(session)
        pipe.send("rejected")
        await asyncio.to_thread(pipe.recv)
        layers = stack(RULES, store=store, throttle=False, retry_budget=RetryBudget(0.2, 20))
        async with aiohttp.ClientSession(url, middlewares=layers) as session:
            numbers = iter(range(CALLS))
            attempts = sum(await asyncio.gather(*(_attempts(session, numbers) for _ in range(AT_ONCE))))
    return Ended(opened, rejected, late, attempts)


async def _get(session: aiohttp.ClientSession) -> LamellaError | None:
    try:
        async with session.get("/"):
            return None
    except LamellaError as error:
        return error


async def _attempts(session: aiohttp.ClientSession, numbers: Iterator[int]) -> int:
    attempts = 0
    for _ in numbers:
        error = await _get(session)
        attempts += 1 if error is None else len(error.attempts)
    return attempts


async def _until_rejected(session: aiohttp.ClientSession) -> tuple[float, float]:
    late = 0.0
    while not isinstance(await _get(session), CircuitOpen):
        before = time.monotonic()
        await asyncio.sleep(PAUSE)
        late = max(late, time.monotonic() - before - PAUSE)
    return time.monotonic(), late


@dataclass
class Service:
    """It works until it is down."""

    is_down: bool = False
    requests: int = 0
    last: float = 0.0

    async def answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        self.last = time.monotonic()
        return web.Response(status=503 if self.is_down else 200)


async def test_eight_processes_stop_together_and_share_the_retry_budget(place: Place) -> None:
    service = Service()
    application = web.Application()
    application.router.add_get("/", service.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lamella", "redis.asyncio", "asyncpg"])
    pipes = [context.Pipe() for _ in range(PROCESSES)]
    started = [context.Process(target=call, args=(url, place.url, theirs), daemon=True) for _, theirs in pipes]

    async def all_say(check: Callable[[Any], bool]) -> list[Any]:
        said = [await asyncio.to_thread(_received, ours) for ours, _ in pipes]
        assert all(map(check, said))
        return said

    try:
        for process in started:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        await all_say("ready".__eq__)
        for ours, _ in pipes:
            ours.send("go")
        await asyncio.sleep(0.5)
        service.is_down = True
        await all_say("rejected".__eq__)
        last, before = service.last, service.requests
        for ours, _ in pipes:
            ours.send("go")
        ended: list[Ended] = await all_say(lambda each: isinstance(each, Ended))
    finally:
        for process in started:
            process.kill()
            process.join()
        for ours, _ in pipes:
            ours.close()
        await runner.cleanup()
    [opened] = [at for each in ended for at in each.opened]  # one process has opened it
    late = max(each.late for each in ended)
    assert max(last, *(each.rejected for each in ended)) - opened <= 0.5 + late
    assert sum(each.attempts for each in ended) == service.requests - before
    assert sum(each.attempts for each in ended) <= 1.25 * PROCESSES * CALLS


def _received(pipe: Connection) -> Any:
    assert pipe.poll(PROCESS_SECONDS), "a process does not end"
    return pipe.recv()
