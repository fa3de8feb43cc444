from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.layering import together
from tests.sdk import Tracing
from tests.security.shown import leaks
from tests.servers import Serve, Statuses
from yarl import URL

from lamella import ApiError, AttemptSpan, Backoff, Classify, HeaderAuth, Retry, Rule, RuleBook, Throttle
from lamella.auth.header_auth import HeaderValue

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))


def tokens(server: Statuses) -> list[str | None]:
    """Return the X-Token of each request."""
    return [request.headers.get("X-Token") for request in server.requests]


async def test_header_values_of_every_kind_are_set(serve: Serve) -> None:
    async def ask() -> str:
        return "async-value"

    class Asked:
        async def __call__(self) -> str:
            return "object-value"

    server = Statuses()
    url = await serve(server)
    for value in ("fixed-value", lambda: "called-value", ask, Asked(), partial(ask), lambda: None):
        async with aiohttp.ClientSession(middlewares=(HeaderAuth({"X-Token": value}, origin=url),)) as session:
            await session.get(url)
    assert tokens(server) == ["fixed-value", "called-value", "async-value", "object-value", "async-value", None]


async def test_each_attempt_gets_a_fresh_value(serve: Serve) -> None:
    numbers = iter(range(10))
    server = Statuses(429, 429, 200)
    auth = HeaderAuth({"X-Token": lambda: f"value-{next(numbers)}"})
    async with aiohttp.ClientSession(await serve(server), middlewares=(Retry(RULES), auth)) as session:
        await session.get("/")
    assert tokens(server) == ["value-0", "value-1", "value-2"]


_tenant: ContextVar[str] = ContextVar("tenant")
_TENANTS = [f"tenant-{number}" for number in range(40)]


def _token_functions(seconds: float = 0.0) -> dict[str, HeaderValue]:
    """Each kind of async function that HeaderAuth takes; each answers with the token of the current tenant."""

    async def ask() -> str:
        await asyncio.sleep(seconds)
        return f"token of {_tenant.get()}"

    class Asked:
        async def __call__(self) -> str:
            return await ask()

        async def method(self) -> str:
            return await ask()

    def late() -> Awaitable[str]:
        return ask()

    def at_once() -> str:
        return f"token of {_tenant.get()}"

    return {
        "function": ask,
        "object": Asked(),
        "method": Asked().method,
        "partial": partial(ask),
        "plain function that answers with a coroutine": late,
        "plain function": at_once,
    }


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", _token_functions())
@pytest.mark.parametrize("refused", [0, 1])
async def test_concurrent_tenants_get_their_own_tokens(serve: Serve, kind: str, refused: int) -> None:
    """Alone, beside a second function, behind other layers as one middleware, at the first attempt and at a retry."""
    seen: list[tuple[str | None, str | None]] = []
    refusals = dict.fromkeys(_TENANTS, refused)

    async def answer(request: web.Request) -> web.StreamResponse:
        tenant = request.headers["X-Tenant"]
        seen.append((f"token of {tenant}", request.headers.get("X-Token")))
        seen.append((f"token of {tenant}", request.headers.get("X-Second")))
        refusals[tenant] -= 1
        return web.Response(status=503 if refusals[tenant] >= 0 else 200)

    url = await serve(answer)
    auth = HeaderAuth({"X-Token": _token_functions(0.01)[kind], "X-Second": _token_functions()["function"]}, origin=url)
    rules = RuleBook(Rule(503, "Unavailable", retry=Backoff(initial=0)))
    chains = ((Retry(rules), auth), (together((Retry(rules), auth)),))
    for chain in chains:
        refusals = dict.fromkeys(_TENANTS, refused)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, middlewares=chain, connector=connector) as session:

            async def call(session: aiohttp.ClientSession, tenant: str) -> int:
                _tenant.set(tenant)
                async with session.get("/", headers={"X-Tenant": tenant}) as response:
                    return response.status

            statuses = await asyncio.gather(*(call(session, tenant) for tenant in _TENANTS))
        assert statuses == [200] * len(_TENANTS)
    assert len(seen) == 2 * len(chains) * len(_TENANTS) * (1 + refused)
    assert [got for wanted, got in seen if got != wanted] == []


async def test_a_failing_function_fails_only_its_own_call(serve: Serve) -> None:
    async def ask() -> str:
        await asyncio.sleep(0.01)
        if _tenant.get() == "tenant-0":
            raise LookupError("no token")
        return _tenant.get()

    async def call(tenant: str) -> int:
        _tenant.set(tenant)
        async with session.get("/") as response:
            return response.status

    server = Statuses()
    async with aiohttp.ClientSession(await serve(server), middlewares=(HeaderAuth({"X-Token": ask}),)) as session:
        results = await asyncio.gather(*(call(tenant) for tenant in _TENANTS[:5]), return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, int, int, int, int]
    assert sorted(header or "" for header in tokens(server)) == _TENANTS[1:5]


async def test_cancelling_one_call_leaves_the_others_alone(serve: Serve) -> None:
    began = asyncio.Event()

    async def ask() -> str:
        began.set()
        await asyncio.sleep(0.01)
        return _tenant.get()

    async def call(tenant: str) -> int:
        _tenant.set(tenant)
        async with session.get("/") as response:
            return response.status

    server = Statuses()
    async with aiohttp.ClientSession(await serve(server), middlewares=(HeaderAuth({"X-Token": ask}),)) as session:
        tasks = [asyncio.create_task(call(tenant)) for tenant in _TENANTS[:5]]
        await began.wait()
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert sorted(header or "" for header in tokens(server)) == _TENANTS[1:5]


async def _token() -> str:
    return "s3cr3t"


@pytest.mark.parametrize("value", ["s3cr3t", _token], ids=["fixed", "async"])
@pytest.mark.parametrize("other", ["port", "scheme", "host"])
async def test_another_origin_gets_no_auth_header(serve: Serve, other: str, value: HeaderValue) -> None:
    server = Statuses()
    url = await serve(server)
    origin = {
        "port": "http://127.0.0.1:1",
        "scheme": url.replace("http:", "https:"),
        "host": url.replace("127.0.0.1", "127.0.0.2"),
    }[other]
    auth = HeaderAuth({"X-Token": value}, origin=origin)
    async with aiohttp.ClientSession(middlewares=(auth,)) as session:
        await session.get(url, headers={"X-Token": "s3cr3t"})
    assert tokens(server) == [None]


async def test_no_origin_means_that_of_the_first_request(serve: Serve) -> None:
    home, foreign = Statuses(), Statuses()
    urls = [await serve(home), await serve(foreign)]
    async with aiohttp.ClientSession(middlewares=(HeaderAuth({"X-Token": "s3cr3t"}),)) as session:
        for url in (*urls, urls[0]):
            await session.get(url)
    assert (tokens(home), tokens(foreign)) == (["s3cr3t"] * 2, [None])


@pytest.mark.parametrize("value", [7, b"s3cr3t"])
async def test_an_invalid_result_of_a_value_function_is_rejected(serve: Serve, value: object) -> None:
    async def ask() -> object:
        return value

    server = Statuses()
    url = await serve(server)
    for kind in (lambda: value, ask):
        auth = HeaderAuth({"X-Token": kind})  # type: ignore[dict-item]
        async with aiohttp.ClientSession(middlewares=(auth,)) as session:
            with pytest.raises(ValueError, match=f"X-Token must be a string, got {type(value).__name__}"):
                await session.get(url)
    assert not tokens(server)


@pytest.mark.parametrize("value", ["", "  ", "a\rb", "a\nb", "a\0b"])
async def test_bad_values_are_rejected_without_being_shown(serve: Serve, value: str) -> None:
    with pytest.raises(ValueError, match="X-Token") as caught:
        HeaderAuth({"X-Token": f"{value}s3cr3t" if value.strip() else value})
    assert "s3cr3t" not in str(caught.value)
    server = Statuses()
    async with aiohttp.ClientSession(
        await serve(server), middlewares=(HeaderAuth({"X-Token": lambda: value}),)
    ) as session:
        with pytest.raises(ValueError, match="X-Token"):
            await session.get("/")
    assert not tokens(server)


def test_bad_names_types_and_origins_are_rejected() -> None:
    wrong = {"": "is empty", "X Token": "contains ' '", "X:Token": "contains ':'", "Ä": "contains 'Ä'", 7: "got int"}
    for name, said in wrong.items():
        with pytest.raises(ValueError, match=f"a name in headers .*{said}"):
            HeaderAuth({name: "value"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"write \{name: value\}") as swapped:
        HeaderAuth({"Bearer s3cr3t": "Authorization"})
    assert "s3cr3t" not in str(swapped.value)
    with pytest.raises(ValueError, match="int"):
        HeaderAuth({"X-Token": 7})  # type: ignore[dict-item]
    for origin in ("example.com", "/path", "ftp://example.com", "", "http://", "https://user:s3cr3t@:80", 7):
        with pytest.raises(ValueError, match="origin") as caught:
            HeaderAuth({"X-Token": "value"}, origin=origin)  # type: ignore[arg-type]
        assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("origin", ["api.example.com", "localhost:8080", "10.0.0.1", "API.example.com:443"])
def test_an_origin_without_a_scheme_is_named_with_the_fix(origin: str) -> None:
    with pytest.raises(ValueError, match=f"got '{origin}': write 'https://{origin}'"):
        HeaderAuth({"X-Token": "value"}, origin=origin)
    with pytest.raises(ValueError, match=f"got '{origin}': write 'https://{origin}'") as caught:
        HeaderAuth({"X-Token": "value"}, origin=f"{origin}/v1/s3cr3t")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("headers", ["s3cr3t-key", [("X-API-KEY", "s3cr3t-key")], None])
def test_headers_that_are_not_a_mapping_are_rejected_and_not_shown(headers: Any) -> None:
    said = f"headers must be a mapping of names to values, got {type(headers).__name__}"
    with pytest.raises(ValueError, match=f"^{said}$"):
        HeaderAuth(headers, origin="https://api.example.com")


@pytest.mark.parametrize("origin", ["sk-s3cr3t_key", "s3cr3t", "s3cr3t.key_1", "user:s3cr3t@example.com"])
def test_an_origin_that_may_be_a_credential_is_not_shown(origin: str) -> None:
    with pytest.raises(ValueError, match="origin must be an http or https URL with a host, got ") as caught:
        HeaderAuth({"X-Token": "value"}, origin=origin)
    assert "s3cr3t" not in str(caught.value)


async def test_no_span_records_an_auth_header_of_a_response(serve: Serve, tracing: Tracing) -> None:
    """A server may hand out the next credential there, which nobody here knows yet."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"X-Token": "the next one", "X-Other": "shown"})

    names = ["x-token", "X-Other"]
    span = AttemptSpan(tracer_provider=tracing.provider, response_headers=names)
    for value in ("s3cr3t", _token):
        async with aiohttp.ClientSession(await serve(answer), middlewares=(span, HeaderAuth({"X-Token": value}))) as it:
            async with it.get("/") as response:
                assert response.status == 200
    for send in tracing.sends:
        shown = {name for name in send.attributes or {} if "response.header" in name}
        assert shown == {"http.response.header.x-other"}


def test_repr_shows_names_only() -> None:
    assert repr(HeaderAuth({"X-Token": "s3cr3t", "X-Other": lambda: "s3cr3t"})) == "HeaderAuth(X-Token, X-Other)"


async def test_a_url_changed_by_a_middleware_gets_no_auth_header(serve: Serve) -> None:
    """What layers outside have found out of the request's origin must not be believed then."""
    away = URL(await serve(Statuses()))

    async def divert(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        request.url = away
        return await handler(request)

    url = await serve(Statuses())
    auth = HeaderAuth({"X-Token": "value"}, origin=url)
    async with aiohttp.ClientSession() as session:
        request_headers = []

        async def look(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            request_headers.append("X-Token" in request.headers)
            return await handler(request)

        await session.get(url, middlewares=(Throttle(RULES), divert, auth, look))
        await session.get(url, middlewares=(Throttle(RULES), auth, look))
    assert request_headers == [False, True]


async def _none() -> None:
    return None


@pytest.mark.parametrize("value", ["the layer's", lambda: "the layer's", _token, _none])
@pytest.mark.parametrize("where", ["request", "session"])
async def test_replacing_a_header_of_the_request_raises(serve: Serve, value: HeaderValue, where: str) -> None:
    server = Statuses()
    auth = HeaderAuth({"X-Token": value})
    brought = {"X-Token": "zq-of-the-caller"}
    session_headers, headers = (brought, {}) if where == "session" else ({}, brought)
    async with aiohttp.ClientSession(await serve(server), middlewares=(auth,), headers=session_headers) as session:
        with pytest.raises(ValueError, match=r"X-Token.*existing='keep'") as caught:
            await session.get("/", headers=headers)
    assert "zq-of-the-caller" not in str(caught.value)
    assert not leaks(caught.value, "the layer's", apart_from=__file__)
    assert not server.requests


@pytest.mark.parametrize("value", ["the layer's", lambda: "the layer's", _token, _none])
async def test_existing_keep_keeps_the_header_at_each_attempt(serve: Serve, value: HeaderValue) -> None:
    server = Statuses(429, 200, 200)
    auth = HeaderAuth({"X-Other": "other", "X-Token": value}, existing="keep")
    async with aiohttp.ClientSession(await serve(server), middlewares=(Retry(RULES), auth)) as session:
        await session.get("/", headers={"X-Token": "the caller's"})
        await session.get("/")
    assert tokens(server)[:2] == ["the caller's"] * 2
    assert tokens(server)[2] != "the caller's"
    assert [request.headers["X-Other"] for request in server.requests] == ["other"] * 3


async def test_kept_headers_may_be_shown_but_set_headers_are_not(serve: Serve) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text=f"not {request.headers['X-A']}")

    auth = HeaderAuth({"X-A": "the layer's"}, existing="keep")
    async with aiohttp.ClientSession(await serve(echo), middlewares=(auth, Classify(RULES))) as session:
        with pytest.raises(ApiError) as caught:
            await session.get("/", headers={"X-A": "zq-of-the-caller"})
    assert "zq-of-the-caller" not in f"{caught.value}{caught.value.body!r}{caught.value.request_info!r}"


def test_existing_must_be_raise_or_keep() -> None:
    with pytest.raises(ValueError, match="existing must be 'raise' or 'keep', got 'replace'"):
        HeaderAuth({"X-Token": "value"}, existing="replace")  # type: ignore[arg-type]
