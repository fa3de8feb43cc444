"""Types of the servers that the fixtures ``serve`` and ``serve_raw`` of conftest.py start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

__all__ = ["Connection", "Handler", "Serve", "ServeRaw"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Serve = Callable[[Handler], Awaitable[str]]
"""Start an aiohttp server with one handler for all requests; return its URL."""
ServeRaw = Callable[[Connection], Awaitable[str]]
"""Start a server that need not speak HTTP; return its URL."""
