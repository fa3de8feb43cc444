from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable
from contextlib import suppress

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import CarrierT, Setter, TextMapPropagator, default_setter
from opentelemetry.trace import StatusCode
from tests.layering import LAYERS, RULES, SUBSETS, in_order, together
from tests.leftovers import timers_of_lamella
from tests.sdk import Tracing
from tests.servers import Serve

from lamella import (
    AttemptSpan,
    Breaker,
    Classify,
    HeaderAuth,
    RequestSpan,
    Retry,
    Throttle,
    Timeout,
    stack,
)
from lamella.auth.header_auth import HeaderValue
from lamella.call import Call
from lamella.pipeline import Layer, Result, Slot
from lamella.testing import VirtualClock

# With a total timeout of the session, which is a deadline, no call with a Retry goes the short way.
NO_DEADLINE = aiohttp.ClientTimeout()


async def _answer(request: web.Request) -> web.StreamResponse:
    return web.Response(text="good")


@pytest.mark.parametrize("chosen", SUBSETS[1:])
async def test_every_subset_works_as_one_pipeline(serve: Serve, chosen: tuple[Layer, ...]) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=(together(in_order(*chosen)),)) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"


async def test_a_pipeline_behaves_like_its_layers_one_by_one(serve: Serve) -> None:
    sent: list[str | None] = []

    async def twice_refused(request: web.Request) -> web.StreamResponse:
        sent.append(request.headers.get("X-A"))
        return web.Response(status=429 if len(sent) % 3 else 200)

    url = await serve(twice_refused)
    layers = stack(RULES, auth=HeaderAuth({"X-A": "value"}, origin=url), throttle=False)
    for middlewares in (layers, (together(layers),)):
        async with aiohttp.ClientSession(url, middlewares=middlewares) as session:
            async with session.get("/") as response:
                assert response.status == 200
    assert sent == ["value"] * 6


async def test_other_middlewares_can_be_outside_and_inside_a_pipeline(serve: Serve) -> None:
    seen: list[str] = []

    def own(name: str) -> aiohttp.ClientMiddlewareType:
        async def middleware(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            seen.append(name)
            return await handler(request)

        return middleware

    async def again(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        return await handler(request)

    statuses = [200, 429]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=statuses.pop() if statuses else 200, text="good")

    outer, inner = together(in_order(*LAYERS[:4])), together(in_order(*LAYERS[4:]))
    middlewares = (again, own("outside"), outer, own("between"), inner, own("inside"))
    async with aiohttp.ClientSession(await serve(answer), middlewares=middlewares) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"
    # Each group goes on to what stands inside of itself, when Retry of the outer one sends again, too.
    assert seen == ["outside", *["between", "inside"] * 2, "outside", "between", "inside"]


async def test_a_pipeline_rejects_a_wrong_order(serve: Serve) -> None:
    for middlewares in ((Timeout(1), together((Retry(RULES),))), (together((Timeout(1),)), Retry(RULES))):
        async with aiohttp.ClientSession(await serve(_answer), middlewares=middlewares) as session:
            with pytest.raises(ValueError, match="Retry must be outside Timeout"):
                await session.get("/")
    # Of several layers the outermost counts to the outside, and the innermost to the inside.
    outside_in = (Timeout(1), together((Retry(RULES), Classify(RULES))))
    async with aiohttp.ClientSession(await serve(_answer), middlewares=outside_in) as session:
        with pytest.raises(ValueError, match="Retry must be outside Timeout"):
            await session.get("/")
    inside_out = (together((Retry(RULES), Classify(RULES))), Timeout(1))
    async with aiohttp.ClientSession(await serve(_answer), middlewares=inside_out) as session:
        with pytest.raises(ValueError, match="Timeout must be outside Classify"):
            await session.get("/")
    with pytest.raises(ValueError, match="Retry must be outside Timeout"):
        together((Timeout(1), Retry(RULES)))


async def test_a_successful_call_waits_only_for_its_response(
    serve: Serve, tracing: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hook does its work at once: then the whole stack is a single coroutine."""
    calls: list[str] = []

    def at_once(kind: type[Layer], hook: str) -> None:
        original = getattr(kind, hook)

        def checked(self: Layer, *arguments: object) -> None:
            calls.append(f"{kind.__name__}.{hook}")
            assert original(self, *arguments) is None

        monkeypatch.setattr(kind, hook, checked)

    for layer in LAYERS:
        for hook in ("before", "after"):
            if getattr(type(layer), hook) is not getattr(Layer, hook):
                at_once(type(layer), hook)
    layers = stack(RULES, Breaker(), auth=HeaderAuth({"X-A": lambda: "value"}), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(_answer), middlewares=layers, timeout=NO_DEADLINE) as session:
        for _ in range(3):
            async with session.get("/") as response:
                assert await response.text() == "good"
    assert len(tracing.spans) == 6
    assert len(calls) == 3 * len(set(calls))
    assert {f"{type(layer).__name__}.after" for layer in LAYERS} < set(calls)


async def test_a_queued_call_is_sent_when_the_block_of_its_account_ends(
    serve: Serve, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    statuses = [200] * 3 + [429]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=statuses.pop(), headers={"Retry-After": "60"})

    throttle = Throttle(RULES, tracer_provider=tracing.provider)
    layers = stack(RULES, throttle, auth=HeaderAuth({"X-A": "value"}), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(answer), middlewares=(together(layers),)) as session:
        first = asyncio.create_task(session.get("/"))
        await asyncio.sleep(1)
        # The queue is closed: this one waits before it is sent, when the layers outside of the queue have begun.
        second = asyncio.create_task(session.get("/"))
        assert [(await task).status for task in (first, second)] == [200, 200]
        assert 60 <= virtual_time.elapsed < 62
        assert (await session.get("/")).status == 200
    assert [span.attributes and span.attributes["http.response.status_code"] for span in tracing.sends] == [
        429,
        200,
        200,
        200,
    ]
    waited = [span.attributes and span.attributes.get("lamella.queue_wait") for span in tracing.spans]
    assert sum(bool(each) for each in waited) == 1  # the other one waited for its next try


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_function_that_returns_an_awaitable_is_called_once_per_attempt(serve: Serve, wrapped: bool) -> None:
    """That it is none can be seen by nobody before it has been asked."""
    asked: list[str] = []
    sent: list[str | None] = []

    async def ask() -> str:
        asked.append("value")
        await asyncio.sleep(0)
        return f"value {len(asked)}"

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["X-C"] == "at once"
        sent.append(request.headers.get("X-A"))
        return web.Response(status=200 if len(sent) % 2 else 429)

    # It looks like any other function, and so does the one that is asked before it.
    values: dict[str, HeaderValue] = {"X-B": "fixed", "X-C": lambda: "at once", "X-A": lambda: ask()}  # noqa: PLW0108
    auth = HeaderAuth(values)
    layers = (Retry(RULES), auth, Classify(RULES))
    middlewares = (together(layers),) if wrapped else layers
    async with aiohttp.ClientSession(await serve(answer), middlewares=middlewares) as session:
        for _ in range(2):
            async with session.get("/") as response:
                assert response.status == 200
    assert sent == ["value 1", "value 2", "value 3"]
    assert len(asked) == 3


class _Broken(TextMapPropagator):
    """It fails when there is anything to hand on."""

    def extract(self, carrier: CarrierT, context: Context | None = None, getter: object = None) -> Context:
        raise NotImplementedError

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        raise LookupError("a propagator")

    @property
    def fields(self) -> set[str]:
        return set()


def _no_key() -> str:
    raise LookupError("a key")


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("broken", ["a key", "a propagator"])
async def test_a_failure_in_before_ends_the_outer_layers(
    serve: Serve, tracing: Tracing, monkeypatch: pytest.MonkeyPatch, wrapped: bool, broken: str
) -> None:
    throttle, breaker = Throttle(RULES, tracer_provider=tracing.provider), Breaker()
    auth = HeaderAuth({"X-A": _no_key if broken == "a key" else "value"})
    layers = stack(RULES, throttle, breaker, auth=auth, tracer_provider=tracing.provider)
    if broken == "a propagator":
        monkeypatch.setattr(propagate, "get_global_textmap", _Broken)
    middlewares = (together(layers),) if wrapped else layers
    async with aiohttp.ClientSession(await serve(_answer), middlewares=middlewares) as session:
        with pytest.raises(LookupError, match=broken):
            await session.get("/")
        await asyncio.sleep(0)
        assert not timers_of_lamella()
    [account] = vars(throttle)["_accounts"].values()
    assert account.queue.in_flight == 0
    assert len(tracing.spans) == 2
    for span in tracing.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes
        assert span.attributes["error.type"] == "LookupError"


async def test_a_middleware_may_call_the_pipeline_twice(serve: Serve, tracing: Tracing) -> None:
    """Of its first call nothing is left that the second could take for its own."""
    statuses = [200, 404]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=statuses.pop())

    async def again(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        with pytest.raises(aiohttp.ClientResponseError, match="404"):
            await handler(request)
        return await handler(request)

    layers = together(stack(RULES, tracer_provider=tracing.provider))
    async with aiohttp.ClientSession(await serve(answer), middlewares=(again, layers)) as session:
        async with session.get("/") as response:
            assert response.status == 200
    first, second = (span for span in tracing.spans if span.name.startswith("lamella"))
    assert [span.attributes and span.attributes["lamella.outcome"] for span in (first, second)] == [
        "failure",
        "success",
    ]
    assert first.attributes
    assert first.attributes["error.type"] == "404"


async def test_context_set_by_a_middleware_between_pipelines_is_passed_on(serve: Serve) -> None:
    """What the outer group has found is true no more then; so it is where the layers are one by one."""
    sent: list[str | None] = []

    async def adds(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        token = context.attach(baggage.set_baggage("who", "between"))
        try:
            return await handler(request)
        finally:
            context.detach(token)

    async def answer(request: web.Request) -> web.StreamResponse:
        sent.append(request.headers.get("baggage"))
        return web.Response()

    tracer, meter = trace.NoOpTracerProvider(), metrics.NoOpMeterProvider()
    outer = RequestSpan(tracer_provider=tracer, meter_provider=meter)
    inner = AttemptSpan(tracer_provider=tracer, meter_provider=meter)
    url = await serve(answer)
    for middlewares in ((outer, adds, inner), (together((outer,)), adds, together((inner,)))):
        async with aiohttp.ClientSession(url, middlewares=middlewares) as session:
            async with session.get("/") as response:
                assert response.status == 200
    assert sent == ["who=between"] * 2


async def test_an_error_is_freed_without_the_garbage_collector(serve: Serve) -> None:
    """Not only when the garbage collector comes: it holds on to the whole send."""

    async def broken(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise _Lost

    layers = together((Breaker(), Timeout(5), Classify(RULES)))
    async with aiohttp.ClientSession(await serve(_answer), middlewares=(layers, broken)) as session:
        gc.collect()
        gc.disable()
        try:
            with suppress(_Lost):
                await session.get("/")
            assert not [each for each in gc.get_objects() if isinstance(each, _Lost)]
        finally:
            gc.enable()


class _Lost(Exception):
    """An error of somebody else's."""


class Clock(Layer):
    """Notes the time of its hooks."""

    slot = Slot.REQUEST_SPAN

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def before(self, call: Call) -> None:
        self.times.append((call.now, call.request.loop.time()))

    def after(self, call: Call, result: Result) -> None:
        self.times.append((call.now, call.request.loop.time()))


class Waits(Layer):
    """Waits before the attempt, after it, or both, and may fail then."""

    slot = Slot.RETRY

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails

    async def _wait(self) -> None:
        await asyncio.sleep(30)
        if self._fails:
            raise ValueError("after the wait")

    def before(self, call: Call) -> Awaitable[None]:
        return asyncio.sleep(10)

    def after(self, call: Call, result: Result) -> Awaitable[None]:
        return self._wait()


@pytest.mark.parametrize("end", ["good", "fails", "cancelled"])
async def test_hooks_know_the_time_after_each_wait(serve: Serve, virtual_time: VirtualClock, end: str) -> None:
    clock, inner = Clock(), Clock()
    inner.slot = Slot.INNERMOST  # type: ignore[misc]
    layers = (together((clock, Waits(fails=end == "fails"), inner)),)
    async with aiohttp.ClientSession(await serve(_answer), middlewares=layers) as session:
        call = asyncio.create_task(session._request("GET", "/"))
        if end == "cancelled":
            await asyncio.sleep(25)
            call.cancel()
        with suppress(ValueError, asyncio.CancelledError):
            await call
    times = [clock.times[0], *inner.times, clock.times[1]]
    assert all(now == pytest.approx(time, abs=0.1) for now, time in times)
    assert times[1][0] - times[0][0] == pytest.approx(10, abs=0.1)
    assert times[3][0] - times[2][0] == pytest.approx(15 if end == "cancelled" else 30, abs=0.1)
