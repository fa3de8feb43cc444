from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable

import aiohttp
import pytest
import stamina
from aiohttp import web
from tests.layering import together
from tests.servers import Serve, ServeRaw

from lamella import (
    AnswerInvalid,
    ApiError,
    AttemptTimeout,
    BadRequest,
    CertificateInvalid,
    Classify,
    ClientStatusError,
    ConnectFailed,
    ConnectionLost,
    InternalServerError,
    Retry,
    Rule,
    RuleBook,
    ServerStatusError,
    Throttle,
    TooManyRequests,
    TransportError,
)
from lamella.call import Call
from lamella.pipeline import Result

RULES = RuleBook(Rule(429, "Too Many Requests", hint="slow down"))


async def test_a_success_passes_unchanged(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text="good", headers={"X-A": "b"})

    async with aiohttp.ClientSession(await serve(answer), middlewares=(Classify(RULES),)) as session:
        async with session.get("/") as response:
            assert (await response.text(), response.headers["X-A"]) == ("good", "b")


async def test_an_error_whose_body_has_arrived_is_recorded_by_all_layers_without_a_wait(serve_raw: ServeRaw) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\nbody")

    returned: list[object] = []

    class Classifying(Classify):
        def after(self, call: Call, result: Result) -> Result | Awaitable[Result | None] | None:
            returned.append(changed := super().after(call, result))
            return changed

    class Throttling(Throttle):
        def after(self, call: Call, result: Result) -> Awaitable[None] | None:
            returned.append(changed := super().after(call, result))
            return changed

    layers = (Throttling(RULES), Classifying(RULES))
    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=layers) as session:
        with pytest.raises(InternalServerError) as caught:
            await session.get("/")
    assert returned == [caught.value, None]
    assert caught.value.body == b"body"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (429, TooManyRequests),
        (418, ClientStatusError),
        (599, ServerStatusError),
        (999, ServerStatusError),
    ],
)
@pytest.mark.parametrize("layer", [Classify(RULES), together([Classify(RULES)])], ids=["alone", "fused"])
async def test_a_bad_status_is_raised_and_its_connection_is_free(
    serve_raw: ServeRaw, status: int, kind: type[ApiError], layer: aiohttp.ClientMiddlewareType
) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 4\r\nRetry-After: 7\r\n\r\nbody".encode())

    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(await serve_raw(connection), connector=connector, middlewares=(layer,)) as session:
        for _ in range(3):
            async with asyncio.timeout(5):
                with pytest.raises(kind) as caught:
                    await session.get("/")
            assert (caught.value.status, caught.value.body, caught.value.retry_after) == (status, b"body", 7.0)
            assert not connector._acquired


async def test_the_connection_of_a_long_error_body_is_released(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, body=bytes(2**20))

    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(
        await serve(answer), connector=connector, middlewares=(Classify(RULES),)
    ) as session:
        for _ in range(2):
            async with asyncio.timeout(5):
                with pytest.raises(ServerStatusError) as caught:
                    await session.get("/")
            assert len(caught.value.body) == 64 * 1024
            assert not connector._acquired


async def test_a_retry_after_date_is_measured_on_the_servers_clock(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        dates = {"Date": "Sun, 06 Nov 1994 08:49:37 GMT", "Retry-After": "Sun, 06 Nov 1994 08:51:07 GMT"}
        return web.Response(status=429, headers=dates)

    async with aiohttp.ClientSession(await serve(answer), middlewares=(Classify(RULES),)) as session:
        with pytest.raises(TooManyRequests) as caught:
            await session.get("/")
    assert caught.value.retry_after == 90.0


RAW = {
    "closed at once": (b"", ConnectionLost),
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", ConnectionLost),
    "half a status line": (b"HTTP/1.1 20", ConnectionLost),
    "half of the headers": (b"HTTP/1.1 200 OK\r\nContent-Le", ConnectionLost),
    "two content lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", ConnectionLost),
    "one endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, AnswerInvalid),
}


@pytest.mark.parametrize(("sent", "kind"), RAW.values(), ids=RAW)
async def test_a_partial_response_is_not_a_response(
    serve_raw: ServeRaw, sent: bytes, kind: type[TransportError]
) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()

    for method in ("GET", "POST"):
        async with aiohttp.ClientSession(await serve_raw(connection), middlewares=(Classify(RULES),)) as session:
            with pytest.raises(kind) as caught:
                await session.request(method, "/?token=s3cr3t-token", headers={"X-API-KEY": "s3cr3t-key"})
        shown = f"{caught.value!s} {caught.value!r} {caught.value.__cause__!r} {caught.value.__cause__!s}"
        assert "s3cr3t-key" not in shown
        assert "s3cr3t-token" not in f"{caught.value!s} {caught.value!r}"


async def test_a_failed_connection_means_nothing_was_sent() -> None:
    async with aiohttp.ClientSession(middlewares=(Classify(RULES),)) as session:
        for url in ("http://127.0.0.1:1/", "http://no-such-host.invalid/"):
            with pytest.raises(ConnectFailed):
                await session.post(url, data=b"x")


async def test_a_server_with_an_untrusted_certificate_is_rejected(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response()

    url = await serve(answer)
    async with aiohttp.ClientSession(middlewares=(Classify(RULES),)) as session:
        with pytest.raises(CertificateInvalid):
            await session.get(url.replace("http:", "https:"), ssl=ssl.create_default_context())


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01 not HTTP\r\n\r\n"])
@pytest.mark.parametrize("layers", [(Classify(RULES),), (Retry(RULES, attempts=2),)])
async def test_a_proxy_that_does_not_answer_to_connect_is_a_failed_connection(
    serve_raw: ServeRaw, layers: tuple[Classify | Retry, ...], said: bytes
) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT ")
        writer.write(said)

    async with aiohttp.ClientSession(middlewares=layers) as session:
        with stamina.set_testing(True), pytest.raises(ConnectFailed):
            await session.post("https://api.example/", data=b"x", proxy=await serve_raw(connection))


@pytest.mark.parametrize("limit", ["sock_read", "total"])
async def test_a_timeout_of_aiohttp_is_an_attempt_timeout(serve: Serve, limit: str) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(10)
        return web.Response()

    timeout = aiohttp.ClientTimeout(**{limit: 0.05})
    async with aiohttp.ClientSession(await serve(never), timeout=timeout, middlewares=(Classify(RULES),)) as session:
        with pytest.raises(AttemptTimeout):
            await session.get("/")


async def test_only_a_rejected_websocket_is_classified(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/no":
            return web.Response(status=429)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(await socket.receive_str())
        await socket.close()
        return socket

    async with aiohttp.ClientSession(await serve(answer), middlewares=(Classify(RULES),)) as session:
        async with session.ws_connect("/yes") as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"
        with pytest.raises(TooManyRequests):
            await session.ws_connect("/no")


async def test_a_typed_error_passes_unchanged(serve: Serve) -> None:
    async def lost(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise ConnectFailed(request.method, request.url, RULES.rule_for(ConnectFailed.failure), "said so")

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response()

    async with aiohttp.ClientSession(await serve(answer), middlewares=(Classify(RULES), lost)) as session:
        with pytest.raises(ConnectFailed, match="said so"):
            await session.get("/")
