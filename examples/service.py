"""A service that calls any API: its own rules, its own session, one additional argument.

    python examples/service.py

It starts a small server that is busy at first, so that there is something to see.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from lamella import Backoff, HeaderAuth, LamellaError, Rule, RuleBook, stack

RULES = RuleBook(
    Rule(429, "Too Many Requests", hint="slow down", retry=Backoff(initial=1, maximum=30)),
    Rule(503, "Service Unavailable", hint="check the status page", retry=Backoff(initial=(0.5, 1.0))),
    Rule(404, "Not Found", hint="check the id"),
)


async def work(url: str) -> None:
    layers = stack(
        RULES.scaled(0.01),  # a hundredth of every delay, for this example
        auth=HeaderAuth({"X-API-KEY": "made-up-key"}, origin=url),
        attempts=5,
        deadline=60,
    )
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        async with session.get("/orders/1") as response:
            print("order 1:", await response.json())
        try:
            await session.get("/orders/2")
        except LamellaError as error:
            print(error)
            print("stopped:", error.stopped, "after", [record.status for record in error.attempts])


async def main() -> None:
    busy = iter([429, 503])

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/orders/2":
            return web.json_response({"errors": {"message": "no such order"}}, status=404)
        status = next(busy, 200)
        return web.json_response({"id": 1}, status=status)

    app = web.Application()
    app.router.add_get("/orders/{id}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        await work(f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
