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


async def _at_once(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


async def _call(handler: Handler, middlewares: Middlewares) -> int:
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with (
            aiohttp.ClientSession(f"http://{host}:{port}", middlewares=tuple(middlewares)) as session,
            session.get("/") as response,
        ):
            return response.status
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("make", [_one_by_one, _as_one, _one_of_several])
def test_layers_that_are_in_use_in_another_thread_say_so(make: Callable[[], Callable[[], Middlewares]]) -> None:
    middlewares = make()
    asked, answer = threading.Event(), threading.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.to_thread(answer.wait, 10)
        return web.Response()

    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(asyncio.run(_call(wait, middlewares()))))
    thread.start()
    try:
        assert asked.wait(10)
        with pytest.raises(RuntimeError, match="in use in another thread"):
            asyncio.run(_call(_at_once, middlewares()))
    finally:
        answer.set()
        thread.join()
    assert statuses == [200]
    # Now that nobody else uses them, one loop after the other can.
    assert [asyncio.run(_call(_at_once, middlewares())) for _ in range(2)] == [200, 200]


def test_a_layer_that_another_group_has_taken_over_says_so() -> None:
    """A group that was used before has to look again."""
    throttle = Throttle(RULES)
    ours, theirs = ((as_one(stack(RULES, throttle)),) for _ in range(2))
    asked, answer = threading.Event(), threading.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.to_thread(answer.wait, 10)
        return web.Response()

    with asyncio.Runner() as runner:
        assert runner.run(_call(_at_once, ours)) == 200
        thread = threading.Thread(target=lambda: asyncio.run(_call(wait, theirs)))
        thread.start()
        try:
            assert asked.wait(10)
            with pytest.raises(RuntimeError, match="Throttle is in use in another thread"):
                runner.run(_call(_at_once, ours))
        finally:
            answer.set()
            thread.join()
        assert runner.run(_call(_at_once, ours)) == 200
