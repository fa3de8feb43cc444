"""Processes that call a service which goes down, with a store between them."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import aiohttp
from aiohttp import web
from benchmarks.processes import receive

from lamella import (
    Backoff,
    Breaker,
    CircuitOpen,
    LamellaError,
    PostgresStore,
    RedisStore,
    RetryBudget,
    Rule,
    RuleBook,
    stack,
)
from lamella.store import network

RULES = RuleBook(Rule(503, retry=Backoff(initial=0.05, factor=1)))
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


class Outage(NamedTuple):
    """An outage, measured."""

    opened: int
    """How many processes have opened the circuit."""
    stopped: float
    """Seconds from the opening to the last attempt, or to the last process whose calls are rejected."""
    late: float
    """Maximum seconds for which a process did not run although it could."""
    attempts: float
    """Attempts a call without a breaker, by a retry budget."""


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


class Work(NamedTuple):
    """What a process does."""

    url: str
    store: str
    calls: int
    budget: RetryBudget
    patience: float | None
    """Seconds to wait for an answer of the store. None: as usual."""


async def measure(
    store: str, processes: int, calls: int, budget: RetryBudget, *, patience: float | None = None
) -> Outage:
    """Let each of the processes make *calls* in an outage, after the circuit of all has opened."""
    service = Service()
    application = web.Application()
    application.router.add_get("/", service.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    work = Work(f"http://127.0.0.1:{runner.addresses[0][1]}/", store, calls, budget, patience)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.outage", "redis.asyncio", "asyncpg"])
    pipes = [context.Pipe() for _ in range(processes)]
    started = [context.Process(target=run, args=(work, theirs), daemon=True) for _, theirs in pipes]

    async def all_received() -> list[object]:
        each = zip(started, pipes, strict=True)
        received = (asyncio.to_thread(receive, process, ours, PROCESS_SECONDS) for process, (ours, _) in each)
        return list(await asyncio.gather(*received))

    def go() -> None:
        for ours, _ in pipes:
            ours.send("go")

    try:
        for process in started:
            process.start()
        for _, theirs in pipes:
            theirs.close()
        await all_received()
        go()
        await asyncio.sleep(0.5)
        service.is_down = True
        await all_received()
        last, before = service.last, service.requests
        go()
        ended = [each for each in await all_received() if isinstance(each, Ended)]
    finally:
        for process in started:
            process.kill()
            process.join()
        for ours, _ in pipes:
            ours.close()
        await runner.cleanup()
    assert sum(each.attempts for each in ended) == service.requests - before
    return _outage(ended, last, (service.requests - before) / (processes * calls))


def _outage(ended: Sequence[Ended], last: float, attempts: float) -> Outage:
    opened = [at for each in ended for at in each.opened]
    stopped = max(last, *(each.rejected for each in ended)) - min(opened)
    return Outage(len(opened), stopped, max(each.late for each in ended), attempts)


def run(work: Work, pipe: Connection) -> None:
    """Be one of the processes."""
    if work.patience is not None:
        network._PATIENCE = work.patience  # type: ignore[misc]
    pipe.send(asyncio.run(_run(work, pipe)))


async def _run(work: Work, pipe: Connection) -> Ended:
    opened: list[float] = []

    def note(record: logging.LogRecord) -> None:
        if "opened" in record.getMessage():
            opened.append(time.monotonic())

    handler = logging.Handler(logging.WARNING)
    handler.emit = note  # type: ignore[method-assign]
    logging.getLogger("lamella").addHandler(handler)
    async with RedisStore(work.store) if work.store.startswith("redis") else PostgresStore(work.store) as store:
        breaker = Breaker(minimum=40, window=1, open_for=60)
        layers = stack(RULES, breaker, store=store, throttle=False, retry_budget=None, attempts=1)
        async with aiohttp.ClientSession(work.url, middlewares=layers) as session:
            await _get(session)
            pipe.send("ready")
            await asyncio.to_thread(pipe.recv)
            rejected, late = await _until_rejected(session)
        pipe.send("rejected")
        await asyncio.to_thread(pipe.recv)
        layers = stack(RULES, store=store, throttle=False, retry_budget=work.budget)
        async with aiohttp.ClientSession(work.url, middlewares=layers) as session:
            numbers = iter(range(work.calls))
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
