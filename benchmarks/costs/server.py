"""The server's process: a minimal HTTP server, so that it is never the bottleneck."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

import aiohttp
from benchmarks.processes import readable

__all__ = ["answer", "path", "raise_file_limit", "serve"]

_GOOD = b'{"data": [{"id": "1", "number": "RE-1"}], "pagination": {"page": 1, "totalPages": 1}}'
_BAD = b'{"errors": [{"code": "unavailable", "message": "try again later"}]}'


def path(number: int = 0, *, failures: int = 0, wait: float = 0.0) -> str:
    """Where to send call *number*, so that it is answered with a 503 *failures* times before, each after *wait* s."""
    return f"/accounting/invoices?number={number}&failures={failures}&wait={wait}"


def serve(pipe: Connection) -> None:
    """Send the URL, and serve until anything comes through the pipe or it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    asyncio.run(_serve(pipe))


def raise_file_limit() -> None:
    """Let this process have as many connections as it may: 10,000 are more than most may without asking."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(pipe: Connection) -> None:
    async with _listening() as url:
        pipe.send(url)
        await readable(pipe)


async def answer() -> aiohttp.ClientResponse:
    """Return a complete response and release its connection."""
    async with _listening() as url, aiohttp.ClientSession(url) as session, session.get(path()) as response:
        await response.read()
        return response


@asynccontextmanager
async def _listening() -> AsyncIterator[str]:
    failed: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answers(failed), "127.0.0.1", 0, backlog=16_384)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def _answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Answers(asyncio.Protocol):
    """One connection. Its requests have no body, and come one after the other."""

    def __init__(self, failed: Counter[str]) -> None:
        self._failed = failed
        """The number of failures of each call."""
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        if not self._read.endswith(b"\r\n\r\n"):
            return
        target = self._read.split(b" ", 2)[1].decode()
        self._read = b""
        query = dict(pair.split("=") for pair in target.partition("?")[2].split("&"))
        number, failures, wait = query["number"], int(query["failures"]), float(query["wait"])
        answer = _answer("200 OK", _GOOD)
        if failures:
            self._failed[number] += 1
            if self._failed[number] > failures:
                del self._failed[number]
            else:
                answer = _answer("503 Service Unavailable", _BAD)
        if wait:
            asyncio.get_running_loop().call_later(wait, self._transport.write, answer)
        else:
            self._transport.write(answer)
