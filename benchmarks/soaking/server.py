"""The soak's server, in a process of its own: a sandbox whose answers fail in every way that it knows, and outages."""

from __future__ import annotations

import asyncio
import random
import signal
from multiprocessing.connection import Connection
from typing import Final

import anyio
from benchmarks.processes import readable

from lamella.maesn.sandbox import Account, Sandbox, Step
from lamella.testing import Fault, TokenBucket

__all__ = ["ACCOUNTS", "API_KEY", "CHANCES", "SILENCE", "serve"]

API_KEY: Final = "soak-api-key"
ACCOUNTS: Final = {f"account {number}": f"soak-account-key-{number}" for number in range(6)}
"""The names that the client gives them, with their keys."""

RECORDS: Final = 200
LIMIT: Final = TokenBucket(60, 40)
SILENCE: Final = 0.4
"""Seconds after which the client takes no answer for none."""

CHANCES: Final[dict[int | Fault, float]] = {
    500: 0.03,
    503: 0.02,
    429: 0.01,
    400: 0.002,
    Fault.RESET_BEFORE_HEADERS: 0.02,
    Fault.RESET_AFTER_HEADERS: 0.01,
    Fault.CUT_BODY: 0.02,
    Fault.GARBAGE: 0.01,
    Fault.ENDLESS_HEADERS: 0.003,
    Fault.SLOW_BODY: 0.003,
    Fault.SILENCE: 0.003,
}
OUTAGES: Final[tuple[Step, ...]] = (503, 500, Fault.RESET_BEFORE_HEADERS, Fault.SILENCE)
CALM: Final = (5.0, 15.0)
OUTAGE: Final = (0.5, 2.0)
"""Seconds between two outages, and seconds that one lasts: at least, at most."""


def serve(seed: int, pipe: Connection) -> None:
    """Send the URL, then serve until anything comes through the pipe or it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what ends when
    asyncio.run(_serve(seed, pipe))


async def _serve(seed: int, pipe: Connection) -> None:
    sandbox = Sandbox(
        # The last account is locked out, so that errors of syncs are created and released as well.
        accounts=[
            *(Account(key, limit=LIMIT) for key in list(ACCOUNTS.values())[:-1]),
            Account(list(ACCOUNTS.values())[-1], state="expired"),
        ],
        api_key=API_KEY,
        records=RECORDS,
        chances=CHANCES,
        seed=seed,
        pause=0.05,
    )
    async with sandbox, anyio.create_task_group() as tasks:
        tasks.start_soon(_go_down_now_and_then, sandbox, random.Random(seed))
        pipe.send(sandbox.url)
        await readable(pipe)
        tasks.cancel_scope.cancel()


async def _go_down_now_and_then(sandbox: Sandbox, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(chance.uniform(*CALM))
        sandbox.set_outage(chance.choice(OUTAGES))
        await asyncio.sleep(chance.uniform(*OUTAGE))
        sandbox.set_outage(None)
        sandbox.received.clear()  # or it would hold every request of the soak
