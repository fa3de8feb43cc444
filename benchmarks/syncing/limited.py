"""A list behind a rate limit that also fails now and then: what the second part of the benchmark of a sync reads."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from lamella import HeaderAuth, Limit, stack
from lamella import sync as syncing
from lamella.batch import Journal
from lamella.testing import Fault, Limiter, SlidingWindow
from lamella.throttle.limit import Limits

__all__ = [
    "CONTENDERS",
    "LISTS",
    "PAGES",
    "RATE",
    "SIZE",
    "Server",
    "by_hand",
    "lamella",
    "lamella_stated",
    "least",
    "serve",
]

LISTS, PAGES, SIZE = ("bills", "invoices"), 50, 10
RATE = 4
"""Requests a second and account."""
ERRORS, RESETS, CUTS = 0.02, 0.0025, 0.0025
LATENCY = 0.02
"""Seconds that the server takes for an answer."""


class Server:
    """The lists of all accounts, each with a limit and random faults of its own.

    Args:
        seed: For the faults. Those of an account depend on the number of its request alone.
    """

    def __init__(self, seed: int = 1) -> None:
        self.seed = seed
        self.attempts = 0
        self.refused = 0
        """How many of them were answered with 429."""
        self.faults = 0
        """How many failed by chance."""
        self.first: dict[str, float] = {}
        """When the first request of each account came, by the loop's clock."""
        self.last: dict[str, float] = {}
        """When its last good answer was sent."""
        self._limits: defaultdict[str, Limiter] = defaultdict(SlidingWindow(RATE, 1.0).limiter)
        self._faults: dict[str, random.Random] = {}

    def app(self) -> web.Application:
        """Return the application to be served."""
        app = web.Application()
        app.router.add_get("/{name}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        account, now = request.headers["X-Account"], asyncio.get_running_loop().time()
        self.attempts += 1
        self.first.setdefault(account, now)
        if self._limits[account].allow(now):
            self.refused += 1
            return web.json_response({"message": "too many requests"}, status=429, headers={"Retry-After": "1"})
        chance = self._faults.setdefault(account, random.Random(f"{self.seed} {account}")).random()
        await asyncio.sleep(LATENCY)
        self.faults += chance < ERRORS + RESETS + CUTS
        if chance < ERRORS:
            return web.json_response({"message": "internal error"}, status=500)
        number = int(request.query["page"])
        prefix, first = f"{account}-{request.match_info['name']}", (number - 1) * SIZE
        records = [{"id": f"{prefix}-{each}", "text": "x" * 900} for each in range(first, first + SIZE)]
        response = web.json_response({"total": PAGES * SIZE, "data": records if number <= PAGES else []})
        if chance < ERRORS + RESETS:
            return await Fault.RESET_BEFORE_HEADERS.answer(request, response)
        if chance < ERRORS + RESETS + CUTS:
            return await Fault.CUT_BODY.answer(request, response)
        self.last[account] = asyncio.get_running_loop().time()
        return response

    @property
    def took(self) -> float:
        """Seconds from the first request to the last good answer."""
        return max(self.last.values()) - min(self.first.values())


def least(attempts: float) -> float:
    """Return the seconds that the limit needs for so many admitted requests of an account."""
    return max(0.0, attempts - RATE) / RATE + LATENCY


def serve(seed: int, pipe: Connection) -> None:
    """Serve in a process of its own: send the URL, wait for a word, and send what was counted."""

    async def main() -> None:
        server = Server(seed)
        runner = web.AppRunner(server.app(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        pipe.send(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        await asyncio.to_thread(pipe.recv)
        pipe.send((server.took, server.attempts, server.refused, server.faults))
        await runner.cleanup()

    asyncio.run(main())


_account: ContextVar[str] = ContextVar("account")


@contextmanager
def _within(name: str) -> Iterator[None]:
    token = _account.set(name)
    try:
        yield
    finally:
        _account.reset(token)


async def lamella(url: str, accounts: int, folder: Path, limits: Limits | None = None) -> None:
    """Sync with `lamella.sync`, whose throttle learns the limit where none is stated."""
    lists = {
        name: syncing.Source(name, syncing.Numbered(page_size=SIZE), total="total", within=_within) for name in LISTS
    }
    auth = HeaderAuth({"X-Account": lambda _: _account.get()}, origin=url)
    names = {f"account-{number}": f"account-{number}" for number in range(accounts)}
    layers = stack(auth=auth, account=lambda _: _account.get(), limits=limits)
    async with (
        aiohttp.ClientSession(url, middlewares=layers) as session,
        Journal.open(folder / "journal", batch="benchmark") as journal,
    ):
        await syncing.run(session, lists, names, journal=journal, output=folder / "records.jsonl")


async def lamella_stated(url: str, accounts: int, folder: Path) -> None:
    """Sync with `lamella.sync` and the stated limit."""
    await lamella(url, accounts, folder, limits=Limit(RATE, per=1.0))


async def by_hand(url: str, accounts: int, folder: Path) -> None:
    """Forty lines of aiohttp and aiohttp-retry: the pages of each list, one after the other."""
    from aiohttp_retry import ExponentialRetry, RetryClient

    options = ExponentialRetry(attempts=5, start_timeout=1, statuses={429, 500}, exceptions={aiohttp.ClientError})
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        async with RetryClient(aiohttp.ClientSession(url), retry_options=options) as session:

            async def every_page(account: str, name: str) -> None:
                number, seen = 1, 0
                while True:
                    query = {"page": str(number), "limit": str(SIZE)}
                    async with session.get(name, params=query, headers={"X-Account": account}) as response:
                        response.raise_for_status()
                        body = await response.json()
                    for record in body["data"]:
                        line = {"account": account, "resource": name, "id": record["id"], "record": record}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    number, seen = number + 1, seen + len(body["data"])
                    if seen >= body["total"] or not body["data"]:
                        return

            lists = [(f"account-{number}", name) for number in range(accounts) for name in LISTS]
            await asyncio.gather(*(every_page(*each) for each in lists), return_exceptions=True)


CONTENDERS: dict[str, Callable[[str, int, Path], Coroutine[Any, Any, None]]] = {
    "by hand": by_hand,
    "lamella": lamella,
    "lamella, limit stated": lamella_stated,
}
