"""A token for each tenant, fetched once for all calls that need it, and renewed before it expires.

python examples/fresh_token.py
"""

from __future__ import annotations

import asyncio
import itertools
from contextvars import ContextVar

import aiohttp
from aiohttp import web

from lamella import HeaderAuth, Token, Tokens
from lamella.testing import run_virtual

tenant: ContextVar[str] = ContextVar("tenant")
numbers = itertools.count(1)


async def fetch(name: str) -> Token:
    """Simulate a call to an identity provider."""
    await asyncio.sleep(0.2)
    return Token(f"Bearer {name}-{next(numbers)}", expires_in=600)


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

    tokens = Tokens(fetch, key=tenant.get)
    auth = HeaderAuth({"Authorization": tokens}, origin=url)
    async with aiohttp.ClientSession(url, middlewares=(auth,)) as session:
        for token in await asyncio.gather(call("anna"), call("anna"), call("ben"), call("ben")):
            print(token)
        await asyncio.sleep(570)
        print("30 s before it expires:", await call("anna"))  # a new token is fetched meanwhile
        await asyncio.sleep(1)
        print("after that:", await call("anna"))
    await tokens.aclose()
    await runner.cleanup()


if __name__ == "__main__":
    run_virtual(main())
