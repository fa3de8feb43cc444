"""Measure memory and CPU of waiting calls: for their responses, or in a blocked queue."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
from benchmarks.costs.contenders import KEYS
from benchmarks.costs.server import answer

__all__ = ["HELD", "QUEUED", "bytes_held", "held"]

_URL = "https://api.example.com/"
QUEUED = "lamella, queued at the queue"
HELD = ("aiohttp, in flight", "lamella, in flight", QUEUED)
_DONE = 1_000_000.0


def held(what: str, calls: int, memory: bool, pipe: Connection) -> None:
    """Send the cost of one of *calls*: the bytes that it holds while it waits, or its total microseconds of CPU."""
    if memory:
        pipe.send(asyncio.run(bytes_held(what, calls)))
        return
    from lamella.testing import run_virtual

    good, refusal = asyncio.run(answer()), asyncio.run(answer())
    pipe.send(run_virtual(_held(what, calls, False, good, refusal)))


async def bytes_held(what: str, calls: int) -> float:
    """Return the bytes that one of *calls* holds while it waits. In real time: they are cancelled, not waited for."""
    return await _held(what, calls, True, await answer(), await answer())


async def _held(
    what: str, calls: int, memory: bool, good: aiohttp.ClientResponse, refusal: aiohttp.ClientResponse
) -> float:
    opened = asyncio.Event()
    refusal.status = 429
    refusals = iter([refusal] if what == QUEUED else [])
    sent = 0

    async def handler(_request: aiohttp.ClientRequest, _next: object) -> aiohttp.ClientResponse:
        nonlocal sent
        sent += 1
        for refused in refusals:
            return refused
        await opened.wait()
        return good

    async with _session(what, handler) as session:

        async def call() -> None:
            assert (await session.get("/accounting/invoices?limit=5")).status == 200

        if what == QUEUED:
            first = asyncio.ensure_future(call())
            await _settle()  # refused, which has blocked the queue
        else:
            first = asyncio.ensure_future(asyncio.sleep(0))
        gc.collect()
        gc.freeze()
        if memory:
            tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        began = time.process_time_ns()
        tasks = [asyncio.ensure_future(call()) for _ in range(calls)]
        await _settle()
        expected = range(1, 2 + calls // 100) if what == QUEUED else (calls,)
        assert sent in expected, f"{what}: {sent} of {calls} calls were sent"
        if memory:
            gc.collect()
            spent = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            for task in (first, *tasks):
                task.cancel()
            await asyncio.gather(first, *tasks, return_exceptions=True)
            return spent / calls
        opened.set()
        await asyncio.gather(first, *tasks)
        return (time.process_time_ns() - began) / 1000 / calls


async def _settle() -> None:
    """Run every task until it waits for an external event."""
    for _ in range(10):
        await asyncio.sleep(0.05)


def _session(what: str, handler: Callable[..., object]) -> aiohttp.ClientSession:
    inner: Sequence[aiohttp.ClientMiddlewareType] = (handler,)  # type: ignore[assignment]
    if not what.startswith("lamella"):
        return aiohttp.ClientSession(_URL, middlewares=inner, timeout=aiohttp.ClientTimeout(total=None))
    from lamella import maesn

    options: dict[str, Any] = {"attempt_timeout": _DONE}
    if what != QUEUED:
        from lamella import Limit

        # An unknown limit lets only a few pass at first: with one that is far away, no call is queued.
        options["limits"] = Limit(1_000_000, per=1.0)
    session = maesn.session(KEYS["X-API-KEY"], KEYS["X-ACCOUNT-KEY"], _URL, **options)
    session._middlewares = (*session._middlewares, *inner)
    return session
