"""An API like GitHub's: a rate limit with status 403, and lists paginated by the Link header.

    python examples/secondary_limits.py

It starts a small server of that kind. The waits are whole minutes, as GitHub's are, and pass in virtual time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from yarl import URL

from lamella import HTTP_RULES, Answer, ApiError, Backoff, HeaderAuth, Rule, stack
from lamella.testing import FixedWindow, run_virtual


# https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api: wait as long as Retry-After says, or
# until the reset if nothing remains. A 403 that says neither is about permissions, and final.
def is_rate_limit(answer: Answer) -> bool:
    return "Retry-After" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0"


RULES = HTTP_RULES.replace(
    Rule(
        [403, 429],
        "Rate Limit",
        when=is_rate_limit,
        retry=Backoff(initial=60, maximum=3600),
        rate_limit=True,
        carried_out=False,
    ),
)


async def issues(session: aiohttp.ClientSession, repository: str) -> AsyncIterator[int]:
    url: str | URL | None = f"/repos/{repository}/issues?per_page=10"
    while url:
        async with session.get(url) as response:
            page = await response.json()
            url = response.links["next"]["url"] if "next" in response.links else None
        for issue in page:
            yield issue["number"]


async def read(session: aiohttp.ClientSession, repository: str) -> None:
    numbers = [number async for number in issues(session, repository)]
    print(f"{repository}: {len(numbers)} issues, each once: {numbers == list(range(1, 96))}")


class Api:
    """95 issues in each repository; 12 requests a minute, reported in two alternating ways."""

    def __init__(self) -> None:
        self.limiter = FixedWindow(12, per=60).limiter()
        self.answered = self.refused = 0

    async def list_issues(self, request: web.Request) -> web.Response:
        if request.match_info["name"] == "secret":
            return web.json_response({"message": "Must have push access to repository"}, status=403)
        wait = self.limiter.allow(asyncio.get_running_loop().time())
        if wait:
            self.refused += 1
            if self.refused % 2:
                message, headers = "You have exceeded a secondary rate limit", {"Retry-After": str(math.ceil(wait))}
            else:
                message = "API rate limit exceeded"
                headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(math.ceil(time.time() + wait))}
            return web.json_response({"message": message}, status=403, headers=headers)
        self.answered += 1
        page, size = int(request.query.get("page", "1")), int(request.query["per_page"])
        found = [{"number": number} for number in range(1, 96)][(page - 1) * size : page * size]
        more = {"Link": f'<{request.url.update_query(page=page + 1)}>; rel="next"'} if page * size < 95 else {}
        return web.json_response(found, headers=more)


async def main() -> None:
    api = Api()
    app = web.Application()
    app.router.add_get("/repos/{owner}/{name}/issues", api.list_issues)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    began = asyncio.get_running_loop().time()
    auth = HeaderAuth({"Authorization": "Bearer made-up-token"}, origin=url)
    async with aiohttp.ClientSession(url, middlewares=stack(RULES, auth=auth)) as session:
        await asyncio.gather(*(read(session, f"octo/{name}") for name in ("cat", "fish", "crab")))
        minutes = (asyncio.get_running_loop().time() - began) / 60
        print(f"{api.answered} pages in {minutes:.1f} minutes, {api.refused} requests refused")
        try:
            await read(session, "octo/secret")
        except ApiError as error:
            print(f"octo/secret: {error.status} {error.rule.title}, {error.stopped}, {len(error.attempts)} attempt")
    await runner.cleanup()


if __name__ == "__main__":
    run_virtual(main())
