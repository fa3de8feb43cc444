"""``Throttle`` keeps to the limits that a server states, and drops a statement that its answers contradict."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping

import pytest
from aiohttp import web
from tests.layers.accounts import MINUTE, at_rest, client, get, now
from tests.servers import Serve

from lamella import RateLimited, StatedLimit, stack
from lamella.testing import VirtualClock
from lamella.throttle.headers import stated_limits

Headers = Callable[[float, float], dict[str, str]]
"""What an answer states, from the remaining requests and the seconds until the reset."""

LIMIT, WINDOW = 50, 60.0
FORMS: dict[str, Headers] = {
    "draft 10": lambda r, t: {
        "RateLimit-Policy": f'"day";q=90000;w=86400, "minute";q={LIMIT};w=60',
        "RateLimit": f'"day";r=9000;t=8000, "minute";r={r:.0f};t={math.ceil(t)}',
    },
    "draft 7": lambda r, t: {"RateLimit": f"limit={LIMIT}, remaining={r:.0f}, reset={math.ceil(t)}"},
    "draft 6": lambda r, t: _three("RateLimit", r, math.ceil(t)),
    "seconds": lambda r, t: _three("X-RateLimit", r, math.ceil(t)),
    "hyphen": lambda r, t: _three("X-Rate-Limit", r, math.ceil(t)),
}
LIES: dict[str, Headers] = {
    "never decreases": lambda _, t: _three("X-RateLimit", LIMIT, math.ceil(t)),
    "in the past": lambda r, _: _three("X-RateLimit", r, 1000000001),
    "always 0": lambda _, t: _three("X-RateLimit", 0, math.ceil(t)),
}


def _three(prefix: str, remaining: float, reset: float) -> dict[str, str]:
    numbers = {"Limit": LIMIT, "Remaining": remaining, "Reset": reset}
    return {f"{prefix}-{name}": f"{number:g}" if number < 1e6 else str(number) for name, number in numbers.items()}


class Stating:
    """A fixed window that begins with a request."""

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.ends, self.used, self.sent, self.refused = -1.0, 0, 0, 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.sent += 1
        if now() >= self.ends:
            self.ends, self.used = now() + WINDOW, 0
        passes = self.used < LIMIT
        self.used += passes
        self.refused += not passes
        headers = self.headers(LIMIT - self.used, self.ends - now())
        await asyncio.sleep(0.05)
        return web.Response(status=200 if passes else 429, headers=headers)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", FORMS)
async def test_a_stated_limit_is_respected_before_any_refusal(
    serve: Serve, virtual_time: VirtualClock, form: str
) -> None:
    server = Stating(FORMS[form])
    async with client(await serve(server), *stack(MINUTE)) as session:
        began = now()
        assert await asyncio.gather(*(get(session, number) for number in range(220))) == [200] * 220
        assert (server.sent, server.refused) == (220, 0)
        assert 240 <= now() - began < 245
        at_rest(session)


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
async def test_a_stated_limit_that_responses_contradict_delays_nothing(
    serve: Serve, virtual_time: VirtualClock, lie: str
) -> None:
    server, silent = Stating(LIES[lie]), Stating(lambda _, __: {})
    took = []
    for each in (silent, server):
        async with client(await serve(each), *stack(MINUTE)) as session:
            began = now()
            assert await asyncio.gather(*(get(session, number) for number in range(300))) == [200] * 300
            took.append(now() - began)
            at_rest(session)
    assert took[1] <= took[0] + 2 * WINDOW


async def test_a_stated_zero_that_lets_calls_pass_is_ignored(serve: Serve, virtual_time: VirtualClock) -> None:
    async def server(_: web.Request) -> web.StreamResponse:
        return web.Response(headers=_three("X-RateLimit", 0, 30))

    async with client(await serve(server), *stack(MINUTE)) as session:
        began = now()
        for number in range(50):
            await get(session, number)
        assert now() - began < 100


async def test_a_reset_in_milliseconds_is_noticed(serve: Serve, virtual_time: VirtualClock) -> None:
    began = now()

    async def server(_: web.Request) -> web.StreamResponse:
        left = 60.0 - (now() - began) % 60
        await asyncio.sleep(0.05)
        return web.Response(headers=_three("X-RateLimit", max(40 - (now() - began) * 100, 0), int(left * 1000)))

    async with client(await serve(server), *stack(MINUTE)) as session:
        for number in range(40):
            await get(session, number)
        assert now() - began < 5


async def test_a_limit_for_hours_is_reported_at_once(serve: Serve, virtual_time: VirtualClock) -> None:
    async def server(_: web.Request) -> web.StreamResponse:
        return web.Response(headers=_three("X-RateLimit", 0, 20000))

    async with client(await serve(server), *stack(MINUTE)) as session:
        await get(session)
        with pytest.raises(RateLimited):
            await get(session)
        at_rest(session)


@pytest.mark.slow
async def test_a_function_of_the_headers_can_state_a_bucket(serve: Serve, virtual_time: VirtualClock) -> None:
    level, at, refused = 0.0, now(), 0

    async def server(_: web.Request) -> web.StreamResponse:
        nonlocal level, at, refused
        level, at = max(level - 2 * (now() - at), 0.0), now()
        passes = level + 1 <= 40
        level += passes
        refused += not passes
        headers = {"X-Shopify-Shop-Api-Call-Limit": f"{math.ceil(level)}/40"}
        await asyncio.sleep(0.05)
        return web.Response(status=200 if passes else 429, headers=headers)

    def shopify(headers: Mapping[str, str]) -> list[StatedLimit]:
        used, _, size = headers.get("X-Shopify-Shop-Api-Call-Limit", "").partition("/")
        return [StatedLimit(float(size) - float(used), float(size), refill=2.0)] if size else []

    async with client(await serve(server), *stack(MINUTE, limits=shopify)) as session:
        began = now()
        assert await asyncio.gather(*(get(session, number) for number in range(200))) == [200] * 200
        assert refused == 0
        assert now() - began < 85
        at_rest(session)


async def test_a_function_of_the_headers_that_fails_breaks_no_call(
    serve: Serve, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def server(_: web.Request) -> web.StreamResponse:
        return web.Response()

    def broken(headers: Mapping[str, str]) -> list[StatedLimit]:
        raise KeyError(headers["Date"])

    async with client(await serve(server), *stack(MINUTE, limits=broken)) as session:
        assert await asyncio.gather(*(get(session, number) for number in range(3))) == [200] * 3
        at_rest(session)
    assert [record.message for record in caplog.records if record.name == "lamella"] == [
        "limits= of Throttle failed, so no limit is read: KeyError"
    ]


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, []),
        ({"RateLimit": '"a";r=3;t=7'}, [StatedLimit(3, 0, 7, name='"a"')]),
        ({"RateLimit": '"a";r=3', "RateLimit-Policy": '"a";q=9;w=60'}, [StatedLimit(3, 9, 60, name='"a"')]),
        ({"RateLimit": '"a";r=3', "RateLimit-Policy": '"a";q=9;qu="content-bytes";w=60'}, []),
        ({"RateLimit": '"a,b";r=3;t=1, "c";r=4;t=2;pk=:x:'}, ['"a,b"', '"c"']),
        ({"RateLimit": "garbage"}, []),
        ({"X-RateLimit-Remaining": "garbage", "X-RateLimit-Reset": "5"}, []),
        ({"X-RateLimit-Remaining": "3"}, [StatedLimit(3)]),
        ({"X-RateLimit-Remaining": "3", "X-RateLimit-Reset": "-5"}, [StatedLimit(3)]),
        ({"X-RateLimit-Remaining": "3", "X-RateLimit-Reset": "900000"}, [StatedLimit(3)]),
    ],
)
def test_headers_state_limits(headers: dict[str, str], limits: list[StatedLimit | str]) -> None:
    found = stated_limits(headers)
    assert [each.name if isinstance(limit, str) else each for each, limit in zip(found, limits, strict=True)] == limits


@pytest.mark.parametrize(
    "form",
    [
        {"X-RateLimit-Remaining": "3", "X-RateLimit-Reset": "{}"},
        {"RateLimit": '"a";r=3;t={}'},
        {"RateLimit": "limit=10, remaining=3, reset={}"},
    ],
)
def test_a_reset_time_is_read_as_a_time(form: dict[str, str]) -> None:
    """By the server's clock."""
    headers = {name: value.format(1767225630) for name, value in form.items()}
    [stated] = stated_limits(headers | {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"})
    assert (stated.remaining, stated.reset) == (3, 30)
