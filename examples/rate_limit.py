"""Make sixty concurrent calls for an account with a limit of twenty per second: learned, and stated.

    python examples/rate_limit.py

It starts the sandbox with that limit, and gives a tenth of every second, the rules' minute included.
"""

from __future__ import annotations

import asyncio

import aiohttp

from lamella import Backoff, Limit, Rule, RuleBook, maesn
from lamella.maesn.sandbox import Sandbox
from lamella.testing import FixedWindow

# How long to wait after a 429. maesn.RULES has the guide's minute.
RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0.1)))


async def crowd(session: aiohttp.ClientSession) -> None:
    async with session:
        await asyncio.gather(*(session.get("/accounting/invoices") for _ in range(60)))


async def main() -> None:
    async with Sandbox(limit=FixedWindow(20, per=0.1, retry_after=False)) as sandbox:
        keys = sandbox.api_key, sandbox.account_key, sandbox.url

        await crowd(maesn.session(*keys, rules=RULES))
        refused = sum(request.outcome == 429 for request in sandbox.received)
        print(f"learned: 60 calls, all answered; {refused} of {len(sandbox.received)} sends were refused")

        sandbox.received.clear()
        await asyncio.sleep(0.1)  # the window that the first calls have used up
        await crowd(maesn.session(*keys, rules=RULES, limits=Limit(20, per=0.1)))
        refused = sum(request.outcome == 429 for request in sandbox.received)
        print(f"stated: 60 calls, all answered; {refused} of {len(sandbox.received)} sends were refused")


if __name__ == "__main__":
    asyncio.run(main())
