"""With all layers in place and good answers, aiohttp does what it does without them."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.sdk import Tracing
from tests.servers import Serve

from lamella import Breaker, HeaderAuth, NotFound, maesn, stack
from lamella.attempt_record import RECORDS_KEY
from lamella.testing import VirtualClock

Layers = tuple[aiohttp.ClientMiddlewareType, ...]
Scenario = Callable[["Client"], Awaitable[object]]

LINES = b"".join(b"line %d\n" % number for number in range(1000))


class Client:
    """Makes sessions with the same layers, or with none."""

    def __init__(self, url: str, make: Callable[[], Layers]) -> None:
        self.url = url
        self._make = make

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession(self.url, middlewares=self._make(), **options) as session:
            yield session


async def server(request: web.Request) -> web.StreamResponse:
    """Answers by the path, and tells of the request in its headers."""
    body = await request.read() if request.path != "/socket" else b""
    seen = {"X-Method": request.method, "X-Body": body.decode("latin-1")[:100], "X-Type": request.content_type}
    match request.path:
        case "/stream":
            response = web.StreamResponse(headers=seen)
            await response.prepare(request)
            for start in range(0, len(LINES), 1000):
                await response.write(LINES[start : start + 1000])
                await asyncio.sleep(0)
            return response
        case "/events":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
            return response
        case "/socket":
            socket = web.WebSocketResponse(protocols=["chat"])
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(f"you said {message.data}")
            return socket
        case "/no-socket":
            return web.Response(status=404)
        case "/cookies":
            answer = web.Response(text=json.dumps(dict(sorted(request.cookies.items()))))
            answer.set_cookie("count", str(int(request.cookies.get("count", "0")) + 1))
            return answer
        case "/moved":
            return web.Response(status=int(request.query["status"]), headers={"Location": "/echo?moved=1"})
        case "/slow":
            await asyncio.sleep(1)
            return web.Response(text="late")
        case "/slow-body":
            response = web.StreamResponse(headers={"Content-Length": "4"})
            await response.prepare(request)
            await response.write(b"ab")
            await asyncio.sleep(1)
            return response
        case "/gzip":
            return web.Response(body=gzip.compress(LINES, mtime=0), headers={"Content-Encoding": "gzip"})
        case "/nothing":
            return web.Response(status=204)
        case "/large":
            return web.Response(body=LINES * 100)
        case "/latin":
            return web.Response(body="ü".encode("latin-1"), content_type="text/plain", charset="latin-1")
        case _:
            return web.Response(text=request.path_qs, headers=seen)


SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """One thing that a session can do; what it returns must not depend on the layers."""
    SCENARIOS[function.__name__.replace("_", " ")] = function
    return function


@scenario
async def an_answer(client: Client) -> object:
    async with client.session() as session, session.get("/echo?a=1", headers={"X-Own": "1"}) as response:
        return (
            await response.text(),
            response.status,
            response.reason,
            response.ok,
            response.method,
            response.url.path_qs,
            response.real_url.path_qs,
            response.content_type,
            response.charset,
            response.history,
            response.headers["X-Method"],
            "X-Own" in response.request_info.headers,
            sorted(vars(response).keys() - {RECORDS_KEY}),
        )


@scenario
async def each_method(client: Client) -> object:
    seen = []
    async with client.session() as session:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "POST", "PATCH", "DELETE"):
            async with session.request(method, "/echo", data=None if method in {"GET", "HEAD"} else b"abc") as response:
                seen.append((await response.read(), response.headers["X-Method"], response.headers["X-Body"]))
    return seen


@scenario
async def a_stream_by_chunks(client: Client) -> object:
    async with client.session() as session, session.get("/stream") as response:
        return b"".join([chunk async for chunk in response.content.iter_chunked(100)]) == LINES


@scenario
async def a_stream_by_lines(client: Client) -> object:
    async with client.session() as session, session.get("/stream") as response:
        return [line async for line in response.content]


@scenario
async def a_stream_in_pieces(client: Client) -> object:
    async with client.session() as session, session.get("/stream") as response:
        content = response.content
        first = await content.readexactly(10), await content.readuntil(b"3\n"), await content.read(5)
        return first, len(await content.read()), content.at_eof()


@scenario
async def a_stream_that_nobody_reads(client: Client) -> object:
    async with client.session() as session:
        async with session.get("/large") as response:
            status = response.status
        async with session.get("/echo") as response:
            return status, await response.text()


@scenario
async def events(client: Client) -> object:
    async with client.session() as session, session.get("/events") as response:
        return await response.content.readline()


@scenario
async def a_websocket(client: Client) -> object:
    async with client.session() as session, session.ws_connect("/socket", protocols=["chat"], heartbeat=30) as socket:
        await socket.send_str("hello")
        said = await socket.receive_str()
        await socket.send_json({"a": 1})
        return said, await socket.receive_str(), socket.protocol, await socket.close(), socket.close_code


@scenario
async def cookies(client: Client) -> object:
    async with client.session(cookies={"own": "1"}, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        seen = []
        for _ in range(3):
            async with session.get("/cookies", cookies={"once": "2"}) as response:
                seen.append((await response.json(content_type=None), sorted(response.cookies)))
        return seen, sorted((cookie.key, cookie.value) for cookie in session.cookie_jar)


@scenario
async def redirects(client: Client) -> object:
    seen: list[object] = []
    async with client.session() as session:
        for status in (301, 302, 303, 307, 308):
            for method in ("GET", "POST"):
                data = b"abc" if method == "POST" else None
                async with session.request(method, f"/moved?status={status}", data=data) as response:
                    hops = [(hop.status, hop.method) for hop in response.history]
                    said = response.headers["X-Method"], response.headers["X-Body"]
                    seen.append((await response.text(), response.url.path_qs, hops, said))
        async with session.get("/moved?status=302", allow_redirects=False) as response:
            seen.append((response.status, response.headers["Location"]))
        with pytest.raises(aiohttp.TooManyRedirects):
            await session.get("/moved?status=302", max_redirects=1)
    return seen


@scenario
async def raise_for_status(client: Client) -> object:
    called: list[int] = []

    async def check(response: aiohttp.ClientResponse) -> None:
        called.append(response.status)

    for given in (True, False, check):
        async with client.session(raise_for_status=given) as session, session.get("/echo") as response:
            response.raise_for_status()
    async with client.session() as session, session.get("/echo", raise_for_status=True) as response:
        return called, response.status


@scenario
async def the_signals_of_a_trace(client: Client) -> object:
    told: list[object] = []
    config = aiohttp.TraceConfig()
    for name in (
        "on_request_start",
        "on_connection_create_start",
        "on_connection_create_end",
        "on_connection_reuseconn",
        "on_request_headers_sent",
        "on_request_chunk_sent",
        "on_response_chunk_received",
        "on_request_redirect",
        "on_request_end",
        "on_request_exception",
    ):

        async def tell(_: object, context: Any, params: Any, name: str = name) -> None:
            told.append((name, context.trace_request_ctx, getattr(params, "chunk", None)))

        getattr(config, name).append(tell)
    async with client.session(trace_configs=[config]) as session:
        async with session.get("/moved?status=302", trace_request_ctx={"mine": 1}) as response:
            await response.read()
        async with session.post("/echo", data=b"abc") as response:
            await response.read()
    return told


@scenario
async def json_serialize(client: Client) -> object:
    async with client.session(json_serialize=lambda value: f"mine:{value}") as session:
        async with session.post("/echo", json=[1]) as response:
            return response.headers["X-Body"], response.headers["X-Type"]


@scenario
async def read_bufsize(client: Client) -> object:
    async with client.session(read_bufsize=2**10) as session, session.get("/large") as response:
        limits = response.content.get_read_buffer_limits()
        return limits, len(await response.read())


@scenario
async def auto_decompress(client: Client) -> object:
    seen = []
    for given in (True, False):
        async with client.session(auto_decompress=given) as session, session.get("/gzip") as response:
            seen.append(await response.read())
    return seen


@scenario
async def bodies(client: Client) -> object:
    async def generator() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    form = aiohttp.FormData({"a": "1"})
    options: list[dict[str, Any]] = [
        {"data": b"abc"},
        {"data": "text"},
        {"data": {"a": "ü"}},
        {"data": form},
        {"json": {"a": 1}},
        {"data": generator()},
        {"data": b"abc" * 100, "compress": "gzip"},
        {"data": b"abc", "chunked": True},
        {"data": b"abc", "skip_auto_headers": ["Content-Type"]},
    ]
    seen = []
    async with client.session() as session:
        for given in options:
            async with session.post("/echo", **given) as response:
                seen.append((response.headers["X-Body"], response.headers["X-Type"]))
    return seen


@scenario
async def a_timeout_of_one_request(client: Client) -> object:
    seen = []
    async with client.session() as session:
        for timeout in (aiohttp.ClientTimeout(total=0.05), aiohttp.ClientTimeout(sock_read=0.05)):
            for path in ("/slow", "/slow-body"):
                try:
                    async with session.post(path, timeout=timeout) as response:
                        await response.read()
                except TimeoutError as error:
                    seen.append(isinstance(error, TimeoutError))
        async with session.get("/echo", timeout=aiohttp.ClientTimeout(total=5)) as response:
            seen.append(response.ok)
    return seen


@scenario
async def strange_answers(client: Client) -> object:
    async with client.session() as session:
        async with session.get("/nothing") as response:
            nothing = response.status, await response.read()
        async with session.get("/latin") as response:
            return nothing, await response.text(), response.charset


@scenario
async def many_at_once_by_one_connection(client: Client) -> object:
    async with client.session(connector=aiohttp.TCPConnector(limit=1)) as session:

        async def one(number: int) -> str:
            async with session.get(f"/echo?{number}") as response:
                return await response.text()

        return await asyncio.gather(*(one(number) for number in range(20)))


@scenario
async def the_connection_is_used_again(client: Client) -> object:
    created: list[object] = []
    config = aiohttp.TraceConfig()

    async def create(*given: object) -> None:
        created.append(given)

    config.on_connection_create_end.append(create)
    async with client.session(trace_configs=[config]) as session:
        for path in ("/echo", "/stream", "/gzip", "/nothing", "/large", "/echo"):
            async with session.get(path) as response:
                await response.read()
        async with session.head("/large") as response:
            pass
    return len(created)


@scenario
async def middlewares_of_one_request(client: Client) -> object:
    async def mine(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        request.headers["X-Mine"] = "1"
        return await handler(request)

    async with client.session() as session, session.get("/echo", middlewares=(mine,)) as response:
        return response.request_info.headers["X-Mine"]


@pytest.fixture(params=["all", "all and nothing raised", "Maesn's"])
def make(request: pytest.FixtureRequest, tracing: Tracing) -> Callable[[str], Layers]:
    def full(url: str) -> Layers:
        if request.param == "Maesn's":
            return maesn.layers("api-key", "account-key", url, tracer_provider=tracing.provider)
        auth = HeaderAuth({"X-API-KEY": "zq-plain-4711-key"}, origin=url)
        raises = request.param == "all"
        return stack(
            maesn.RULES, Breaker(), auth=auth, tracer_provider=tracing.provider, raise_errors=raises, deadline=60
        )

    return full


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_calls_with_layers_behave_like_bare_aiohttp(
    name: str, make: Callable[[str], Layers], serve: Serve
) -> None:
    url = await serve(server)
    plain = await SCENARIOS[name](Client(url, tuple))
    assert plain
    assert await SCENARIOS[name](Client(url, lambda: make(url))) == plain


@pytest.mark.parametrize(
    ("raise_errors", "kind"), [(True, NotFound), (False, aiohttp.WSServerHandshakeError)], ids=["raised", "not raised"]
)
async def test_a_websocket_that_is_refused_is_classified(
    serve: Serve, raise_errors: bool, kind: type[Exception]
) -> None:
    url = await serve(server)
    async with aiohttp.ClientSession(url, middlewares=stack(maesn.RULES, raise_errors=raise_errors)) as session:
        with pytest.raises(kind) as caught:
            await session.ws_connect("/no-socket")
    assert getattr(caught.value, "status", None) == 404


async def test_a_websocket_handshake_is_retried_and_the_socket_unchanged(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    refused = 0

    async def at_first_not(request: web.Request) -> web.StreamResponse:
        nonlocal refused
        if not refused:
            refused += 1
            return web.Response(status=429)
        return await server(request)

    url = await serve(at_first_not)
    async with aiohttp.ClientSession(url, middlewares=stack(maesn.RULES, attempt_timeout=10)) as session:
        async with session.ws_connect("/socket") as socket:
            assert virtual_time.elapsed >= 60
            await asyncio.sleep(1000)  # longer than an attempt may take: it has ended
            await socket.send_str("hello")
            assert await socket.receive_str() == "you said hello"
