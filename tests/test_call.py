from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable

import aiohttp
import pytest
from aiohttp import web

from lamella import HeaderAuth, Throttle, as_one, maesn, stack

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Middlewares = Iterable[aiohttp.ClientMiddlewareType]
RULES = maesn.RULES


def _one_by_one() -> Callable[[], Middlewares]:
    layers = stack(RULES, auth=HeaderAuth({"X-A": "value"}))
    return lambda: layers


def _as_one() -> Callable[[], Middlewares]:
    layers = [as_one(stack(RULES, auth=HeaderAuth({"X-A": "value"})))]
    return lambda: layers


def _one_of_several() -> Callable[[], Middlewares]:
    throttle = Throttle(RULES)
    return lambda: [as_one(stack(RULES, throttle))]


@pytest.mark.parametrize("make", [_one_by_one, _as_one, _one_of_several])
def test_layers_that_are_in_use_in_another_thread_say_so(make: Callable[[], Callable[[], Middlewares]]) -> None:
    middlewares = make()
    asked, answer = threading.Event(), threading.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.to_thread(answer.wait, 10)
        return web.Response()

    async def at_once(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    async def call(handler: Handler) -> int:
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            async with (
                aiohttp.ClientSession(f"http://{host}:{port}", middlewares=tuple(middlewares())) as session,
                session.get("/") as response,
            ):
                return response.status
        finally:
            await runner.cleanup()

    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(asyncio.run(call(wait))))
    thread.start()
    try:
        assert asked.wait(10)
        with pytest.raises(RuntimeError, match="in use in another thread"):
            asyncio.run(call(at_once))
    finally:
        answer.set()
        thread.join()
    assert statuses == [200]
    # Now that nobody else uses them, one loop after the other can.
    assert [asyncio.run(call(at_once)) for _ in range(2)] == [200, 200]
