"""Use a hook that is called after each attempt, and read the attempts of a successful call.

python examples/on_attempt.py
"""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
from aiohttp import web

from lamella import AttemptRecord, Backoff, LamellaError, Rule, RuleBook, attempts, stack

RULES = RuleBook(Rule(503, "Service Unavailable", retry=Backoff(0.01, jitter=0)))
statuses = [503, 503, 200, 404]
counts: Counter[str] = Counter()


async def count(
    request: aiohttp.ClientRequest, result: aiohttp.ClientResponse | LamellaError, record: AttemptRecord
) -> None:
    counts[f"{request.method} {record.status or record.exception}"] += 1
    if isinstance(result, LamellaError):
        what = f"stopped: {result.stopped}" if result.stopped else f"next one in {record.waited:g} s"
    else:
        what = "done"
    print(f"attempt {record.number}: {record.status}, {what}")


async def answer(_request: web.BaseRequest) -> web.Response:
    return web.Response(status=statuses.pop(0))


async def main() -> None:
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(middlewares=stack(RULES, on_attempt=count)) as session:
        async with session.get(url) as response:
            print("the call took", [record.status for record in attempts(response)])
        try:
            await session.get(url)
        except LamellaError as error:
            print("the call took", [record.status for record in error.attempts])
    print(dict(counts))
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
