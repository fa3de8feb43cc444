"""A body is sent again byte for byte, or the call says why it cannot be; and a large one is never held in memory."""

from __future__ import annotations

import asyncio
import io
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from tests.request_bodies import ONE_SHOT, OPTIONS, REPLAYABLE, Files
from tests.servers import Serve

from lamella import ApiError, Buffer, HeaderAuth, LamellaError, StopReason, maesn, stack
from lamella.testing import VirtualClock

MB: Final = 2**20
MUCH: Final = 100 * MB
PIECE: Final = bytes(2**16)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    with Files(tmp_path) as found:
        yield found


class Server:
    """Reads each body to its end, and is well from the second request on; at first it ends as it is told."""

    def __init__(self, first: str) -> None:
        self.bodies: list[bytes] = []
        self._first = first

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Expect"):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        self.bodies.append(await request.content.read())
        first, self._first = self._first, "well"
        match first:
            case "reset":
                assert request.transport is not None
                request.transport.abort()
            case "cut":
                response = web.StreamResponse(headers={"Content-Length": "10"})
                await response.prepare(request)
                await response.write(b"half")
                assert request.transport is not None
                request.transport.close()
                return response
            case "503":
                return web.Response(status=503)
        return web.Response(text="well")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("first", ["503", "reset", "cut"])
@pytest.mark.parametrize("kind", [*REPLAYABLE, *ONE_SHOT])
async def test_a_request_body_is_sent_again_unchanged_or_not_at_all(
    serve: Serve, files: Files, virtual_time: VirtualClock, kind: str, first: str
) -> None:
    for option in OPTIONS.values():
        server = Server(first)
        url = await serve(server)
        async with aiohttp.ClientSession(url, middlewares=stack(maesn.RULES)) as session:
            if kind in REPLAYABLE:
                made, expected = REPLAYABLE[kind]
                async with session.put("/", **made(files), **option) as response:
                    assert await response.text() == "well"
                once, again = server.bodies
                assert once == again
                assert expected is None or "compress" in option or once == expected
                continue
            data = ONE_SHOT[kind](files)
            data = await data if asyncio.iscoroutine(data) else data
            with pytest.raises(LamellaError) as caught:
                await session.put("/", data=data, **option)
            assert caught.value.stopped is StopReason.BODY_NOT_REPLAYABLE
            assert "body not replayable" in str(caught.value)
            assert len(server.bodies) == 1


def _layers(url: str, **options: Any) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    return stack(maesn.RULES, auth=HeaderAuth({"X-API-KEY": "zq-plain-4711-key"}, origin=url), **options)


class Sink:
    """Reads bodies and throws them away; answers with as many bytes as it is asked for."""

    def __init__(self) -> None:
        self.read = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        async for chunk in request.content.iter_any():
            self.read += len(chunk)
        response = web.StreamResponse(status=int(request.query.get("status", 200)))
        much = int(request.query.get("much", 0))
        if "length" in request.query:
            response.content_length = much
        await response.prepare(request)
        for _ in range(0, much, len(PIECE)):
            await response.write(PIECE)
        return response


async def _generator() -> AsyncIterator[bytes]:
    for _ in range(0, MUCH, len(PIECE)):
        yield PIECE


class Zeros(io.RawIOBase):
    """A file of zeros that is nowhere."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._at)
        buffer[:count] = bytes(count)
        self._at += count
        return count


@pytest.fixture
def peak() -> Iterator[Callable[[], float]]:
    """The most memory that was held at once since the test began, in bytes."""
    tracemalloc.start(1)
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "file", "multipart"])
async def test_an_upload_of_100_mb_passes_through(serve: Serve, kind: str, peak: Callable[[], float]) -> None:
    sink = Sink()
    url = await serve(sink)
    form = aiohttp.FormData()
    form.add_field("file", io.BufferedReader(Zeros(MUCH)), filename="zeros")
    data = {"generator": _generator(), "file": io.BufferedReader(Zeros(MUCH)), "multipart": form}[kind]
    async with aiohttp.ClientSession(url, middlewares=_layers(url)) as session, session.put("/", data=data) as response:
        assert response.ok
    assert sink.read >= MUCH
    assert peak() < 8 * MB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("buffer", "query"),
    [
        pytest.param(None, "", id="no Buffer", marks=pytest.mark.slow),
        pytest.param(8 * MB, "&length", id="a length above the limit"),
        pytest.param(8 * MB, "", id="no length"),
        pytest.param(MB, "", id="a small limit", marks=pytest.mark.slow),
    ],
)
async def test_a_download_of_100_mb_passes_through(
    serve: Serve, buffer: int | None, query: str, peak: Callable[[], float]
) -> None:
    url = await serve(Sink())
    size = 0
    async with aiohttp.ClientSession(url, middlewares=_layers(url, buffer=buffer)) as session:
        async with session.get(f"/?much={MUCH}{query}") as response:
            async for chunk in response.content.iter_chunked(2**16):
                size += len(chunk)
    assert size == MUCH
    assert peak() < 4 * MB


async def test_an_error_body_of_100_mb_is_not_read_completely(serve: Serve, peak: Callable[[], float]) -> None:
    url = await serve(Sink())
    async with aiohttp.ClientSession(url, middlewares=_layers(url)) as session:
        with pytest.raises(ApiError) as caught:
            await session.get(f"/?much={MUCH}&status=404")
    assert len(caught.value.body) == 2**16
    assert peak() < 4 * MB


def test_the_default_buffer_limit_is_the_documented_one() -> None:
    assert repr(Buffer()) == f"Buffer({8 * MB})"
