"""A local HTTP server that stops at once, even while connections wait."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
from aiohttp import web

_TURNS_TO_ACCEPT = 3
_BACKLOG = 1024  # with a short backlog the kernel drops connections of a burst and retries them after a second


class Listener(ABC):
    """Handle the requests to a port. Port 0 means a free port, which the next start uses again."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        self._socket: socket.socket | None = None

    @abstractmethod
    async def _handle(self, request: web.Request) -> web.StreamResponse: ...

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The base URL without a trailing slash. Raises RuntimeError before the first start."""
        if self._port == 0:
            raise RuntimeError("the sandbox has no URL before its first start: its port is not known yet")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def start(self) -> None:
        """Start to listen. After a `close()` the port is the same as before, as after an outage.

        Raises OSError if the port is not free, RuntimeError if the sandbox has been started.
        """
        if self._runner is not None:
            raise RuntimeError("the sandbox is already started")
        app = web.Application()
        app.router.add_route("*", "/{path:(?s:.*)}", self._handle)
        # Without cancellation a silent or slow response would outlive its connection.
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
        """Stop listening and drop all connections at once. Does nothing if the server was not started."""
        runner, listening = self._runner, self._socket
        self._runner = self._socket = None
        if runner is None or listening is None:
            return
        with anyio.CancelScope(shield=True):
            # asyncio loses a socket that is accepted but not yet a connection when its server closes. So stop
            # accepting, give accepted sockets a few turns of the loop to become connections, and then close.
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
