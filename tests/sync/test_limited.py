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

_PAGES = len(limited.LISTS) * limited.PAGES
"""Of one account."""


async def synced(
    sync: Callable[[str, int, Path], Awaitable[None]], folder: Path, *, accounts: int = 2
) -> limited.Server:
    """Sync all lists, check that each record is there once, and that it took little time and few attempts."""
    server = limited.Server(seed=1)
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await sync(f"http://127.0.0.1:{runner.addresses[0][1]}/", accounts, folder)
    finally:
        await runner.cleanup()
    lines = (await asyncio.to_thread((folder / "records.jsonl").read_text, "utf-8")).splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == accounts * _PAGES * limited.SIZE
    assert server.faults > 0
    assert server.took <= 1.15 * limited.least(_PAGES + server.faults / accounts)
    assert server.attempts == accounts * _PAGES + server.faults + server.refused
    assert server.attempts <= 1.05 * accounts * _PAGES
    return server


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(1)


@pytest.mark.slow
async def test_a_sync_respects_a_stated_limit(virtual_time: VirtualClock, tmp_path: Path) -> None:
    server = await synced(limited.lamella_stated, tmp_path)
    assert server.refused == 0


@pytest.mark.slow
async def test_a_sync_learns_a_limit(virtual_time: VirtualClock, tmp_path: Path) -> None:
    """To find the limit takes at least two refusals of each account: one ends the first burst, and one confirms it."""
    server = await synced(limited.lamella, tmp_path, accounts=12)
    assert server.refused <= 2.5 * 12
