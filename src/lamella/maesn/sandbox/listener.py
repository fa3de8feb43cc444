"""An HTTP server on a port of this machine that ends at once, whatever its connections wait for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from aiohttp import web

__all__ = ["Listener"]

_TURNS_TO_ACCEPT = 3
_BACKLOG = 1024  # a storm of connections must not lose one: the kernel would retry it after a second of real time


class Listener:
    """Serves every request with *handler*. Port 0 means a free one, which is kept for the next start."""

    def __init__(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], host: str, port: int) -> None:
        self._handler = handler
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self._socket: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is listening."""
        return self._runner is not None

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end. Raises RuntimeError before the first start."""
        if self._port == 0:
            raise RuntimeError("the sandbox has no URL before its first start: its port is not known yet")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError if the port is not free, RuntimeError if it is listening already."""
        if self._runner is not None:
            raise RuntimeError("the sandbox has been started already")
        app = web.Application()
        app.router.add_route("*", "/{path:(?s:.*)}", self._handler)
        # Only with cancellation does a silent or slow answer end together with its connection.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        self._runner, self._socket = runner, listening
        try:
            await runner.setup()
            await web.SockSite(runner, listening, backlog=_BACKLOG).start()
        except BaseException:
            await self.close()
            raise
        self._port = listening.getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop all connections. Does nothing if it is not listening."""
        runner, listening = self._runner, self._socket
        self._runner = self._socket = None
        if runner is None or listening is None:
            return
        with anyio.CancelScope(shield=True):
            # First accept no more, then let accepted sockets become connections (a few turns of the loop), and only
            # then close: asyncio loses a socket whose server closes between the two.
            with suppress(NotImplementedError):  # the proactor of Windows
                asyncio.get_running_loop().remove_reader(listening)
            for _ in range(_TURNS_TO_ACCEPT):
                await asyncio.sleep(0)
            for site in runner.sites:
                await site.stop()
            listening.close()
            while runner.server is not None and (connections := runner.server.connections):
                for connection in connections:
                    if connection.transport is not None:
                        connection.transport.abort()
                await asyncio.sleep(0)
            await runner.cleanup()
