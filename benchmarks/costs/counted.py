"""The process whose instructions valgrind counts: it makes calls, and marks where each count begins and ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import cycle, repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, it does not know its package

import aiohttp
import stamina
from aiohttp.client_middlewares import build_client_middlewares
from benchmarks.costs.contenders import CONTENDERS, FAILED, stamina_retry
from benchmarks.costs.loopback import Job, do
from benchmarks.costs.providers import meter_provider, tracer_provider
from benchmarks.costs.pure import full, request_of
from benchmarks.costs.server import answer
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

__all__ = ["ALONE", "CASES", "IN_PROCESS", "LAMELLA", "LOOPBACK", "MARK", "SDK", "STAMINA", "Case"]

LAMELLA: Final = "lamella"
MARK: Final = "getppid"
"""The function of the C library at which valgrind writes a count and begins the next one; nothing else calls it."""

_WARM_UP: Final = 15

Calls = Callable[[int], Awaitable[None]]
"""Make so many calls."""


class Case(NamedTuple):
    """Calls to count."""

    where: str
    """:data:`IN_PROCESS` is around a handler that returns at once. :data:`ALONE` is only the part named `contender`."""
    kind: str
    failures: int
    telemetry: str
    contender: str


IN_PROCESS: Final = "in one process"
LOOPBACK: Final = "loopback"
ALONE: Final = "alone"
STAMINA: Final = "stamina and tenacity"
SDK: Final = "OpenTelemetry SDK"

_SUFFIXES: Final = {"none": "", "recorded": ", recorded", "recorded, metrics too": ", recorded, metrics too"}
_KINDS: Final = [
    (f"{call}{suffix}", failures, telemetry)
    for call, failures in (("succeeds", 0), ("two retries", 2))
    for suffix, telemetry in (("", "none"), (", recorded", "recorded"), (", with metrics", "recorded, metrics too"))
]


def _cases(kind: str, failures: int, telemetry: str) -> Iterator[Case]:
    recorded = _SUFFIXES[telemetry]
    yield Case(IN_PROCESS, kind, failures, telemetry, LAMELLA)
    yield Case(LOOPBACK, kind, failures, telemetry, f"{LAMELLA}{recorded}")
    peer = f"contrib and aiohttp-retry{recorded}" if recorded else "aiohttp-retry"
    yield Case(LOOPBACK, kind, failures, telemetry, peer)
    if recorded and not failures:
        yield Case(ALONE, kind, failures, telemetry, SDK)
    elif failures and not recorded:
        yield Case(IN_PROCESS, kind, failures, telemetry, "stamina as a middleware")
        yield Case(LOOPBACK, kind, failures, telemetry, "stamina as a middleware")
        yield Case(ALONE, kind, failures, telemetry, STAMINA)
    elif not recorded:
        yield Case(LOOPBACK, kind, failures, telemetry, "aiohttp")


CASES: Final = [case for kind in _KINDS for case in _cases(*kind)]


@asynccontextmanager
async def _in_process(case: Case) -> AsyncIterator[Calls]:
    """Yield a function that sends requests through the middlewares to a handler that returns at once."""
    layers: Sequence[aiohttp.ClientMiddlewareType] = (stamina_retry,)
    if case.contender == LAMELLA:
        from lamella import maesn

        layers = await full(
            rules=maesn.RULES.scaled(0),
            retry_budget=None,
            tracer_provider=tracer_provider(case.telemetry),
            meter_provider=meter_provider(case.telemetry),
        )
    bad, good = await answer(), await answer()
    bad.status = FAILED
    answers = cycle([*repeat(bad, case.failures), good])

    async def handler(_request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
        return next(answers)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def calls(number: int) -> None:
            requests = [request_of(session) for _ in range(number)]
            os.getppid()
            for request in requests:
                await build_client_middlewares(handler, layers)(request)
            os.getppid()

        yield calls


@asynccontextmanager
async def _alone(case: Case) -> AsyncIterator[Calls]:
    """Yield a function that does the part of stamina or of the SDK in each call."""
    once = _stamina_alone if case.contender == STAMINA else _sdk_alone(case.telemetry)

    async def calls(number: int) -> None:
        os.getppid()
        for _ in range(number):
            await once()
        os.getppid()

    yield calls


async def _stamina_alone() -> None:
    turns = aiter(stamina.retry_context(on=lambda _: 0.0, attempts=None, timeout=None))
    for _ in range(2):
        turn = await anext(turns)
        turn.__exit__(RuntimeError, _FAILURE, None)
    await anext(turns)


_FAILURE: Final = RuntimeError()


def _sdk_alone(telemetry: str) -> Callable[[], Awaitable[None]]:
    """Return a function that records the spans and metrics of a call that succeeds."""
    tracer = tracer_provider(telemetry, export=True).get_tracer("alone")
    meters = meter_provider(telemetry)
    durations = [] if meters is None else [meters.get_meter("alone").create_histogram(name) for name in ("one", "two")]
    asked = {"http.request.method": "GET", "server.address": "127.0.0.1", "server.port": 80}
    begins = {**asked, "url.full": "http://127.0.0.1/accounting/invoices?number=0&failures=0&wait=0.0"}
    answer = {"http.response.status_code": 200, "network.protocol.version": "1.1"}
    ends: list[dict[str, Any]] = [
        {"lamella.outcome": "success", "lamella.attempts": 1, "lamella.wait": 0.0},
        {**answer, "network.peer.address": "127.0.0.1", "network.peer.port": 80},
    ]
    measured: list[dict[str, Any]] = [{**asked, "lamella.outcome": "success"}, {**asked, **answer}]

    async def once() -> None:
        call = tracer.start_span("lamella GET", kind=SpanKind.INTERNAL, attributes=begins)
        outer = context.attach(trace.set_span_in_context(call))
        attempt = tracer.start_span("GET", kind=SpanKind.CLIENT, attributes=begins)
        inner = context.attach(trace.set_span_in_context(attempt))
        for duration, attributes in zip(durations, measured, strict=False):
            duration.record(0.001, attributes)
        attempt.set_attributes(ends[1])
        attempt.end()
        context.detach(inner)
        call.set_attributes(ends[0])
        call.end()
        context.detach(outer)

    return once


@asynccontextmanager
async def _loopback(case: Case, url: str) -> AsyncIterator[Calls]:
    """Yield a function that makes calls, one after another, to the server at *url*."""
    contender = CONTENDERS[case.contender]
    async with contender.connect(url, contender.telemetry) as call:

        async def calls(number: int) -> None:
            os.getppid()
            await do(Job(number, 1, case.failures), call)
            os.getppid()

        yield calls


def _prepared(case: Case, url: str) -> AbstractAsyncContextManager[Calls]:
    if case.where == LOOPBACK:
        return _loopback(case, url)
    return _in_process(case) if case.where == IN_PROCESS else _alone(case)


async def _count(numbers: Sequence[int], url: str, calls: int) -> None:
    for number in numbers:
        case = CASES[number]
        async with _prepared(case, url) as make:
            await make(_WARM_UP)
            gc.collect()
            gc.freeze()
            await make(calls)


def _begin_to_count() -> None:
    """Make valgrind count from now on. Imports before take a fifth of the time."""
    command = ["vgdb", f"--pid={os.getpid()}", "instrumentation", "on"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        while process.poll() is None:  # valgrind receives the command only while code runs
            pass
    if process.returncode:
        raise SystemExit("vgdb could not switch the count on")


def main(source: str, url: str, calls: str, *numbers: str) -> None:
    """Make so many *calls* of each of the cases *numbers*, with the lamella in the folder *source*."""
    sys.path.insert(0, source)
    logging.basicConfig(level=logging.CRITICAL)  # writing a line for each retry would cost more than the retry
    import lamella.maesn

    if not Path(lamella.maesn.__file__).is_relative_to(source):
        raise SystemExit(f"lamella must come from {source}, got {lamella.maesn.__file__}")
    _begin_to_count()
    asyncio.run(_count([int(number) for number in numbers], url, int(calls)))


if __name__ == "__main__":
    main(*sys.argv[1:])
