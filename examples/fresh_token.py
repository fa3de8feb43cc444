"""A token that is asked for before each send, and shared by those who ask at the same time.

python examples/fresh_token.py
"""

from __future__ import annotations

import asyncio
import itertools

import aiohttp
from aiohttp import web

from lamella import HeaderAuth

numbers = itertools.count(1)


async def token() -> str:
    """Stands for a call to an identity provider."""
    await asyncio.sleep(0.01)
    return f"Bearer token-{next(numbers)}"


async def main() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request.headers["Authorization"])

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def call() -> str:
        async with session.get("/") as response:
            return await response.text()

    async with aiohttp.ClientSession(url, middlewares=(HeaderAuth({"Authorization": token}, origin=url),)) as session:
        print("three at once:", await asyncio.gather(call(), call(), call()))
        print("one later:", await call())
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
