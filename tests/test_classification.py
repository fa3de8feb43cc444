"""Which error aiohttp's become, what is said of them, and what of them passes as it is."""

from __future__ import annotations

import errno
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

import aiohttp
import pytest
from aiohttp import http_exceptions, web
from aiohttp.client_reqrep import ConnectionKey
from tests.servers import Serve

from lamella import (
    ApiError,
    AttemptTimeout,
    CertificateInvalid,
    Classify,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    Failure,
    ProxyRefused,
    RateLimited,
    Rule,
    RuleBook,
    StopReason,
    TransportError,
)
from lamella._aiohttp import forget_answer, is_unsent
from lamella.call import Call
from lamella.classify.failures import rejected, require_open, shown_cause, transport_error
from lamella.classify.judge import api_error
from lamella.credentials import note_secrets

T = TypeVar("T")

OWN = RuleBook(*(Rule(failure, f"own {failure}") for failure in Failure))
HTTPS = "https://api.example.com/x"
PROXY = {"proxy": "http://proxy.example:3128"}


REFUSED = "Cannot connect to host api.example.com:443 ssl:default [refused]"
LATE = "Cannot connect to host api.example.com:443 ssl:default [late]: still connecting"


class Seen(Exception):
    """The request was looked at, and is not sent."""


async def of_request(look: Callable[[aiohttp.ClientRequest], T], url: str = HTTPS, **options: Any) -> T:
    """What *look* says of a request that is about to be sent."""
    said: list[T] = []

    async def middleware(request: aiohttp.ClientRequest, _: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        said.append(look(request))
        raise Seen

    async with aiohttp.ClientSession(middlewares=(middleware,)) as session:
        with pytest.raises(Seen):
            await session.post(url, **options)
    return said[0]


def response_error(cause: Exception | None = None, cls: type[Any] = aiohttp.ClientResponseError) -> Exception:
    exc = cls(cast(Any, None), (), status=407, message="who are you")
    exc.__cause__ = cause
    return cast(Exception, exc)


def connector_error(cause: OSError) -> Exception:
    key = ConnectionKey("api.example.com", 443, True, True, None, None, None)
    exc = aiohttp.ClientConnectorError(key, cause)
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    ("exc", "kind", "reason"),
    [
        (aiohttp.ServerDisconnectedError("gone"), ConnectionLost, "gone"),
        (aiohttp.ClientPayloadError("half of it"), ConnectionLost, "half of it"),
        (ConnectionResetError(104, "reset"), ConnectionLost, "[Errno 104] reset"),
        (OSError(errno.EHOSTUNREACH, "no route"), ConnectionLost, f"[Errno {errno.EHOSTUNREACH}] no route"),
        (TimeoutError(), AttemptTimeout, "TimeoutError"),
        (aiohttp.SocketTimeoutError("read"), AttemptTimeout, "read"),
        (aiohttp.ConnectionTimeoutError("connect"), ConnectTimeout, "connect: still connecting"),
        (response_error(http_exceptions.BadStatusLine("x")), ConnectionLost, "not HTTP: who are you"),
        (response_error(cls=aiohttp.ClientHttpProxyError), ProxyRefused, "proxy: 407 who are you"),
        (connector_error(ConnectionRefusedError(111, "refused")), ConnectFailed, REFUSED),
        (connector_error(TimeoutError(110, "late")), ConnectTimeout, LATE),
        (connector_error(ConnectionResetError()), ConnectFailed, "api.example.com:443: ConnectionResetError"),
        (connector_error(OSError("no route")), ConnectFailed, "api.example.com:443: no route"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_each_exception_becomes_its_transport_error(
    exc: Exception, kind: type[TransportError], reason: str
) -> None:
    built_in = await of_request(lambda request: transport_error(Call.of(request), exc))
    own = await of_request(lambda request: transport_error(Call.of(request), exc, OWN))
    assert built_in is not None
    assert own is not None
    assert type(built_in) is type(own) is kind
    assert built_in.reason == own.reason == reason
    assert (built_in.rule, own.rule) == (RuleBook().rule_for(kind.failure), OWN.rule_for(kind.failure))
    assert (own.method, own.url) == ("POST", HTTPS)


@pytest.mark.parametrize(
    "exc", [ValueError("x"), OSError("x"), response_error(), response_error(ValueError("x")), Seen()]
)
async def test_exceptions_that_are_not_transport_failures_pass_unchanged(exc: Exception) -> None:
    assert await of_request(lambda request: transport_error(Call.of(request), exc)) is None


async def test_after_the_session_closed_no_failure_is_a_transport_failure() -> None:
    requests = [await of_request(lambda request: request)]
    assert transport_error(Call.of(requests[0]), OSError("x")) is None
    with pytest.raises(RuntimeError, match=r"^Session is closed$"):
        require_open(requests[0])
    await of_request(require_open)


@pytest.mark.parametrize(
    ("url", "options", "sent", "kind"),
    [
        (HTTPS, PROXY, False, ConnectFailed),
        (HTTPS, PROXY, True, ConnectionLost),
        (HTTPS, {}, False, ConnectionLost),
        ("http://api.example.com/x", PROXY, False, ConnectionLost),
    ],
)
async def test_a_proxy_failure_before_the_tunnel_means_not_sent(
    url: str, options: dict[str, Any], sent: bool, kind: type[TransportError]
) -> None:
    def error_for(request: aiohttp.ClientRequest, exc: Exception) -> TransportError | None:
        if sent:
            vars(request)["response"] = object()  # aiohttp makes it when it begins to write the request
        return transport_error(Call.of(request), exc)

    lost = aiohttp.ServerDisconnectedError()
    assert type(await of_request(lambda request: error_for(request, lost), url, **options)) is kind
    late = await of_request(lambda request: error_for(request, TimeoutError()), url, **options)
    assert type(late) is AttemptTimeout


def test_a_cause_is_kept_unless_it_contains_the_request_headers() -> None:
    lost = OSError("x")
    assert shown_cause(lost) is lost
    assert shown_cause(response_error()) is None


async def test_https_at_a_port_without_tls_is_not_reported_as_a_certificate_error(serve: Serve) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    url = (await serve(answer)).replace("http://", "https://")
    async with aiohttp.ClientSession(middlewares=(Classify(RuleBook()),)) as session:
        with pytest.raises(CertificateInvalid, match=r": TLS Failed \(127\.0\.0\.1:\d+: ") as raised:
            await session.get(url)
    assert "needs a port that speaks TLS" in str(raised.value)
    assert "ertificate" not in str(raised.value).partition(": ")[2]


async def test_a_custom_rule_for_a_failed_handshake_is_kept(serve: Serve) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    url = (await serve(answer)).replace("http://", "https://")
    rules = RuleBook(Rule(Failure.CERTIFICATE_INVALID, "Our Title", hint="Ask us."))
    async with aiohttp.ClientSession(middlewares=(Classify(rules),)) as session:
        with pytest.raises(CertificateInvalid, match=r": Our Title \(.*Ask us"):
            await session.get(url)


async def test_an_attempt_is_unsent_until_its_request_is_written(serve: Serve) -> None:
    """Also the second one, after the first was answered."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    seen: list[bool] = []

    async def twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        seen.append(is_unsent(request))
        (await handler(request)).release()
        seen.append(is_unsent(request))
        forget_answer(request)
        seen.append(is_unsent(request))
        response = await handler(request)
        seen.append(is_unsent(request))
        return response

    async with aiohttp.ClientSession(middlewares=(twice,)) as session:
        await session.get(await serve(answer))
    assert seen == [True, False, True, False]


async def test_all_secrets_of_the_request_are_removed_from_its_error(serve: Serve) -> None:
    """Those in its headers, those it is told of, and those that were noted since it no longer has them."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=500, text="header-key told-key noted-key harmless")

    async with aiohttp.ClientSession(headers={"X-API-KEY": "header-key"}) as session:
        async with session.get(await serve(answer)) as response:
            note_secrets(response, ("noted-key",))
            error = await api_error(response, OWN, ("told-key",))
    assert isinstance(error, ApiError)
    assert error.body == b"REDACTED REDACTED REDACTED harmless"
    assert error.retry_after is None


async def test_an_error_has_all_details_of_its_response(serve: Serve) -> None:
    async def answer(_: web.Request) -> web.Response:
        said = {"message": "m", "validationErrors": ["v"], "downstreamErrors": ["d"]}
        return web.json_response(said, status=503, headers={"Retry-After": "7"})

    async with aiohttp.ClientSession() as session, session.get(await serve(answer)) as response:
        error = await api_error(response, OWN)
    assert (error.details, error.validation_errors, error.downstream_errors) == (("m",), ("v",), ("d",))
    assert error.headers is not None
    assert (error.headers["Retry-After"], error.retry_after) == ("7", 7.0)
    assert (error.status, error.rule) == (503, OWN.rule_for(503))


async def test_a_response_below_400_is_not_an_error(serve: Serve) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=399)

    async with aiohttp.ClientSession(middlewares=(Classify(OWN),)) as session:
        async with session.get(await serve(answer)) as response:
            assert response.status == 399


@pytest.mark.parametrize("rules", [None, OWN])
async def test_the_error_for_a_late_permit_has_its_reason(rules: RuleBook | None) -> None:
    def late(request: aiohttp.ClientRequest) -> RateLimited:
        Call.of(request).secrets = ("secret-path",)
        return rejected(RateLimited, Call.of(request), rules, since=5.0, until=7.0, stopped=StopReason.DEADLINE)

    began = datetime.now(UTC)
    error = await of_request(late, f"{HTTPS}/secret-path")
    assert (error.method, error.url) == ("POST", f"{HTTPS}/REDACTED")
    assert error.rule == (rules or RuleBook()).rule_for(Failure.RATE_LIMITED)
    assert (error.stopped, error.retry_after) == (StopReason.DEADLINE, 7.0)
    assert error.until - error.since == timedelta(seconds=12)
    assert began <= error.since + timedelta(seconds=5) <= datetime.now(UTC)
