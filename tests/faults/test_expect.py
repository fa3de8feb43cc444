"""A request that asks first, with ``Expect: 100-continue``, and is refused before its body was begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from tests.servers import ServeRaw

from lamella import Backoff, ClientStatusError, Rule, StopReason, stack
from lamella.rules import RuleBook
from lamella.testing import VirtualClock

STATUSES = (417, 429, 503)
RULES = RuleBook(*(Rule(status, "Again", retry=Backoff(initial=1)) for status in STATUSES))


async def body() -> AsyncIterator[bytes]:
    yield b"abc"
    yield b"def"


@pytest.mark.sampled
@pytest.mark.parametrize("raise_errors", [True, False])
@pytest.mark.parametrize("said", [b"no", b""], ids=["with a body", "without"])
@pytest.mark.parametrize("status", STATUSES)
async def test_an_unsent_body_is_sent_by_the_next_attempt(
    status: int, said: bytes, raise_errors: bool, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    bodies: list[bytes] = []
    asked = 0

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked <= 2:
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(said), said))
            await writer.drain()
        else:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            bodies.append(await reader.readuntil(b"\r\n0\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    url = await serve_raw(server)
    async with aiohttp.ClientSession(middlewares=stack(RULES, raise_errors=raise_errors)) as session:
        async with session.put(url, data=body(), expect100=True) as response:
            assert response.status == 200
    assert bodies == [b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"]
    assert asked == 3


async def test_a_partly_sent_body_is_not_sent_again(serve_raw: ServeRaw, virtual_time: VirtualClock) -> None:
    asked = 0

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readuntil(b"abc\r\n")
        writer.write(b"HTTP/1.1 429 X\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    url = await serve_raw(server)
    async with aiohttp.ClientSession(middlewares=stack(RULES)) as session:
        with pytest.raises(ClientStatusError) as caught:
            await session.put(url, data=body(), expect100=True)
    assert caught.value.stopped is StopReason.BODY_NOT_REPLAYABLE
    assert asked == 1
