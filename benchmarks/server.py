"""The server's process: a sandbox that writes down what arrives, with an outage, and a limit that changes."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple

import anyio
from benchmarks.processes import readable

from lamella.maesn.sandbox import Account, Received, Reply, Sandbox
from lamella.maesn.sandbox.limits import Where
from lamella.testing import Fault, FixedWindow, Limit, Limiter
from lamella.testing.limits import RetryAfter

if TYPE_CHECKING:
    from benchmarks.scenarios import Outage, Scenario

__all__ = ["API_KEY", "Arrival", "Changing", "account_key", "path_of", "serve"]

API_KEY = "storm-api-key"


class Arrival(NamedTuple):
    """A request as the server saw it. `at` is in seconds by its clock; `status` 0 means that it was not answered."""

    at: float
    account: int
    status: int


def account_key(number: int) -> str:
    """The key of an account, which the server knows and a client sends."""
    return f"account-{number}"


def path_of(number: int) -> str:
    """The path of a crowd, where it is one of several of an account."""
    return f"/accounting/{('invoices', 'contacts', 'bills', 'items')[number]}"


@dataclass(frozen=True, slots=True)
class Changing:
    """A limit that is `before` at first and `then` from `after` seconds after the first request on."""

    before: Limit
    then: Limit
    after: float

    @property
    def retry_after(self) -> RetryAfter:
        """As it is before the change."""
        return self.before.retry_after

    def limiter(self) -> Limiter:
        """A fresh state, for one account."""
        return _ChangingLimiter(self)


class _ChangingLimiter:
    def __init__(self, limit: Changing) -> None:
        self._after = limit.after
        self._before = limit.before.limiter()
        self._then = limit.then.limiter()
        self._changes: float | None = None

    def allow(self, now: float) -> float:
        if self._changes is None:
            self._changes = now + self._after
        if now >= self._changes:
            return self._then.allow(now)
        # The change begins a new count, so it may admit sooner than the window would have.
        return min(self._before.allow(now), self._changes - now)


def serve(scenario: Scenario, seed: int, pipe: Connection) -> None:
    """Send the URL, serve until anything comes through the pipe or it closes, then send all `Arrival`s."""
    # Ctrl-C reaches the whole group of processes; the parent decides what ends when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve(scenario, seed, pipe))


class _Storm(Sandbox):
    """A sandbox whose limit is of points or of a path, whose answers state it, or which refuses with another status."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        keys = range(1 if scenario.paths else len(scenario.crowds))
        super().__init__(
            accounts=[Account(account_key(number), limit=scenario.crowds[number].limit) for number in keys],
            api_key=API_KEY,
            records=1,
            chances={500: scenario.errors, 429: scenario.refusals},
            seed=seed,
            latency=scenario.latency,
        )
        self._scenario = scenario
        self._windows: dict[str, list[float]] = {}  # of each path: when it ends, and what is used of it

    def _limited(self, received: Received, where: Where) -> Reply | None:
        scenario = self._scenario
        if not (scenario.paths or scenario.points or scenario.states):
            reply = super()._limited(received, where)
        elif (limit := scenario.crowds[0].limit) is None or not isinstance(limit, FixedWindow):
            raise ValueError(f"the limit must be a FixedWindow, got {limit!r}")
        else:
            now, cost = asyncio.get_running_loop().time(), int(received.headers.get("X-Points", "1"))
            window = self._windows.setdefault(received.path if scenario.paths else "", [0.0, 0.0])
            if now >= window[0]:
                window[:] = now + limit.per, 0.0
            passes = window[1] + cost <= limit.requests
            window[1] += cost if passes else 0
            reply = None if passes else Reply(429)
        if reply is not None and scenario.refusal != reply.status:
            reply = Reply(scenario.refusal, headers=reply.headers)
        return reply

    def _decide(self, received: Received, where: Where) -> tuple[Fault | None, Reply, bool]:
        fault, reply, counted = super()._decide(received, where)
        limit = self._scenario.crowds[0].limit
        if self._scenario.states and isinstance(limit, FixedWindow) and "" in self._windows:
            ends, used = self._windows[""]
            left = {
                "X-RateLimit-Limit": str(limit.requests),
                "X-RateLimit-Remaining": f"{limit.requests - used:.0f}",
                "X-RateLimit-Reset": str(math.ceil(ends - asyncio.get_running_loop().time())),
            }
            reply = replace(reply, headers={**reply.headers, **left})
        return fault, reply, counted


async def _serve(scenario: Scenario, seed: int, pipe: Connection) -> None:
    sandbox = _Storm(scenario, seed)
    async with sandbox, anyio.create_task_group() as tasks:
        if scenario.outage is not None:
            tasks.start_soon(_go_down, sandbox, scenario.outage)
        pipe.send(sandbox.url)
        await readable(pipe)
        tasks.cancel_scope.cancel()
    with suppress(BrokenPipeError):  # our parent is gone
        pipe.send(_arrivals(sandbox.received, scenario))


async def _go_down(sandbox: Sandbox, outage: Outage) -> None:
    """Answer with 500 while the outage lasts."""
    loop = asyncio.get_running_loop()
    if outage.covers(0.0):
        sandbox.set_outage(500)
    while not sandbox.received:  # noqa: ASYNC110 - nothing tells when
        await asyncio.sleep(0.001)
    first = sandbox.received[0].at
    await asyncio.sleep(first + outage.start - loop.time())
    sandbox.set_outage(500)
    await asyncio.sleep(first + outage.end - loop.time())
    sandbox.set_outage(None)


def _arrivals(received: Sequence[Received], scenario: Scenario) -> list[Arrival]:
    crowds = range(len(scenario.crowds))
    numbers = {(path_of(number) if scenario.paths else account_key(number)): number for number in crowds}
    return [
        # Whoever sends no or a wrong key gets a 401 or 403, which must not count for an account.
        Arrival(
            one.at,
            numbers.get(one.path if scenario.paths else one.account or "", -1),
            one.outcome if isinstance(one.outcome, int) else 0,
        )
        for one in received
    ]
