"""Layers and middlewares of others in a stack, alone, and beside lamella's own."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.layering import apart
from tests.sdk import Tracing
from tests.servers import Serve

from lamella import (
    At,
    AttemptTimeout,
    Backoff,
    Breaker,
    Call,
    HeaderAuth,
    InternalServerError,
    Layer,
    PerCall,
    Result,
    Rule,
    RuleBook,
    Slot,
    StopReason,
    stack,
)
from lamella.pipeline import Again
from lamella.testing import VirtualClock

RULES = RuleBook(
    Rule(500, "Internal Server Error", retry=Backoff(initial=1, jitter=0)),
    Rule(429, "Too Many Requests", retry=Backoff(initial=1, jitter=0)),
)


class Server:
    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[dict[str, str]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(dict(request.headers))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200, text="text")


class Seen(Layer):
    """Notes when its hooks are called, and with what."""

    def __init__(self, slot: Slot, log: list[str], name: str = "") -> None:
        self.slot = slot  # type: ignore[misc]
        self.log = log
        self.name = name or slot.name

    def before(self, call: Call) -> None:
        self.log.append(f"> {self.name}")

    def after(self, call: Call, result: Result) -> None:
        shown = type(result).__name__ if isinstance(result, BaseException) else str(result.status)
        self.log.append(f"< {self.name} {shown}")


def client(url: str, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=middlewares)


async def test_hooks_run_once_a_call_outside_retry_and_once_an_attempt_inside(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    log: list[str] = []
    layers = [Seen(slot, log) for slot in reversed(Slot)]
    async with client(await serve(Server(500)), *stack(RULES, *layers)) as session:
        assert (await session.get("/")).status == 200
    outer, inner = [*Slot][:3], [*Slot][3:]
    attempt = [f"> {slot.name}" for slot in inner]
    # Outside of Classify a bad status is an error.
    failed = [f"< {slot.name} {'500' if slot is Slot.INNERMOST else 'InternalServerError'}" for slot in reversed(inner)]
    passed = [f"< {slot.name} 200" for slot in reversed(inner)]
    assert log == [
        *(f"> {slot.name}" for slot in outer),
        *attempt,
        *failed,
        *attempt,
        *passed,
        *(f"< {slot.name} 200" for slot in reversed(outer)),
    ]


@pytest.mark.parametrize("slot", Slot)
async def test_a_plain_middleware_has_a_place_in_the_stack(
    serve: Serve, virtual_time: VirtualClock, slot: Slot
) -> None:
    """It stands outside of the layers of its slot, and sees what they make of an attempt."""
    seen: list[str] = []

    async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        try:
            response = await handler(request)
        except aiohttp.ClientError as error:
            seen.append(type(error).__name__)
            raise
        seen.append(str(response.status))
        return response

    server = Server(500)
    url = await serve(server)
    layers = stack(RULES, At(slot, middleware), Breaker(), auth=HeaderAuth({"X-A": "value"}, origin=url))
    async with client(url, *layers) as session:
        assert (await session.get("/")).status == 200
    first = [] if slot <= Slot.RETRY else ["500" if slot is Slot.INNERMOST else "InternalServerError"]
    assert seen == [*first, "200"]
    assert [request["X-A"] for request in server.requests] == ["value"] * 2


async def test_layers_of_one_slot_keep_their_given_order(serve: Serve) -> None:
    log: list[str] = []
    layers = [Seen(Slot.AUTH, log, name) for name in ("a", "b", "c")]
    async with client(await serve(Server()), *stack(RULES, *layers)) as session:
        await session.get("/")
    assert log == ["> a", "> b", "> c", "< c 200", "< b 200", "< a 200"]


class Waits(Layer):
    """Waits before and after each attempt, and replaces what it is told to."""

    slot = Slot.THROTTLE

    def __init__(self, replace: Callable[[Result], Result | None] = lambda _: None, seconds: float = 1.0) -> None:
        self.replace = replace
        self.seconds = seconds
        self.waiting = 0

    def before(self, call: Call) -> Awaitable[None]:
        return self.wait()

    async def wait(self) -> None:
        self.waiting += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.waiting -= 1

    def after(self, call: Call, result: Result) -> Awaitable[Result | None]:
        return self.settle(result)

    async def settle(self, result: Result) -> Result | None:
        await self.wait()
        return self.replace(result)


@pytest.mark.parametrize("alone", [True, False])
async def test_a_layer_can_wait_and_replace_a_failure(serve: Serve, virtual_time: VirtualClock, alone: bool) -> None:
    def replace(result: Result) -> Result | None:
        failed = isinstance(result, InternalServerError) or getattr(result, "status", 200) == 500
        return LookupError("replaced") if failed else None

    layer = Waits(replace)
    layers: tuple[aiohttp.ClientMiddlewareType, ...] = (layer,) if alone else stack(RULES, layer)
    async with client(await serve(Server(200, 500)), *layers) as session:
        began = virtual_time.now
        assert (await session.get("/")).status == 200
        assert virtual_time.now - began == pytest.approx(2)
        with pytest.raises(LookupError, match="replaced"):
            await session.get("/")
    assert layer.waiting == 0


async def test_a_layer_may_turn_an_answer_into_a_failure_and_a_failure_into_an_answer(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    """An answer that says "busy" in its body with status 200 is retried like any other failure."""
    texts = ["busy", "done"]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=texts.pop(0))

    class Busy(Layer):
        slot = Slot.BUFFER

        def after(self, call: Call, result: Result) -> Awaitable[Result | None] | None:
            return None if isinstance(result, BaseException) else self.look(result)

        async def look(self, result: aiohttp.ClientResponse) -> Result | None:
            return aiohttp.ServerDisconnectedError("busy") if await result.text() == "busy" else None

    layers = stack(RULES, Busy(), tracer_provider=tracing.provider)
    async with client(await serve(answer), *layers) as session:
        async with session.get("/") as response:
            assert await response.text() == "done"
    assert [(span.attributes or {}).get("error.type") for span in tracing.sends] == ["ServerDisconnectedError", None]


async def test_a_layer_may_make_more_attempts(serve: Serve, virtual_time: VirtualClock) -> None:
    """As Retry does it, by the public way."""

    class Twice(Layer):
        slot = Slot.AUTH

        def after(self, call: Call, result: Result) -> Callable[[Again], Awaitable[Result]] | None:
            if not isinstance(result, BaseException):
                return None

            async def once_more(again: Again) -> Result:
                await asyncio.sleep(0.1)
                return await again()

            return once_more

    log: list[str] = []
    server = Server(500, 200, 500, 500, 200)
    layers = stack(RULES, Twice(), Seen(Slot.THROTTLE, log), Seen(Slot.CLASSIFY, log))
    async with client(await serve(server), *layers) as session:
        assert (await session.get("/")).status == 200
        assert (await session.get("/")).status == 200
    inside = ["> CLASSIFY", "< CLASSIFY InternalServerError", "> CLASSIFY", "< CLASSIFY 200"]
    failed = [*inside[:3], "< CLASSIFY InternalServerError"]
    assert log == [
        *("> THROTTLE", *inside, "< THROTTLE 200"),
        *("> THROTTLE", *failed, "< THROTTLE InternalServerError"),
        *("> THROTTLE", "> CLASSIFY", "< CLASSIFY 200", "< THROTTLE 200"),
    ]
    assert len(server.requests) == 5


@pytest.mark.sampled
@pytest.mark.parametrize("hook", ["before", "after", "waiting before", "waiting after"])
@pytest.mark.parametrize("slot", Slot)
async def test_an_exception_of_a_hook_is_the_result_for_outer_layers(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, hook: str, slot: Slot
) -> None:
    """Each layer that has begun ends; none of them takes the error for a failure of the transport."""

    class Broken(Layer):
        def before(self, call: Call) -> Awaitable[None] | None:
            if hook == "before":
                raise LookupError("broken")
            return self.fail() if hook == "waiting before" else None

        def after(self, call: Call, result: Result) -> Awaitable[Result | None] | None:
            if hook == "after":
                raise LookupError("broken")
            return self.fail() if hook == "waiting after" else None

        async def fail(self) -> Any:
            await asyncio.sleep(0)
            raise LookupError("broken")

    Broken.slot = slot
    log: list[str] = []
    layers = stack(
        RULES,
        *(Seen(each, log) for each in Slot),
        Broken(),
        auth=HeaderAuth({"X-A": "value"}),
        tracer_provider=tracing.provider,
    )
    async with client(await serve(Server()), *layers) as session:
        with pytest.raises(LookupError, match="broken"):
            await session.get("/")
    begun = [line[2:] for line in log if line.startswith(">")]
    ended = [line.split()[1] for line in log if line.startswith("<")]
    assert sorted(begun) == sorted(ended)
    assert all(line.endswith(" LookupError") for line in log if line.startswith("<") and Slot[line.split()[1]] < slot)


async def test_a_cancelled_call_reaches_each_layer_that_has_begun(serve: Serve, virtual_time: VirtualClock) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(100)
        return web.Response()

    log: list[str] = []
    async with client(await serve(answer), *stack(RULES, *(Seen(slot, log) for slot in Slot))) as session:
        task = asyncio.create_task(session._request("GET", "/"))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    ended = [line for line in log if line.startswith("<")]
    assert ended == [f"< {slot.name} CancelledError" for slot in reversed(Slot)]


async def test_a_layer_that_waits_after_a_cancellation_does_not_swallow_it(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(100)
        return web.Response()

    layer = Waits()
    async with client(await serve(answer), *stack(RULES, layer, attempt_timeout=None)) as session:
        task = asyncio.create_task(session._request("GET", "/"))
        await asyncio.sleep(2)
        task.cancel()
        await asyncio.sleep(0.5)
        assert (task.done(), layer.waiting) == (False, 1)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_deadline_and_a_timeout_end_a_layer_that_waits(serve: Serve, virtual_time: VirtualClock) -> None:
    layer = Waits(seconds=1000.0)
    async with client(await serve(Server()), *stack(RULES, layer, deadline=5.0)) as session:
        began = virtual_time.now
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/")
    assert virtual_time.now - began == pytest.approx(5, abs=0.01)
    assert caught.value.stopped is StopReason.DEADLINE
    assert layer.waiting == 0


def test_a_call_discarded_by_the_event_loop_leaves_each_layer(virtual_time: VirtualClock) -> None:
    """A coroutine that is closed gets a GeneratorExit, in which nothing can be awaited."""
    log: list[str] = []
    waits = Waits()

    async def begin() -> Any:
        async def never(request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        async with aiohttp.ClientSession() as session:
            loop = asyncio.get_running_loop()
            url = session._build_url("http://127.0.0.1/")
            request = aiohttp.ClientRequest("GET", url, loop=loop, session=session)
            [pipeline] = stack(RULES, waits, *(Seen(slot, log) for slot in Slot), attempt_timeout=None)
            coroutine: Any = pipeline(request, never)
            future = coroutine.send(None)  # it waits in the layer now
            future.get_loop()
            return coroutine

    coroutine = asyncio.run(begin())
    coroutine.close()
    assert waits.waiting == 0
    assert [line for line in log if line.startswith("<")] == [
        f"< {slot.name} GeneratorExit" for slot in reversed(Slot) if slot <= Slot.RETRY
    ]


async def test_per_call_state_ends_with_the_call(serve: Serve) -> None:
    """A value per call is made once a call, and nothing of a call is left for the garbage collector."""

    class Count:
        def __init__(self) -> None:
            self.attempts = 0

    class Counts(Layer):
        slot = Slot.AUTH

        def __init__(self) -> None:
            self.count = PerCall(Count)
            self.counts: list[int] = []
            self.left: list[weakref.ref[Any]] = []

        def before(self, call: Call) -> None:
            self.count.of(call).attempts += 1

        def after(self, call: Call, result: Result) -> None:
            self.counts.append(self.count.of(call).attempts)
            self.left.extend((weakref.ref(call), weakref.ref(self.count.of(call)), weakref.ref(call.request)))

    rules = RuleBook(Rule(500, "Internal Server Error", retry=Backoff(initial=0)))
    layer = Counts()
    async with client(await serve(Server(500, 500)), *stack(rules, layer)) as session:
        gc.collect()
        gc.disable()
        try:
            for _ in range(2):
                async with session.get("/"):
                    pass
            assert layer.counts == [1, 2, 3, 1]
            assert not [ref for ref in layer.left if ref() is not None]
        finally:
            gc.enable()


async def test_a_call_made_inside_a_layer_is_a_separate_call(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    """Through the very same stack: a token that is fetched before each attempt, say."""
    server = Server(500, 200, 200, 404)
    url = await serve(server)

    class Fetches(Layer):
        slot = Slot.AUTH

        def before(self, call: Call) -> Awaitable[None] | None:
            return None if call.request.url.path == "/token" else self.fetch(call)

        async def fetch(self, call: Call) -> None:
            async with session.get("/token") as response:
                call.request.headers["Authorization"] = await response.text()

    async with client(url, *stack(RULES, Fetches(), tracer_provider=tracing.provider)) as session:
        with suppress(aiohttp.ClientResponseError):
            await session.get("/data")
    # The token after a 500, then the data with it; a 404 is final.
    assert ["Authorization" in request for request in server.requests] == [False, False, True]
    assert [span.name for span in tracing.spans if span.name.startswith("lamella")] == ["lamella GET"] * 2


def test_stack_rejects_a_layer_without_a_slot() -> None:
    class Placeless(Layer):
        pass

    with pytest.raises(ValueError, match=r"Placeless\.slot must be one of REQUEST_SPAN, BREAKER, "):
        stack(RULES, Placeless())
    with pytest.raises(ValueError, match=r"At\.slot must be one of .*, got 3$"):
        stack(RULES, At(3, apart(stack(RULES))[0]))  # type: ignore[arg-type]
