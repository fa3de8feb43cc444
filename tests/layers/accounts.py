"""A server that limits the rate of each account, and sessions that call it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from tests.leftovers import owner_of, tasks_of_lamella, timers_of_lamella

from lamella import Backoff, Rule, RuleBook, Throttle
from lamella.testing import FixedWindow, SlidingWindow, TokenBucket, VirtualClock, VirtualTimeLoop
from lamella.testing import Limit as ServersLimit

__all__ = [
    "KINDS",
    "MINUTE",
    "Server",
    "account_of",
    "at_rest",
    "client",
    "get",
    "in_episode",
    "limit_of",
    "now",
    "quickly",
    "throttle_in",
]

MINUTE = RuleBook(
    Rule(429, "Too Many Requests", hint="slow down", retry=Backoff(60, jitter=0)),
    Rule(500, "Internal Server Error", retry=Backoff(15, jitter=0)),
)
KINDS = ("fixed", "sliding", "bucket")


def limit_of(kind: str, requests: int, per: float, *, retry_after: bool = True) -> ServersLimit:
    if kind == "bucket":
        return TokenBucket(requests / per, requests, retry_after=retry_after)
    return (FixedWindow if kind == "fixed" else SlidingWindow)(requests, per, retry_after=retry_after)


def account_of(request: aiohttp.ClientRequest) -> str | None:
    return request.headers.get("X-Account")


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Server:
    """Answers with the given statuses, within the limit of each account; records the requests."""

    statuses: list[int] = field(default_factory=list)
    limit: ServersLimit | None = None
    latency: float = 0.1
    headers: dict[str, str] = field(default_factory=dict)
    came: list[tuple[float, str, str]] = field(default_factory=list)
    """When, which call, which account."""
    refused: int = 0

    def __post_init__(self) -> None:
        self.limiters: dict[str, Any] = {}

    @property
    def calls(self) -> list[str]:
        return [number for _, number, _ in self.came]

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        account = request.headers.get("X-Account", "")
        self.came.append((now(), request.query.get("n", ""), account))
        status = self.statuses.pop(0) if self.statuses else 200
        if self.limit is not None:
            limiter = self.limiters.setdefault(account, self.limit.limiter())
            if limiter.allow(now()) > 0:
                status = 429
        self.refused += status == 429
        await asyncio.sleep(self.latency)
        return web.Response(status=status, headers=self.headers)


def client(url: str, *layers: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        timeout=aiohttp.ClientTimeout(),
        middlewares=layers,
        connector=aiohttp.TCPConnector(limit=0),
    )


async def get(session: aiohttp.ClientSession, number: object = "", account: str = "") -> int:
    async with session.get(
        "/", params={"n": str(number)}, headers={"X-Account": account} if account else {}
    ) as response:
        return response.status


def throttle_in(session: aiohttp.ClientSession) -> Throttle:
    layers = [layer for one in session._middlewares for layer in getattr(one, "layers", [one])]
    [throttle] = [layer for layer in layers if isinstance(layer, Throttle)]
    return throttle


def in_episode(session: aiohttp.ClientSession) -> bool:
    [account] = throttle_in(session)._accounts.values()
    return account.episode is not None


def at_rest(session: aiohttp.ClientSession) -> None:
    """Assert that no call waits or is in flight, and that no timer and no task of lamella is left.

    Timeout cancels its timer in the loop's next round after the last attempt: such a timer does not count.
    """
    throttle = throttle_in(session)
    accounts = throttle._accounts.values()
    queues = [
        each.queue
        for account in accounts
        for each in (account, *(account.parts.accounts.values() if account.parts else ()))
    ]
    if throttle._quotas is not None:
        queues += [quota.queue for quota in throttle._quotas._quotas.values()]
    for queue in queues:
        assert (queue.waiting, queue.in_flight, queue.asking) == (0, 0, None)
    assert not [timer for timer in timers_of_lamella() if not getattr(owner_of(timer), "_idle", False)]
    assert not tasks_of_lamella()


def quickly(main: Callable[[], Any]) -> Any:
    """Run *main* in virtual time without the real millisecond before each jump: all sockets are on this machine."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(VirtualClock(grace=0))) as runner:
        return runner.run(main())
