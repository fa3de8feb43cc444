"""Two processes share the limit of an account: here two sessions, each with a store client of its own.

Run it with a Redis: LAMELLA_REDIS_URL=redis://127.0.0.1:6379 python examples/fleet.py. Without one, it makes all calls
in one session, which needs no store.
"""

from __future__ import annotations

import asyncio
import os

import aiohttp
from aiohttp import web

from lamella import Limit, RedisStore, stack
from lamella.testing import FixedWindow

LIMIT = Limit(20, per=1)


async def work(url: str, store: RedisStore | None, calls: int) -> None:
    layers = stack(limits=LIMIT, account=lambda _: "account-1", store=store)  # None: in this session alone
    async with aiohttp.ClientSession(url, middlewares=layers) as session:

        async def one() -> None:
            async with session.get("/") as response:
                await response.read()

        await asyncio.gather(*(one() for _ in range(calls)))


async def main() -> None:
    limiter, refused = FixedWindow(20, 1.0).limiter(), 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal refused
        status = 429 if limiter.allow(asyncio.get_running_loop().time()) > 0 else 200
        refused += status == 429
        return web.Response(status=status)

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    redis_url = os.environ.get("LAMELLA_REDIS_URL")
    if redis_url:
        async with RedisStore(redis_url) as here, RedisStore(redis_url) as there:
            await asyncio.gather(work(url, here, 30), work(url, there, 30))
    else:
        await work(url, None, 60)
    print(f"60 calls made, {refused} refused")
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
