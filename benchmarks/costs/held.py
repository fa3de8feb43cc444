"""What calls hold and cost that wait: for their answers, or at a closed gate."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import aiohttp
from benchmarks.costs.contenders import KEYS
from benchmarks.costs.server import answer

__all__ = ["HELD", "held"]

_URL = "https://api.example.com/"
HELD = ("aiohttp, in flight", "lamella, in flight", "lamella, parked at the gate")
_DONE = 1_000_000.0


def held(what: str, calls: int, memory: bool, pipe: Connection) -> None:
    """Send what one of *calls* costs: the bytes that it holds while it waits, or the microseconds of CPU in all."""
    from lamella.testing import run_virtual

    good, refusal = asyncio.run(answer()), asyncio.run(answer())
    refusal.status = 429
    pipe.send(run_virtual(_held(what, calls, memory, good, refusal)))


async def _held(
    what: str, calls: int, memory: bool, good: aiohttp.ClientResponse, refusal: aiohttp.ClientResponse
) -> float:
    opened = asyncio.Event()
    refusals = iter([refusal] if "parked" in what else [])

    async def handler(_request: aiohttp.ClientRequest, _next: object) -> aiohttp.ClientResponse:
        for refused in refusals:
            return refused
        await opened.wait()
        return good

    async with _session(what, handler) as session:

        async def call() -> None:
            assert (await session.get("/accounting/invoices?limit=5")).status == 200

        if "parked" in what:
            first = asyncio.ensure_future(call())
            await asyncio.sleep(1)  # it is refused, and has closed the gate
        else:
            first = asyncio.ensure_future(asyncio.sleep(0))
        gc.collect()
        gc.freeze()
        if memory:
            tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        began = time.process_time_ns()
        tasks = [asyncio.ensure_future(call()) for _ in range(calls)]
        await asyncio.sleep(1)  # by the virtual clock: all of them wait now
        if memory:
            gc.collect()
            spent = float(tracemalloc.get_traced_memory()[0] - before)
            tracemalloc.stop()
        else:
            spent = 0.0
        opened.set()
        await asyncio.gather(first, *tasks)
        return (spent if memory else (time.process_time_ns() - began) / 1000) / calls


def _session(what: str, handler: Callable[..., object]) -> aiohttp.ClientSession:
    inner: Sequence[aiohttp.ClientMiddlewareType] = (handler,)  # type: ignore[assignment]
    if not what.startswith("lamella"):
        return aiohttp.ClientSession(_URL, middlewares=inner, timeout=aiohttp.ClientTimeout(total=None))
    from lamella import Limit, maesn

    # A limit that is unknown lets a few pass at first: with one that is far away, nobody waits at the gate.
    limit = None if "parked" in what else Limit(1_000_000, per=1.0)
    keys = KEYS["X-API-KEY"], KEYS["X-ACCOUNT-KEY"]
    session = maesn.session(*keys, _URL, attempt_timeout=_DONE, limit=limit)
    session._middlewares = (*session._middlewares, *inner)
    return session
