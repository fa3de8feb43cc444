"""Ways in which a response can break on the wire, with real bytes over real TCP."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING

from multidict import CIMultiDict

if TYPE_CHECKING:
    from aiohttp import web

SLOW_PIECES = 60
_FILLER = (b"X-Filler: " + b"." * 54 + b"\r\n") * 1024
_MOST_FILLERS = 64  # times 64 KiB
_GARBAGE = bytes(range(128, 256)) + b"\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # struct linger: on, for 0 seconds


class Fault(Enum):
    """A fault of a response. The request was carried out, the worst case for a client."""

    RESET_BEFORE_HEADERS = "a TCP reset before the first byte"
    RESET_AFTER_HEADERS = "a TCP reset after status line and headers"
    CUT_BODY = "half of the promised body, then the connection closes"
    ENDLESS_HEADERS = "endless header lines, some megabytes"
    SLOW_BODY = "the whole body, in small pieces with a pause after each"
    GARBAGE = "bytes that are not HTTP, then the connection closes"
    SILENCE = "no bytes on an open connection"

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    async def answer(self, request: web.BaseRequest, response: web.Response, *, pause: float = 1.0) -> web.Response:
        """Send *response* to *request* with this fault; return the result for an aiohttp server handler.

        *pause*: seconds by the loop's clock after each piece of a slow body. Silence ends only when the handler is
        cancelled. A runner with ``handler_cancellation=True``, such as aiohttp's test server, does that when the client
        closes the connection.
        """
        transport, body = request.transport, response.body
        if transport is None:
            return response
        content = body if isinstance(body, bytes) else b""
        head = _head(response.status, response.headers, len(content))
        match self:
            case Fault.SILENCE:
                await asyncio.get_running_loop().create_future()
            case Fault.RESET_BEFORE_HEADERS:
                _reset(transport)
            case Fault.RESET_AFTER_HEADERS:
                transport.write(head)
                _reset(transport)
            case Fault.CUT_BODY:
                transport.write(head + content[: len(content) // 2])
            case Fault.GARBAGE:
                transport.write(_GARBAGE)
            case Fault.SLOW_BODY:
                transport.write(head)
                await _drip(transport, content, pause)
            case Fault.ENDLESS_HEADERS:
                transport.write(head.removesuffix(b"\r\n"))
                await _pour(transport)
        transport.close()
        return response


def _head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    fields = CIMultiDict({"Content-Type": "application/json; charset=utf-8"})
    fields.update(headers)
    fields.update({"Content-Length": str(length), "Connection": "close"})
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1", "replace")


def _reset(transport: asyncio.Transport) -> None:
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


async def _drip(transport: asyncio.Transport, body: bytes, pause: float) -> None:
    size = -(-len(body) // SLOW_PIECES)
    for start in range(0, len(body), size):
        transport.write(body[start : start + size])
        await asyncio.sleep(pause)


async def _pour(transport: asyncio.Transport) -> None:
    """Send header lines until the client closes the connection, up to a bound that protects memory."""
    for _ in range(_MOST_FILLERS):
        transport.write(_FILLER)
        await asyncio.sleep(0)
