"""What is measured of a checkout, in a child process that imports this checkout's lamella and no other.

The two checkouts may be far apart, so a scenario uses aiohttp and the stable API of `lamella.maesn.session` only.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import aiohttp
from benchmarks.costs.contenders import lamella as connect
from benchmarks.costs.held import QUEUED, bytes_held
from benchmarks.costs.imports import IMPORTS, import_times
from benchmarks.costs.loopback import Job, do
from benchmarks.costs.providers import tracer_provider
from benchmarks.costs.pure import cpu_per_call, full
from benchmarks.costs.server import answer
from benchmarks.costs.server import serve as serve_until_closed
from benchmarks.processes import readable

__all__ = ["SCENARIOS", "Scenario", "Turn", "serve", "work"]

_AT_ONCE = 10

Turn = Callable[[], Awaitable[tuple[float, ...]]]
"""Measure once, and return a figure for each row of the scenario."""


class Scenario(NamedTuple):
    """Something to measure: in each of `rounds` rounds, a fresh process of each side takes `turns` turns.

    A turn is short, so that the machine is equally busy for the two turns that are compared.
    """

    rows: dict[str, str]
    """The names of the rows in the table, and their units."""
    rounds: int
    turns: int
    prepare: Callable[[str], AbstractAsyncContextManager[Turn]]
    """Takes the URL of the server."""


@asynccontextmanager
async def _pure(_url: str, *, calls: int, failures: int = 0, telemetry: str = "none") -> AsyncIterator[Turn]:
    """Calls in one process, around a handler that returns at once."""
    from lamella import maesn

    bad, good = await answer(), await answer()
    bad.status = 500
    answers = cycle([bad] * failures + [good])
    layers = await full(rules=maesn.RULES.scaled(0), retry_budget=None, tracer_provider=tracer_provider(telemetry))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def turn() -> tuple[float, ...]:
            return (await cpu_per_call(layers, session, answers, calls),)

        yield turn


@asynccontextmanager
async def _loopback(url: str, *, calls: int, failures: int = 0) -> AsyncIterator[Turn]:
    """Calls to a server in another process."""
    async with connect(url, "none") as call:

        async def turn() -> tuple[float, ...]:
            spent = await do(Job(calls, _AT_ONCE, failures), call)
            return spent.cpu, spent.wall

        yield turn


@asynccontextmanager
async def _queued(_url: str) -> AsyncIterator[Turn]:
    """The bytes of a call that waits until its account may send again."""

    async def turn() -> tuple[float, ...]:
        return (await bytes_held(QUEUED, 2000),)

    yield turn


@asynccontextmanager
async def _import(_url: str) -> AsyncIterator[Turn]:
    """Importing lamella and lamella.maesn, beyond their dependencies, each time in a fresh interpreter."""
    import lamella

    source = Path(lamella.__file__).parents[1]

    async def turn() -> tuple[float, ...]:
        times = dict(zip(IMPORTS, import_times(source), strict=True))
        return (times["lamella"] + times["lamella.maesn"],)

    yield turn


_CPU = "µs of CPU"

SCENARIOS = {
    "pure": Scenario({"pure": _CPU}, 20, 100, partial(_pure, calls=500)),
    "pure-failing": Scenario({"pure-failing": _CPU}, 20, 100, partial(_pure, calls=20, failures=2)),
    "recorded": Scenario({"recorded": _CPU}, 20, 100, partial(_pure, calls=100, telemetry="recorded")),
    "loopback": Scenario({"loopback": _CPU, "loopback-wall": "µs"}, 20, 150, partial(_loopback, calls=50)),
    "failing": Scenario({"failing": _CPU, "failing-wall": "µs"}, 20, 150, partial(_loopback, calls=10, failures=2)),
    "queued": Scenario({"queued": "bytes"}, 3, 1, _queued),
    "import": Scenario({"import": "ms of CPU"}, 10, 5, _import),
}


def serve(number: int, pipe: Connection) -> None:
    """Be the server of both sides in round *number*: send its URL, and serve until the pipe closes."""
    _pin(number + 1)  # beside the core of the clients, if there is one
    serve_until_closed(pipe)


def work(name: str, source: Path, url: str, number: int, pipe: Connection) -> None:
    """Send "ready"; then take a turn of scenario *name* for each message that comes, and send its figures by row.

    It ends when the pipe closes. *source* is the folder with the lamella to measure, *number* that of the round.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    _pin(number)
    sys.path.insert(0, str(source))
    logging.basicConfig(level=logging.CRITICAL)  # writing a line for each retry would cost more than the retry
    asyncio.run(_work(SCENARIOS[name], source, url, pipe))


async def _work(scenario: Scenario, source: Path, url: str, pipe: Connection) -> None:
    async with scenario.prepare(url) as turn:
        if scenario.turns > 1:
            await turn()  # warm up
        gc.collect()
        gc.freeze()
        pipe.send("ready")
        while True:
            await readable(pipe)
            try:
                pipe.recv()
            except EOFError:
                return
            figures = await turn()
            _check_origin(source)
            pipe.send(dict(zip(scenario.rows, figures, strict=True)))


def _pin(number: int) -> None:
    """Run on one core only, which is the same for both sides of a round: one core may be busier than another."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


def _check_origin(source: Path) -> None:
    """Raise RuntimeError unless all of lamella comes from *source*: an installed one must not be measured instead."""
    files = {name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "lamella"}
    for name, file in files.items():
        if file is None or not Path(file).is_relative_to(source):
            raise RuntimeError(f"{name} must come from {source}, got {file}")
    if not files:
        raise RuntimeError(f"lamella was not imported from {source}")
