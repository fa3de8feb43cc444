"""Measure the layers alone: in one process, around a handler that returns at once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator, Sequence
from itertools import repeat
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
from aiohttp.client_middlewares import build_client_middlewares
from aiohttp.helpers import TimerNoop
from benchmarks.costs.contenders import KEYS
from benchmarks.costs.providers import meter_provider, tracer_provider
from benchmarks.costs.server import answer
from yarl import URL

__all__ = ["FULL", "cpu_per_call", "full", "pure", "request_of"]

FULL = "maesn.session"
_CALLS = 100
_BASE = URL("https://api.example.com/")

Layers = Sequence[aiohttp.ClientMiddlewareType]


def pure(telemetry: str, rounds: int, pipe: Connection) -> None:
    """Send the microseconds of CPU per call of each layer and of all together, one for each round."""
    pipe.send(asyncio.run(_pure(telemetry, rounds)))


async def _pure(telemetry: str, rounds: int) -> dict[str, list[float]]:
    answers = repeat(await answer())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        measured: dict[str, list[float]] = {}
        with_nothing: list[float] = []
        subjects = await _subjects(telemetry)
        # The first round warms up. Exclude the objects that exist by now from garbage collection.
        gc.collect()
        gc.freeze()
        for number in range(rounds + 1):
            nothing = await cpu_per_call((), session, answers, _CALLS)
            for name, layers in subjects.items():
                cost = await cpu_per_call(layers, session, answers, _CALLS) - nothing
                if number:
                    measured.setdefault(name, []).append(cost)
            if number:
                with_nothing.append(nothing)
        return {**measured, "the handler alone": with_nothing}


async def _subjects(telemetry: str) -> dict[str, Layers]:
    from lamella import Breaker, HeaderAuth, Token, Tokens, maesn, stack

    providers: dict[str, Any] = {
        "tracer_provider": tracer_provider(telemetry),
        "meter_provider": meter_provider(telemetry),
    }
    auth = HeaderAuth(KEYS, origin=_BASE)

    async def fetch(of: str) -> Token:
        return Token(f"Bearer token-of-{of}", expires_in=86400)

    tokens = Tokens(fetch, key=lambda request: request.url.path, meter_provider=providers["meter_provider"])
    layers = stack(maesn.RULES, Breaker(meter_provider=providers["meter_provider"]), auth=auth, **providers)
    return {
        "an empty middleware": (_empty,),
        "nine empty middlewares": (_empty,) * 9,
        **{type(layer).__name__: (layer,) for layer in layers},
        "HeaderAuth with a string": (HeaderAuth({"Authorization": "Bearer a-token"}, origin=_BASE),),
        "HeaderAuth with a cached token": (HeaderAuth({"Authorization": tokens}, origin=_BASE),),
        FULL: await full(**providers),
    }


async def full(**options: Any) -> Layers:
    """Return all layers of a `maesn.session` with *options*, as its aiohttp session runs them."""
    from lamella import maesn

    async with maesn.session(KEYS["X-API-KEY"], KEYS["X-ACCOUNT-KEY"], str(_BASE), **options) as session:
        return session._middlewares


async def _empty(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    return await handler(request)


async def cpu_per_call(
    layers: Layers, session: aiohttp.ClientSession, answers: Iterator[aiohttp.ClientResponse], calls: int
) -> float:
    """Return the microseconds of CPU per call. Each attempt gets the next of *answers*."""

    async def handler(_request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
        return next(answers)

    requests = [request_of(session) for _ in range(calls)]
    await asyncio.sleep(0)
    began = time.process_time_ns()
    for request in requests:
        # As a session does it, for each call.
        await (build_client_middlewares(handler, layers) if layers else handler)(request)
    await asyncio.sleep(0)  # lets the loop remove leftovers of timers, as between calls
    return (time.process_time_ns() - began) / calls / 1000


def request_of(session: aiohttp.ClientSession) -> aiohttp.ClientRequest:
    """Return a request of *session*, to be sent through middlewares."""
    loop = asyncio.get_running_loop()
    url = _BASE.join(URL("/accounting/invoices?limit=5"))
    return aiohttp.ClientRequest("GET", url, loop=loop, session=session, timer=TimerNoop(), traces=[])
