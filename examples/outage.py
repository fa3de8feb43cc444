"""Call a service that is down: a retry budget, a circuit breaker, and a deadline for all calls inside a block.

python examples/outage.py
"""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
from aiohttp import web

from lamella import Backoff, Breaker, LamellaError, RetryBudget, Rule, RuleBook, deadline, stack

RULES = RuleBook(Rule(500, "Internal Server Error", retry=Backoff(initial=0.01)))


async def a_hundred_calls(url: str, layers: tuple[aiohttp.ClientMiddlewareType, ...]) -> Counter[str]:
    why: Counter[str] = Counter()
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        for _ in range(100):
            try:
                await session.get("/")
            except LamellaError as error:
                why[str(error.stopped)] += 1
    return why


async def main() -> None:
    sends = 0

    async def down(_: web.Request) -> web.Response:
        nonlocal sends
        sends += 1
        return web.Response(status=500)

    app = web.Application()
    app.router.add_get("/", down)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    # A fifth of a retry per call and an initial ten: 100 calls make 130 attempts instead of 500.
    why = await a_hundred_calls(url, stack(RULES, retry_budget=RetryBudget(ratio=0.2, capacity=10)))
    print("with a budget:", sends, "sends,", dict(why))

    sends = 0
    why = await a_hundred_calls(url, stack(RULES, Breaker(minimum=20, open_for=60)))
    print("with a breaker:", sends, "sends,", dict(why))

    async with aiohttp.ClientSession(url, middlewares=stack(RULES, attempts=None, deadline=60)) as session:
        try:
            with deadline(0.05):
                await session.get("/")
        except LamellaError as error:
            print("with a deadline:", error.stopped, "after", len(error.attempts), "sends")
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
