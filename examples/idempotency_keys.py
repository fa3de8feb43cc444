"""An API like Stripe's: POSTs with an idempotency key are repeated, and the server carries each of them out once.

    python examples/idempotency_keys.py

It starts a small server of that kind, which breaks in a different way for each order. Waits pass in virtual time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp
from aiohttp import web

from lamella import HTTP_RULES, ApiError, Backoff, Rule, stack
from lamella.testing import run_virtual

# https://docs.stripe.com/error-low-level: a header says whether a retry makes sense; for a 409, the code in the body
# does.
RULES = HTTP_RULES.replace(
    Rule(None, "Not Retryable", when=lambda a: a.headers.get("Stripe-Should-Retry") == "false"),
    Rule(None, "Retryable", when=lambda a: a.headers.get("Stripe-Should-Retry") == "true", retry=Backoff((0.5, 1))),
    Rule(409, "Key In Use", when=lambda a: a.error_code == "idempotency_key_in_use", retry=Backoff(1)),
)


async def charge(session: aiohttp.ClientSession, order: str, amount: int) -> None:
    # The key is derived from the order, so that a later run of the program sends the same one.
    headers = {"Idempotency-Key": f"charge-{order}"}
    try:
        async with session.post("/charges", json={"order": order, "amount": amount}, headers=headers) as response:
            print(f"{order}: charged {(await response.json())['amount']}")
    except ApiError as error:
        print(f"{order}: {error.status} {error.error_code}, {error.stopped}, attempts: {len(error.attempts)}")


class Api:
    """Make one charge per key, and answer later requests with that key in the same way."""

    def __init__(self) -> None:
        self.charges: dict[str, dict[str, Any] | None] = {}
        """By key. None: in progress."""
        self.posts = Counter[str]()
        self.carried_out = Counter[str]()

    async def create(self, request: web.Request) -> web.Response:
        key, asked = request.headers["Idempotency-Key"], await request.json()
        order = asked["order"]
        self.posts[order] += 1
        if key in self.charges:
            made = self.charges[key]
            if made is None:
                return _error(409, "idempotency_key_in_use")
            return web.json_response(made) if made == asked else _error(409, "idempotency_key_reused")
        if order == "broken":
            return _error(500, "misconfigured", should_retry="false")
        if order == "busy" and self.posts[order] == 1:
            return _error(409, "busy", should_retry="true")
        self.charges[key] = None
        if order == "slow":
            await asyncio.sleep(12)  # longer than the client waits for an attempt
        self.charges[key] = asked
        self.carried_out[order] += 1
        if order == "cut" and request.transport is not None:
            request.transport.abort()  # charged, but the client gets no response
        return web.json_response(asked)

    async def show(self, _: web.Request) -> web.Response:
        return web.json_response({"carried_out": self.carried_out, "posts": self.posts})


def _error(status: int, code: str, should_retry: str | None = None) -> web.Response:
    headers = {} if should_retry is None else {"Stripe-Should-Retry": should_retry}
    return web.json_response({"error": {"code": code}}, status=status, headers=headers)


async def main() -> None:
    api = Api()
    app = web.Application()
    app.router.add_post("/charges", api.create)
    app.router.add_get("/charges", api.show)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async with aiohttp.ClientSession(url, middlewares=stack(RULES, attempt_timeout=10)) as session:
        for order in ("plain", "cut", "slow", "busy", "broken"):
            await charge(session, order, 100)
        await charge(session, "plain", 100)  # as after a crash: the program does not know that it is done
        await charge(session, "plain", 200)
        async with session.get("/charges") as response:
            print("the server:", await response.json())
    await runner.cleanup()


if __name__ == "__main__":
    run_virtual(main())
