"""Whoever ends a call, and wherever it is: it ends at once, with the right error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import anyio
import pytest
from tests.cancelling import cancelled_at
from tests.environment import HANGS
from tests.faults.calls import REQUESTS, Request
from tests.faults.catalogue import FAULTS, Fault, Phase
from tests.faults.cells import Spans
from tests.faults.certificates import HOST, client_context
from tests.faults.wire import Route, Wire
from tests.sdk import Tracing

from lamella import AttemptTimeout, Breaker, HeaderAuth, maesn, stack
from lamella.testing import VirtualClock

# One of each phase, on each way, and what is written while it happens.
PLACES: Final = (
    ("DNS is silent", "GET"),
    ("silence in the handshake", "POST"),
    ("silence after CONNECT", "PUT of a stream"),
    ("silence before the request is read", "GET"),
    ("silence within the request", "PUT of much"),
    ("silence within the request", "PUT of a long stream"),
    ("100 never comes", "PUT"),
    ("silence before the status line, tunnel", "POST"),
    ("silence within the body, TLS", "GET"),
    ("closed within the body", "PUT"),
    ("a drip of a body of a 503", "GET"),
    ("hints without end", "DELETE"),
    ("429", "POST with a key"),
)


def _fault(name: str) -> Fault:
    [found] = [fault for fault in FAULTS if fault.name == name]
    return found


def _request(name: str) -> Request:
    [found] = [request for request in REQUESTS if request.name == name]
    return found


class Stage:
    """A server with a fault, a session with all layers, and a look at what is left behind."""

    def __init__(self, fault: Fault, tracing: Tracing) -> None:
        self.wire = Wire(fault.route, fault.play, fault.greet)
        self.wire.listen()
        self.wire.begin(always=True)
        self.spans = Spans()
        tracing.provider.add_span_processor(self.spans)
        self._provider = tracing.provider
        self._fault = fault

    async def call(self, request: Request, end: Callable[[Awaitable[int]], Awaitable[object]]) -> object:
        """Make a call and let *end* await it; then nothing may be left."""
        fault, wire = self._fault, self.wire
        near = f"127.0.0.1:{wire.port}"
        secure, proxied = fault.route in {Route.TLS, Route.TUNNEL}, fault.route in {Route.PROXY, Route.TUNNEL}
        resolver = fault.resolver() if fault.resolver else None
        url = f"{'https' if secure else 'http'}://{HOST if proxied or resolver else near}"
        auth = HeaderAuth({"X-API-KEY": _token}, origin=url)
        layers = stack(
            maesn.RULES, Breaker(), auth=auth, attempts=3, attempt_timeout=10, tracer_provider=self._provider
        )
        before = asyncio.all_tasks()
        wire.begin(always=True)
        connector = aiohttp.TCPConnector(ssl=client_context(), limit=1, resolver=resolver)
        async with aiohttp.ClientSession(
            url, connector=connector, middlewares=layers, timeout=aiohttp.ClientTimeout(total=None)
        ) as session:

            async def one() -> int:
                proxy = f"http://{near}" if proxied else None
                async with session.request(
                    request.method, "/", proxy=proxy, **request.options(), **fault.options
                ) as response:
                    return len(await response.read())

            try:
                return await end(one())
            finally:
                for _ in range(5):
                    await asyncio.sleep(0)
                assert not connector._acquired, "a connection is held"
                assert not self.spans.open, "a span is open"
                await session.close()
                await wire.end()
                for _ in range(5):
                    await asyncio.sleep(0)
                left = asyncio.all_tasks() - before - {asyncio.current_task()}
                assert not left, "a task is left"


async def _token() -> str:
    await asyncio.sleep(0)
    return "zq-plain-4711-key"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "request_name"), PLACES)
async def test_a_call_can_be_cancelled_at_any_await(
    name: str, request_name: str, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    stage = Stage(_fault(name), tracing)
    step, reached = 1, True
    while reached:

        async def end(call: Any, step: int = step) -> bool:
            task = asyncio.ensure_future(_stepped(step, call))
            await asyncio.wait([task])
            if task.cancelled():
                return True
            assert not task.cancelling(), f"the cancellation at step {step} was swallowed"
            assert task.exception() is not None or task.result()
            return False

        began = virtual_time.now
        reached = bool(await stage.call(_request(request_name), end))
        if reached:
            cancelled = [span for span in stage.spans.ended if span.name.startswith("lamella ")][-1:]
            for span in cancelled:
                # Cancelled while its answer is read, the call has ended well before.
                assert (span.attributes or {})["lamella.outcome"] in {"cancelled", "success"}
                assert span.status.is_unset
        step += 1
        assert virtual_time.now - began < 1000
    await stage.wire.close()
    assert step > 4


async def _stepped(step: int, call: Any) -> object:
    return await cancelled_at(step, call)


async def _asyncio_timeout(call: Awaitable[int]) -> object:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(3):
            await call
    assert not isinstance(caught.value, AttemptTimeout)
    return None


async def _wait_for(call: Awaitable[int]) -> object:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, 3)
    return None


async def _fail_after(call: Awaitable[int]) -> object:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(3):
            await call
    return None


async def _move_on_after(call: Awaitable[int]) -> object:
    with anyio.move_on_after(3) as scope:
        await call
    assert scope.cancelled_caught
    return None


async def _task_group(call: Awaitable[int]) -> object:
    async def fail() -> None:
        await asyncio.sleep(3)
        raise LookupError

    async def one() -> None:
        await call

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(one())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await together()
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
    return None


async def _anyio_task_group(call: Awaitable[int]) -> object:
    async def one() -> None:
        await call

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        await anyio.sleep(3)
        group.cancel_scope.cancel()
    return None


async def _task(call: Any) -> object:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(3)
    task.cancel("no more")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("no more",)
    return None


ENDS: Final = (_asyncio_timeout, _wait_for, _fail_after, _move_on_after, _task_group, _anyio_task_group, _task)
_SILENT: Final = [place for place in PLACES if place[0] not in {"closed within the body"}]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__.strip("_"))
async def test_a_consumer_can_stop_reading_at_once(
    end: Callable[[Awaitable[int]], Awaitable[object]], virtual_time: VirtualClock, tracing: Tracing
) -> None:
    for name, request_name in _SILENT:
        stage = Stage(_fault(name), tracing)
        ended: list[float] = []

        async def timed(call: Awaitable[int], ended: list[float] = ended) -> None:
            began = virtual_time.now
            await end(call)
            ended.append(virtual_time.now - began)

        await stage.call(_request(request_name), timed)
        await stage.wire.close()
        # An async generator that is being written is finished by itself, a moment later.
        assert ended == [pytest.approx(3, abs=0.01)], name
        calls = [span for span in stage.spans.ended if span.name.startswith("lamella ")]
        told = [(span.attributes or {}).get("lamella.outcome") for span in calls]
        late = _fault(name).phase is Phase.BODY and _fault(name).status < 400
        assert "cancelled" in told or late, name


async def test_closing_the_session_during_an_attempt_raises(virtual_time: VirtualClock, tracing: Tracing) -> None:
    stage = Stage(_fault("silence before the status line"), tracing)
    layers = stack(maesn.RULES)
    session = aiohttp.ClientSession(f"http://127.0.0.1:{stage.wire.port}", middlewares=layers)
    call = asyncio.ensure_future(session.get("/"))
    await asyncio.sleep(1)
    await session.close()
    with pytest.raises((aiohttp.ClientConnectionError, RuntimeError)):
        await call
    await stage.wire.end()
    await stage.wire.close()


@pytest.mark.parametrize("alive", [False, True], ids=["the loop is closed", "the loop runs in another thread"])
@pytest.mark.parametrize("layered", [False, True])
def test_a_call_from_another_loop_raises_a_clear_error(alive: bool, layered: bool) -> None:
    made: list[aiohttp.ClientSession] = []
    ready, done = threading.Event(), threading.Event()

    async def first() -> None:
        wire = Wire()
        wire.listen()
        layers = stack(maesn.RULES) if layered else ()
        session = aiohttp.ClientSession(f"http://127.0.0.1:{wire.port}", middlewares=layers)
        async with session.get("/") as response:
            assert response.ok
        made.append(session)
        ready.set()
        while alive and not done.is_set():  # noqa: ASYNC110 - an event of another thread
            await asyncio.sleep(0.001)
        if alive:
            await session.close()
        else:
            await made[0].connector.close()  # type: ignore[union-attr]
        await wire.end()
        await wire.close()

    async def second() -> None:
        async with asyncio.timeout(5):
            async with made[0].get("/"):
                pass

    thread = threading.Thread(target=asyncio.run, args=(first(),))
    thread.start()
    assert ready.wait(HANGS)
    if not alive:
        thread.join(HANGS)
    with pytest.raises(RuntimeError):
        asyncio.run(second())
    done.set()
    thread.join(HANGS)


def test_layers_serve_one_loop_after_the_other() -> None:
    layers = stack(maesn.RULES, auth=HeaderAuth({"X-API-KEY": _token}))

    async def once() -> bool:
        wire = Wire()
        wire.listen()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{wire.port}", middlewares=layers) as session:
            async with session.get("/") as response:
                ok = response.ok
        await wire.end()
        await wire.close()
        return ok

    assert [asyncio.run(once()) for _ in range(2)] == [True, True]
