"""What real APIs say in their own ways, as rules."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from tests.rules.answers import Reply, Serve, Server, call, client, fails
from tests.servers import Connection

from lamella import (
    HTTP_RULES,
    ApiError,
    Backoff,
    Breaker,
    Forbidden,
    HeaderAuth,
    RateLimited,
    RetryBudget,
    Rule,
    StopReason,
    TooManyRequests,
    stack,
)
from lamella.testing import VirtualClock

SOON = Backoff(0.01)
EMPTY = {"x-ratelimit-remaining": "0"}
GITHUB = HTTP_RULES.replace(
    Rule(
        [403, 429],
        "Secondary Rate Limit",
        when=lambda a: "Retry-After" in a.headers or a.headers.get("X-RateLimit-Remaining") == "0",
        retry=Backoff(1, maximum=3600, jitter=0),
        rate_limit=True,
        carried_out=False,
    )
)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "30"}, 30.0),
        (EMPTY, 1.0),
        (
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1790000600", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"},
            600.0,
        ),
    ],
)
@pytest.mark.parametrize("raise_errors", [True, False])
async def test_github_s_secondary_limit_is_a_rate_limit(
    serve: Serve, virtual_time: VirtualClock, headers: dict[str, str], wait: float, raise_errors: bool
) -> None:
    server = Server(Reply(403, headers))
    budget = RetryBudget(0, 1)
    async with client(await serve(server), GITHUB, retry_budget=budget, raise_errors=raise_errors) as session:
        first = asyncio.create_task(call(session, "POST", data=b"text"))
        await asyncio.sleep(0.1)
        # Those of the same account wait as well, and the budget has its one retry left.
        assert list(await asyncio.gather(first, call(session))) == [(200, ""), (200, "")]
        server.replies = [Reply(403, headers), Reply(403, headers), Reply(500)]
        assert (await call(session))[0] == 200

    assert server.waits[0] == pytest.approx(wait, abs=1)
    assert server.at[2] - server.at[0] >= wait - 1
    assert server.requests[:2] == [("POST", b"text")] * 2


async def test_a_plain_403_is_final(serve: Serve) -> None:
    server = Server(Reply(403, {"X-RateLimit-Remaining": "17"}))
    async with client(await serve(server), GITHUB) as session:
        error = await fails(session)
    assert isinstance(error, Forbidden)
    assert (error.rule.title, error.stopped) == ("Forbidden", StopReason.NOT_RETRYABLE)
    assert len(server.requests) == 1


async def test_after_a_quota_of_hours_the_next_calls_of_the_account_fail_at_once(serve: Serve) -> None:
    """It is a rate limit by a rule, whatever the status."""
    server = Server(Reply(403, {"Retry-After": "43200"}))
    async with client(await serve(server), GITHUB) as session:
        error = await fails(session)
        assert (type(error), error.stopped, error.retry_after) == (Forbidden, StopReason.WAIT_TOO_LONG, 43200.0)
        error = await fails(session)
    assert isinstance(error, RateLimited)
    assert error.stopped is StopReason.WAIT_TOO_LONG
    assert error.retry_after == pytest.approx(43200, abs=5)
    assert len(server.requests) == 1


STRIPE = HTTP_RULES.replace(
    *(
        Rule(None, "Not Retryable", when=lambda a, name=name: a.headers.get(name) == "false")  # type: ignore[misc]
        for name in ("Stripe-Should-Retry", "x-should-retry")
    ),
    *(
        Rule(None, "Retryable", when=lambda a, name=name: a.headers.get(name) == "true", retry=SOON, carried_out=False)  # type: ignore[misc]
        for name in ("Stripe-Should-Retry", "x-should-retry")
    ),
)


@pytest.mark.parametrize("name", ["stripe-should-retry", "X-Should-Retry"])
@pytest.mark.parametrize("status", [400, 409, 429, 500, 503, 529])
async def test_a_server_can_decide_about_a_retry(serve: Serve, name: str, status: int) -> None:
    server = Server(Reply(status, {name: "false"}))
    async with client(await serve(server), STRIPE, throttle=False) as session:
        error = await fails(session)
        assert (error.rule.title, error.stopped) == ("Not Retryable", StopReason.NOT_RETRYABLE)
        server.replies = [Reply(status, {name: "true"})]
        assert await call(session, "POST", data=b"text") == (200, "")
    assert server.requests == [("GET", b""), *[("POST", b"text")] * 2]


LOCK = HTTP_RULES.replace(
    Rule(409, "Lock Timeout", when=lambda a: a.error_code == "lock_timeout", retry=SOON, carried_out=False)
)


async def test_a_409_is_retryable_by_the_code_in_its_body(serve: Serve) -> None:
    server = Server(Reply(409, body={"error": {"code": "lock_timeout"}}))
    async with client(await serve(server), LOCK) as session:
        assert await call(session, "POST") == (200, "")
        server.replies = [Reply(409, body={"error": {"code": "duplicate"}})]
        error = await fails(session, "POST")
    assert isinstance(error, ApiError)
    assert (error.status, error.message, error.stopped) == (409, "Conflict", StopReason.NOT_RETRYABLE)
    assert error.payload == {"error": {"code": "duplicate"}}
    assert len(server.requests) == 3


async def test_a_429_can_be_final(serve: Serve, virtual_time: VirtualClock) -> None:
    book = HTTP_RULES.replace(
        Rule(429, "Quota Used Up", when=lambda a: a.error_code == "insufficient_quota", rate_limit=False)
    )
    server = Server(Reply(429, {"Retry-After": "20"}, {"error": {"code": "insufficient_quota"}}))
    async with client(await serve(server), book) as session:
        error = await fails(session)
        assert isinstance(error, TooManyRequests)
        assert (error.rule.title, error.stopped) == ("Quota Used Up", StopReason.NOT_RETRYABLE)
        began = asyncio.get_running_loop().time()
        assert (await call(session))[0] == 200, "no queue is closed"
        assert asyncio.get_running_loop().time() - began < 1
        server.replies = [Reply(429, {"Retry-After": "20"}, {"error": {"code": "slow_down"}})]
        assert (await call(session))[0] == 200
    assert server.waits[-1] == pytest.approx(20, abs=1)


THROTTLED = HTTP_RULES.replace(
    Rule(200, "Throttled", when=lambda a: "THROTTLED" in a.text, retry=Backoff(5, jitter=0), rate_limit=True),
    Rule(200, "GraphQL Error", when=lambda a: isinstance(a.json, dict) and a.json.get("errors")),
)


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_a_200_that_says_throttled_is_a_rate_limit(
    serve: Serve, virtual_time: VirtualClock, raise_errors: bool
) -> None:
    server = Server(*[Reply(body={"errors": [{"message": "THROTTLED"}]})] * 3)
    given: dict[str, Any] = {"retry_budget": RetryBudget(0, 1), "raise_errors": raise_errors}
    async with client(await serve(server), THROTTLED, **given) as session:
        first = asyncio.create_task(call(session))
        await asyncio.sleep(0.1)
        assert list(await asyncio.gather(first, call(session))) == [(200, ""), (200, "")]
    assert server.waits[0] >= 5 - 0.01
    assert server.waits[1] >= 5 - 0.01
    assert server.at[-1] - server.at[0] >= 15


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_no_caller_sees_a_200_that_is_an_error_as_a_success(
    serve: Serve, virtual_time: VirtualClock, raise_errors: bool
) -> None:
    server = Server(*[Reply(body="THROTTLED")] * 3)
    async with client(await serve(server), THROTTLED, attempts=3, raise_errors=raise_errors) as session:
        error = await fails(session)
        assert type(error) is ApiError
        assert (error.status, error.body, error.stopped) == (200, b"THROTTLED", StopReason.ATTEMPTS_USED_UP)
        assert [record.status for record in error.attempts] == [200] * 3
        assert str(error).startswith(f"GET {error.url}: 200 Throttled")

        server.replies = [Reply(body={"errors": [{"message": "no such field"}]})]
        error = await fails(session)
        assert error.stopped is StopReason.NOT_RETRYABLE
        assert "no such field" in str(error)

        # A body that no rule matches can be read as usual.
        server.replies = [Reply(body={"data": "x" * 100_000})]
        status, text = await call(session)
        assert (status, len(text)) == (200, 100_012)
        assert len(session.connector._conns) == 1  # type: ignore[union-attr]


async def test_a_200_that_is_an_error_opens_no_circuit(serve: Serve) -> None:
    server = Server(*[Reply(body={"errors": ["bad"]})] * 30)
    layers = stack(THROTTLED, Breaker(minimum=1), attempts=1)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        for _ in range(30):
            assert isinstance(await fails(session), ApiError)


NOT_BEGUN = HTTP_RULES.replace(Rule([408, 421, 425], retry=SOON, carried_out=False))


@pytest.mark.parametrize("status", [408, 421, 425])
async def test_an_unexecuted_post_is_sent_again(serve: Serve, status: int) -> None:
    server = Server(Reply(status))
    async with client(await serve(server), NOT_BEGUN) as session:
        assert await call(session, "POST", data=b"text") == (200, "")
    assert server.requests == [("POST", b"text")] * 2


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_a_401_is_repeated_once_with_a_new_token(serve: Serve, attempts: int) -> None:
    tokens = (f"Bearer {number}" for number in range(9))
    url = await serve(server := Server(*[Reply(401)] * attempts))
    auth = HeaderAuth({"Authorization": lambda _: next(tokens)}, origin=url)
    book = HTTP_RULES.replace(Rule(401, retry=SOON, carried_out=False, attempts=2))
    async with client(url, book, auth=auth) as session:
        if attempts == 1:
            assert await call(session, "POST", data=b"text") == (200, "")
        else:
            error = await fails(session, "POST", data=b"text")
            assert error.stopped is StopReason.ATTEMPTS_USED_UP
            assert [record.attempts_left for record in error.attempts] == [1, 0]
    assert server.authorization == ["Bearer 0", "Bearer 1"]
    assert server.requests == [("POST", b"text")] * 2


async def test_a_401_before_the_body_is_sent_allows_a_repeat(serve_raw: Any) -> None:
    """``Expect: 100-continue``: the first answer comes before the body."""
    heads: list[bytes] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if len(heads) == 1:
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            heads.append(await reader.readexactly(4))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    serve: Connection = connection
    book = HTTP_RULES.replace(Rule(401, retry=SOON, carried_out=False, attempts=2))
    async with client(await serve_raw(serve), book) as session:
        assert await call(session, "POST", data=b"text", expect100=True) == (200, "")
    assert heads[2] == b"text"


async def test_a_condition_can_use_the_method(serve: Serve) -> None:
    book = HTTP_RULES.replace(Rule(404, "Not There Yet", when=lambda a: a.method == "GET", retry=SOON, attempts=3))
    server = Server(Reply(404), Reply(404))
    async with client(await serve(server), book) as session:
        assert (await call(session))[0] == 200
        server.replies = [Reply(404)]
        assert (await fails(session, "PUT")).stopped is StopReason.NOT_RETRYABLE
        server.replies = [Reply(404)] * 3
        assert (await fails(session)).stopped is StopReason.ATTEMPTS_USED_UP
    assert [method for method, _ in server.requests] == ["GET"] * 3 + ["PUT"] + ["GET"] * 3


async def test_attempts_of_a_rule_count_over_all_its_statuses(serve: Serve) -> None:
    book = HTTP_RULES.replace(Rule([502, 503, 504], retry=SOON, attempts=3), Rule(500, retry=SOON))
    server = Server(*map(Reply, (500, 502, 500, 503, 504, 502)))
    async with client(await serve(server), book, attempts=9) as session:
        error = await fails(session)
    assert isinstance(error, ApiError)
    assert (error.status, error.message) == (504, "Gateway Timeout")
    assert [record.attempts_left for record in error.attempts] == [8, 2, 6, 1, 0]


async def test_the_default_rules_of_a_stack_are_http_rules(serve: Serve, virtual_time: VirtualClock) -> None:
    retried = {408, 425, 429, 500, 502, 503, 504}
    async with client(await serve(server := Server())) as session:
        for status in (*range(400, 430), *range(500, 512)):
            server.replies = [Reply(status)]
            if status in retried:
                assert (await call(session))[0] == 200
            else:
                assert (await fails(session)).stopped is StopReason.NOT_RETRYABLE
    for status in retried | {400, 401, 403, 404, 409, 422, 501, 505}:
        rule = HTTP_RULES.rule_for(status)
        assert rule.title_of(status) == rule.title
        assert rule.hint
        assert rule.description
