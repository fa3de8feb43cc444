"""The client's process: one contender makes all calls of a scenario and reports their results."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from benchmarks.ideal import answers
from benchmarks.peers import CONTENDERS, Call, Place
from benchmarks.processes import readable
from benchmarks.scenarios import Crowd, Scenario

__all__ = ["Ended", "Report", "patience", "ride"]

IDEALS = 10  # maximum duration as a multiple of the ideal time
LEAST = 10.0  # seconds, because the machine may slow down a small scenario


class Ended(NamedTuple):
    """An ended call: begin and end in seconds by the clock that client and server share."""

    account: int
    began: float
    ended: float
    error: str
    """"" if it ended with a 200; or else the status, or the type of the exception."""


class Report(NamedTuple):
    """The report of a client: each call that ended in time, and the CPU seconds used."""

    ended: list[Ended]
    cpu: float


def patience(scenario: Scenario) -> float:
    """Return for how many seconds a client may make its calls."""
    return max(LEAST, IDEALS * max(answers(scenario, crowd)[-1] for crowd in scenario.crowds))


def ride(scenario: Scenario, contender: str, url: str, seed: int, pipe: Connection) -> None:
    """Make all calls, as long as patience lasts, and send a `Report`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A line for each retry would cost more than the retry: stamina writes one.
    logging.basicConfig(level=logging.CRITICAL)
    random.seed(seed)
    costs = scenario.costs() if scenario.points else None
    place = Place(url, scenario.deadline, scenario.wait, scenario.paths, costs, scenario.stated)
    asyncio.run(_ride(scenario, contender, place, pipe))


async def _ride(scenario: Scenario, contender: str, place: Place, pipe: Connection) -> None:
    ended: list[Ended] = []
    async with CONTENDERS[contender].connect(place) as call:
        tasks = {
            asyncio.ensure_future(_make_calls(scenario, call, ended)),
            asyncio.ensure_future(readable(pipe)),  # our parent is gone
        }
        done, rest = await asyncio.wait(tasks, timeout=patience(scenario), return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()
    with suppress(BrokenPipeError):
        pipe.send(Report(ended, time.process_time()))


async def _make_calls(scenario: Scenario, call: Call, ended: list[Ended]) -> None:
    loop = asyncio.get_running_loop()

    async def one(account: int) -> None:
        began = loop.time()
        error = ""
        try:
            status = await call(account)
            if status != 200:
                error = str(status)
        except Exception as exc:  # noqa: BLE001 - whatever it raises, the call is lost
            error = type(exc).__name__
        ended.append(Ended(account, began, loop.time(), error))

    async def work(account: int, numbers: Iterator[int]) -> None:
        for _ in numbers:
            await one(account)

    async def arrive(account: int, crowd: Crowd) -> None:
        start = loop.time()
        for number in range(crowd.calls):
            await asyncio.sleep(start + crowd.arrival(number) - loop.time())
            group.create_task(one(account))

    async with asyncio.TaskGroup() as group:
        for account, crowd in enumerate(scenario.crowds):
            if crowd.rate:
                group.create_task(arrive(account, crowd))
                continue
            numbers = iter(range(crowd.calls))  # one for all workers: each takes the next call
            for _ in range(min(crowd.at_once, crowd.calls)):
                group.create_task(work(account, numbers))
