from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from tests.environment import HANGS
from tests.layering import together
from tests.local_store import Database, LocalStore
from tests.servers import Handler, serving

from lamella import Breaker, HeaderAuth, Limit, MemoryStore, Retry, Throttle, Token, Tokens, maesn, stack
from lamella.call import Call

Middlewares = Iterable[aiohttp.ClientMiddlewareType]
RULES = maesn.RULES


def _one_by_one() -> Callable[[], Middlewares]:
    layers = stack(RULES, auth=HeaderAuth({"X-A": "value"}))
    return lambda: layers


def _as_one() -> Callable[[], Middlewares]:
    layers = [together(stack(RULES, auth=HeaderAuth({"X-A": "value"})))]
    return lambda: layers


def _one_of_several() -> Callable[[], Middlewares]:
    throttle = Throttle(RULES)
    return lambda: [together(stack(RULES, throttle))]


async def _at_once(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response()


async def _call(handler: Handler, middlewares: Middlewares) -> int:
    async with (
        serving(handler) as url,
        aiohttp.ClientSession(url, middlewares=tuple(middlewares)) as session,
        session.get("/") as response,
    ):
        return response.status


@contextmanager
def _in_use(middlewares: Middlewares) -> Iterator[None]:
    """Another thread makes a call through *middlewares*, which is answered at the end."""
    asked, answer = threading.Event(), threading.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.to_thread(answer.wait, HANGS)
        return web.Response()

    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(asyncio.run(_call(wait, middlewares))))
    thread.start()
    try:
        assert asked.wait(HANGS)
        yield
    finally:
        answer.set()
        thread.join()
    assert statuses == [200]


@pytest.mark.parametrize("make", [_one_by_one, _as_one, _one_of_several])
def test_layers_in_use_in_another_thread_raise(make: Callable[[], Callable[[], Middlewares]]) -> None:
    middlewares = make()
    with _in_use(middlewares()), pytest.raises(RuntimeError, match="in use in another thread"):
        asyncio.run(_call(_at_once, middlewares()))
    # Now that nobody else uses them, one loop after the other can.
    assert [asyncio.run(_call(_at_once, middlewares())) for _ in range(2)] == [200, 200]


def test_a_layer_in_use_by_another_pipeline_in_a_thread_raises() -> None:
    """A group that was used before has to look again."""
    throttle = Throttle(RULES)
    ours, theirs = ((together(stack(RULES, throttle)),) for _ in range(2))
    with asyncio.Runner() as runner:
        assert runner.run(_call(_at_once, ours)) == 200
        with _in_use(theirs), pytest.raises(RuntimeError, match="Throttle is in use in another thread"):
            runner.run(_call(_at_once, ours))
        assert runner.run(_call(_at_once, ours)) == 200


@pytest.mark.parametrize("store", [MemoryStore(), LocalStore(Database())], ids=["memory", "network"])
@pytest.mark.parametrize("kind", [Throttle, Retry, Breaker])
def test_a_store_in_use_in_another_thread_raises(
    kind: type[Throttle | Retry | Breaker], store: MemoryStore | LocalStore
) -> None:
    ours, theirs = ((_with(kind, store),) for _ in range(2))
    message = f"{type(store).__name__} is in use in another thread"
    with _in_use(theirs), pytest.raises(RuntimeError, match=message):
        asyncio.run(_call(_at_once, ours))
    assert [asyncio.run(_call(_at_once, layers)) for layers in (ours, theirs)] == [200, 200]


def test_layers_may_be_used_in_a_fork_made_in_a_running_loop() -> None:
    """The loop of the other process says that it runs."""
    middlewares = _one_by_one()()

    async def fork() -> int:
        assert await _call(_at_once, middlewares) == 200
        return await _in_a_fork(_call(_at_once, middlewares))

    assert asyncio.run(fork()) == 0


def test_a_fork_does_not_wait_for_the_calls_of_the_other_process() -> None:
    layers = (Throttle(RULES, limits=Limit(concurrent=1)),)

    async def get(url: str, path: str) -> None:
        async with asyncio.timeout(HANGS), aiohttp.ClientSession(url, middlewares=layers) as session, session.get(path):
            pass

    async def fork() -> int:
        came, ends = asyncio.Event(), asyncio.Event()

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if request.path == "/slow":
                came.set()
                await ends.wait()
            return web.Response()

        async with serving(answer) as url:
            calls = [asyncio.create_task(get(url, path)) for path in ("/slow", "/queued")]
            await came.wait()
            status = await _in_a_fork(get(url, "/of-the-fork"))
            assert not any(call.done() for call in calls)
            ends.set()
            await asyncio.gather(*calls)
            return status

    assert asyncio.run(fork()) == 0


def test_a_fork_does_not_wait_for_a_token_of_the_other_process() -> None:
    ends: list[asyncio.Event] = []

    async def fetch() -> Token:
        if not ends:
            ends.append(asyncio.Event())
            await ends[0].wait()
        return Token("secret")

    layers = (HeaderAuth({"Authorization": Tokens(fetch)}),)

    async def get(url: str) -> None:
        async with asyncio.timeout(HANGS), aiohttp.ClientSession(url, middlewares=layers) as session, session.get("/"):
            pass

    async def fork() -> int:
        async with serving(_at_once) as url:
            call = asyncio.create_task(get(url))
            while not ends:  # noqa: ASYNC110 - a few turns of the loop
                await asyncio.sleep(0)
            status = await _in_a_fork(get(url))
            ends[0].set()
            await call
            return status

    assert asyncio.run(fork()) == 0


async def _in_a_fork(call: Coroutine[None, None, object]) -> int:
    """Run *call* in a fork of this process and return the exit status of the fork."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads, which are not used here
        forked = os.fork()
    if forked:
        call.close()
        return (await asyncio.to_thread(os.waitpid, forked, 0))[1]
    try:
        asyncio.run(call)
    except BaseException:  # noqa: BLE001 - nothing of the other process may run here
        os._exit(1)
    os._exit(0)


def _with(kind: type[Throttle | Retry | Breaker], store: MemoryStore | LocalStore) -> Throttle | Retry | Breaker:
    return Breaker(store=store) if issubclass(kind, Breaker) else kind(RULES, store=store)


def test_a_call_has_at_most_twelve_fields() -> None:
    call = Call(cast(aiohttp.ClientRequest, None))
    # What one layer alone uses belongs in a PerCall.
    assert len(Call.__annotations__.keys() | vars(call).keys()) <= 12
