"""Credentials of many shapes, sent in every place, and whatever the server does with them: none is shown anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor
from tests.credentials import SHAPES, spellings
from tests.sdk import Metering, Tracing
from tests.servers import Serve, ServeRaw
from tests.texts import texts_of
from yarl import URL

from lamella import AttemptSpan, Backoff, Failure, HeaderAuth, LamellaError, Rule, RuleBook, Timeout, maesn, stack
from lamella.maesn.sandbox import Reply
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import Fault, VirtualClock

ORIGIN = "http://api.example"

RULES = RuleBook(
    *(Rule(status, f"Status {status}", retry=Backoff(initial=0.01)) for status in (429, 500, 503)),
    *(Rule(failure, f"No answer: {failure.value}", retry=Backoff(0.01)) for failure in Failure),
)


@dataclass
class Request:
    """What is sent, and how."""

    secret: str
    url: URL
    options: dict[str, object] = field(default_factory=dict)
    session: dict[str, object] = field(default_factory=dict)
    auth: tuple[HeaderAuth, ...] = ()


def _auth(secret: str) -> HeaderAuth:
    return HeaderAuth({"X-API-KEY": secret})


def _for_a_url(secret: str) -> str:
    """Without ":", which ends a user's name, and with what aiohttp can write in Latin-1."""
    return secret.replace(":", "-").encode("latin-1", "ignore").decode("latin-1")


def _basic(secret: str) -> str:
    return f"Basic {b64encode(f'someone:{secret}'.encode()).decode()}"


async def _ask(secret: str) -> str:
    await asyncio.sleep(0)
    return secret


def in_auth_header(secret: str, url: URL) -> Request:
    return Request(secret, url, auth=(_auth(secret),))


def from_a_function(secret: str, url: URL) -> Request:
    async def ask() -> str:
        return await _ask(secret)

    return Request(secret, url, auth=(HeaderAuth({"Authorization": ask}),))


def in_session_headers(secret: str, url: URL) -> Request:
    return Request(secret, url, session={"headers": {"X-Auth-Token": secret}})


def in_own_header(secret: str, url: URL) -> Request:
    return Request(secret, url, {"headers": {"Authorization": secret}})


def in_basic_auth(secret: str, url: URL) -> Request:
    return Request(secret, url, {"headers": {"Authorization": _basic(secret)}})


def in_user_info(secret: str, url: URL) -> Request:
    plain = _for_a_url(secret)
    return Request(plain, url.with_user("someone").with_password(plain))


def in_telling_query(secret: str, url: URL) -> Request:
    return Request(secret, url.with_query({"limit": "5", "access_token": secret}))


def in_harmless_query_and_known(secret: str, url: URL) -> Request:
    return Request(secret, url.with_query({"q": secret}), auth=(_auth(secret),))


def in_path_and_known(secret: str, url: URL) -> Request:
    secret = secret.replace("/", "-")  # it would be two segments
    return Request(secret, url / "keys" / secret, auth=(_auth(secret),))


def in_cookie(secret: str, url: URL) -> Request:
    return Request(secret, url, {"headers": {"Cookie": f"sid={secret}"}})


def in_form(secret: str, url: URL) -> Request:
    return Request(secret, url, {"data": {"password": secret}, "method": "PUT"}, auth=(_auth(secret),))


def in_json(secret: str, url: URL) -> Request:
    return Request(secret, url, {"json": {"password": secret}, "method": "POST"}, auth=(_auth(secret),))


def in_proxy_auth(secret: str, url: URL) -> Request:
    auth = aiohttp.BasicAuth("someone", secret, "utf-8")
    return Request(secret, URL(ORIGIN), {"proxy": url, "proxy_auth": auth})


def in_proxy_url(secret: str, url: URL) -> Request:
    plain = _for_a_url(secret)
    return Request(plain, URL(ORIGIN), {"proxy": url.with_user("someone").with_password(plain)})


PLACES: tuple[Callable[[str, URL], Request], ...] = (
    in_auth_header,
    from_a_function,
    in_session_headers,
    in_own_header,
    in_basic_auth,
    in_user_info,
    in_telling_query,
    in_harmless_query_and_known,
    in_path_and_known,
    in_cookie,
    in_form,
    in_json,
    in_proxy_auth,
    in_proxy_url,
)


def _head(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]).encode()


def _answer(status: str, body: bytes, *headers: str) -> bytes:
    return _head(status, *headers, f"Content-Length: {len(body)}") + body


def _in_json(secret: str, seen: bytes) -> bytes:
    said = {"errors": {"message": f"unknown key {secret}", "validationErrors": [{"message": seen.decode()}], secret: 1}}
    return json.dumps(said).encode()


def _on_one_line(secret: str) -> str:
    return secret if secret.isprintable() else quote(secret)


ENDINGS: dict[str, Callable[[str, bytes], bytes | None]] = {
    "200": lambda secret, seen: _answer("200 OK", seen),
    "401 with the request in its body": lambda secret, seen: _answer("401 Unauthorized", seen + secret.encode()),
    "429 with the request in its JSON": lambda secret, seen: _answer("429 Slow", _in_json(secret, seen)),
    "403 with it in the reason phrase": lambda secret, seen: _answer(f"403 no {_on_one_line(secret)}", b""),
    "500 with it in headers": lambda secret, seen: _answer("500 Bad", b"", f"X-Echo: {secret}", f"Server: {secret}"),
    "503 with it in a cookie": lambda secret, seen: _answer("503 Bad", b"", f"Set-Cookie: sid={quote(secret)}; Path=/"),
    "418 with it in Retry-After": lambda secret, seen: _answer("418 Tea", b"", f"Retry-After: {secret}"),
    "a redirect to it": lambda secret, seen: _answer("302 Found", b"", f"Location: /next?token={quote(secret, '')}"),
    "bytes that are not HTTP": lambda secret, seen: secret.encode() + b"\r\n" + seen,
    "a bad header": lambda secret, seen: b"HTTP/1.1 200 OK\r\n" + secret.encode() + b"\r\n" + seen,
    "a chunk that is none": lambda secret, seen: _head("200 OK", "Transfer-Encoding: chunked") + secret.encode() + seen,
    "half of a body": lambda secret, seen: _head("500 Bad", "Content-Length: 99999") + seen,
    "the end": lambda secret, seen: b"",
    "silence": lambda secret, seen: None,
}


def shown(
    tracing: Tracing, metering: Metering, caplog: pytest.LogCaptureFixture, error: BaseException | None, layers: object
) -> Iterator[tuple[str, str]]:
    """All that is shown of a call, with the place where it is."""
    for span in tracing.spans:
        parts = [span.name, span.status.description, span.attributes, [event.attributes for event in span.events]]
        yield from ((f"{span.kind.name} span", text) for part in parts for text in texts_of(part))
        yield f"{span.kind.name} span", span.to_json()
    for name, metric in metering.metrics.items():
        points = metric.data.data_points
        yield from ((name, text) for point in points for text in texts_of(point.attributes))
    for record in caplog.records:
        yield from ((f"log of {record.name}", text) for text in texts_of([record.getMessage(), *vars(record).values()]))
    yield from (("layer", text) for text in texts_of(layers))
    if isinstance(error, LamellaError):
        yield "traceback", "".join(traceback.format_exception(error))
        yield from (("error", text) for text in texts_of([str(error), repr(error), error.args, *vars(error).values()]))


def leaks(secret: str, texts: Iterable[tuple[str, str]]) -> set[str]:
    """The places that show *secret*."""
    ways = {way for way in spellings(secret) if len(way) >= 4}
    by_place: dict[str, set[str]] = {}
    for place, text in texts:
        by_place.setdefault(place, set()).add(text)
    everything = {place: "\n".join(texts) for place, texts in by_place.items()}
    return {place for place, text in everything.items() if any(way in text for way in ways)}


@pytest.fixture(autouse=True)
def _all_logs(caplog: pytest.LogCaptureFixture) -> None:
    for name in (None, "lamella", "stamina", "aiohttp.client", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)


def shapes_for(place: Callable[[str, URL], Request], ending: str) -> list[str]:
    """All of them in the usual place; elsewhere some, so that each place meets each shape with some ending."""
    if place is in_auth_header:
        return list(SHAPES)
    first = list(ENDINGS).index(ending) + PLACES.index(place)
    return [list(SHAPES)[(first + step * len(ENDINGS)) % len(SHAPES)] for step in range(2)]


# aiohttp's newest has another way for a proxy, which its older ones have not.
@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore:.*(BasicAuth|proxy_auth):DeprecationWarning")
@pytest.mark.parametrize(
    ("place", "ending"),
    [
        # Of the other places two in three are slow.
        pytest.param(place, ending, marks=pytest.mark.slow if row and (row + column) % 3 else ())
        for row, place in enumerate(PLACES)
        for column, ending in enumerate(ENDINGS)
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_no_telemetry_shows_a_credential(
    place: Callable[[str, URL], Request],
    ending: str,
    serve_raw: ServeRaw,
    virtual_time: VirtualClock,
    caplog: pytest.LogCaptureFixture,
    tracing: Tracing,
    metering: Metering,
) -> None:
    secret, received = "", [b""]

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = await reader.readuntil(b"\r\n\r\n")
        received.append(seen)
        answer = ENDINGS[ending](secret, seen)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)

    found = {}
    url = URL(await serve_raw(connection))
    for shape in shapes_for(place, ending):
        request = place(SHAPES[shape], url)
        secret = request.secret
        # All the headers that can be asked for, too.
        spans = AttemptSpan(
            tracer_provider=tracing.provider,
            meter_provider=metering.provider,
            request_headers=["X-API-KEY", "X-Harmless"],
            response_headers=["Server", "Retry-After"],
        )
        layers = stack(
            RULES,
            spans,
            Timeout(1),
            auth=request.auth,
            attempts=2,
            tracer_provider=tracing.provider,
            meter_provider=metering.provider,
        )
        error: BaseException | None = None
        async with aiohttp.ClientSession(middlewares=layers, max_field_size=2**16, **request.session) as session:  # type: ignore[arg-type]
            options = {"method": "GET", "max_redirects": 2, **request.options}
            try:
                async with session.request(url=request.url, **options) as response:  # type: ignore[arg-type]
                    await response.read()
            except (LamellaError, aiohttp.ClientError) as exc:
                error = exc
        if leaked := leaks(secret, shown(tracing, metering, caplog, error, layers)):
            found[shape] = leaked
        tracing.exporter.clear()
        caplog.clear()
    assert len(received) > len(shapes_for(place, ending))
    assert not found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("step", [*Fault, 400, 401, 403, 404, 405, 429, 500, 502, 503, 504, Reply(302), "cancelled"])
async def test_no_fault_of_the_sandbox_shows_a_key(
    step: Fault | int | Reply | str,
    make_sandbox: MakeSandbox,
    virtual_time: VirtualClock,
    caplog: pytest.LogCaptureFixture,
    tracing: Tracing,
    metering: Metering,
) -> None:
    sandbox = await make_sandbox(api_key="zq-api-key-4711")
    steps = [Fault.SILENCE] if isinstance(step, str) else [step]
    sandbox.script(*steps * 2)
    error: BaseException | None = None
    layers = maesn.layers(
        sandbox.api_key,
        sandbox.account_key,
        sandbox.url,
        attempts=2,
        tracer_provider=tracing.provider,
        meter_provider=metering.provider,
    )
    async with aiohttp.ClientSession(sandbox.url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
        try:
            async with asyncio.timeout(30 if step == "cancelled" else None):
                await session.get("/accounting/invoices")
        except (LamellaError, TimeoutError) as exc:
            error = exc
    assert isinstance(step, Reply | str) or step in {Fault.SLOW_BODY} or isinstance(error, LamellaError)
    texts = list(shown(tracing, metering, caplog, error, layers))
    assert {"INTERNAL span", "CLIENT span", "lamella.call.duration", "layer"} <= {place for place, _ in texts}
    for key in (sandbox.api_key, sandbox.account_key):
        assert not leaks(key, texts)


@pytest.mark.parametrize("telemetry", ["recorded", "without an SDK", "without spans"])
async def test_a_redirect_to_a_url_with_the_credential_does_not_show_it(
    serve: Serve, caplog: pytest.LogCaptureFixture, tracing: Tracing, metering: Metering, telemetry: str
) -> None:
    """Neither at the start of its spans. The server chose a name for it that says nothing, and another origin."""
    secret, started = SHAPES["plain"], list[str]()

    class Started(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:
            started.append(str((span.attributes or {})["url.full"]))

    tracing.provider.add_span_processor(Started())

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, text=f"{request.url}")

    other = (await serve(elsewhere)).replace("127.0.0.1", "localhost")

    async def here(_: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"{other}/{secret}/?by={secret}"})

    url = await serve(here)
    options: dict[str, Any] = {"spans": telemetry != "without spans"}
    if telemetry == "recorded":
        options |= {"tracer_provider": tracing.provider, "meter_provider": metering.provider}
    layers = stack(RULES, auth=_auth(secret), attempts=1, **options)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        with pytest.raises(LamellaError) as caught:
            await session.get(url)
    assert len(started) == (4 if telemetry == "recorded" else 0)
    assert secret not in str(started)
    assert not leaks(secret, shown(tracing, metering, caplog, caught.value, layers))


async def test_a_redirect_to_another_origin_shows_no_credential(
    serve_raw: ServeRaw, caplog: pytest.LogCaptureFixture, tracing: Tracing, metering: Metering
) -> None:
    secret = SHAPES["plain"]

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = await reader.readuntil(b"\r\n\r\n")
        assert secret.encode() in seen
        writer.write(_answer("401 Unauthorized", seen))

    other = (await serve_raw(elsewhere)).replace("127.0.0.1", "localhost")

    async def here(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_answer("302 Found", b"", f"Location: {other}/?token={secret}"))

    url = await serve_raw(here)
    layers = stack(
        RULES, auth=_auth(secret), tracer_provider=tracing.provider, meter_provider=metering.provider, attempts=1
    )
    # aiohttp hands these headers on to the other origin.
    async with aiohttp.ClientSession(middlewares=layers, headers={"X-Session-Key": secret}) as session:
        with pytest.raises(LamellaError) as caught:
            await session.get(url)
    assert len(tracing.sends) == 2
    assert not leaks(secret, shown(tracing, metering, caplog, caught.value, layers))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_leak_search_finds_a_planted_credential(
    shape: str, tracing: Tracing, metering: Metering, caplog: pytest.LogCaptureFixture
) -> None:
    secret = SHAPES[shape]
    span = tracing.provider.get_tracer("the user's").start_span("x")
    span.set_attribute("url.full", f"http://x/?q={quote(secret)}")
    span.end()
    metering.provider.get_meter("the user's").create_counter("one").add(1, {"key": secret})
    logging.getLogger("lamella").debug("%r", {"key": secret})
    places = leaks(secret, shown(tracing, metering, caplog, None, [f"HeaderAuth({secret!r})"]))
    assert places == {"INTERNAL span", "one", "log of lamella", "layer"}
