"""A token for each tenant: HeaderAuth asks for it before each attempt, and the function keeps it until it expires.

python examples/fresh_token.py
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextvars import ContextVar

import aiohttp
from aiohttp import web

from lamella import HeaderAuth

tenant: ContextVar[str] = ContextVar("tenant")
numbers = itertools.count(1)


class Tokens:
    """One token for each tenant, fetched by one caller at a time."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[str, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def __call__(self) -> str:
        name = tenant.get()
        async with self._locks.setdefault(name, asyncio.Lock()):
            token, expires = self._tokens.get(name, ("", 0.0))
            if time.monotonic() >= expires:
                token = await fetch(name)
                self._tokens[name] = token, time.monotonic() + 0.1
            return token


async def fetch(name: str) -> str:
    """Stand for a call to an identity provider."""
    await asyncio.sleep(0.01)
    return f"Bearer {name}-{next(numbers)}"


async def main() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request.headers["Authorization"])

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def call(name: str) -> str:
        tenant.set(name)
        async with session.get("/") as response:
            return await response.text()

    auth = HeaderAuth({"Authorization": Tokens()}, origin=url)
    async with aiohttp.ClientSession(url, middlewares=(auth,)) as session:
        for token in await asyncio.gather(call("anna"), call("anna"), call("ben"), call("ben")):
            print(token)
        await asyncio.sleep(0.1)
        print("after it has expired:", await call("anna"))
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
