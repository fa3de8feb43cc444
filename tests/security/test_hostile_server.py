"""A server that wants to keep us busy, waiting, or out of memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from inspect import signature

import aiohttp
import pytest
from tests.servers import ServeRaw

from lamella import (
    AnswerInvalid,
    AttemptTimeout,
    Backoff,
    Buffer,
    RateLimited,
    Rule,
    RuleBook,
    ServerStatusError,
    StopReason,
    TooManyRequests,
    stack,
)
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.testing import VirtualClock

MB = 2**20
COUNTS = "max_headers" in signature(aiohttp.ClientSession).parameters
RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=1, maximum=100)))


def session(url: str, rules: RuleBook = RULES, **options: object) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, middlewares=stack(rules, spans=False, **options), timeout=aiohttp.ClientTimeout())  # type: ignore[arg-type]


def at_rest(asked: aiohttp.ClientSession) -> bool:
    assert isinstance(asked.connector, aiohttp.TCPConnector)
    return not asked.connector._acquired


async def _head(writer: asyncio.StreamWriter, status: str = "200 OK") -> None:
    writer.write(f"HTTP/1.1 {status}\r\n".encode())
    await writer.drain()


async def one_header_of_megabytes(writer: asyncio.StreamWriter) -> int:
    await _head(writer)
    writer.write(b"X-Long: ")
    return await _pour(writer, b"x" * 65536)


async def headers_without_end(writer: asyncio.StreamWriter) -> int:
    await _head(writer)
    return await _pour(writer, b"X-Filler: x\r\n" * 5000)


async def a_status_line_without_end(writer: asyncio.StreamWriter) -> int:
    writer.write(b"HTTP/1.1 200 ")
    return await _pour(writer, b"O" * 65536)


async def a_chunk_size_without_end(writer: asyncio.StreamWriter) -> int:
    await _head(writer)
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
    return await _pour(writer, b"0" * 65536)


async def _pour(writer: asyncio.StreamWriter, piece: bytes) -> int:
    sent = 0
    while sent < 500 * MB:
        writer.write(piece)
        await writer.drain()
        sent += len(piece)
    return sent


@pytest.mark.parametrize(
    "flood",
    [one_header_of_megabytes, headers_without_end, a_status_line_without_end],
    ids=lambda flood: flood.__name__,
)
async def test_a_flood_before_the_body_is_cut_off(
    flood: Callable[[asyncio.StreamWriter], Awaitable[int]], serve_raw: ServeRaw
) -> None:
    sent: list[int] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sent.append(await flood(writer))

    async with session(await serve_raw(connection), attempts=1, attempt_timeout=1) as asked:
        tracemalloc.start()
        try:
            # An aiohttp before max_headers takes as many of them as come until the attempt's time is over.
            with pytest.raises(
                AnswerInvalid if flood is not headers_without_end or COUNTS else AttemptTimeout
            ) as caught:
                await asked.get("/")
            [_, peak] = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert at_rest(asked)
    assert not sent  # nobody has taken it all
    assert peak < 20 * MB or not COUNTS
    assert len(str(caught.value)) < 600


async def test_a_body_that_never_begins_ends_with_the_attempt_timeout(serve_raw: ServeRaw) -> None:
    """aiohttp reads zeros of a chunk's size for as long as they come. They take time, and no memory."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await a_chunk_size_without_end(writer)

    url = await serve_raw(connection)
    layers = stack(RULES, Buffer(whole={"application/octet-stream": MB}), attempts=1, attempt_timeout=0.2)
    async with aiohttp.ClientSession(url, middlewares=layers, timeout=aiohttp.ClientTimeout()) as asked:
        with pytest.raises(AttemptTimeout):
            await asked.get("/")
        assert at_rest(asked)


async def test_a_stream_that_never_begins_must_be_ended_by_the_caller(serve_raw: ServeRaw) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await a_chunk_size_without_end(writer)

    async with session(await serve_raw(connection), attempts=1) as asked:
        async with asked.get("/") as response:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await response.read()
        assert at_rest(asked)


async def test_an_endless_error_body_is_not_read_completely(serve_raw: ServeRaw) -> None:
    sent: list[int] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await _head(writer, "500 Bad")
        writer.write(b"\r\n")
        sent.append(await _pour(writer, b"x" * 65536))

    async with session(await serve_raw(connection)) as asked:
        with pytest.raises(ServerStatusError) as caught:
            await asked.get("/")
        assert at_rest(asked)
    assert len(caught.value.body) == 64 * 1024
    assert not sent


@pytest.mark.parametrize("value", ["101", "9" * 400, "1e9", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_an_endless_wait_is_not_waited(value: str, sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    """The call stops at once, and so do the next ones. More than a year is no statement: it locks no account out."""
    sandbox.script(Reply(429, {"Retry-After": value}))
    async with session(sandbox.url, attempts=1 if value == "1e9" else 5) as asked:
        with pytest.raises(TooManyRequests) as caught:
            await asked.get("/accounting/invoices")
        # "1e9" is no number by the RFC, so it asks for nothing.
        if value != "1e9":
            assert caught.value.stopped is StopReason.WAIT_TOO_LONG
            with pytest.raises(RateLimited) as refused:
                await asked.get("/accounting/invoices")
            assert refused.value.stopped is StopReason.WAIT_TOO_LONG
            assert virtual_time.elapsed < 1
            await asyncio.sleep(101)
        sandbox.script(Reply(204))
        async with asked.get("/accounting/invoices"):
            assert 1 <= virtual_time.elapsed <= 102


async def test_a_deadline_ends_repeated_retry_after(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    sandbox.set_outage(Reply(429, {"Retry-After": "100"}))
    async with session(sandbox.url, attempts=None, deadline=1000) as asked:
        with pytest.raises(TooManyRequests) as caught:
            await asked.get("/accounting/invoices")
    assert caught.value.stopped is StopReason.DEADLINE
    assert 800 < virtual_time.elapsed <= 1000
    assert len(sandbox.received) < 12
