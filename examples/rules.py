"""Rules that see the whole response: python examples/rules.py"""

import asyncio

import aiohttp
from aiohttp import web

from lamella import HTTP_RULES, Answer, ApiError, Backoff, Rule, stack

SOON = Backoff(0.01)
RULES = HTTP_RULES.replace(
    Rule(403, "Secondary Rate Limit", when=lambda a: "Retry-After" in a.headers, retry=SOON, rate_limit=True),
    Rule(409, "Lock Timeout", when=lambda a: a.error_code == "lock_timeout", retry=SOON, carried_out=False),
    Rule(429, "Quota Used Up", when=lambda a: a.error_code == "insufficient_quota", rate_limit=False),
    Rule(200, "Throttled", when=lambda a: "THROTTLED" in a.text, retry=SOON, rate_limit=True),
)
ANSWERS: list[web.Response] = []


async def answer(_request: web.BaseRequest) -> web.Response:
    return ANSWERS.pop(0) if ANSWERS else web.json_response({"data": "all is well"})


async def show(
    session: aiohttp.ClientSession, name: str, url: str, *answers: web.Response, method: str = "GET"
) -> None:
    ANSWERS[:] = answers
    try:
        async with session.request(method, url) as response:
            print(f"{name}: {response.status} {await response.text()}")
    except ApiError as error:
        print(f"{name}: {error.status} {error.rule.title}, {error.stopped}")


async def main() -> None:
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    quota = {"error": {"code": "insufficient_quota"}}
    lock = {"error": {"code": "lock_timeout"}}
    async with aiohttp.ClientSession(middlewares=stack(RULES)) as session:
        await show(session, "a limit", url, web.Response(status=403, headers={"Retry-After": "0.1"}))
        await show(session, "a plain 403", url, web.Response(status=403))
        await show(session, "a lock", url, web.json_response(lock, status=409), method="POST")
        await show(session, "no quota", url, web.json_response(quota, status=429))
        await show(session, "an error in a 200", url, web.json_response({"errors": ["THROTTLED"]}))
    await runner.cleanup()

    # Rules can be tested without a server.
    [limited, *_] = RULES.rules
    print("by hand:", limited.when is not None and limited.when(Answer(403, {"retry-after": "5"})))


if __name__ == "__main__":
    asyncio.run(main())
