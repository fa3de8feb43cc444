"""Write your own layer, used alone and in a stack: two uploads at a time, and an error with a hint.

python examples/own_layer.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import aiohttp
from aiohttp import web

from lamella import Backoff, Call, ConnectFailed, Layer, Result, Rule, RuleBook, Slot, stack


class Uploads(Layer):
    """Let two POST requests pass at a time. If the server cannot be reached, name the VPN in the error."""

    slot = Slot.ATTEMPT_SPAN

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(2)

    def before(self, call: Call) -> Awaitable[object] | None:
        # A call that does not have to wait gets no coroutine.
        return self.places.acquire() if call.request.method == "POST" else None

    def after(self, call: Call, result: Result) -> Result | None:
        # Called for each attempt that passed `before`, even if it fails or is cancelled.
        if call.request.method == "POST":
            self.places.release()
        if isinstance(result, ConnectFailed | aiohttp.ClientConnectorError):
            return RuntimeError(f"{call.request.url.host} cannot be reached: is the VPN on?")
        return None  # leave the result as it is


RULES = RuleBook(Rule(503, "Service Unavailable", retry=Backoff(initial=0.01)))


async def main() -> None:
    now = most = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return web.Response()

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    for name, middlewares in (("alone", [Uploads()]), ("in a stack", [*stack(RULES, Uploads())])):
        async with aiohttp.ClientSession(url, middlewares=middlewares) as session:
            most = 0
            await asyncio.gather(*(session.post("/") for _ in range(10)))
            print(f"{name}: {most} at a time")
            try:
                await session.post("http://127.0.0.1:1/")
            except RuntimeError as error:
                print(f"{name}: {error}")
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
