"""A server that gives the answers of a test, and a client with a stack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import LamellaError, RuleBook, stack

__all__ = ["Reply", "Serve", "Server", "call", "client", "fails"]


class Reply(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = {}
    body: Any = ""


class Server:
    """Gives *replies* in their order, and then 200."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[tuple[str, bytes]] = []
        self.authorization: list[str | None] = []
        self.at: list[float] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.at.append(asyncio.get_running_loop().time())
        self.authorization.append(request.headers.get("Authorization"))
        self.requests.append((request.method, await request.read()))
        status, headers, body = self.replies.pop(0) if self.replies else Reply()
        if isinstance(body, bytes):
            return web.Response(status=status, headers=headers, body=body)
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, headers=headers, text=text)

    @property
    def waits(self) -> list[float]:
        """Seconds between the requests."""
        return [after - before for before, after in zip(self.at, self.at[1:], strict=False)]


def client(url: str, book: RuleBook | None = None, **given: Any) -> aiohttp.ClientSession:
    layers = stack(**given) if book is None else stack(book, **given)
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers)


async def call(session: aiohttp.ClientSession, method: str = "GET", path: str = "/", **given: Any) -> tuple[int, str]:
    async with session.request(method, path, **given) as response:
        return response.status, await response.text()


async def fails(session: aiohttp.ClientSession, method: str = "GET", **given: Any) -> LamellaError:
    with pytest.raises(LamellaError) as caught:
        await call(session, method, **given)
    return caught.value
