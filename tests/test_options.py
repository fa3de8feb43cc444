"""Options for the calls made inside a block, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Connection, Handler, Statuses

from lamella import (
    ApiError,
    At,
    AttemptTimeout,
    Backoff,
    Buffer,
    Call,
    Classify,
    HeaderAuth,
    LamellaError,
    Layer,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    Slot,
    StopReason,
    Throttle,
    Timeout,
    deadline,
    options,
    stack,
)
from lamella.pipeline import Result
from lamella.scope import TAKERS, CallOptions
from lamella.testing import VirtualClock

Serve = Callable[[Handler], Awaitable[str]]
RULES = RuleBook(Rule(503, "Service Unavailable", retry=Backoff(10, jitter=0)))


def client(url: str, **given: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=stack(RULES, **given))


async def get(session: aiohttp.ClientSession, method: str = "GET") -> int:
    async with session.request(method, "/") as response:
        await response.read()
        return response.status


async def test_attempts_apply_inside_the_block_only(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(503, 503)
    async with client(await serve(server)) as session:
        with options(attempts=1), pytest.raises(ApiError) as caught:
            await get(session)
        assert (len(server.requests), caught.value.stopped) == (1, StopReason.ATTEMPTS_USED_UP)
        assert await get(session) == 200
        assert len(server.requests) == 3


async def test_retry_writes_lets_a_write_be_repeated(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(503, 503)
    async with client(await serve(server)) as session:
        with pytest.raises(ApiError) as caught:
            await get(session, "POST")
        assert caught.value.stopped is StopReason.UNSAFE_METHOD
        async with options(retry_writes=True):
            assert await get(session, "POST") == 200


async def test_attempt_timeout_applies_to_the_calls_of_the_block(serve: Serve, virtual_time: VirtualClock) -> None:
    ended: dict[str, tuple[str, float]] = {}
    async with client(await serve(Statuses(latency=20.0)), attempt_timeout=30.0) as session:

        async def call(name: str, **own: Any) -> None:
            began = virtual_time.now
            with options(attempts=1, **own):
                try:
                    await get(session)
                    how = "well"
                except AttemptTimeout as error:
                    how = error.reason
            ended[name] = how, virtual_time.now - began

        async with asyncio.timeout(300):
            await asyncio.gather(
                call("usual"),
                call("shorter", attempt_timeout=5),
                call("none", attempt_timeout=None),
                call("longer", attempt_timeout=600),
            )
    assert {name: how for name, (how, _) in ended.items()} == {
        "usual": "well",
        "shorter": "no complete response within 5 s",
        "none": "well",
        "longer": "well",
    }
    assert ended["shorter"][1] == pytest.approx(5, abs=0.1)
    assert ended["usual"][1] == pytest.approx(20, abs=0.1)


async def test_attempt_timeout_may_be_longer_than_the_stacks(serve: Serve, virtual_time: VirtualClock) -> None:
    async with client(await serve(Statuses(latency=100.0)), attempts=1) as session:
        with pytest.raises(AttemptTimeout):
            await get(session)
        for seconds in (150.0, None):
            with options(attempt_timeout=seconds):
                assert await get(session) == 200


async def test_a_deadline_for_each_call_and_one_for_all(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(503, 200, 503, 200, 503, 200, latency=1.0)
    async with client(await serve(server), deadline=5.0) as session:
        with pytest.raises(ApiError) as caught:
            await get(session)
        assert caught.value.stopped is StopReason.DEADLINE
        server.statuses = [503, 200, 503, 200]
        with options(deadline=15):
            assert await get(session) == 200
            assert await get(session) == 200  # 24 s in sum
        server.statuses = [503, 200, 503, 200]
        with options(deadline=None):
            assert await get(session) == 200
        server.statuses = [503, 200]
        with deadline(3), options(deadline=100), pytest.raises(ApiError):
            await get(session)  # the earlier end counts


async def test_a_call_without_attempts_and_deadline_limits_is_rejected(serve: Serve) -> None:
    async with client(await serve(Statuses()), attempts=None, deadline=5.0) as session:
        with options(deadline=None), pytest.raises(ValueError, match="might never end"):
            await get(session)
        with options(deadline=None, attempts=3):
            assert await get(session) == 200


async def test_a_body_is_a_stream_or_is_read_in_the_attempt(
    serve_raw: Callable[[Connection], Awaitable[str]], virtual_time: VirtualClock
) -> None:
    requests = 0

    async def truncate_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while await reader.readuntil(b"\r\n\r\n"):
            requests += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * (50 if requests % 2 else 100))
            if requests % 2:
                return

    async with client(await serve_raw(truncate_the_first)) as session:
        assert await get(session) == 200
        assert requests == 2
        for size in (None, 99):
            requests = 0
            with options(buffer=size), pytest.raises(aiohttp.ClientPayloadError):
                await get(session)
            assert requests == 1
        requests = 0
        with options(buffer=100):
            assert await get(session) == 200
    async with client(await serve_raw(truncate_the_first), buffer=10) as session:
        requests = 0
        with options(buffer=1000):
            assert await get(session) == 200


async def test_an_error_status_is_returned_and_a_lost_connection_is_raised(
    serve: Serve, serve_raw: Callable[[Connection], Awaitable[str]], virtual_time: VirtualClock
) -> None:
    server = Statuses(503, 404)
    async with client(await serve(server)) as session:
        with options(raise_errors=False):
            assert await get(session) == 404
        assert len(server.requests) == 2
        server.statuses = [404]
        with pytest.raises(ApiError):
            await get(session)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with client(await serve_raw(hang_up)) as session:
        with options(raise_errors=False, attempts=1), pytest.raises(LamellaError):
            await get(session)


async def test_rules_apply_to_the_calls_of_the_block(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(404, 404)
    book = RuleBook(Rule(404, "Not There Yet", retry=Backoff(1, jitter=0)))
    async with client(await serve(server)) as session:
        with options(rules=book):
            assert await get(session) == 200
        server.statuses = [404] * 9
        with options(rules=book, attempts=2), pytest.raises(ApiError, match="404 Not There Yet"):
            await get(session)
        with pytest.raises(ApiError) as caught:
            await get(session)
        assert caught.value.stopped is StopReason.NOT_RETRYABLE


async def test_an_inner_block_overrides_the_outer_one(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(*[503] * 100)
    async with client(await serve(server)) as session:

        async def attempts_made() -> int:
            before = len(server.requests)
            with pytest.raises(ApiError):
                await get(session)
            return len(server.requests) - before

        with options(attempts=2, retry_writes=True):
            with options(attempts=3):
                assert await attempts_made() == 3
            assert await attempts_made() == 2
            with pytest.raises(LookupError), options(attempts=4):
                raise LookupError
            assert await attempts_made() == 2
        assert await attempts_made() == 5


async def test_only_tasks_started_inside_inherit_options(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(*[503] * 100)
    async with client(await serve(server), retry_budget=None) as session:

        async def attempts_made() -> int:
            with pytest.raises(ApiError) as caught:
                await get(session)
            return len(caught.value.attempts)

        before = asyncio.create_task(attempts_made())
        with options(attempts=2):
            inside = asyncio.create_task(attempts_made())
        after = asyncio.create_task(attempts_made())
        assert tuple(await asyncio.gather(before, inside, after)) == (5, 2, 5)


@pytest.mark.parametrize("limit", [None, 100.0])
async def test_a_token_request_inherits_no_options(
    serve: Serve, virtual_time: VirtualClock, limit: float | None
) -> None:
    server = Statuses(503)
    tokens = Statuses(503)
    async with client(await serve(tokens)) as token_session:

        async def token() -> str:
            return f"Bearer {await get(token_session)}"

        url = await serve(server)
        auth = HeaderAuth({"Authorization": token}, origin=url)
        async with client(url, auth=auth, deadline=limit) as session:
            server.statuses = []
            with options(attempts=1):
                assert await get(session) == 200
    assert len(tokens.requests) == 2


class Starts(Layer):
    """Starts a task before and after each attempt or call."""

    def __init__(self, slot: Slot, start: Callable[..., None]) -> None:
        self.slot = slot  # type: ignore[misc]
        self._start = start

    def before(self, call: Call) -> None:
        self._start()

    def after(self, call: Call, result: Result) -> None:
        self._start()


def starting(slot: Slot, start: Callable[..., None]) -> At:
    async def middleware(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        start()
        return await handler(request)

    return At(slot, middleware)


def place_of(name: str, start: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of a stack in which *start* is called at the place of that *name*."""
    match name.split():
        case ["layer", slot]:
            return {"layers": [Starts(Slot[slot], start)]}
        case ["middleware", slot]:
            return {"layers": [starting(Slot[slot], start)]}
        case ["auth"]:
            return {"auth": HeaderAuth({"X-Key": lambda: start() or "a-key"})}
        case ["limits"]:
            return {"limits": lambda _: start() or ()}
        case ["when"]:
            return {"rules": RULES.replace(Rule(503, "x", when=start))}
        case _:
            return {name: start}


PLACES = [f"layer {slot.name}" for slot in Slot]
# One at REQUEST_SPAN is outside of all layers, as the code that makes the call.
PLACES += [f"middleware {slot.name}" for slot in Slot if slot is not Slot.REQUEST_SPAN]
PLACES += ["on_attempt", "account", "limits", "auth", "when"]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("total", [None, 300.0])
@pytest.mark.parametrize("place", PLACES)
async def test_a_task_started_by_a_call_inherits_no_options_or_deadline(
    serve: Serve, virtual_time: VirtualClock, place: str, total: float | None
) -> None:
    """As a refresher of tokens that begins with the first call: it goes on when the block has long ended."""
    other = Statuses(503)
    tasks: list[asyncio.Task[int]] = []

    async with client(await serve(other)) as other_session:

        async def later() -> int:
            await asyncio.sleep(60)
            return await get(other_session)

        def start(*_: object) -> None:
            if not tasks:
                tasks.append(asyncio.create_task(later()))

        given = place_of(place, start)
        layers = stack(given.pop("rules", RULES), *given.pop("layers", ()), **given)
        timeout, url = aiohttp.ClientTimeout(total), await serve(Statuses(503))
        async with aiohttp.ClientSession(url, middlewares=layers, timeout=timeout) as session:
            with deadline(20), options(attempts=1, raise_errors=False):
                assert await get(session) == 503
            assert await tasks[0] == 200
    assert len(other.requests) == 2


@pytest.mark.parametrize("slot", [Slot.REQUEST_SPAN, Slot.RETRY, Slot.THROTTLE, Slot.INNERMOST])
async def test_options_and_deadline_reach_layers_in_a_middlewares_task(
    serve: Serve, virtual_time: VirtualClock, slot: Slot
) -> None:
    async def in_a_task(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        async def handle() -> aiohttp.ClientResponse:
            return await handler(request)

        return await asyncio.create_task(handle())

    server = Statuses(503, 503, latency=2)
    url = await serve(server)
    layers = stack(RULES, At(slot, in_a_task))
    async with aiohttp.ClientSession(url, middlewares=layers, timeout=aiohttp.ClientTimeout()) as session:
        with deadline(5), pytest.raises(ApiError) as caught:
            await get(session)
        assert (caught.value.stopped, len(server.requests)) == (StopReason.DEADLINE, 1)
        with options(attempts=1), pytest.raises(ApiError) as caught:
            await get(session)
        assert (caught.value.stopped, len(server.requests)) == (StopReason.ATTEMPTS_USED_UP, 2)


async def test_options_apply_to_each_redirect_hop(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Statuses(503)

    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"{url}/there")

    url = await serve(server)
    async with client(await serve(redirect)) as session:
        with options(attempts=1), pytest.raises(ApiError, match="503"):
            await get(session)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attempts": 0}, "attempts must be a whole number, 1 or more, got 0"),
        ({"attempts": None}, "attempts must be a whole number, 1 or more, got None"),
        ({"attempt_timeout": 0}, "attempt_timeout must be a finite number of seconds greater than 0, got 0"),
        ({"deadline": float("inf")}, "deadline must be a finite number of seconds greater than 0, got inf"),
        ({"buffer": -1}, "buffer must be a whole number, 1 or more, got -1"),
        ({"retry_writes": 1}, "retry_writes must be True or False, got 1"),
        ({"raise_errors": None}, "raise_errors must be True or False, got None"),
        (
            {"rules": [Rule(404, "Not Found")]},
            r"rules must be a RuleBook, got list of Rule: write options\(rules=Rule",
        ),
    ],
)
def test_a_bad_value_is_named_at_once(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        options(**given)


def test_the_error_for_an_unknown_option_names_all_options() -> None:
    with pytest.raises(TypeError, match=r"no option 'attempt', did you mean 'attempts'[?] Options: attempts, att"):
        options(attempt=3)  # type: ignore[call-arg]


async def test_a_block_can_be_entered_only_once() -> None:
    block = options(attempts=1)
    with block:
        pass
    with pytest.raises(RuntimeError, match="create a new one"):
        with block:
            pass


NO_LAYER = {
    "attempts": (5, 1, "Retry"),
    "deadline": (5.0, None, "Retry"),
    "retry_writes": (True, False, "Retry"),
    "attempt_timeout": (5.0, None, "Timeout"),
    "buffer": (5, None, "Buffer"),
    "raise_errors": (True, False, "Classify"),
    "rules": (RULES, ..., "Retry or Classify"),
}


def test_each_option_has_a_layer() -> None:
    assert {*NO_LAYER} == {*TAKERS} == {*CallOptions.__annotations__}


@pytest.mark.parametrize("name", NO_LAYER)
async def test_an_option_without_its_layer_fails_before_sending(serve: Serve, name: str) -> None:
    server = Statuses()
    value, without, layer = NO_LAYER[name]
    alone = Throttle(RULES)
    async with aiohttp.ClientSession(await serve(server), middlewares=(alone,)) as session:
        with options(**{name: value}):  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=rf"options\({name}=...\) has no effect: this session has no {layer}$"):
                await get(session)
        assert len(server.requests) == 0
        if without is not ...:
            with options(**{name: without}):  # type: ignore[arg-type]
                assert await get(session) == 200


async def test_layers_are_found_across_other_middlewares(serve: Serve) -> None:
    async def passes(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        return await handler(request)

    async def wraps(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        return await inside(request, handler)

    url, inside = await serve(Statuses()), stack(RULES)
    for middlewares in (
        (Retry(RULES), passes, Timeout(60), Buffer(), Classify(RULES)),
        (stack(RULES, At(Slot.ATTEMPT_SPAN, passes)),),
        (*stack(RULES, At(Slot.ATTEMPT_SPAN, passes)), passes),
        (RequestSpan(), *stack(RULES, spans=False)),
        (wraps,),
    ):
        async with aiohttp.ClientSession(url, middlewares=middlewares) as session:
            with options(**{name: value for name, (value, _, _) in NO_LAYER.items()}):  # type: ignore[arg-type]
                assert await get(session) == 200
    async with aiohttp.ClientSession(url, middlewares=(wraps,)) as session:
        inside = stack(RULES, attempt_timeout=None)
        with options(attempt_timeout=5), pytest.raises(ValueError, match="no Timeout"):
            await get(session)


async def test_options_apply_to_the_layers_of_a_single_request(serve: Serve) -> None:
    async with aiohttp.ClientSession(await serve(Statuses())) as session:
        with options(attempt_timeout=5):
            for middlewares in ((Retry(RULES), Timeout(60)), stack(RULES)):
                async with session.get("/", middlewares=middlewares) as response:
                    assert response.status == 200
            with pytest.raises(ValueError, match="no Timeout"):
                await session.get("/", middlewares=stack(RULES, attempt_timeout=None))


async def test_a_block_applies_to_calls_of_two_sessions(serve: Serve) -> None:
    url = await serve(Statuses())
    async with client(url) as whole, client(url, attempt_timeout=None) as untimed:
        with options(attempts=2, attempt_timeout=5):
            assert await get(whole) == 200
            with pytest.raises(ValueError, match="attempt_timeout"):
                await get(untimed)
            with options(attempt_timeout=None):
                assert await get(untimed) == 200
