"""Several limits at once: 2 requests a second for each account and path, 5 for the integrator, and 60 a day.

    python examples/several_limits.py

It starts a small server with these limits. The day passes in virtual time.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web
from yarl import URL

from lamella import HTTP_RULES, Limit, RateLimited, Throttle, stack
from lamella.testing import Limiter, SlidingWindow, run_virtual


def path_of(request: aiohttp.ClientRequest) -> str:
    return request.url.path


def integrator_of(request: aiohttp.ClientRequest) -> str | None:
    return request.headers.get("X-Api-Key")


LIMITS = [
    Limit(2, per=1, scope=path_of),  # per account and path
    Limit(60, per=86_400),  # per account
    Limit(5, per=1, key=integrator_of),  # for all accounts of a key
]


class Api:
    """Reject requests that exceed one of the limits."""

    def __init__(self) -> None:
        self.limiters: dict[str, Limiter] = {}
        self.answered = self.refused = 0

    def passes(self, name: str, requests: int, per: float) -> bool:
        limiter = self.limiters.setdefault(name, SlidingWindow(requests, per).limiter())
        return limiter.allow(asyncio.get_running_loop().time()) == 0

    async def answer(self, request: web.Request) -> web.Response:
        account = request.headers["X-Account"]
        passes = self.passes(f"{account} {request.path}", 2, 1)
        passes = passes and self.passes(account, 60, 86_400)
        passes = passes and self.passes("integrator", 5, 1)
        self.answered += passes
        self.refused += not passes
        return web.Response(status=200 if passes else 429)


async def crowd(session: aiohttp.ClientSession, calls: int) -> None:
    began = asyncio.get_running_loop().time()
    requests = [
        session.get(f"/{('contacts', 'invoices')[n % 2]}", headers={"X-Account": f"account {n % 4}"})
        for n in range(calls)
    ]
    answers = await asyncio.gather(*requests, return_exceptions=True)
    took = asyncio.get_running_loop().time() - began
    stopped = [answer for answer in answers if isinstance(answer, RateLimited)]
    hours = max((answer.retry_after or 0.0 for answer in stopped), default=0.0) / 3600
    print(f"{calls} calls in {took:.0f} s: {calls - len(stopped)} answered, {len(stopped)} to be made in {hours:.0f} h")


async def main() -> None:
    api = Api()
    app = web.Application()
    app.router.add_get("/{path}", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}")

    throttle = Throttle(HTTP_RULES, limits=LIMITS, key=lambda request: request.headers.get("X-Account"))
    async with aiohttp.ClientSession(
        url,
        headers={"X-Api-Key": "integrator"},
        middlewares=stack(throttle),
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        await crowd(session, 100)
        await crowd(session, 160)
        print(f"the server has answered {api.answered} and refused {api.refused}")
        for left in throttle.state(url, "account 0").stated:
            print(f"{left.name}: {left.remaining:.0f} left")
    await runner.cleanup()


if __name__ == "__main__":
    run_virtual(main())
