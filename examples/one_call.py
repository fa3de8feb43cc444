"""Options for one call: python examples/one_call.py"""

import asyncio

import aiohttp
from aiohttp import web

from lamella import ApiError, Backoff, Rule, RuleBook, options, stack

RULES = RuleBook(Rule(503, "Service Unavailable", retry=Backoff(0.01)))
busy = 0


async def answer(_request: web.BaseRequest) -> web.Response:
    global busy  # noqa: PLW0603 - a server in five lines
    busy -= 1
    return web.Response(status=503 if busy >= 0 else 200)


async def main() -> None:
    global busy  # noqa: PLW0603
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(middlewares=stack(RULES)) as session:
        busy = 2
        async with session.get(url) as response:
            print("usual:", response.status)

        busy = 2
        try:
            with options(attempts=1):
                await session.get(url)
        except ApiError as error:
            print("one attempt:", error.status, error.stopped)

        busy = 2
        with options(raise_errors=False, attempts=2):
            async with session.post(url) as response:
                print("as an answer:", response.status)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
