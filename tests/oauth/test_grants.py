from __future__ import annotations

import asyncio
import json
import pickle
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import aiohttp
import pytest
from aiohttp import web
from joserfc import jwk, jwt
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider
from tests.oauth.server import AuthorizationServer
from tests.sdk import Metering, Tracing
from tests.security.shown import leaks, links
from tests.servers import Serve

from lamella import ApiError, HeaderAuth, LamellaError, StopReason, Tokens, TokenUnavailable, deadline, oauth, stack
from lamella.oauth.endpoint import lifetime, token_of
from lamella.testing import VirtualClock

tenant: ContextVar[str] = ContextVar("tenant")
SECRET = "zq+s3cret/:%ü"
KEY = jwk.ECKey.generate_key("P-256")
PEM = KEY.as_pem(private=True)


async def echo(request: web.Request) -> web.Response:
    return web.Response(text=request.headers["Authorization"])


async def get(session: aiohttp.ClientSession, of: str | None = None) -> str:
    if of is not None:
        tenant.set(of)
    async with session.get("/") as response:
        return await response.text()


def session(url: str, tokens: Tokens, **options: Any) -> aiohttp.ClientSession:
    auth = HeaderAuth({"Authorization": tokens}, origin=url)
    return aiohttp.ClientSession(url, middlewares=stack(auth=auth, throttle=False, **options))


@pytest.mark.parametrize("method", ["basic", "post"])
async def test_client_credentials(serve: Serve, method: Any) -> None:
    server = AuthorizationServer({"a client:": SECRET})
    client = oauth.Client("a client:", SECRET, method=method)
    tokens = oauth.client_credentials(
        await serve(server), client, scope="read write", parameters={"audience": "https://api.example"}
    )
    async with session(await serve(echo), tokens) as api:
        assert await get(api) == await get(api) == "Bearer a client:-1"
    [form] = server.forms
    by_post = {"client_id": "a client:", "client_secret": SECRET} if method == "post" else {}
    assert form == {
        "grant_type": "client_credentials",
        "scope": "read write",
        "audience": "https://api.example",
        **by_post,
    }
    assert (server.headers[0] is None) is (method == "post")


@pytest.mark.parametrize("is_async", [True, False])
async def test_each_tenant_has_its_own_client(serve: Serve, is_async: bool) -> None:
    server = AuthorizationServer({"anna": "zq-anna", "ben": "zq-ben"})

    async def later(key: str) -> oauth.Client:
        return oauth.Client(key, f"zq-{key}")

    def at_once(key: str) -> oauth.Client:
        return oauth.Client(key, f"zq-{key}")

    tokens = oauth.client_credentials(await serve(server), later if is_async else at_once, key=tenant.get)
    async with session(await serve(echo), tokens) as api:
        answers = await asyncio.gather(*(asyncio.create_task(get(api, name)) for name in ("anna", "ben") * 5))
    assert {answer.partition("-")[0] for answer in answers[::2]} == {"Bearer anna"}
    assert {answer.partition("-")[0] for answer in answers[1::2]} == {"Bearer ben"}
    assert server.issued == 2


async def test_a_private_key_signs_a_new_assertion_for_each_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
    server = AuthorizationServer({})
    server.answers = [lambda _: web.Response(status=500)]
    url = await serve(server)
    tokens = oauth.client_credentials(url, oauth.KeyClient("c", PEM, algorithm="ES256", key_id="k1"))
    async with session(await serve(echo), tokens) as api:
        assert await get(api) == "Bearer c-1"
    seen = [jwt.decode(form["client_assertion"], KEY, ["ES256"]) for form in server.forms]
    assert len({token.claims["jti"] for token in seen}) == 2
    for token in seen:
        assert token.header["kid"] == "k1"
        assert (token.claims["iss"], token.claims["sub"], token.claims["aud"]) == ("c", "c", url)
        assert 0 < token.claims["exp"] - time.time() <= 300
    assert {form["client_assertion_type"] for form in server.forms} == {
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    }


async def test_a_new_refresh_token_is_stored_before_the_token_is_used(serve: Serve, virtual_time: VirtualClock) -> None:
    server = AuthorizationServer({"c": "zq-secret"}, expires_in=100)
    server.refresh_tokens["c"] = "zq-refresh-0"
    kept = ["zq-refresh-0"]

    async def store(token: str) -> None:
        await asyncio.sleep(5)
        kept.append(token)

    async def api_answer(request: web.Request) -> web.Response:
        return web.Response(text=kept[-1])

    tokens = oauth.refresh_token(
        await serve(server), oauth.Client("c", "zq-secret"), load=lambda: kept[-1], store=store
    )
    async with session(await serve(api_answer), tokens) as api:
        for number in range(1, 4):
            assert await get(api) == f"zq-refresh-c-{number}"
            await asyncio.sleep(100)
    assert [form["refresh_token"] for form in server.forms] == kept[:-1]


async def test_refresh_token_survives_cancelled_callers_and_a_failing_store(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    server = AuthorizationServer({"anna": "zq-secret"}, expires_in=None)
    server.refresh_tokens["anna"] = "zq-refresh-0"
    kept = {"anna": "zq-refresh-0"}
    failures = [True]

    async def load(key: str) -> str:
        return kept[key]

    async def store(key: str, token: str) -> None:
        await asyncio.sleep(5)
        if failures:
            failures.pop()
            raise OSError("the disk is full")
        kept[key] = token

    tokens = oauth.refresh_token(
        await serve(server), lambda key: oauth.Client(key, "zq-secret"), load=load, store=store, key=tenant.get
    )
    async with session(await serve(echo), tokens) as api:
        with pytest.raises(TokenUnavailable) as caught:
            await get(api, "anna")
        assert isinstance(caught.value.__cause__, OSError)
        assert not leaks(caught.value, "zq-refresh", "zq-secret", apart_from=__file__)
        hurried = asyncio.create_task(get(api, "anna"))
        await asyncio.sleep(8)  # it is being stored
        hurried.cancel()
        assert await get(api, "anna") == "Bearer anna-2"
    assert [form["refresh_token"] for form in server.forms] == ["zq-refresh-0", "zq-refresh-anna-1"]
    assert kept == {"anna": server.refresh_tokens["anna"]}


@pytest.mark.parametrize(
    ("expires_in", "means"),
    [
        (3600, 3600),
        (0.5, 0.5),
        (0, 0),
        (-60, 0),
        ("3600", 3600),
        (" 60 ", 60),
        ("-5", 0),
        ("soon", None),
        ("", None),
        (None, None),
        (..., None),
        (True, None),
        ([60], None),
        ({"seconds": 60}, None),
        (366 * 86400, 366 * 86400),
        (366 * 86400 + 1, None),
        (1e308, None),
        (float("inf"), None),
        (float("nan"), None),
        ("1e999", None),
        (10**400, None),
        ("9" * 5000, None),
    ],
    ids=repr,
)
def test_any_value_of_expires_in_is_interpreted(expires_in: object, means: float | None) -> None:
    assert lifetime(expires_in) == means


@pytest.mark.parametrize(
    ("expires_in", "fetches"), [(3600, 1), ("3600", 1), (None, 1), (..., 1), (1e99, 1), (0, 2), (-1, 2)]
)
async def test_expires_in_of_a_real_response_is_applied(
    serve: Serve, virtual_time: VirtualClock, expires_in: object, fetches: int
) -> None:
    server = AuthorizationServer({"c": "s"}, expires_in=expires_in)
    async with session(await serve(echo), oauth.client_credentials(await serve(server), oauth.Client("c", "s"))) as api:
        for _ in range(2):
            await get(api)
            await asyncio.sleep(5)
    assert server.issued == fetches


@pytest.mark.parametrize(
    ("payload", "token"),
    [
        ({"access_token": "t", "token_type": "bearer"}, "Bearer t"),
        ({"access_token": "t", "token_type": "BEARER"}, "Bearer t"),
        ({"access_token": "t"}, "Bearer t"),
        ({"access_token": "t", "token_type": None}, "Bearer t"),
        ({"access_token": "t", "token_type": "mac"}, None),
        ({"access_token": ""}, None),
        ({"access_token": "t\r\nX: y"}, None),
        ({"access_token": 5}, None),
        ({"error": "invalid_grant"}, None),
        (["access_token"], None),
        (None, None),
    ],
)
def test_valid_tokens(payload: object, token: str | None) -> None:
    assert token_of(payload) == token


def _error(status: int, **said: object) -> Callable[[dict[str, str]], web.Response]:
    return lambda _: web.json_response(said, status=status)


@pytest.mark.parametrize(
    ("status", "said", "attempts"),
    [
        (400, {"error": "invalid_grant"}, 1),
        (401, {"error": "invalid_client"}, 1),
        (403, {}, 1),
        (200, {"error": "bad_verification_code"}, 1),
        (200, {"access_token": "t", "token_type": "mac"}, 1),
        (302, {}, 1),
        (429, {}, 4),
        (500, {}, 4),
        (503, {}, 4),
    ],
)
async def test_token_errors_are_final_or_retried_by_status(
    serve: Serve, virtual_time: VirtualClock, status: int, said: dict[str, object], attempts: int
) -> None:
    server = AuthorizationServer({"c": "s"})
    server.answers = [_error(status, **said)] * 9
    async with session(await serve(echo), oauth.client_credentials(await serve(server), oauth.Client("c", "s"))) as api:
        with pytest.raises(TokenUnavailable) as caught:
            await get(api)
    error = caught.value.__cause__
    assert isinstance(error, ApiError)
    assert error.status == status
    assert error.error_code == said.get("error")
    assert len(server.forms) == len(error.attempts) == attempts
    assert caught.value.stopped is StopReason.TOKEN_UNAVAILABLE


async def test_a_broken_connection_is_retried_and_a_hanging_one_ends(serve: Serve, virtual_time: VirtualClock) -> None:
    server = AuthorizationServer({"c": "s"})
    hangs = False

    async def answer(request: web.Request) -> web.Response:
        if hangs:
            await asyncio.sleep(1000)
        if len(server.forms) < 1:
            server.forms.append({})
            assert request.transport is not None
            request.transport.abort()
        return await server(request)

    url = await serve(answer)
    async with session(await serve(echo), oauth.client_credentials(url, oauth.Client("c", "s"))) as api:
        assert (await get(api)).startswith("Bearer c-")
    hangs = True
    async with session(await serve(echo), oauth.client_credentials(url, oauth.Client("c", "s"), timeout=20)) as api:
        before = virtual_time.elapsed
        with pytest.raises(TokenUnavailable):
            await get(api)
        assert virtual_time.elapsed - before < 20


async def test_a_redirect_does_not_forward_secrets(serve: Serve) -> None:
    elsewhere = AuthorizationServer({})
    url = await serve(elsewhere)
    server = AuthorizationServer({"c": "s"})
    server.answers = [lambda _: web.Response(status=307, headers={"Location": url})]
    async with session(await serve(echo), oauth.client_credentials(await serve(server), oauth.Client("c", "s"))) as api:
        with pytest.raises(TokenUnavailable):
            await get(api)
    assert not elsewhere.forms


ODD = "zq-se/cr+et 0815"
"""A secret that a form and the basic scheme write differently."""
BASIC = b64encode(f"c:{quote_plus(ODD)}".encode()).decode()
SECRETS = (ODD, quote_plus(ODD), BASIC, "zq-refresh-4711", "zq-access-2342")
CLIENTS: dict[str, Callable[[], oauth.Client | oauth.KeyClient]] = {
    "basic": lambda: oauth.Client("c", ODD),
    "post": lambda: oauth.Client("c", ODD, method="post"),
    "key": lambda: oauth.KeyClient("c", PEM, algorithm="ES256"),
}


def _echoes(status: int, media_type: str) -> Callable[[dict[str, str]], web.Response]:
    def answer(form: dict[str, str]) -> web.Response:
        if form["authorization"]:
            client, secret = b64decode(form["authorization"].removeprefix("Basic ")).decode().split(":")
            form |= {"sent": f"{client}:{secret}", "client_secret": unquote_plus(secret)}
        said = {"error": "invalid_client", "error_description": json.dumps(form), "access_token": "zq-access-2342"}
        if status == 200:
            said = {"message": json.dumps(form), "refresh_token": "zq-access-2342"}
        headers = {"X-Form": json.dumps(form), "Set-Cookie": "a=zq-access-2342"}
        return web.Response(text=json.dumps(said), status=status, content_type=media_type, headers=headers)

    return answer


@pytest.mark.sampled(3)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 500, 503, "aborted", "broken"])
async def test_no_endpoint_response_makes_an_error_show_a_secret(
    serve: Serve,
    virtual_time: VirtualClock,
    tracing: Tracing,
    metering: Metering,
    caplog: pytest.LogCaptureFixture,
    client: str,
    status: int | str,
) -> None:
    server = AuthorizationServer({"c": ODD})

    async def answer(request: web.Request) -> web.StreamResponse:
        server.answers = [_echoes(status if isinstance(status, int) else 200, "application/json")]
        response = await server(request)
        if status == "aborted":
            assert request.transport is not None
            request.transport.abort()
        if status == "broken":
            return web.Response(text='{"access_token": "zq-access-2342', content_type="application/json")
        return response

    providers: Any = {"tracer_provider": tracing.provider, "meter_provider": metering.provider}
    tokens = oauth.refresh_token(
        await serve(answer), CLIENTS[client](), load=lambda: "zq-refresh-4711", store=lambda _: None, **providers
    )
    caplog.set_level("DEBUG")
    async with session(await serve(echo), tokens, **providers) as api:
        with pytest.raises(TokenUnavailable) as caught:
            await get(api)
    secrets = (*SECRETS, *(form["client_assertion"] for form in server.forms if "client_assertion" in form))
    sent = {"basic": "Basic", "post": ODD, "key": "eyJ"}[client]
    assert sent in f"{server.headers[0]} {server.forms[0]}"
    assert server.forms[0]["refresh_token"] == "zq-refresh-4711"
    assert not leaks(caught.value, *secrets, apart_from=__file__)
    texts = [repr(tokens), repr(CLIENTS[client]()), caplog.text]
    texts += [repr([vars(record) for record in caplog.records])]
    texts += [
        f"{span.name}{span.attributes}{span.status.description}{[e.attributes for e in span.events]}"
        for span in tracing.spans
    ]
    texts += [str(metering.metrics)]
    for link in links(caught.value):
        texts.append(repr(pickle.dumps(link)))
        if isinstance(link, LamellaError):
            texts += [repr(vars(link)), repr(getattr(link, "payload", None))]
    for text in texts:
        for secret in secrets:
            assert secret not in text


def test_a_rejected_argument_shows_no_secret() -> None:
    wrong: list[Callable[[], object]] = [
        lambda: oauth.Client("", "zq-secret-0815"),
        lambda: oauth.Client("c", "zq-secret-0815", method="zq"),  # type: ignore[arg-type]
        lambda: oauth.Client("c", ""),
        lambda: oauth.KeyClient("c", "zq-secret-0815"),
        lambda: oauth.KeyClient("c", PEM, algorithm="RS256"),
        lambda: oauth.KeyClient("c", KEY.as_pem(private=False), algorithm="ES256"),
        lambda: oauth.KeyClient("c", PEM, algorithm="none"),
        lambda: oauth.KeyClient("", PEM, algorithm="ES256"),
    ]
    for make in wrong:
        with pytest.raises(ValueError, match=r"client_id|secret|method|key") as caught:
            make()
        assert not leaks(caught.value, "zq-secret-0815", PEM.decode()[40:80], apart_from=__file__)


def test_bad_options() -> None:
    client = oauth.Client("c")
    for url in ("/token", "ftp://x"):
        with pytest.raises(ValueError, match="http or https URL"):
            oauth.client_credentials(url, client)
    with pytest.raises(TypeError, match="no option 'scopes', did you mean 'scope'"):
        oauth.client_credentials("https://id.example/token", client, scopes="a")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="timeout must be"):
        oauth.client_credentials("https://id.example/token", client, timeout=-1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"client": "zq-secret"}, "client must be a Client, a KeyClient or a function that returns one, got str"),
        ({"client": oauth.Client}, "client must be a Client or a KeyClient, got the class Client"),
        ({"scope": ["read", "write"]}, "scope must be words with spaces between them, got list"),
        ({"parameters": [("a", "zq-secret")]}, "parameters must be a mapping of names to values, got list"),
        ({"parameters": {"grant_type": "zq-secret"}}, "parameters must not have 'grant_type'"),
        ({"parameters": {"client_secret": "zq-secret"}}, "parameters must not have 'client_secret'"),
        ({"session": {"middlewares": ()}}, r"session must have .* but middlewares, got \['middlewares'\]"),
        ({"session": {"trustenv": True}}, r"session must have .*, got \['trustenv'\]"),
        ({"session": 7}, "session must be a mapping of options, got 7"),
        ({"load": "zq-secret"}, "load must be a function, got str"),
        ({"store": None}, "store must be a function, got None"),
    ],
    ids=str,
)
def test_invalid_arguments_are_rejected_before_the_first_fetch(given: dict[str, Any], said: str) -> None:
    arguments = {"client": oauth.Client("c"), "load": lambda: "r", "store": lambda _: None, **given}
    with pytest.raises(ValueError, match=said) as caught:
        oauth.refresh_token("https://id.example/token", **arguments)
    assert "zq-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"load": lambda: None}, "load must return a refresh token, got NoneType"),
        ({"load": lambda: ""}, "load must return a refresh token, got an empty string"),
        ({"load": lambda: b"zq-refresh-0"}, "load must return a refresh token, got bytes"),
        ({"client": lambda: "zq-secret"}, "the function for the client must return a Client or a KeyClient, not str"),
    ],
)
async def test_an_invalid_return_value_is_named_and_nothing_is_sent(
    serve: Serve, given: dict[str, Any], said: str
) -> None:
    server = AuthorizationServer({"c": "zq-secret"})
    arguments = {"client": oauth.Client("c", "zq-secret"), "load": lambda: "zq-refresh-0", **given}
    tokens = oauth.refresh_token(await serve(server), store=lambda _: None, **arguments)
    async with session(await serve(echo), tokens) as api:
        with pytest.raises(TokenUnavailable) as caught:
            await get(api)
    assert str(caught.value.__cause__) == said
    assert not server.forms
    assert not leaks(caught.value, "zq-secret", "zq-refresh-0", apart_from=__file__)


@pytest.mark.parametrize("returned", [None, True, 12, "OK"])
async def test_the_return_value_of_store_is_ignored(serve: Serve, returned: object) -> None:
    """As ``Path.write_text`` and clients of Redis do."""
    server = AuthorizationServer({"c": "s"})
    server.refresh_tokens["c"] = "zq-refresh-0"
    kept: list[str] = []

    def store(token: str) -> Any:
        kept.append(token)
        return returned

    tokens = oauth.refresh_token(await serve(server), oauth.Client("c", "s"), load=lambda: "zq-refresh-0", store=store)
    async with session(await serve(echo), tokens) as api:
        assert await get(api) == "Bearer c-1"
    assert kept == [server.refresh_tokens["c"]]


async def test_a_token_response_in_another_charset_is_decoded(serve: Serve) -> None:
    server = AuthorizationServer({"c": "s"})
    body = '{"access_token": "t", "token_type": null, "user": "Jürgen"}'.encode("latin-1")
    server.answers = [lambda _: web.Response(body=body, content_type="application/json", charset="latin-1")]
    tokens = oauth.client_credentials(await serve(server), oauth.Client("c", "s"))
    async with session(await serve(echo), tokens) as api:
        assert await get(api) == "Bearer t"


async def test_an_endpoint_is_not_called_before_its_retry_after(serve: Serve, virtual_time: VirtualClock) -> None:
    server = AuthorizationServer({"c": "s"})
    server.answers = [lambda _: web.Response(status=429, headers={"Retry-After": "100"})]
    async with session(await serve(echo), oauth.client_credentials(await serve(server), oauth.Client("c", "s"))) as api:
        with pytest.raises(TokenUnavailable) as caught:
            await get(api)
        assert caught.value.retry_after == pytest.approx(100, abs=1)
        with deadline(50), pytest.raises(TimeoutError):
            await get(api)
        assert len(server.forms) == 1
        assert await get(api) == "Bearer c-1"
    assert virtual_time.elapsed == pytest.approx(100, abs=2)


@pytest.mark.parametrize("given", [True, False])
async def test_the_token_request_span_is_a_child_of_the_call_span(
    serve: Serve, tracing: Tracing, metering: Metering, given: bool
) -> None:
    """It goes to the providers of the stack, unless it has its own."""
    server = AuthorizationServer({"c": "s"})
    providers: Any = {"tracer_provider": tracing.provider, "meter_provider": metering.provider}
    tokens = oauth.client_credentials(await serve(server), oauth.Client("c", "s"), **(providers if given else {}))
    async with session(await serve(echo), tokens, **providers) as api:
        await get(api)
    assert metering.count("lamella.call.duration") == 2
    assert metering.value("lamella.token.refreshes") == 1
    by_name = {span.name: span for span in tracing.spans if span.kind.name == "INTERNAL"}
    assert by_name.keys() == {"lamella GET", "lamella POST"}
    parent = by_name["lamella POST"].parent
    assert parent is not None
    assert parent.span_id == by_name["lamella GET"].context.span_id
    assert len({span.context.trace_id for span in tracing.spans}) == 1


async def test_explicit_providers_are_kept(serve: Serve, tracing: Tracing, metering: Metering) -> None:
    server = AuthorizationServer({"c": "s"})
    own: Any = {"tracer_provider": tracing.provider, "meter_provider": metering.provider}
    others: Any = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}
    tokens = oauth.client_credentials(await serve(server), oauth.Client("c", "s"), **own)
    async with session(await serve(echo), tokens, **others) as api:
        await get(api)
    assert {span.name for span in tracing.spans} == {"lamella POST", "POST"}
    assert metering.value("lamella.token.refreshes") == 1
