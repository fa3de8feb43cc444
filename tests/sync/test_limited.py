"""A sync behind a rate limit, at a server that fails now and then: how long it takes, and how many attempts."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from benchmarks.syncing import limited

from lamella.testing import VirtualClock

ACCOUNTS = 2
_PAGES = ACCOUNTS * len(limited.LISTS) * limited.PAGES


async def synced(sync: Callable[[str, int, Path], Awaitable[None]], folder: Path) -> limited.Server:
    """Sync all lists, and check that each record is there once."""
    server = limited.Server(seed=1)
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await sync(f"http://127.0.0.1:{runner.addresses[0][1]}/", ACCOUNTS, folder)
    finally:
        await runner.cleanup()
    lines = (await asyncio.to_thread((folder / "records.jsonl").read_text, "utf-8")).splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == _PAGES * limited.SIZE
    assert server.faults > 0
    return server


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(1)


@pytest.mark.slow
async def test_a_sync_respects_a_stated_limit(virtual_time: VirtualClock, tmp_path: Path) -> None:
    server = await synced(limited.lamella_stated, tmp_path)
    assert server.took <= 1.15 * limited.least((_PAGES + server.faults) / ACCOUNTS)
    assert server.attempts <= 1.05 * _PAGES
    assert server.refused == 0


@pytest.mark.slow
async def test_a_sync_learns_a_limit(virtual_time: VirtualClock, tmp_path: Path) -> None:
    """To find the limit takes three refusals of each account: two attempts in flight, and one that measures it."""
    server = await synced(limited.lamella, tmp_path)
    assert server.took <= 1.15 * limited.least((_PAGES + server.faults) / ACCOUNTS)
    assert server.attempts <= _PAGES + server.faults + 3 * ACCOUNTS
    assert server.attempts <= 1.06 * _PAGES
