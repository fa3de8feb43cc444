"""A contender in a separate process that makes calls to the server on request."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

from benchmarks.costs.contenders import CONTENDERS, Call
from benchmarks.costs.server import path, raise_file_limit
from benchmarks.processes import readable

__all__ = ["Job", "Spent", "do", "work"]


class Job(NamedTuple):
    """Make `calls` calls, `at_once` at a time, each of which fails `failures` times; an answer takes `wait` s.

    Without `collect`, Python's garbage collector does not look for cycles meanwhile.
    """

    calls: int
    at_once: int
    failures: int = 0
    wait: float = 0.0
    collect: bool = True


class Spent(NamedTuple):
    """The time of a job in microseconds per call."""

    cpu: float
    wall: float


def work(contender: str, url: str, pipe: Connection) -> None:
    """Do each `Job` from the pipe and send back a `Spent`, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    # A line for each retry would cost more than the retry: stamina writes one.
    logging.basicConfig(level=logging.CRITICAL)
    asyncio.run(_work(contender, url, pipe))


async def _work(name: str, url: str, pipe: Connection) -> None:
    contender = CONTENDERS[name]
    async with contender.connect(url, contender.telemetry) as call:
        gc.collect()
        gc.freeze()
        while True:
            await readable(pipe)
            try:
                job: Job = pipe.recv()
            except EOFError:
                return
            pipe.send(await do(job, call))


async def do(job: Job, call: Call) -> Spent:
    numbers = iter(range(job.calls))  # one for all workers: each takes the next call

    async def worker() -> None:
        for number in numbers:
            status = await call(path(number, failures=job.failures, wait=job.wait))
            assert status == 200, status

    if not job.collect:
        gc.disable()
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    async with asyncio.TaskGroup() as group:
        for _ in range(job.at_once):
            group.create_task(worker())
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    gc.enable()
    return Spent(cpu / job.calls / 1000, wall / job.calls / 1000)
