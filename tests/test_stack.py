from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracer
from tests.layering import LAYERS, RULES, SUBSETS, apart, in_order
from tests.servers import Serve

from lamella import (
    At,
    AttemptSpan,
    Breaker,
    Buffer,
    Classify,
    HeaderAuth,
    Limit,
    MemoryStore,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    Slot,
    Throttle,
    Timeout,
    maesn,
    stack,
)
from lamella.pipeline import Layer, Pipeline
from lamella.retry.budget import DEFAULT_BUDGET
from lamella.testing import VirtualClock


async def _answer(request: web.Request) -> web.StreamResponse:
    return web.Response(text="good")


def test_stack_puts_layers_in_the_designed_order() -> None:
    assert in_order(*reversed(LAYERS)) == LAYERS
    two = HeaderAuth({"X-B": "value"})
    assert in_order(two, LAYERS[6]) == (two, LAYERS[6])


def test_stack_has_all_layers_by_default_and_accepts_custom_ones() -> None:
    auth = HeaderAuth({"X-A": "value"})
    kinds = [type(layer) for layer in LAYERS if not isinstance(layer, Breaker)]
    assert [type(layer) for layer in apart(stack(RULES, auth=auth))] == kinds
    mine = Timeout(1)
    assert apart(stack(RULES, mine, auth=[auth]))[4:6] == (mine, auth)
    breaker = Breaker()
    assert apart(stack(RULES, breaker))[1] is breaker
    small = stack(RULES, spans=False, throttle=False, attempt_timeout=None, buffer=None, raise_errors=False)
    assert [type(layer) for layer in apart(small)] == [Retry]


def test_omitted_options_have_the_defaults_of_the_layers() -> None:
    made = {type(layer): repr(layer) for layer in apart(stack(RULES))}
    assert made[Retry] == repr(Retry(RULES, attempts=5, budget=DEFAULT_BUDGET))
    assert made[Timeout] == repr(Timeout(60.0))
    assert made[Buffer] == repr(Buffer()) == f"Buffer({8 * 2**20})"


_PROVIDER = TracerProvider()
_METERS = MeterProvider()
_STORE = MemoryStore()


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (Retry(RULES), {"attempts": 3}),
        (Retry(RULES, attempts=2), {"attempts": 5}),
        (Retry(RULES), {"deadline": 3.0}),
        (Retry(RULES, deadline=5), {"deadline": None}),
        (Retry(RULES), {"retry_writes": True}),
        (Retry(RULES), {"retry_budget": None}),
        (Retry(RULES), {"store": _STORE}),
        (Throttle(RULES), {"limits": Limit(5, per=1)}),
        (Throttle(RULES), {"account": lambda _: "account"}),
        (Throttle(RULES), {"throttle": False}),
        (Throttle(RULES), {"store": _STORE}),
        (Throttle(RULES), {"tracer_provider": _PROVIDER}),
        (Throttle(RULES), {"meter_provider": _METERS}),
        (AttemptSpan(response_headers=["X-Request-Id"]), {"tracer_provider": _PROVIDER}),
        (AttemptSpan(), {"meter_provider": _METERS}),
        (AttemptSpan(), {"url_template": lambda _: "/"}),
        (AttemptSpan(), {"excluded_urls": ["health"]}),
        (RequestSpan(), {"tracer_provider": _PROVIDER}),
        (RequestSpan(), {"meter_provider": _METERS}),
        (RequestSpan(), {"url_template": lambda _: "/"}),
        (Timeout(5), {"attempt_timeout": 3.0}),
        (Timeout(5), {"attempt_timeout": None}),
        (Buffer(), {"buffer": 1024}),
        (Buffer(), {"buffer": None}),
        (Classify(RULES), {"raise_errors": False}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else type(value).__name__,
)
def test_stack_rejects_an_option_that_a_custom_layer_would_ignore(layer: Layer, options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=rf"^{name}=.*{type(layer).__name__}.*made by hand"):
        stack(RULES, layer, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"limits": Limit(5, per=1), "throttle": False},
        {"account": lambda _: "account", "throttle": False},
        {"url_template": lambda _: "/", "spans": False},
        {"excluded_urls": ["health"], "spans": False},
        {"tracer_provider": _PROVIDER, "spans": False, "throttle": False},
        {"meter_provider": _METERS, "spans": False, "throttle": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_stack_rejects_an_option_of_a_left_out_layer(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}= has no effect: this stack has no "):
        stack(RULES, **options)


def test_stack_accepts_effective_options_beside_custom_layers() -> None:
    layers = (
        AttemptSpan(response_headers=["X-Request-Id"], tracer_provider=_PROVIDER),
        Breaker(store=MemoryStore()),
        Throttle(RULES, store=_STORE, tracer_provider=_PROVIDER),
    )
    made = apart(stack(RULES, *layers, tracer_provider=_PROVIDER, store=_STORE, attempts=3))
    assert set(layers) < set(made)
    assert "attempts=3" in repr(made[2])
    # The span of the call is left out, that of the attempt is made by hand; a switch that is on says nothing new.
    assert RequestSpan not in map(type, apart(stack(RULES, AttemptSpan(), spans=False)))
    assert stack(RULES, Classify(RULES), raise_errors=True)
    # None stands for an option that is not given.
    assert stack(RULES, Throttle(RULES), limits=None, account=None, store=None, meter_provider=None)
    assert stack(RULES, Breaker(), throttle=False, spans=False, retry_budget=None, tracer_provider=None)


async def test_a_breaker_takes_the_store_and_the_meter_provider_of_its_stack(
    serve: Serve,
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    store, own = MemoryStore(), MemoryStore()
    for breaker, expected in ((Breaker(), store), (Breaker(store=own), own)):
        layers = stack(RULES, breaker, store=store, meter_provider=provider, throttle=False, retry_budget=None)
        async with aiohttp.ClientSession(await serve(_answer), middlewares=layers) as session:
            await session.get("/")
        assert len(expected) == 1
    breaker = Breaker(minimum=1, failures=0.1)
    layers = stack(RULES, breaker, meter_provider=provider, attempts=1)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        with suppress(aiohttp.ClientError):
            await session.get("http://127.0.0.1:1/")
    assert "lamella.breaker.transitions" in str(reader.get_metrics_data())
    provider.shutdown()


async def test_the_limits_option_delays_a_call_above_the_limit(serve: Serve, virtual_time: VirtualClock) -> None:
    """The option's effect, seen from outside: the second call waits."""
    url = await serve(_answer)
    layers = stack(RULES, limits=Limit(1, per=10))
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
        began = virtual_time.now
        for _ in range(2):
            (await session.get("/")).release()
    assert virtual_time.now - began == pytest.approx(10)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attempt", "no option 'attempt', did you mean 'attempts'\\? Options: auth, attempts, deadline, "),
        ("max_attempts", "no option 'max_attempts', did you mean 'attempts'"),
        ("raise_for_status", "no option 'raise_for_status'"),
        ("xyzzy", "no option 'xyzzy'; there are: auth, "),
    ],
)
def test_unknown_option_error_names_the_closest_and_all_options(name: str, said: str) -> None:
    options: dict[str, Any] = {name: 3}
    with pytest.raises(TypeError, match=said):
        stack(RULES, **options)


@pytest.mark.parametrize(
    ("name", "said"),
    [("attempt", "did you mean 'attempts'"), ("header", "did you mean 'headers'"), ("xyzzy", "api_key")],
)
def test_unknown_session_option_error_names_the_closest_option(name: str, said: str) -> None:
    options: dict[str, Any] = {name: "s3cr3t"}
    with pytest.raises(TypeError, match=rf"maesn.session\(\) has no option '{name}'.*{said}") as caught:
        maesn.session("key", "account", **options)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([Rule(429, "Slow")], r"got list of Rule: write stack\(RuleBook\(rule, \.\.\.\)\)"),
        ((Rule(429, "Slow"),), r"got tuple of Rule: write stack\(RuleBook\("),
        (Rule(429, "Slow"), r"got Rule: write stack\(RuleBook\("),
        ([], "got list$"),
        (RuleBook, r"got the class RuleBook: write RuleBook\(\.\.\.\)$"),
        (Retry, r"got the class Retry: write Retry\(\.\.\.\)$"),
        (None, "got NoneType$"),
        ("s3cr3t", "got str$"),
    ],
    ids=str,
)
def test_stack_rejects_rules_that_are_not_a_rule_book(rules: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^rules must be a RuleBook, {said}"):
        stack(rules)


@pytest.mark.parametrize("layer", [Retry, Classify, Throttle])
def test_a_custom_layer_rejects_rules_that_are_not_a_rule_book(layer: Any) -> None:
    with pytest.raises(ValueError, match=rf"^rules must be a RuleBook, got list of Rule: write {layer.__name__}\(Rule"):
        layer([Rule(429)])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("attempts", "5", "attempts must be a whole number, 1 or more, got '5'"),
        ("attempt_timeout", 0, "attempt_timeout must be a finite number of seconds greater than 0, got 0"),
        ("buffer", 0, "buffer must be a whole number, 1 or more, got 0"),
        ("buffer", True, "buffer must be a whole number, 1 or more, got True"),
        ("deadline", -1, "deadline must be a finite number of seconds greater than 0, got -1"),
        ("retry_writes", 1, "retry_writes must be True or False, got 1"),
        ("raise_errors", 0, "raise_errors must be True or False, got 0"),
        ("raise_errors", None, "raise_errors must be True or False, got None"),
        ("spans", 0, "spans must be True or False, got 0"),
        ("throttle", None, "throttle must be True, False or a Throttle, got None"),
        ("retry_budget", 0.2, "retry_budget must be a RetryBudget or None, got 0.2"),
        ("limits", (100, 60), "limits must be a Limit or a function of the headers of an answer, or several, got 100"),
        ("limits", [Limit], "limits must be a Limit or a function of the headers of an answer, or several, got type"),
        ("limits", "60", "limits must be a Limit or a function of the headers of an answer, or several, got str"),
        ("cost", 3, "cost must be a function of a request, or None, got 3"),
        ("account", "s3cr3t-account-key", "account must be a function of a request, or None, got str"),
        ("store", "redis://:s3cr3t@host", "store must be a Store or None, got str"),
        ("url_template", "/{id}", "url_template must be a function of a request, or None, got str"),
        ("on_attempt", "log", "on_attempt must be a function of request, result and record, got str"),
        ("tracer_provider", "s3cr3t", "tracer_provider must be a TracerProvider or None, got str"),
        ("tracer_provider", NoOpTracer(), "tracer_provider must be a TracerProvider or None, got NoOpTracer"),
        ("meter_provider", "s3cr3t", "meter_provider must be a MeterProvider or None, got str"),
    ],
)
def test_an_option_of_the_wrong_type_is_named(name: str, value: Any, said: str) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"^{said}$"):
        stack(RULES, **options)


class Login(NamedTuple):
    """A login as aiohttp's BasicAuth is one."""

    user: str
    password: str


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ({"X-API-KEY": "s3cr3t"}, r"got dict: write auth=HeaderAuth\(\{\.\.\.\}, origin=\.\.\.\)"),
        ("s3cr3t", "got str$"),
        (Login("user", "s3cr3t"), "got Login$"),
        (b"s3cr3t", "got bytes$"),
        (lambda: "s3cr3t", "got function$"),
        (["s3cr3t", HeaderAuth({"X-A": "a"})], "got str, HeaderAuth$"),
        (None, "got NoneType$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_invalid_auth_is_rejected_without_being_shown(auth: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^auth must be one HeaderAuth or several, {said}") as caught:
        stack(RULES, auth=auth)
    assert "s3cr3t" not in str(caught.value)


async def test_a_stack_works_as_one_middleware_as_well(serve: Serve) -> None:
    seen: list[str] = []

    async def key(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("X-A", ""))
        return web.Response(text="good", status=200 if len(seen) > 1 else 429)

    async def own(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        return await handler(request)

    whole = stack(RULES, At(Slot.AUTH, own), auth=HeaderAuth({"X-A": "value"}))
    assert len(whole) > 1
    async with aiohttp.ClientSession(await serve(key), middlewares=(own, whole, own)) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"
    assert seen == ["value", "value"]


@pytest.mark.parametrize("chosen", SUBSETS)
async def test_every_subset_of_layers_works(serve: Serve, chosen: tuple[Layer, ...]) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=in_order(*chosen)) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"


@pytest.mark.parametrize(("outer", "inner"), list(itertools.combinations(LAYERS, 2)))
async def test_a_wrong_order_is_reported_at_the_first_call(serve: Serve, outer: Layer, inner: Layer) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=(inner, outer)) as session:
        with pytest.raises(ValueError, match=f"{type(outer).__name__} must be outside {type(inner).__name__}"):
            await session.get("/")


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if not isinstance(layer, HeaderAuth)])
async def test_a_duplicate_layer_raises(serve: Serve, layer: Layer) -> None:
    async with aiohttp.ClientSession(await serve(_answer), middlewares=(layer, layer)) as session:
        with pytest.raises(ValueError, match="cannot both be in one stack"):
            await session.get("/")
    with pytest.raises(ValueError, match="cannot both be in one stack"):
        Pipeline([layer, layer])
    if not isinstance(layer, HeaderAuth):
        with pytest.raises(ValueError, match="cannot both be in one stack"):
            stack(RULES, layer, layer)


async def test_other_middlewares_may_be_in_any_place_and_may_retry(serve: Serve) -> None:
    async def twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        return await handler(request)

    mixed = [layer for pair in zip([twice] * 9, LAYERS, strict=True) for layer in pair]
    async with aiohttp.ClientSession(await serve(_answer), middlewares=mixed) as session:
        async with session.get("/") as response:
            assert await response.text() == "good"


@pytest.mark.parametrize("layer", ["Retry", Retry, _answer, (RULES,)])
def test_an_invalid_layer_is_rejected(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"a layer must be a lamella.Layer or a middleware with its slot"):
        stack(RULES, layer)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Retry, r"it is a class: write Retry\(\.\.\.\)"),
        ((Timeout(5),), r"it is a sequence: write stack\(rules, \*layers\)"),
        (RULES, "a stack has one RuleBook: its first argument"),
        (stack(RULES)[0], "it comes from another stack: give its layers to this one"),
        (At(Slot.AUTH, None), "the middleware of At must be a function of request and handler, got None"),  # type: ignore[arg-type]
        (At(Slot.AUTH, HeaderAuth({"X-A": "a"})), r"got HeaderAuth\(X-A\), which has a slot: write it without At"),
        (At(Slot.AUTH, stack(RULES)), "got a stack: give its layers to this one"),
        (At(Slot.AUTH, stack(RULES)[0]), "got a stack: give its layers to this one"),
    ],
    ids=str,
)
def test_the_error_explains_a_common_mistake_with_a_layer(layer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stack(RULES, layer)
