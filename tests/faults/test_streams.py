"""Streams, duplex calls and redirects are as with bare aiohttp: no layer waits for a body whose length is unknown."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp
import pytest
from tests.layering import together
from tests.servers import ServeRaw

from lamella import Buffer, ConnectionLost, maesn, stack
from lamella.rules import RuleBook
from lamella.testing import VirtualClock

Layers = tuple[aiohttp.ClientMiddlewareType, ...]

RULES: Final = RuleBook()
LIMIT: Final = 1000
ONE: Final = b'{"line": 1}\n'
TWO: Final = b'{"line": 2}\n'

LAYERS: Final[dict[str, Callable[[str], Layers]]] = {
    "Buffer alone": lambda _: (Buffer(LIMIT),),
    "Buffer fused": lambda _: (together([Buffer(LIMIT)]),),
    "all": lambda _: stack(RULES, buffer=LIMIT),
    "all fused": lambda _: (together(stack(RULES, buffer=LIMIT)),),
    "all, nothing raised": lambda _: stack(RULES, buffer=LIMIT, raise_errors=False),
    "all with a deadline": lambda _: stack(RULES, buffer=LIMIT, deadline=60),
    "Maesn's": lambda url: maesn.layers("key", "account", url),
}


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Callable[[str], Layers]:
    return LAYERS[request.param]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def plain(data: bytes) -> bytes:
    return data


def gzipped_chunk() -> Callable[[bytes], bytes]:
    zipper = zlib.compressobj(wbits=31)
    return lambda data: chunk(zipper.compress(data) + zipper.flush(zlib.Z_SYNC_FLUSH))


CHUNKED: Final = "Transfer-Encoding: chunked"
# Headers, how a piece is framed, and what ends the body.
STREAMS: Final[dict[str, tuple[tuple[str, ...], Callable[[], Callable[[bytes], bytes]], bytes]]] = {
    "NDJSON": (("Content-Type: application/x-ndjson", CHUNKED), lambda: chunk, b"0\r\n\r\n"),
    "an octet stream": (("Content-Type: application/octet-stream", CHUNKED), lambda: chunk, b"0\r\n\r\n"),
    "an octet stream that ends with the connection": (
        ("Content-Type: application/octet-stream", "Connection: close"),
        lambda: plain,
        b"",
    ),
    "text": (("Content-Type: text/plain; charset=utf-8", CHUNKED), lambda: chunk, b"0\r\n\r\n"),
    "no type": ((CHUNKED,), lambda: chunk, b"0\r\n\r\n"),
    "events": (("Content-Type: text/event-stream", CHUNKED), lambda: chunk, b"0\r\n\r\n"),
    "events with a length": (
        ("Content-Type: text/event-stream", f"Content-Length: {len(ONE + TWO)}"),
        lambda: plain,
        b"",
    ),
    "parts": (("Content-Type: multipart/x-mixed-replace; boundary=x", CHUNKED), lambda: chunk, b"0\r\n\r\n"),
    "gzip": (
        ("Content-Type: application/x-ndjson", "Content-Encoding: gzip", CHUNKED),
        gzipped_chunk,
        b"0\r\n\r\n",
    ),
}
SLOW_JSON: Final = (("Content-Type: application/json", CHUNKED), lambda: chunk, b"0\r\n\r\n")


@pytest.mark.sampled(12)
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        *[(kind, layers) for kind in STREAMS for layers in LAYERS],
        # The Maesn API sends no JSON that is a stream.
        *[("slow JSON", layers) for layers in LAYERS if layers != "Maesn's"],
    ],
)
async def test_each_piece_of_a_stream_arrives_when_it_is_sent(kind: str, layers: str, serve_raw: ServeRaw) -> None:
    headers, framing, end = STREAMS.get(kind, SLOW_JSON)
    read, frame = asyncio.Event(), framing()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write("\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode() + frame(ONE))
        await read.wait()
        writer.write(frame(TWO) + end)

    url = await serve_raw(connection)
    async with aiohttp.ClientSession(url, middlewares=LAYERS[layers](url)) as session, asyncio.timeout(10):
        async with session.get("/") as response:
            assert await response.content.readline() == ONE
            read.set()
            assert await response.content.readline() == TWO


async def test_headers_arrive_before_the_first_piece(make: Callable[[str], Layers], serve_raw: ServeRaw) -> None:
    """As of a long poll."""
    seen = asyncio.Event()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        await seen.wait()
        writer.write(chunk(ONE) + b"0\r\n\r\n")

    url = await serve_raw(connection)
    async with aiohttp.ClientSession(url, middlewares=make(url)) as session, asyncio.timeout(10):
        async with session.get("/") as response:
            seen.set()
            assert await response.read() == ONE


@pytest.mark.sampled
@pytest.mark.parametrize("pause", [False, True], ids=["at once", "one by one"])
@pytest.mark.parametrize("framing", ["chunked", "gzip", "length"])
async def test_the_caller_sees_the_chunks_of_the_server(
    framing: str, pause: bool, make: Callable[[str], Layers], serve_raw: ServeRaw
) -> None:
    pieces = [b"%d" % number * 20 for number in range(5)]
    frame = {"chunked": chunk, "gzip": gzipped_chunk(), "length": plain}[framing]
    sent = [frame(piece) for piece in pieces]
    head = {"chunked": CHUNKED, "gzip": f"Content-Encoding: gzip\r\n{CHUNKED}"}.get(framing, "Content-Length: 100")

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        for piece in sent:
            writer.write(piece)
            if pause:
                await writer.drain()
                for _ in range(10):
                    await asyncio.sleep(0)
        writer.write(b"" if framing == "length" else b"0\r\n\r\n")
        await reader.read()

    url = await serve_raw(connection)
    async with aiohttp.ClientSession(url, middlewares=make(url)) as session, asyncio.timeout(10):
        async with session.get("/") as response:
            seen = [piece async for piece in response.content.iter_chunks()]
    assert b"".join(data for data, _ in seen) == b"".join(pieces)
    if framing == "length":
        assert not any(ended for _, ended in seen)
    else:
        ends, size = set(), 0
        for data, ended in seen:
            size += len(data)
            ends |= {size} if ended else set()
        assert ends == {20, 40, 60, 80, 100}


@pytest.mark.sampled
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_may_wait_for_the_first_line_of_the_answer(
    framing: str, method: str, make: Callable[[str], Layers], serve_raw: ServeRaw
) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readline() == b"5\r\n"
        assert await reader.readline() == b"first\r\n"
        frame = chunk if framing == "chunked" else plain
        head = CHUNKED if framing == "chunked" else f"Content-Length: {len(ONE + TWO)}"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{head}\r\n\r\n".encode() + frame(ONE))
        assert await reader.readuntil(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"
        writer.write(frame(TWO) + (b"0\r\n\r\n" if framing == "chunked" else b""))
        await reader.read()

    answered = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await answered.wait()
        yield b"second"

    url = await serve_raw(connection)
    async with aiohttp.ClientSession(url, middlewares=make(url)) as session, asyncio.timeout(10):
        async with session.request(method, "/", data=body()) as response:
            assert await response.content.readline() == ONE
            answered.set()
            assert await response.content.readline() == TWO
            assert await response.read() == b""


REDIRECT_BODIES: Final[dict[str, tuple[str, bytes, bool]]] = {
    "cut": ("Content-Length: 100", b"half", False),
    "cut chunk": (CHUNKED, b"64\r\nhalf", False),
    "no last chunk": (CHUNKED, chunk(b"all"), False),
    "silent": ("Content-Length: 100", b"", True),
    "silent in the middle": ("Content-Length: 100", b"half", True),
    "silent in a chunk": (CHUNKED, b"64\r\nhalf", True),
    "silent until the end": ("X: y", b"half", True),
    "no gzip": ("Content-Encoding: gzip\r\nContent-Length: 9", b"no gzip!!", True),
}


class Redirects:
    """Redirects the first request, with a body that is broken, and answers the next."""

    def __init__(self, status: int, location: str, framing: str, body: bytes, *, silent: bool) -> None:
        self.paths: list[bytes] = []
        self._answer = f"HTTP/1.1 {status} Moved\r\n{location}{framing}\r\n\r\n".encode() + body
        self._silent = silent

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.paths.append(head.split(b" ")[1])
        if self.paths[-1] == b"/there":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere")
            await reader.read()
            return
        writer.write(self._answer)
        await writer.drain()
        if self._silent:
            await reader.read()


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("status", "header"),
    [
        (302, "Location"),
        (307, "Location"),
        *(
            pytest.param(status, header, marks=pytest.mark.slow)
            for status, header in ((301, "Location"), (302, "URI"), (303, "Location"))
        ),
    ],
)
@pytest.mark.parametrize("body", REDIRECT_BODIES)
async def test_a_redirect_is_followed_without_its_body(
    body: str, status: int, header: str, make: Callable[[str], Layers], serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    framing, sent, silent = REDIRECT_BODIES[body]
    server = Redirects(status, f"{header}: /there\r\n", framing, sent, silent=silent)
    url = await serve_raw(server)
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(url, connector=connector, middlewares=make(url)) as session:
        async with session.get("/here") as response:
            assert await response.read() == b"here"
            assert [hop.status for hop in response.history] == [status]
        assert not connector._acquired
    assert server.paths == [b"/here", b"/there"]
    assert virtual_time.elapsed < 1


async def test_a_redirect_that_trickles_is_followed_at_once(
    make: Callable[[str], Layers], serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/there" in await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere")
            return
        writer.write(b"HTTP/1.1 308 X\r\nLocation: /there\r\nContent-Length: 100\r\n\r\n")
        for _ in range(100):
            writer.write(b"x")
            await asyncio.sleep(1)

    url = await serve_raw(connection)
    async with aiohttp.ClientSession(url, middlewares=make(url)) as session, session.get("/here") as response:
        assert await response.read() == b"here"
    assert virtual_time.elapsed < 1


async def test_a_redirect_that_is_not_followed_is_returned_at_once(
    make: Callable[[str], Layers], serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    server = Redirects(302, "Location: /there\r\n", "Content-Length: 100", b"half", silent=True)
    url = await serve_raw(server)
    async with aiohttp.ClientSession(url, middlewares=make(url)) as session:
        async with session.get("/here", allow_redirects=False) as response:
            assert (response.status, await response.content.readany()) == (302, b"half")
    assert (server.paths, virtual_time.elapsed < 1) == ([b"/here"], True)


async def test_a_redirect_without_location_is_a_normal_response(
    serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    """Without a target aiohttp hands it to the caller, so that a body which is cut is an attempt that failed."""
    server = Redirects(302, "", "Content-Length: 100", b"half", silent=False)
    url = await serve_raw(server)
    async with aiohttp.ClientSession(url, middlewares=stack(RULES)) as session:
        with pytest.raises(ConnectionLost):
            await session.get("/here")
    assert server.paths == [b"/here"] * 5


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["304", "204", "HEAD"])
async def test_a_response_without_body_is_not_waited_for(
    kind: str, make: Callable[[str], Layers], serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    status = {"304": 304, "204": 204}.get(kind, 200)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        # A length that says what another request would get.
        length = "" if status == 204 else "Content-Length: 100\r\n"
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{length}\r\n".encode())
        await reader.read()

    url = await serve_raw(connection)
    async with aiohttp.ClientSession(url, middlewares=make(url)) as session:
        async with session.request("HEAD" if kind == "HEAD" else "GET", "/") as response:
            assert (response.status, await response.read()) == (status, b"")
    assert virtual_time.elapsed < 1


@pytest.mark.parametrize("whole", [False, True])
async def test_a_highly_compressed_body_is_read_up_to_the_limit(whole: bool, serve_raw: ServeRaw) -> None:
    """The length is that of the packed bytes; what exceeds the limit unpacked is handed on as a stream."""
    body = bytes(100_000)
    packed = gzip.compress(body)
    rest = asyncio.Event()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"Content-Type: text/plain\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}"
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + packed[:-9])
        await rest.wait()
        writer.write(packed[-9:])
        await reader.read()

    assert len(packed) < LIMIT
    layers = (Buffer(whole={"text/plain": LIMIT}) if whole else Buffer(LIMIT),)
    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=layers) as session, asyncio.timeout(10):
        async with session.get("/") as response:
            assert not response.content.is_eof()
            rest.set()
            assert await response.read() == body


async def test_a_compressed_body_within_the_limit_is_read_in_the_attempt(serve_raw: ServeRaw) -> None:
    packed = gzip.compress(b"x" * (LIMIT - 1))
    connections = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        head = f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}"
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + packed[: None if connections > 1 else 12])

    rules = maesn.RULES.scaled(1e-5)
    async with (
        aiohttp.ClientSession(await serve_raw(connection), middlewares=stack(rules, buffer=LIMIT)) as session,
        asyncio.timeout(10),
    ):
        async with session.get("/") as response:
            assert await response.read() == b"x" * (LIMIT - 1)
    assert connections == 2
