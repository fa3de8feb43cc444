"""What is wrong in aiohttp itself, without any layer: where one of these passes, the catalogue can be made simpler."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from tests.faults.catalogue import sends_later
from tests.faults.wire import WHOLE, Line, Play, Wire, head

from lamella.testing import VirtualClock

BEFORE_3_14 = tuple(map(int, aiohttp.__version__.split(".")[:2])) < (3, 14)


async def _get(play: Play, calls: int = 1) -> bytes:
    wire, body = Wire(play=play), b""
    wire.listen()
    wire.begin(always=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=5)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{wire.port}", timeout=timeout) as session:
            for _ in range(calls):
                async with asyncio.timeout(100), session.get("/") as response:
                    body = await response.read()
                await asyncio.sleep(10)
    finally:
        await wire.end()
        await wire.close()
    return body


@pytest.mark.xfail(reason="the decompressor is asked for its end with deflate alone", strict=True)
async def test_aiohttp_detects_a_truncated_gzip_body(virtual_time: VirtualClock) -> None:
    cut = gzip.compress(WHOLE)[:-20]

    async def play(line: Line) -> None:
        await line.request()
        line.answer(200, cut, "Content-Encoding: gzip")

    with pytest.raises(aiohttp.ClientPayloadError):
        await _get(play)


@pytest.mark.xfail(
    reason="the parser's error does not reach the body: a read without end",
    strict=True,
)
async def test_aiohttp_reports_a_bad_chunk_after_the_headers(virtual_time: VirtualClock) -> None:
    async def play(line: Line) -> None:
        await line.request()
        line.send(head("200 OK", "Transfer-Encoding: chunked"))
        await sends_later(b"xyz\r\n")(line)

    with pytest.raises(aiohttp.ClientPayloadError):
        await _get(play)


@pytest.mark.xfail(reason="sock_read does not count between an interim answer and the next", strict=True)
async def test_silence_after_an_interim_response_is_a_sock_read_timeout(virtual_time: VirtualClock) -> None:
    async def play(line: Line) -> None:
        await line.request()
        line.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await line.silence()

    with pytest.raises(aiohttp.SocketTimeoutError):
        await _get(play)


@pytest.mark.xfail(not BEFORE_3_14, reason="sock_read goes on counting on the idle connection", strict=True)
async def test_a_connection_is_reused_after_a_large_gzip(virtual_time: VirtualClock) -> None:
    large = bytes(4 * 2**20)

    async def play(line: Line) -> None:
        await line.request()
        line.answer(200, gzip.compress(large), "Content-Encoding: gzip")

    assert await _get(play, calls=2) == large


@pytest.mark.xfail(reason="what comes on an idle connection is kept for whoever asks next", strict=True)
async def test_a_late_response_is_not_used_for_the_next_request(virtual_time: VirtualClock) -> None:
    async def play(line: Line) -> None:
        await line.request()
        line.answer(200)
        await asyncio.sleep(1)
        line.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 5\r\n\r\nfalse")

    assert await _get(play, calls=2) == WHOLE


@pytest.mark.xfail(BEFORE_3_14, reason="a stream that is used up is sent empty to where a redirect leads", strict=True)
async def test_a_consumed_stream_is_not_sent_to_a_redirect_target(virtual_time: VirtualClock) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"abc"

    async def play(line: Line) -> None:
        await line.request()
        line.answer(307, b"", "Location: /again")

    wire = Wire(play=play)
    wire.listen()
    wire.begin(always=False)
    async with aiohttp.ClientSession() as session:
        with suppress(aiohttp.ClientPayloadError):
            await session.put(f"http://127.0.0.1:{wire.port}", data=stream())
    await wire.end()
    await wire.close()
    assert wire.bodies == [b"abc"]
