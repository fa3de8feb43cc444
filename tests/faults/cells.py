"""A cell of the matrix: one call, what came of it, and what it left behind."""

from __future__ import annotations

import asyncio
import os
import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind
from tests.credentials import SHAPES
from tests.faults.calls import LAYERS, REQUESTS, Layers, Place, Request
from tests.faults.catalogue import FAULTS, End, Fault, Names, Phase
from tests.faults.certificates import HOST, client_context
from tests.faults.expected import SOME, Expected, expected, reads_the_body
from tests.faults.wire import WHOLE, Route, Wire
from tests.telemetry.conformance import EPISODE
from tests.texts import texts_of

from lamella import LamellaError

__all__ = ["Cell", "Scene", "cells", "sampled"]

_FDS: Final = Path("/proc/self/fd")
_SEED: Final = 41
_PATIENCE: Final = 40.0
"""How many seconds a caller without any limit waits."""
_EVER: Final = 10_000.0
"""Longer than anything may take, in seconds."""
_NATIVE: Final = 20.0
"""The session's own limits, in seconds: longer than an attempt may take, where a layer limits that."""


@dataclass(frozen=True)
class Cell:
    """A fault, a request, the layers, and whether the fault strikes each time."""

    fault: Fault
    request: Request
    layers: Layers
    always: bool
    secret: str

    def __str__(self) -> str:
        return f"{self.request.name} through {self.layers.name}, {'each time' if self.always else 'once'}"

    @property
    def expected(self) -> Expected:
        """What has to come of it."""
        return expected(self.fault, self.request, self.layers, always=self.always)


def cells(fault: Fault) -> Iterator[Cell]:
    """All the cells of *fault* that make sense."""
    number = FAULTS.index(fault)
    for request in filter(fault.requests, REQUESTS):
        for layers in LAYERS:
            for always in (True, False) if layers.name in _THAT_RECOVER and not fault.lasts else (True,):
                yield Cell(fault, request, layers, always, list(SHAPES.values())[number % len(SHAPES)])
                number += 1


def sampled(fault: Fault) -> list[Cell]:
    """Return one cell of *fault* for every fourth set of layers, the same ones at every run."""
    chosen = random.Random(f"{_SEED} {fault.name}")
    every = list(cells(fault))
    first = FAULTS.index(fault) % 4
    return [chosen.choice([cell for cell in every if cell.layers is layers]) for layers in LAYERS[first::4]]


# Without a second send there is no difference between once and always.
_THAT_RECOVER: Final = frozenset({"Retry and Classify", "all"})


class Spans(SpanProcessor):
    """The spans that have begun, and those that have ended."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.open.add(span.context.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        self.open.discard(span.context.span_id)
        self.ended.append(span)


@dataclass
class Seen:
    """What came of a call."""

    error: BaseException | None = None
    status: int | None = None
    body: bytes | None = None
    sends: int = 0
    kept: int = 0
    wrong: list[str] = field(default_factory=list)
    """What was left behind, or went wrong beside."""


class Scene:
    """The server of a fault, and all who look on."""

    def __init__(self, fault: Fault, meter_provider: MeterProvider) -> None:
        self.fault = fault
        self.spans = Spans()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(self.spans)
        self.meter_provider = meter_provider
        self.layers: tuple[aiohttp.ClientMiddlewareType, ...] = ()
        self._wire: Wire | None = None

    def _fresh(self) -> Wire:
        return Wire(self.fault.route, self.fault.play, self.fault.greet)

    async def close(self) -> None:
        """The end of the server."""
        if self._wire is not None:
            await self._wire.close()

    async def run(self, cell: Cell) -> tuple[Seen, list[str]]:
        """Make the call of *cell*; returns what came of it, and in what that differs from what has to."""
        if self._wire is None or not self.fault.opens:
            await self.close()
            self._wire = self._fresh()
        wire = self._wire
        if self.fault.opens:
            wire.listen()
        wire.begin(always=cell.always)
        self.spans.ended.clear()
        tasks, files = asyncio.all_tasks(), _files()
        seen = Seen()
        await self._call(cell, wire, seen)
        try:
            await wire.end()
        except TimeoutError:
            seen.wrong.append("the client has left a connection open")
        for _ in range(50):
            # Tasks and transports end a moment after they were told to.
            if asyncio.all_tasks() <= tasks | {wire.acceptor} and _files() <= files:
                break
            await asyncio.sleep(0)
        seen.wrong += [f"a task is left: {task!r}" for task in asyncio.all_tasks() - tasks - {wire.acceptor}]
        seen.wrong += [f"the server: {error!r}" for error in wire.errors]
        wire.errors.clear()
        if self.spans.open:
            seen.wrong.append(f"{len(self.spans.open)} spans are open")
            self.spans.open.clear()
        if (left := _files() - files) > 0:
            seen.wrong.append(f"{left} file descriptors are left")
        return seen, [*seen.wrong, *self._differences(cell, wire, seen)]

    async def _call(self, cell: Cell, wire: Wire, seen: Seen) -> None:
        fault, request = cell.fault, cell.request
        resolver = fault.resolver() if fault.resolver else None

        async def tap(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            seen.sends += 1
            if seen.sends > 1 and not cell.always:
                wire.listen()
                if isinstance(resolver, Names):
                    resolver.good = True
            return await handler(request)

        near = f"127.0.0.1:{wire.port}"
        origin, proxy = {
            Route.PLAIN: (f"http://{near}", None),
            Route.TLS: (f"https://{near}", None),
            Route.PROXY: (f"http://{HOST}", f"http://{near}"),
            Route.TUNNEL: (f"https://{HOST}", f"http://{near}"),
        }[fault.route]
        if resolver is not None:
            origin = f"http://{HOST}:{wire.port}"
        place = Place(origin, cell.secret, self.tracer_provider, self.meter_provider)
        self.layers = cell.layers.make(place)
        connector = aiohttp.TCPConnector(ssl=fault.context or client_context(), resolver=resolver)
        options: dict[str, Any] = {**request.options(), **fault.options}
        async with aiohttp.ClientSession(
            origin,
            connector=connector,
            middlewares=(*self.layers, tap),
            timeout=aiohttp.ClientTimeout(total=None, connect=_NATIVE, sock_read=_NATIVE),
        ) as session:
            try:
                limited = cell.layers.timeout and (fault.phase is not Phase.BODY or reads_the_body(fault, cell.layers))
                async with asyncio.timeout(_PATIENCE if fault.end is End.ENDLESS and not limited else _EVER):
                    async with session.request(request.method, "/accounting/invoices/1", proxy=proxy, **options) as got:
                        seen.status = got.status
                        seen.body = await got.read()
            except Exception as exc:  # noqa: BLE001 - compared with what has to be
                seen.error = exc
            # A writer that was stopped ends a moment later.
            for _ in range(3):
                await asyncio.sleep(0)
            if connector._acquired:
                seen.wrong.append("a connection is held after the call")
            seen.kept = sum(map(len, connector._conns.values()))

    def shown(self, seen: Seen) -> Iterator[tuple[str, str]]:
        """All that is shown of the last call but for logs and metrics, with the place where it is."""
        for span in self.spans.ended:
            parts = [span.name, span.status.description, span.attributes, [event.attributes for event in span.events]]
            yield from (("span", text) for text in texts_of(parts))
        yield "layers", repr(self.layers)
        error = seen.error
        if isinstance(error, LamellaError):
            yield "traceback", "".join(traceback.format_exception(error, limit=0))
            yield from (
                ("error", text) for text in texts_of([str(error), repr(error), error.args, *vars(error).values()])
            )

    def _differences(self, cell: Cell, wire: Wire, seen: Seen) -> Iterator[str]:
        want, fault = cell.expected, cell.fault

        def differ(what: str, is_: object, should: object) -> Iterator[str]:
            if is_ != should:
                yield f"{what}: {is_!r}, not {should!r}"

        yield from differ("raised", seen.error and _kind(seen.error, want.error), want.error)
        yield from differ("status", seen.status, want.status)
        if want.error is None and want.status is not None:
            well = not cell.always and want.sends > 1
            body = WHOLE if well or seen.status != fault.status else fault.answer
            if body is not None:
                yield from differ("answer", seen.body, body if cell.request.method != "HEAD" else b"")
        yield from differ("sends", seen.sends, want.sends)
        yield from differ("bodies that arrived", wire.bodies, [cell.request.body] * want.arrived)
        # aiohttp takes a proxy's connection for another one as soon as it has asked the proxy, and makes a second.
        proxied = fault.route in {Route.PROXY, Route.TUNNEL}
        yield from differ("connections kept", min(seen.kept, 1) if proxied else seen.kept, want.kept)
        error = seen.error
        if isinstance(error, LamellaError):
            yield from differ("stopped", error.stopped, want.stopped)
            if cell.layers.retry:
                yield from differ("attempts", len(error.attempts), want.sends)
        if not cell.layers.spans:
            return
        spans = [span for span in self.spans.ended if span.name != EPISODE]
        sends = sorted((span for span in spans if span.kind is SpanKind.CLIENT), key=lambda span: span.end_time or 0)
        ends = tuple((span.attributes or {}).get("error.type") for span in sends)
        if SOME in want.ends:
            ends = tuple(end and SOME for end in ends)
        yield from differ("ends of the sends' spans", ends, want.ends)
        [call] = [span for span in spans if span.kind is SpanKind.INTERNAL]
        told = call.attributes or {}
        failed = want.ends[-1] is not None
        yield from differ("outcome of the span", told["lamella.outcome"], "failure" if failed else "success")
        yield from differ("attempts of the span", told["lamella.attempts"], want.sends)
        reason = want.stopped.value if want.stopped else None
        yield from differ("stop reason of the span", told.get("lamella.stop_reason"), reason)


def _kind(error: BaseException, want: type[BaseException] | None) -> type[BaseException]:
    """The class of *error*; where it is of aiohttp's or Python's own, any below what is wanted is right."""
    if want is not None and not issubclass(want, LamellaError) and not isinstance(error, LamellaError):
        return want if isinstance(error, want) else type(error)
    return type(error)


def _files() -> int:
    return len(os.listdir(_FDS)) if _FDS.exists() else 0
