"""Measure processes that share an account by a store, with a real Redis and a real PostgreSQL.

    python benchmarks/fleet.py                              everything, half an hour; writes results/fleet.md
    python benchmarks/fleet.py --only "learned, fixed"      a part, shown and not written
    python benchmarks/fleet.py --store redis                one store, shown and not written

Each process of the fleet makes its calls at once. A server with a limit is in this process; one without is a minimal
one in one more process, so that it is not the bottleneck. It installs what it needs from Debian's packages.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks import outage
from benchmarks.costs.server import path, serve
from benchmarks.machine import where
from benchmarks.processes import GRACE, child, receive
from scripts.fleet import Postgres, Redis, Server

from lamella import Backoff, Limit, MemoryStore, PostgresStore, RedisStore, RetryBudget, Rule, RuleBook, Store, stack
from lamella.store.network import NetworkStore, Swap, Swapped
from lamella.testing import FixedWindow, SlidingWindow, TokenBucket
from lamella.testing import Limit as ServersLimit

RESULTS = Path(__file__).resolve().parent / "results" / "fleet.md"
RULES = RuleBook(Rule(429, retry=Backoff(initial=1, maximum=60)))
REQUESTS = 100
LATENCY = 0.02
LIMITS: dict[str, ServersLimit] = {
    "fixed": FixedWindow(REQUESTS, 1.0, retry_after=False),
    "sliding": SlidingWindow(REQUESTS, 1.0, retry_after=False),
    "bucket": TokenBucket(REQUESTS, REQUESTS, retry_after=False),
}
PROCESS_SECONDS = 300.0
Meanwhile = Callable[[Server], Awaitable[None]]


class Done(NamedTuple):
    """What a process has done."""

    lost: int
    seconds: float
    cpu: float
    trips: int
    """Batches that it has sent to the store."""
    warnings: int


@dataclass
class Case:
    """A fleet and what happens to it."""

    name: str
    processes: int
    calls: int
    """Of each process."""
    limit: str | None = "fixed"
    states: bool = False
    meanwhile: Meanwhile | None = None
    killed: bool = False
    """Whether the first process is killed after 5 s."""
    goal: float | None = None
    """The most that the time may be, as a multiple of the best possible."""
    attempts: float | None = None
    """The most attempts a call."""
    runs: int = 1

    @property
    def ideal(self) -> float:
        """The shortest time in seconds in which the server lets all pass."""
        return self.ideal_of(self.processes * self.calls)

    def ideal_of(self, total: int) -> float:
        """Return the shortest time in seconds in which the server lets so many pass."""
        if self.limit == "bucket":
            return total / REQUESTS - 1 + LATENCY
        return (total - 1) // REQUESTS + LATENCY


@dataclass
class Api:
    """Refuses what exceeds its limit."""

    limit: str
    came: int = 0
    refused: int = 0
    limiter: Any = field(init=False)

    def __post_init__(self) -> None:
        self.limiter = LIMITS[self.limit].limiter()

    async def answer(self, _: web.Request) -> web.Response:
        self.came += 1
        refused = self.limiter.allow(asyncio.get_running_loop().time()) > 0
        self.refused += refused
        await asyncio.sleep(LATENCY)
        return web.Response(status=429 if refused else 200)


class Measured(NamedTuple):
    """A case with a store, measured."""

    case: Case
    store: str
    done: Sequence[Done]
    """Of the processes that were not killed."""
    came: int
    refused: int

    @property
    def calls(self) -> int:
        """The calls that are made. A process that is killed has made those that passed."""
        return self.came - self.refused if self.case.killed else self.case.processes * self.case.calls

    @property
    def ideal(self) -> float:
        """The shortest time in seconds. The processes that go on may lose a period to one that is killed."""
        return self.case.ideal_of(self.calls) + self.case.killed

    @property
    def lost(self) -> int:
        return sum(each.lost for each in self.done)

    @property
    def took(self) -> float:
        return max(each.seconds for each in self.done)

    @property
    def cpu(self) -> float:
        """Microseconds a call."""
        return sum(each.cpu for each in self.done) / self.calls * 1e6

    @property
    def trips(self) -> float:
        return sum(each.trips for each in self.done) / self.calls

    @property
    def spread(self) -> float:
        """How much later the last process ends than the first, as a multiple."""
        ends = [each.seconds for each in self.done]
        return max(ends) / min(ends)

    def missed(self) -> list[str]:
        """Return what misses its goal."""
        case = self.case
        checks = [
            (case.goal is None or self.took <= case.goal * self.ideal, f"time over {case.goal}"),
            (case.attempts is None or self.came <= case.attempts * self.calls, f"attempts over {case.attempts}"),
            (self.lost == 0, "calls lost"),
            (not case.states or case.meanwhile is not None or self.refused == 0, "429s"),
            (case.processes < 16 or self.spread <= 1.3, "the last is over 1.3 times as late as the first"),
        ]
        return [what for reached, what in checks if not reached]


class Counted:
    """Counts the batches of a store."""

    def __init__(self, store: Store) -> None:
        self.trips = 0
        if isinstance(store, NetworkStore):
            self._send = store.send
            store.send = self.send  # type: ignore[method-assign]

    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        self.trips += 1
        return await self._send(swaps)


def store_of(url: str) -> Store:
    if url.startswith("redis"):
        return RedisStore(url)
    return PostgresStore(url) if url.startswith("postgres") else MemoryStore()


def work(api: str, url: str, case: Case, pipe: Connection) -> None:
    """Be one of the processes."""
    pipe.send(asyncio.run(_work(api, url, case, pipe)))


async def _work(api: str, url: str, case: Case, pipe: Connection) -> Done:
    lost, numbers = 0, iter(range(case.calls))
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logging.getLogger("lamella").addHandler(handler)

    async def some(session: aiohttp.ClientSession) -> None:
        nonlocal lost
        for _ in numbers:
            try:
                async with session.get(api):
                    pass
            except aiohttp.ClientError:
                lost += 1

    store = store_of(url)
    counted = Counted(store)
    limits = Limit(REQUESTS, per=1) if case.states else None
    layers = stack(RULES, account=lambda _: "one", store=store, limits=limits)
    try:
        async with aiohttp.ClientSession(middlewares=layers) as session:
            pipe.send("ready")
            await asyncio.to_thread(pipe.recv)
            began, cpu = time.monotonic(), time.process_time()
            await asyncio.gather(*(some(session) for _ in range(max(64 // case.processes, 4))))
            seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    finally:
        if isinstance(store, NetworkStore):
            await store.aclose()
    return Done(lost, seconds, cpu, counted.trips, len(records))


async def measure(case: Case, server: Server | None) -> Measured:
    """Run a case. *server* None: states are in the memory of each process."""
    api = None if case.limit is None else Api(case.limit)
    async with _unlimited() if api is None else _serving(api) as url:
        done = await _done(case, server, url)
    came, refused = (case.processes * case.calls, 0) if api is None else (api.came, api.refused)
    return Measured(case, "memory" if server is None else server.name, done, came, refused)


@asynccontextmanager
async def _unlimited() -> AsyncIterator[str]:
    with child(serve) as (process, pipe):
        yield receive(process, pipe, GRACE) + path()


@asynccontextmanager
async def _serving(api: Api) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/", api.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def _done(case: Case, server: Server | None, url: str) -> list[Done]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.fleet", "lamella", "redis.asyncio", "asyncpg"])
    plain = Case(case.name, case.processes, case.calls, case.limit, case.states)
    pipes = [context.Pipe() for _ in range(case.processes)]
    store_url = "" if server is None else server.url
    started = [context.Process(target=work, args=(url, store_url, plain, theirs), daemon=True) for _, theirs in pipes]
    try:
        for process in started:
            process.start()
        for ours, theirs in pipes:
            theirs.close()
            assert await asyncio.to_thread(ours.recv) == "ready"
        for ours, _ in pipes:
            ours.send("go")
        if case.meanwhile is not None and server is not None:
            await case.meanwhile(server)
        if case.killed:
            await asyncio.sleep(5)
            started[0].kill()
        told = list(zip(started, pipes, strict=True))[case.killed :]
        done: list[Done] = await asyncio.gather(
            *(asyncio.to_thread(receive, process, ours, PROCESS_SECONDS) for process, (ours, _) in told)
        )
        return done
    finally:
        for process in started:
            process.kill()
            process.join()


async def freeze(server: Server) -> None:
    await asyncio.sleep(5)
    server.freeze()
    await asyncio.sleep(5)
    server.thaw()


async def restart(server: Server) -> None:
    await asyncio.sleep(5)
    server.kill()
    await asyncio.to_thread(server.start)


async def forget(server: Server) -> None:
    for _ in range(3):
        await asyncio.sleep(5)
        await _forget(server.url)


async def _forget(url: str) -> None:
    if url.startswith("redis"):
        from redis.asyncio import Redis as Client

        async with Client.from_url(url) as client:
            await client.flushall()
        return
    import asyncpg

    connection = await asyncpg.connect(url)
    await connection.execute("CREATE UNLOGGED TABLE IF NOT EXISTS lamella (key text); DROP TABLE lamella")
    await connection.close()


CASES = [
    *(Case(f"learned, {kind}", 4, 1000, kind, goal=1.15, attempts=1.02, runs=5) for kind in LIMITS),
    *(Case(f"learned, {kind}", 16, 250, kind, goal=1.2) for kind in LIMITS),
    Case("stated", 4, 500, states=True, goal=1.15),
    Case("stated", 16, 125, states=True, goal=1.15),
    Case("learned, a process killed", 4, 750, killed=True, goal=1.15, attempts=1.03),
    Case("stated, a process killed", 4, 500, states=True, killed=True, goal=1.15),
    Case("learned, store frozen for 5 s", 4, 750, meanwhile=freeze, goal=1.25, attempts=1.03),
    Case("learned, store killed, back empty", 4, 750, meanwhile=restart, goal=1.25, attempts=1.03),
    Case("learned, store emptied three times", 4, 750, meanwhile=forget, goal=1.25, attempts=1.03),
]
FREE = [Case("no limit", 1, 3000, None), Case("no limit", 4, 1500, None)]
FREE_RUNS = 5


def row(runs: Sequence[Measured]) -> str:
    """Return the row of a case, with the worst figure of all its runs in each column."""
    case = runs[0].case
    missed = list(dict.fromkeys(what for each in runs for what in each.missed()))
    cells = [
        runs[0].store,
        str(case.processes),
        case.name,
        str(len(runs)),
        f"{max(each.took / each.ideal for each in runs):.2f}",
        str(max(each.refused for each in runs)),
        f"{max(each.came / each.calls for each in runs):.3f}",
        str(max(each.lost for each in runs)),
        f"{max(each.spread for each in runs):.2f}",
        f"{max(each.trips for each in runs):.2f}",
        f"{max(each.cpu for each in runs):,.0f}",
        "yes" if not missed else "**no**: " + ", ".join(missed),
    ]
    return f"| {' | '.join(cells)} |"


def free_row(runs: Sequence[Measured], beside: Sequence[Measured]) -> str:
    """Return the row of a case without a limit: the medians of its *runs*, each with one in memory *beside* it."""
    case, trips = runs[0].case, median(each.trips for each in runs)
    rate = median(each.calls / each.took for each in runs)
    ratio = median(each.cpu / memory.cpu for each, memory in zip(runs, beside, strict=True))
    warnings, missed = sum(done.warnings for each in runs for done in each.done), []
    if case.processes == 1:
        missed += ["CPU over 1.5"] * (ratio > 1.5) + ["round trips over 0.25"] * (trips > 0.25)
    else:
        missed += ["under 3,000 a second"] * (rate < 3000) + ["a warning"] * (warnings > 0)
    cells = [
        runs[0].store,
        str(case.processes),
        f"{rate:,.0f}",
        f"{median(each.cpu for each in runs):,.0f}",
        f"{median(each.cpu for each in beside):,.0f}",
        f"{ratio:.2f}",
        f"{trips:.2f}",
        str(warnings),
        "yes" if not missed else "**no**: " + ", ".join(missed),
    ]
    return f"| {' | '.join(cells)} |"


def outage_row(store: str, got: outage.Outage) -> str:
    missed = [
        what for is_over, what in ((got.stopped > 0.5, "over 0.5 s"), (got.attempts > 1.25, "over 1.25")) if is_over
    ]
    reached = "yes" if not missed else "**no**: " + ", ".join(missed)
    return f"| {store} | 8 | {got.stopped:.2f} | {got.attempts:.3f} | {reached} |"


def page(limited: Sequence[Sequence[Measured]], free: Sequence[str], outages: Sequence[str], load: str) -> str:
    machine = where() | {"load before it": load}
    return f"""# Processes that share an account

Processes make calls to one account by a store that they share: a real Redis or PostgreSQL on the same machine. The
server allows {REQUESTS} requests a second and answers after {LATENCY * 1000:.0f} ms; it is in one more process.
`make fleet` wrote this page. A row with several runs shows the worst figure of them in each column.

- **time**: from the start to the last response, as a multiple of the shortest time that the limit allows.
- **last / first**: how much later the last process ends than the first.
- **round trips**: batches that are sent to the store, for each call. **CPU**: µs a call, of all processes of the fleet.
- **reached**: whether the goals are reached. Learned: at most 1.15 in time (16 processes: 1.20, last / first 1.3) and
  1.02 attempts a call; stated: 1.15 and no 429; a store that fails: 1.25 and 1.03. No call may be lost. If a process is
  killed with its permits, the shortest time includes one period that the others lose.

| store | processes | limit | runs | time | 429s | attempts a call | lost | last / first | round trips | CPU | reached |
|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|---|
{chr(10).join(row(each) for each in limited)}

## Without a limit

Goals: one process takes at most 1.5 times the CPU that it takes with a store in memory, and 0.25 round trips a call;
four make at least 3,000 calls a second, without a warning. A minimal server, which shares the processors with them,
answers at once. Each row has the medians of {FREE_RUNS} runs; a run with the states in memory comes before each.

| store | processes | calls a second | CPU | CPU in memory | ratio | round trips | warnings | reached |
|---|--:|--:|--:|--:|--:|--:|--:|---|
{chr(10).join(free)}

## In an outage

The service answers 503. First all processes have a breaker: **stopped** is the time in seconds from the moment when one
of them opens the circuit to the last attempt of any. Then they make 250 calls each without a breaker, with the default
retry budget. Goals: 0.5 s, and 1.25 attempts a call in all.

| store | processes | stopped | attempts a call | reached |
|---|--:|--:|--:|---|
{chr(10).join(outages)}

## The machine

| | |
|---|---|
{chr(10).join(f"| {name} | {value} |" for name, value in machine.items())}
"""


async def run(only: str | None, store: str | None) -> None:
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    limited: list[list[Measured]] = []
    free: list[str] = []
    outages: list[str] = []
    kinds = [kind for kind in (Redis, Postgres) if store in {None, kind.name}]
    for kind in kinds:
        with kind() as server:
            for case in (each for each in CASES if only is None or only in each.name):
                runs = []
                for _ in range(case.runs):
                    await _forget(server.url)
                    runs.append(await measure(case, server))
                print(row(runs), flush=True)
                limited.append(runs)
            for case in (each for each in FREE if only is None or only in each.name):
                runs, beside = [], []
                for _ in range(FREE_RUNS):
                    await _forget(server.url)
                    beside.append(await measure(case, None))
                    runs.append(await measure(case, server))
                free.append(free_row(runs, beside))
                print(free[-1], flush=True)
            if only is None or only in "outage":
                await _forget(server.url)
                outages.append(outage_row(server.name, await outage.measure(server.url, 8, 250, RetryBudget())))
                print(outages[-1], flush=True)
    if only is None:
        text = page(limited, free, outages, load)
        print(text)
        if store is None:
            RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure processes that share an account by a store.")
    parser.add_argument("--only", help="a part of the name of the cases")
    parser.add_argument("--store", choices=["redis", "postgres"])
    arguments = parser.parse_args()
    asyncio.run(run(arguments.only, arguments.store))
