from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from tests.conftest import Handler

from lamella import (
    AttemptSpan,
    Backoff,
    Breaker,
    Buffer,
    Classify,
    HeaderAuth,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    Throttle,
    Timeout,
    as_one,
    in_order,
    stack,
)
from lamella.stacking import Layer

Serve = Callable[[Handler], Awaitable[str]]
RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))
LAYERS: tuple[Layer, ...] = (
    RequestSpan(),
    Breaker(),
    Retry(RULES),
    Throttle(RULES),
    AttemptSpan(),
    Timeout(5),
    HeaderAuth({"X-A": "value"}),
    Buffer(),
    Classify(RULES),
)


async def _answer(request: web.Request) -> web.StreamResponse:
    return web.Response(text="good")


def test_the_order_is_the_designs() -> None:
    assert in_order(*reversed(LAYERS)) == LAYERS
    two = HeaderAuth({"X-B": "value"})
    assert in_order(two, LAYERS[6]) == (two, LAYERS[6])


def test_stack_has_everything_by_default_and_takes_layers_made_by_hand() -> None:
    auth = HeaderAuth({"X-A": "value"})
    kinds = [type(layer) for layer in LAYERS if not isinstance(layer, Breaker)]
    assert [type(layer) for layer in stack(RULES, auth=auth)] == kinds
    mine = Timeout(1)
    assert stack(RULES, mine, auth=[auth])[4:6] == (mine, auth)
    breaker = Breaker()
    assert stack(RULES, breaker)[1] is breaker
    small = stack(RULES, spans=False, throttle=False, attempt_timeout=None, buffer=None, raise_errors=False)
    assert [type(layer) for layer in small] == [Retry]


@pytest.mark.parametrize("chosen", [set_ for size in range(10) for set_ in itertools.combinations(LAYERS, size)])
async def test_every_subset_works(serve: Serve, chosen: tuple[Layer, ...]) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=in_order(*chosen)) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"


@pytest.mark.parametrize(("outer", "inner"), list(itertools.combinations(LAYERS, 2)))
async def test_a_wrong_order_is_told_at_the_first_call(serve: Serve, outer: Layer, inner: Layer) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=(inner, outer)) as session:
        with pytest.raises(ValueError, match=f"{type(outer).__name__} stands inside of {type(inner).__name__}"):
            await session.get("/")


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if not isinstance(layer, HeaderAuth)])
async def test_a_layer_that_stands_twice_is_told(serve: Serve, layer: Layer) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=(layer, layer)) as session:
        with pytest.raises(ValueError, match="stands twice"):
            await session.get("/")
    with pytest.raises(ValueError, match="stands twice"):
        in_order(layer, layer)


async def test_other_peoples_middlewares_may_stand_anywhere_and_retry_too(serve: Serve) -> None:
    async def twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        return await handler(request)

    mixed = [layer for pair in zip([twice] * 9, LAYERS, strict=True) for layer in pair]
    async with aiohttp.ClientSession(await serve(_answer), middlewares=mixed) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="not a layer of lamella's"):
        in_order("Retry")  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", [set_ for size in range(1, 10) for set_ in itertools.combinations(LAYERS, size)])
async def test_every_subset_works_as_one(serve: Serve, chosen: tuple[Layer, ...]) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=(as_one(in_order(*chosen)),)) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"


async def test_as_one_they_do_what_they_do_one_by_one(serve: Serve) -> None:
    sent: list[str | None] = []

    async def twice_refused(request: web.Request) -> web.StreamResponse:
        sent.append(request.headers.get("X-A"))
        return web.Response(status=429 if len(sent) % 3 else 200)

    url = await serve(twice_refused)
    layers = stack(RULES, auth=HeaderAuth({"X-A": "value"}, origin=url), throttle=False)
    for middlewares in (layers, (as_one(layers),)):
        async with aiohttp.ClientSession(url, middlewares=middlewares) as session:
            async with session.get("/") as response:
                assert response.status == 200
    assert sent == ["value"] * 6


async def test_as_one_other_peoples_middlewares_stand_outside_and_inside(serve: Serve) -> None:
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

    outer, inner = as_one(in_order(*LAYERS[:4])), as_one(in_order(*LAYERS[4:]))
    middlewares = (again, own("outside"), outer, own("between"), inner, own("inside"))
    async with aiohttp.ClientSession(await serve(answer), middlewares=middlewares) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"
    # Each group goes on to what stands inside of itself, when Retry of the outer one sends again, too.
    assert seen == ["outside", *["between", "inside"] * 2, "outside", "between", "inside"]


async def test_as_one_a_wrong_order_is_told(serve: Serve) -> None:
    for middlewares in ((Timeout(1), as_one((Retry(RULES),))), (as_one((Timeout(1),)), Retry(RULES))):
        async with aiohttp.ClientSession(await serve(_answer), middlewares=middlewares) as session:
            with pytest.raises(ValueError, match="Retry stands inside of Timeout"):
                await session.get("/")
    inside_out = (as_one((Retry(RULES), Classify(RULES))), Timeout(1))
    async with aiohttp.ClientSession(await serve(_answer), middlewares=inside_out) as session:
        with pytest.raises(ValueError, match="Timeout stands inside of Classify"):
            await session.get("/")
    with pytest.raises(ValueError, match="in their right order"):
        as_one((Timeout(1), Retry(RULES)))
    with pytest.raises(ValueError, match="in their right order"):
        as_one(())
    with pytest.raises(ValueError, match="in their right order"):
        as_one((Retry(RULES), _middleware))


async def _middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    return await handler(request)
