"""An answer that aiohttp rejects is a permanent failure: the next one would be the same."""

from __future__ import annotations

import asyncio
import re
from typing import Final

import aiohttp
import pytest
from tests.faults.catalogue import COUNTS_HEADERS
from tests.servers import Connection, ServeRaw

from lamella import AnswerInvalid, Breaker, CircuitOpen, ConnectionLost, Failure, StopReason, stack
from lamella.rules import Backoff, Rule, RuleBook
from lamella.testing import VirtualClock

RULES: Final = RuleBook()
LONG: Final = b"x" * 9000

REJECTED: Final[dict[str, tuple[bytes, str]]] = {
    "status line": (b"HTTP/1.1 200 " + LONG + b"\r\n\r\n", r"Got more than 8190 bytes.* in a header line"),
    "header": (
        b"HTTP/1.1 200 OK\r\nX: " + LONG + b"\r\n\r\n",
        r"Got more than 8190 bytes.* in a header line",
    ),
    "gzip": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        "Can not decode content-encoding: gzip",
    ),
}
if COUNTS_HEADERS:
    REJECTED["headers"] = b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200 + b"\r\n", "Too many headers received"


def answering(sent: bytes, requests: list[bytes]) -> Connection:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(sent)
        await writer.drain()
        writer.close()

    return answer


@pytest.mark.parametrize("raise_errors", [True, False])
@pytest.mark.parametrize("name", REJECTED)
async def test_a_rejected_response_is_final_and_its_error_names_the_reason(
    name: str, raise_errors: bool, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    sent, reason = REJECTED[name]
    requests: list[bytes] = []
    url = await serve_raw(answering(sent, requests))
    async with aiohttp.ClientSession(middlewares=stack(RULES, raise_errors=raise_errors)) as session:
        with pytest.raises(AnswerInvalid) as caught:
            await session.get(url)
    assert re.fullmatch(reason, caught.value.reason)
    assert caught.value.stopped is StopReason.NOT_RETRYABLE
    assert len(requests) == 1
    for text in (str(caught.value), repr(caught.value)):
        assert "xxx" not in text


async def test_a_response_that_is_not_http_is_retried(serve_raw: ServeRaw, virtual_time: VirtualClock) -> None:
    requests: list[bytes] = []
    url = await serve_raw(answering(b"SSH-2.0\r\n\r\n", requests))
    async with aiohttp.ClientSession(middlewares=stack(RULES)) as session:
        with pytest.raises(ConnectionLost, match="not HTTP"):
            await session.get(url)
    assert len(requests) == 5


async def test_a_rule_can_make_a_rejected_response_retryable(serve_raw: ServeRaw, virtual_time: VirtualClock) -> None:
    requests: list[bytes] = []
    rules = RuleBook(Rule(Failure.ANSWER_INVALID, "Again", retry=Backoff(initial=1)))
    url = await serve_raw(answering(REJECTED["header"][0], requests))
    async with aiohttp.ClientSession(middlewares=stack(rules, attempts=3)) as session:
        with pytest.raises(AnswerInvalid):
            await session.get(url)
    assert len(requests) == 3


async def test_a_rejected_response_does_not_open_the_circuit(serve_raw: ServeRaw) -> None:
    url = await serve_raw(answering(REJECTED["header"][0], []))
    async with aiohttp.ClientSession(middlewares=stack(RULES, Breaker(minimum=3))) as session:
        for _ in range(10):
            with pytest.raises(AnswerInvalid) as caught:
                await session.get(url)
            assert not isinstance(caught.value, CircuitOpen)
