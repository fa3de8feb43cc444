from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from tests.layering import together
from tests.servers import Handler, Serve, ServeRaw

from lamella import AttemptTimeout, Buffer, ConnectionLost, Timeout, stack
from lamella.rules import RuleBook

BODY = bytes(range(256)) * 4000
OCTETS = "application/octet-stream"


def sender(*pieces: bytes, **headers: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={name.replace("_", "-"): value for name, value in headers.items()})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        return response

    return answer


@pytest.mark.sampled
@pytest.mark.parametrize("limit", [1, 1000, len(BODY), 1 << 30])
@pytest.mark.parametrize("headers", [{}, {"Content_Length": str(len(BODY))}])
@pytest.mark.parametrize("whole", [False, True])
async def test_the_body_can_be_read_in_every_way(
    serve: Serve, limit: int, headers: dict[str, str], whole: bool
) -> None:
    pieces = [BODY[start : start + 50_000] for start in range(0, len(BODY), 50_000)]
    url = await serve(sender(*pieces, **headers))
    buffer = Buffer(whole={OCTETS: limit}) if whole else Buffer(limit)
    async with aiohttp.ClientSession(url, middlewares=(buffer,)) as session:
        async with session.get("/") as response:
            assert await response.read() == BODY
        async with session.get("/") as response:
            assert b"".join([chunk async for chunk in response.content.iter_chunked(777)]) == BODY
        async with session.get("/") as response:
            assert b"".join([chunk async for chunk, _ in response.content.iter_chunks()]) == BODY
        async with session.get("/") as response:
            assert await response.content.readexactly(len(BODY)) == BODY
            assert await response.content.read() == b""


async def test_buffer_waits_for_the_whole_body(serve_raw: ServeRaw) -> None:
    whole = False

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal whole
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        await asyncio.sleep(0.01)
        whole = True
        writer.write(b"half")
        await writer.drain()

    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(
        await serve_raw(connection), connector=connector, middlewares=(Buffer(),)
    ) as session:
        response = await session.get("/")
        assert whole
        assert not connector._acquired
        assert await response.read() == b"halfhalf"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_cut_body_is_a_lost_connection(serve_raw: ServeRaw, method: str) -> None:
    connections = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        await writer.drain()

    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(
        await serve_raw(connection), connector=connector, middlewares=(Buffer(),)
    ) as session:
        with pytest.raises(ConnectionLost):
            await session.request(method, "/")
        assert not connector._acquired
    assert connections == 1


@pytest.mark.parametrize("kind", ["text/event-stream", "multipart/x-mixed-replace; boundary=x"])
@pytest.mark.parametrize(
    "layers", [(Buffer(),), (together([Buffer()]),), stack(RuleBook())], ids=["alone", "fused", "all"]
)
async def test_an_endless_body_is_not_waited_for(
    serve: Serve, layers: tuple[aiohttp.ClientMiddlewareType, ...], kind: str
) -> None:
    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(10)
        return response

    async with aiohttp.ClientSession(await serve(events), middlewares=layers) as session:
        async with asyncio.timeout(5), session.get("/") as response:
            assert await response.content.readline() == b"data: 1\n"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("length", "waits"), [(8, True), (9, False)])
async def test_a_body_stated_to_be_too_long_is_passed_on_at_once(
    serve_raw: ServeRaw, fused: bool, whole: bool, length: int, waits: bool
) -> None:
    handed_on, ended = asyncio.Event(), False

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n1" % length)
        await (asyncio.sleep(0.01) if waits else handed_on.wait())
        ended = True
        writer.write(b"2" * (length - 1))

    buffer = Buffer(whole={OCTETS: 8}) if whole else Buffer(8, whole={"text/plain": 100})
    chosen = together([buffer]) if fused else buffer
    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=(chosen,)) as session:
        async with asyncio.timeout(5), session.get("/") as response:
            assert ended is waits
            handed_on.set()
            assert len(await response.read()) == length


async def slow(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "8"})
    await response.prepare(request)
    await response.write(b"half")
    await asyncio.sleep(10)
    return response


async def test_a_timeout_of_the_session_is_an_attempt_timeout(serve: Serve) -> None:
    connector, timeout = aiohttp.TCPConnector(), aiohttp.ClientTimeout(total=0.05)
    async with aiohttp.ClientSession(
        await serve(slow), connector=connector, timeout=timeout, middlewares=(Buffer(),)
    ) as session:
        with pytest.raises(AttemptTimeout):
            await session.get("/")
        assert not connector._acquired


async def test_a_slow_body_is_a_timeout(serve: Serve) -> None:
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(
        await serve(slow), connector=connector, middlewares=(Timeout(0.05), Buffer())
    ) as session:
        with pytest.raises(TimeoutError):
            await session.get("/")
        assert not connector._acquired


async def test_a_websocket_is_unchanged(serve: Serve) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(await socket.receive_str())
        await socket.close()
        return socket

    async with aiohttp.ClientSession(await serve(echo), middlewares=stack(RuleBook())) as session:
        async with asyncio.timeout(5), session.ws_connect("/") as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"


@pytest.mark.parametrize("header", ["", "Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("fused", [False, True])
async def test_an_upgraded_response_is_unchanged(serve_raw: ServeRaw, header: str, fused: bool) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n{header}\r\n".encode())
        await reader.read()

    buffer = Buffer()
    chosen = together([buffer]) if fused else buffer
    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=(chosen,)) as session:
        async with asyncio.timeout(5), session.get("/") as response:
            assert response.status == 101


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"^limit must be a whole number, 1 or more, got 0$"):
        Buffer(0)
    with pytest.raises(ValueError, match=r"^whole\['text/plain'\] must be a whole number, 1 or more, got 0$"):
        Buffer(whole={"application/json": 1, "text/plain": 0})


def test_the_repr_of_a_buffer_shows_its_arguments() -> None:
    assert repr(Buffer(7)) == "Buffer(7)"
    assert repr(Buffer(7, whole={"a/b": 8})) == "Buffer(7, whole={'a/b': 8})"


FRAMINGS = {
    "chunked": ("Transfer-Encoding: chunked", b"64\r\nhalf"),
    "without its last chunk": ("Transfer-Encoding: chunked", b"4\r\nhalf\r\n"),
    "with a length": ("Content-Length: 100", b"half"),
}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("kind", "framing", "reads"),
    [
        *[("application/json", framing, True) for framing in FRAMINGS],
        *[("application/json; charset=utf-8", framing, True) for framing in FRAMINGS],
        ("application/pdf", "with a length", True),
        ("application/pdf", "chunked", False),
        ("application/x-ndjson", "chunked", False),
        ("text/event-stream", "with a length", False),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
async def test_a_content_type_may_be_read_whole_without_a_length(
    serve_raw: ServeRaw, kind: str, framing: str, reads: bool, fused: bool
) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        header, body = FRAMINGS[framing]
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{header}\r\n\r\n".encode() + body)
        await writer.drain()
        await asyncio.sleep(0.01)

    buffer = Buffer(whole={"application/json": 1000})
    chosen = together([buffer]) if fused else buffer
    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=(chosen,)) as session:
        if reads:
            with pytest.raises(ConnectionLost):
                await session.get("/")
        else:
            async with session.get("/") as response:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()


async def test_a_call_waiting_for_a_writer_can_be_cancelled(serve_raw: ServeRaw) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        await reader.read()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.sleep(10)

    async def cancel(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return response

    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(
        await serve_raw(connection), connector=connector, middlewares=(Buffer(), cancel)
    ) as session:
        task = asyncio.ensure_future(session.post("/", data=body()))
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.sleep(0)
        assert not connector._acquired


async def test_at_most_the_limit_is_kept_in_memory(serve: Serve) -> None:
    piece, limit = bytes(2**16), 8 * 2**20

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(0, 4 * limit, len(piece)):
            await response.write(piece)
        return response

    tracemalloc.start(1)
    try:
        buffer = Buffer(whole={OCTETS: limit})
        async with aiohttp.ClientSession(await serve(answer), middlewares=(buffer,)) as session:
            async with session.get("/") as response:
                assert sum([len(chunk) async for chunk in response.content.iter_chunked(2**16)]) == 4 * limit
        assert tracemalloc.get_traced_memory()[1] < 1.5 * limit
    finally:
        tracemalloc.stop()
