"""A server on a raw socket that does to each connection what a fault says, and keeps what it was sent."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from typing import Final

from tests.faults.certificates import server_context

__all__ = ["WHOLE", "Line", "Play", "Route", "Wire", "full_backlog", "healthy"]

WHOLE: Final = json.dumps({"meta": {}, "data": [{"id": number} for number in range(100)]}).encode()
"""The body of an answer that is as it should be."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds
_NO_BODY: Final = frozenset({204, 304})


class Route(Enum):
    """How a client comes to the origin."""

    PLAIN = "plain"
    TLS = "TLS"
    PROXY = "proxy"
    TUNNEL = "tunnel"


Play = Callable[["Line"], Awaitable[None]]
"""What a server does with one request."""
Greet = Callable[["Line"], Awaitable[None]]
"""What a server does with a connection before the first request."""


class Line:
    """One connection, as the server has it."""

    def __init__(self, wire: Wire, connection: socket.socket) -> None:
        self.wire = wire
        self.socket = connection
        self.method = ""
        self.head = b""
        self.ended = False
        """Whether no further request can come."""
        self._ahead = b""
        self._reader = asyncio.StreamReader()
        self._transport: asyncio.Transport | None = None

    async def open(self, context: ssl.SSLContext | None = None) -> None:
        """Be a stream; with TLS where there is a *context*."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(self._reader)

        if self._transport is None:
            transport, _ = await loop.connect_accepted_socket(protocol, self.socket, ssl=context)
            self._transport = transport
        elif context is not None:
            self._reader = asyncio.StreamReader()
            upgraded = await loop.start_tls(self._transport, protocol(), context, server_side=True)
            assert upgraded is not None
            self._transport = upgraded

    def send(self, data: bytes) -> None:
        """Write *data*; what is under way stays under way."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def gone(self) -> bool:
        """Whether the client has gone."""
        assert self._transport is not None
        return self._transport.is_closing() or self._reader.at_eof()

    async def more(self) -> bool:
        """Whether the client sends more."""
        self._ahead = await self._reader.read(1)
        return bool(self._ahead)

    async def some(self) -> bytes:
        """What the client sends next; empty if it has gone."""
        return await self._reader.read(2**16)

    async def next(self) -> None:
        """Wait for the next request, or for the end of the connection."""
        if not self.ended and not await self.more():
            self.close()

    async def read_head(self) -> None:
        """Read the head of a request."""
        self.head = self._ahead + await self._reader.readuntil(b"\r\n\r\n")
        self._ahead = b""
        self.method = self.head.split(b" ", 1)[0].decode()
        self.wire.heads.append(self.head)

    async def request(self) -> None:
        """Read a whole request."""
        await self.read_head()
        if b"\r\nexpect: 100-continue" in self.head.lower():
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.wire.bodies.append(await self._body())

    async def _body(self) -> bytes:
        if b"\r\ntransfer-encoding: chunked" in self.head.lower():
            chunks = []
            while size := int(await self._reader.readline(), 16):
                chunks.append(await self._reader.readexactly(size))
                await self._reader.readexactly(2)
            await self._reader.readexactly(2)
            return b"".join(chunks)
        _, found, rest = self.head.lower().partition(b"\r\ncontent-length:")
        return await self._reader.readexactly(int(rest.split(b"\r\n")[0])) if found else b""

    def answer(self, status: int, body: bytes = WHOLE, *headers: str, phrase: str = "X") -> None:
        """A whole answer, by the rules."""
        framing = () if status in _NO_BODY else (f"Content-Length: {len(body)}",)
        self.send(head(f"{status} {phrase}", *headers, *framing))
        if self.method != "HEAD" and status not in _NO_BODY:
            self.send(body)

    def close(self) -> None:
        """The end of the connection, after all that was sent."""
        self.ended = True
        if self._transport is None:
            self.socket.close()
        else:
            self._transport.close()

    def reset(self) -> None:
        """A TCP reset; what has arrived can still be read."""
        self.ended = True
        with suppress(OSError):  # a handshake that failed has closed it
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if self._transport is None:
            self.socket.close()
        else:
            self._transport.abort()

    async def silence(self) -> None:
        """Not a byte more, until the client has gone."""
        self.ended = True
        if self._transport is None:
            await self.open()
        while await self._reader.read(2**16):
            pass
        self.close()

    async def deafness(self) -> None:
        """Not a byte more, and none is read, until the call is over."""
        self.ended = True
        if self._transport is not None:
            self._transport.pause_reading()
        await self.wire.over.wait()
        self.reset()


def head(status: str, *headers: str, version: str = "HTTP/1.1") -> bytes:
    """Status line and headers."""
    lines = [f"{version} {status}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def healthy(line: Line) -> None:
    """A request is read, and answered well."""
    await line.request()
    line.answer(200)


class Wire:
    """The server. It plays a fault to every request, or to the first one alone, and is well otherwise.

    Args:
        route: How it is come to; as a proxy it is the origin, too.
        play: What it does with a request.
        greet: What it does with a connection before. None means what the route needs.
    """

    def __init__(self, route: Route = Route.PLAIN, play: Play = healthy, greet: Greet | None = None) -> None:
        self.route = route
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        """Of the requests that were read to their end."""
        self.connections = 0
        self.errors: list[BaseException] = []
        """What was wrong with the server itself."""
        self.over = asyncio.Event()
        """Set when the call is over and its session is closed."""
        self._play = play
        self._greet = greet
        self._always = True
        self._turns = 0
        self._lines: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(proto=socket.IPPROTO_TCP)
        # In virtual time nobody waits for an acknowledgement.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A small window, so that a large body is still being written when the fault strikes.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.acceptor: asyncio.Task[None] | None = None
        """Who takes connections."""

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def listen(self) -> None:
        """Take connections; until then they are refused."""
        if self.acceptor is None:
            self._listener.listen()
            self.acceptor = asyncio.ensure_future(self._accept())

    def begin(self, *, always: bool) -> None:
        """A new call begins, whose sends meet the fault *always*, or the first one alone."""
        self.heads.clear()
        self.bodies.clear()
        self.connections = self._turns = 0
        self.over.clear()
        self._always = always

    async def end(self) -> None:
        """The call is over and its session closed: wait for the ends of all connections.

        Raises:
            TimeoutError: The client has left one open.
        """
        self.over.set()
        began = time.monotonic()
        while self._lines:
            # Real seconds end the wait: on a loaded machine the end of a connection comes after a jump of virtual time.
            if time.monotonic() - began > 30:
                raise TimeoutError
            await asyncio.wait(self._lines, timeout=1)

    async def close(self) -> None:
        """Take no connections any more."""
        if self.acceptor is not None:
            self.acceptor.cancel()
            await asyncio.wait([self.acceptor])
        self._listener.close()
        for task in self._lines:
            task.cancel()
        if self._lines:
            await asyncio.wait(self._lines)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            connection.setblocking(False)
            self.connections += 1
            task = asyncio.ensure_future(self._serve(Line(self, connection)))
            self._lines.add(task)
            task.add_done_callback(self._lines.discard)

    async def _serve(self, line: Line) -> None:
        try:
            # Clients go in the middle of things, and TLS has its own words for it.
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                bad = self._always or not self._turns
                if bad and self._greet is not None:
                    self._turns += 1
                    await self._greet(line)
                else:
                    await self._welcome(line)
                while not line.ended:
                    bad = self._always or not self._turns
                    self._turns += 1
                    await (self._play if bad else healthy)(line)
                    await line.next()
        except Exception as exc:  # noqa: BLE001 - told at the end of the cell
            self.errors.append(exc)
        finally:
            if not line.ended:
                line.reset()

    async def _welcome(self, line: Line) -> None:
        if self.route is Route.TLS:
            await line.open(server_context())
            return
        await line.open()
        if self.route is Route.TUNNEL:
            await tunnel(line)

    def __repr__(self) -> str:
        return f"<Wire {self.route.value} on port {self.port}>"


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose backlog is full: the kernel of Linux drops every further SYN."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(10):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            if not select.select([], [client], [], 0.02)[1]:
                break
        else:
            raise AssertionError("the backlog does not fill up")
        yield listener.getsockname()[1]


async def tunnel(line: Line, certificate: str = "right") -> None:
    """Be a proxy that lets CONNECT through, to ourselves."""
    await line.open()
    await line.read_head()
    assert line.method == "CONNECT"
    line.wire.heads.pop()
    line.send(b"HTTP/1.1 200 Connected\r\n\r\n")
    await line.open(server_context(certificate))


def in_one(parts: Iterable[bytes]) -> bytes:
    """*parts* as chunks, without the last one that says that it is all."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
