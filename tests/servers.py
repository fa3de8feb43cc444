"""Servers on real sockets, and the types of the fixtures that start them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web

__all__ = ["Connection", "Handler", "Serve", "ServeRaw", "Statuses", "serving"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[Handler], Awaitable[str]]
"""Start an aiohttp server with one handler for all requests; return its URL."""
ServeRaw = Callable[[Connection], Awaitable[str]]
"""Start a server that need not speak HTTP; return its URL."""


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve every request by *handler*; yield the URL."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await handler(cast(web.Request, request))

    # Handlers that never answer are cancelled almost at once; 0 would wait for them for ever.
    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Statuses:
    """A handler that answers with the given statuses, one after the other, then with 200; 0 closes the connection.

    Each answer takes *latency* seconds.
    """

    def __init__(self, *statuses: int, latency: float = 0.0) -> None:
        self.statuses = list(statuses)
        self.latency = latency
        self.requests: list[web.Request] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        status = self.statuses.pop(0) if self.statuses else 200
        await asyncio.sleep(self.latency)
        if not status:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 200)
