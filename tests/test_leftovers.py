"""The check that nothing of lamella is left in the loop sees what is left, wherever the files are, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from tests.layers.accounts import MINUTE, at_rest, client, get, throttle_in
from tests.leftovers import owner_of, tasks_of_lamella, timers_of_lamella
from tests.servers import Serve

from lamella import Retry, stack
from lamella.testing import VirtualClock
from lamella.throttle.queue import _Waiter

PATHS = ("/home/me/lamella/src/lamella/layers/retry.py", "/srv/größe 1/app.py", "app.py")
CODE = """
import asyncio

class Waiter:
    async def wait(self):
        async with asyncio.timeout(60):
            await asyncio.sleep(60)

    def wake(self, *_):
        pass

def wake(*_):
    pass

async def wait():
    await Waiter().wait()
"""


def module(name: str, path: str) -> dict[str, Any]:
    """The same code, as that of any module in any file."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(CODE, path, "exec"), names)  # noqa: S102 - the code above
    return names


@contextmanager
def timer(callback: Callable[..., object], *arguments: Any) -> Iterator[asyncio.TimerHandle]:
    made = asyncio.get_running_loop().call_later(60, callback, *arguments)
    try:
        yield made
    finally:
        made.cancel()


def of(names: dict[str, Any]) -> list[tuple[Callable[..., object], tuple[Any, ...]]]:
    """Callbacks that have something of a module in them."""
    waiter = names["Waiter"]()
    return [
        (names["wake"], ()),
        (waiter.wake, ()),
        (partial(names["wake"], 1), ()),
        (partial(partial(waiter.wake)), ()),
        (partial(print, waiter), ()),
        (partial(print, file=waiter), ()),
        (print, (waiter,)),
        (print, (1, names["wake"])),
        (print, (partial(waiter.wake),)),
    ]


@pytest.fixture(params=[False, True], ids=["", "debug"])
def loop_may_debug(request: pytest.FixtureRequest) -> bool:
    """In debug mode the text of a timer has more paths in it."""
    return bool(request.param)


@pytest.fixture
async def debug(loop_may_debug: bool) -> AsyncIterator[None]:
    asyncio.get_running_loop().set_debug(loop_may_debug)
    yield
    asyncio.get_running_loop().set_debug(False)


@pytest.mark.usefixtures("debug")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["lamella", "lamella.throttle.queue", "lamella.timeout"])
async def test_a_timer_of_lamella_is_found(name: str, path: str) -> None:
    for callback, arguments in of(module(name, path)):
        with timer(callback, *arguments) as made:
            assert timers_of_lamella() == [made]
        assert not timers_of_lamella(), "it is cancelled"


@pytest.mark.usefixtures("debug")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["app", "tests.lamella", "lamellar", "lamella_app.queue"])
async def test_a_timer_of_other_code_is_ignored(name: str, path: str) -> None:
    for callback, arguments in of(module(name, path)):
        with timer(callback, *arguments):
            assert not timers_of_lamella()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["lamella.throttle.queue", "app"])
async def test_a_task_waiting_in_lamella_code_is_found(name: str, path: str) -> None:
    async def users_own() -> None:
        await module(name, path)["wait"]()

    task = asyncio.create_task(users_own())
    await asyncio.sleep(0)
    assert tasks_of_lamella() == ([task] if name == "lamella.throttle.queue" else [])
    task.cancel()
    await asyncio.wait([task])
    assert not tasks_of_lamella()


async def test_only_ended_calls_are_at_rest(serve: Serve, virtual_time: VirtualClock) -> None:
    statuses = [429]

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=statuses.pop() if statuses else 200)

    async with client(await serve(answer), *stack(MINUTE)) as session:
        refused = asyncio.create_task(get(session))
        await asyncio.sleep(10)
        assert tasks_of_lamella() == [refused]
        queued = asyncio.create_task(get(session))
        await asyncio.sleep(10)
        assert set(tasks_of_lamella()) == {refused, queued}
        assert [type(owner_of(made)) for made in timers_of_lamella()] == [_Waiter]
        with pytest.raises(AssertionError):
            at_rest(session)
        assert [await refused, await queued] == [200, 200]
        at_rest(session)


async def test_a_leftover_task_is_not_at_rest(serve: Serve, virtual_time: VirtualClock) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    async with client(await serve(answer), *stack(MINUTE)) as session:
        assert await get(session) == 200
        at_rest(session)
        task = asyncio.create_task(module(Retry.__module__, "app.py")["wait"]())
        await asyncio.sleep(0)
        with pytest.raises(AssertionError):
            at_rest(session)
        task.cancel()
        await asyncio.wait([task])
        with timer(module(Retry.__module__, "app.py")["wake"]), pytest.raises(AssertionError):
            at_rest(session)
        at_rest(session)


async def test_the_timer_of_an_attempt_is_not_at_rest_until_the_attempt_ends(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(10)
        return web.Response()

    async with client(await serve(answer), *stack(MINUTE)) as session:
        call = asyncio.create_task(get(session))
        await asyncio.sleep(5)
        [made] = timers_of_lamella()
        assert type(owner_of(made)).__name__ == "_Alarm"
        [account] = throttle_in(session)._accounts.values()
        sent = account.queue.sent_at.pop()  # as if Throttle had lost it
        with pytest.raises(AssertionError, match="_Alarm"):
            at_rest(session)
        account.queue.sent_at.append(sent)
        assert await call == 200
        at_rest(session)
        await asyncio.sleep(0)
        assert not timers_of_lamella()
