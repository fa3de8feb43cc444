"""A token that a server refuses: it is dropped, and the attempt is repeated once with another one."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest
import stamina
from aiohttp import web
from tests.sdk import Metering, Tracing
from tests.servers import Serve

from lamella import (
    HTTP_RULES,
    Backoff,
    Breaker,
    HeaderAuth,
    RetryBudget,
    Rule,
    RuleBook,
    StopReason,
    Token,
    Tokens,
    TokenUnavailable,
    Unauthorized,
    WaitSource,
    deadline,
    options,
    stack,
)
from lamella.testing import VirtualClock


class Server:
    """Accepts the last token that it has issued, and answers with what it got."""

    def __init__(self) -> None:
        self.issued = 0
        self.valid = ""
        self.status = 401
        self.then: list[int] = []
        self.requests: Counter[str | None] = Counter()
        self.tokens: list[str] = []
        self.bodies: list[bytes] = []

    async def fetch(self) -> Token:
        await asyncio.sleep(1)
        self.issued += 1
        self.valid = f"Bearer {self.issued}"
        return Token(self.valid, 3600)

    async def __call__(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        token = request.headers["Authorization"]
        self.tokens.append(token)
        self.requests[request.headers.get("X-Call")] += 1
        if token != self.valid:
            return web.Response(status=self.status, text=f"{token} has expired")
        return web.Response(status=self.then.pop(0) if self.then else 200, text=token)

    def revoke(self) -> None:
        self.valid = ""


@pytest.fixture
def server() -> Server:
    return Server()


def session(
    url: str, server: Server, *more: Breaker, rules: RuleBook = HTTP_RULES, **given: object
) -> aiohttp.ClientSession:
    auth = HeaderAuth({"Authorization": Tokens(server.fetch)}, origin=url)
    layers = stack(rules, *more, auth=auth, **given)  # type: ignore[arg-type]
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(url, middlewares=layers, connector=connector, timeout=aiohttp.ClientTimeout())


@pytest.mark.parametrize("raise_errors", [True, False])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_attempt_with_a_rejected_token_is_repeated_once(
    serve: Serve, virtual_time: VirtualClock, server: Server, method: str, raise_errors: bool
) -> None:
    async with session(await serve(server), server, raise_errors=raise_errors, attempts=1, retry_budget=None) as client:
        for _ in range(3):
            async with client.request(method, "/", data=b"body" if method == "POST" else None) as response:
                assert response.status == 200
            server.revoke()
            await asyncio.sleep(2)
    assert server.tokens == ["Bearer 1", "Bearer 1", "Bearer 2", "Bearer 2", "Bearer 3"]
    assert set(server.bodies) == {b"body" if method == "POST" else b""}


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_a_second_rejected_token_is_final(
    serve: Serve, virtual_time: VirtualClock, server: Server, raise_errors: bool
) -> None:
    async def reject(request: web.Request) -> web.Response:
        await server(request)
        return web.Response(status=401)

    async with session(await serve(reject), server, raise_errors=raise_errors) as client:
        if raise_errors:
            with pytest.raises(Unauthorized) as caught:
                await client.get("/")
            assert caught.value.stopped is StopReason.NOT_RETRYABLE
            first, second = caught.value.attempts
            assert (first.status, first.wait_source, first.attempts_left) == (401, WaitSource.REFRESH, 4)
            assert first.waited == pytest.approx(0, abs=0.01)
            assert (second.status, second.wait_source, second.attempts_left) == (401, None, 4)
        else:
            async with client.get("/") as response:
                assert response.status == 401
    assert server.tokens == ["Bearer 1", "Bearer 2"]


@pytest.mark.slow
async def test_a_token_revoked_during_500_calls_is_fetched_once(
    serve: Serve, virtual_time: VirtualClock, server: Server
) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        if server.requests.total() == 300:
            server.revoke()
        return await server(request)

    async def call(number: int) -> int:
        async with client.post("/", json={}, headers={"X-Call": str(number)}) as response:
            return response.status

    async with session(await serve(slowly), server, throttle=False) as client:
        statuses = await asyncio.gather(*(asyncio.create_task(call(number)) for number in range(500)))
    assert statuses == [200] * 500
    assert server.issued == 2
    assert set(server.requests.values()) <= {1, 2}
    assert len(server.requests) == 500


async def test_repeating_with_a_new_token_costs_no_budget_wait_or_attempt(
    serve: Serve, virtual_time: VirtualClock, server: Server
) -> None:
    rules = RuleBook(
        Rule(401, "Refused", retry=Backoff(initial=10, maximum=10, jitter=0), attempts=2, carried_out=False),
        Rule(503, "Down", retry=Backoff(initial=10, maximum=1000, jitter=0), attempts=2),
    )
    budget = RetryBudget(0, 1)
    async with session(await serve(server), server, rules=rules, attempts=3, retry_budget=budget) as client:
        async with client.get("/"):
            server.revoke()
        server.then = [503, 200]
        before = virtual_time.elapsed
        async with client.get("/") as response:
            assert response.status == 200
        # 10 s by the rule's first wait, 1 s for the fetch.
        assert virtual_time.elapsed - before == pytest.approx(11, abs=0.5)
        assert server.tokens == ["Bearer 1", "Bearer 1", "Bearer 2", "Bearer 2"]


async def test_a_consumed_body_is_not_sent_again(serve: Serve, virtual_time: VirtualClock, server: Server) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"once"

    async with session(await serve(server), server) as client:
        async with client.get("/"):
            server.revoke()
        with pytest.raises(Unauthorized) as caught:
            await client.post("/", data=stream())
        assert caught.value.stopped is StopReason.BODY_NOT_REPLAYABLE
        assert len(caught.value.attempts) == 1
        async with client.post("/", data=io.BytesIO(b"twice")) as response:  # the refused token is gone
            assert await response.text() == "Bearer 2"


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_only_statuses_in_refresh_on_and_only_tokens_are_refreshed(
    serve: Serve, virtual_time: VirtualClock, server: Server, raise_errors: bool
) -> None:
    url = await serve(server)
    server.status = 403
    tokens = Tokens(server.fetch)
    auths = [
        (HeaderAuth({"Authorization": tokens}, origin=url), 1),
        (HeaderAuth({"Authorization": tokens}, origin=url, refresh_on={401, 403}), 2),
        (HeaderAuth({"Authorization": tokens}, origin=url, refresh_on=()), 1),
        (HeaderAuth({"Authorization": lambda: "Bearer x"}, origin=url, refresh_on={403}), 1),
        (HeaderAuth({"Authorization": tokens}, origin=url, refresh_on={403}, existing="keep"), 1),
    ]
    for auth, attempts in auths:
        layers = stack(auth=auth, raise_errors=raise_errors)
        headers = {"Authorization": "Bearer own"} if auth is auths[-1][0] else {}
        async with aiohttp.ClientSession(url, middlewares=layers, headers=headers) as client:
            server.revoke()
            server.tokens.clear()
            await asyncio.gather(client.get("/"), return_exceptions=True)
            if auth is auths[0][0]:  # a token had to be fetched first
                server.revoke()
                server.tokens.clear()
                await asyncio.gather(client.get("/"), return_exceptions=True)
            assert len(server.tokens) == attempts, auth


async def test_without_retry_the_next_call_has_a_new_token(
    serve: Serve, virtual_time: VirtualClock, server: Server
) -> None:
    auth = HeaderAuth({"Authorization": Tokens(server.fetch)})
    async with aiohttp.ClientSession(await serve(server), middlewares=(auth,)) as client:
        answers = []
        for _ in range(3):
            async with client.get("/") as response:
                answers.append(response.status)
            if len(answers) == 1:
                server.revoke()
    assert answers == [200, 401, 200]
    assert server.tokens == ["Bearer 1", "Bearer 1", "Bearer 2"]


async def test_a_server_that_rejects_all_tokens_does_not_cause_endless_fetches(
    serve: Serve, virtual_time: VirtualClock, server: Server
) -> None:
    async def fetch() -> Token:
        server.issued += 1
        return Token("Bearer nothing")

    auth = HeaderAuth({"Authorization": Tokens(fetch)})
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(auth=auth)) as client:
        while virtual_time.elapsed < 60:
            with pytest.raises(Unauthorized):
                await client.get("/")
    assert server.issued <= 62


async def test_the_deadline_applies_to_the_repeated_attempt(
    serve: Serve, virtual_time: VirtualClock, server: Server
) -> None:
    async with session(await serve(server), server) as client:
        async with client.get("/"):
            server.revoke()
        with deadline(0.5), pytest.raises(TimeoutError):
            await client.get("/")
        with options(attempts=1):
            async with client.get("/") as response:
                assert response.status == 200


async def test_a_failed_second_fetch_ends_the_call(serve: Serve, virtual_time: VirtualClock, server: Server) -> None:
    tokens = [Token("Bearer old")]

    async def fetch() -> Token:
        return tokens.pop()

    auth = HeaderAuth({"Authorization": Tokens(fetch)})
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(auth=auth)) as client:
        with pytest.raises(TokenUnavailable) as caught:
            await client.get("/")
    [first] = caught.value.attempts
    assert first.status == 401
    assert caught.value.stopped is StopReason.TOKEN_UNAVAILABLE


async def test_the_repeated_attempt_is_judged_like_any_other(
    serve: Serve, virtual_time: VirtualClock, server: Server
) -> None:
    broken: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if request.headers["Authorization"] == "Bearer 2" and not broken:
            broken.append("Bearer 2")
            assert request.transport is not None
            request.transport.abort()
        return await server(request)

    async with session(await serve(answer), server) as client:
        async with client.get("/"):
            server.revoke()
        async with client.get("/") as response:
            assert response.status == 200
    assert broken


async def test_a_breaker_and_stamina_can_stop_retries(serve: Serve, virtual_time: VirtualClock, server: Server) -> None:
    async with session(await serve(server), server, Breaker(minimum=1)) as client:
        for _ in range(3):
            async with client.get("/") as response:
                assert response.status == 200
            server.revoke()
        stamina.set_active(False)
        try:
            with pytest.raises(Unauthorized):
                await client.get("/")
        finally:
            stamina.set_active(True)


async def test_the_trace_shows_the_repeated_attempt(
    serve: Serve, virtual_time: VirtualClock, server: Server, tracing: Tracing, metering: Metering
) -> None:
    url = await serve(server)
    async with session(url, server, tracer_provider=tracing.provider, meter_provider=metering.provider) as client:
        async with client.get("/"):
            server.revoke()
        tracing.exporter.clear()
        async with client.get("/"):
            pass
    first, second = tracing.sends
    assert (first.attributes or {})["http.response.status_code"] == 401
    assert (second.attributes or {})["http.request.resend_count"] == 1
    [retry, token] = tracing.call.events
    assert (retry.name, token.name) == ("lamella.retry", "lamella.token")
    assert (retry.attributes or {})["lamella.wait_source"] == "refresh"
    assert (tracing.call.attributes or {})["lamella.attempts"] == 2
    [(attributes, count)] = metering.points("lamella.call.retries")
    assert (attributes["lamella.wait_source"], count) == ("refresh", 1)
    assert [value for _, value in metering.points("lamella.calls.waiting")] == [0]


def test_refresh_on_accepts_only_statuses() -> None:
    with pytest.raises(ValueError, match="a status of refresh_on must be a whole number from 400 to 599, got 200"):
        HeaderAuth({"X-A": "a"}, refresh_on={200})
    for wrong in (401, "401"):
        with pytest.raises(ValueError, match=f"refresh_on must be a collection of statuses, .*, got {wrong!r}"):
            HeaderAuth({"X-A": "a"}, refresh_on=wrong)  # type: ignore[arg-type]
