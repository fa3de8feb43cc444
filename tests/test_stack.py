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
    in_order,
    stack,
)
from lamella.policy.budget import DEFAULT_BUDGET
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


def test_what_is_not_said_is_as_the_layers_have_it_themselves() -> None:
    made = {type(layer): repr(layer) for layer in stack(RULES)}
    assert made[Retry] == repr(Retry(RULES, attempts=5, budget=DEFAULT_BUDGET))
    assert made[Timeout] == repr(Timeout(60.0))
    assert made[Buffer] == repr(Buffer()) == f"Buffer({8 * 2**20})"


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
