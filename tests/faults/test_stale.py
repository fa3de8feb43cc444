"""A connection that was kept, and is gone when the next call wants it."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import pytest
from opentelemetry.metrics import get_meter_provider
from tests.faults.calls import LAYERS, REQUESTS, Layers, Place, Request
from tests.faults.expected import IDEMPOTENT
from tests.faults.wire import WHOLE, Line, Wire, healthy
from tests.sdk import Tracing

from lamella import ConnectionLost, StopReason
from lamella.testing import VirtualClock

SETS: Final = [layers for layers in LAYERS if layers.name in {"Classify", "Retry and Classify", "all", "Maesn's"}]
SMALL: Final = [request for request in REQUESTS if not request.large]


async def once_more(line: Line) -> None:
    """Answers the first request of a connection, and breaks at the second one."""
    await healthy(line)
    if await line.more():
        await line.read_head()
        line.close()


async def then_closes(line: Line) -> None:
    """Answers, and closes a moment later, as a server does with a connection that is idle."""
    await healthy(line)
    await asyncio.sleep(1)
    line.close()


class Pair:
    """Two calls of one session, the second one 2 s after the first."""

    def __init__(self, wire: Wire, layers: Layers, tracing: Tracing) -> None:
        self.wire = wire
        self.sends = 0
        self._layers = layers
        self._provider = tracing.provider

    async def calls(self, request: Request) -> bytes:
        wire = self.wire
        wire.listen()
        wire.begin(always=False)
        origin = f"http://127.0.0.1:{wire.port}"

        async def tap(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            self.sends += 1
            return await handler(request)

        place = Place(origin, "zq-plain-4711-key", self._provider, get_meter_provider())
        body = b""
        try:
            async with aiohttp.ClientSession(origin, middlewares=(*self._layers.make(place), tap)) as session:
                for _ in range(2):
                    async with session.request(request.method, "/", **request.options()) as response:
                        body = await response.read()
                    await asyncio.sleep(2)
        finally:
            await wire.end()
            await wire.close()
        return body


@pytest.mark.sampled(1)
@pytest.mark.parametrize("layers", SETS, ids=lambda layers: layers.name)
async def test_a_stale_connection_is_replaced_if_a_repeat_is_safe(
    layers: Layers, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    for request in SMALL:
        pair = Pair(Wire(play=once_more), layers, tracing)
        safe = request.method in IDEMPOTENT or request.key
        if not layers.retry or not safe or request.stream:
            with pytest.raises(ConnectionLost) as caught:
                await pair.calls(request)
            reason = StopReason.UNSAFE_METHOD if not safe else StopReason.BODY_NOT_REPLAYABLE
            assert caught.value.stopped is (reason if layers.retry else None), request
            assert (pair.sends, pair.wire.bodies) == (2, [request.body]), request
            continue
        began = virtual_time.now
        assert await pair.calls(request) == (b"" if request.method == "HEAD" else WHOLE), request
        assert (pair.sends, pair.wire.bodies) == (3, [request.body] * 2), request
        # At once, but for the pauses of the test itself.
        assert virtual_time.now - began < 4.1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("layers", SETS, ids=lambda layers: layers.name)
async def test_a_connection_closed_between_two_calls_is_no_failure(
    layers: Layers, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    for request in SMALL:
        pair = Pair(Wire(play=then_closes), layers, tracing)
        assert await pair.calls(request) == (b"" if request.method == "HEAD" else WHOLE), request
        assert (pair.sends, pair.wire.connections) == (2, 2), request
