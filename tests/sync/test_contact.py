"""An address that has never answered: a failure to connect is no outage, unless it passes at once."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from lamella import HTTP_RULES, Breaker, Source, stack, sync
from lamella.batch import Journal
from lamella.sync import contact
from lamella.testing import VirtualClock


@pytest.fixture
def port() -> int:
    """One that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def answer(_: web.BaseRequest) -> web.Response:
    return web.json_response({"data": [{"id": 1}], "total": 1})


async def report_of(port: int, journal: Journal, accounts: int = 1) -> sync.Report:
    layers = stack(HTTP_RULES, Breaker(minimum=2, open_for=0.02))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", middlewares=layers) as session:
        sources = {"items": Source("items", total="total"), "bills": Source("bills", total="total")}
        named = {f"account {number}": number for number in range(accounts)}
        return await sync.run(session, sources, named, journal=journal)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("accounts", [1, 30])
async def test_a_sync_waits_briefly_for_an_api_to_start(
    port: int, accounts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual_time: VirtualClock
) -> None:
    monkeypatch.setattr(contact, "_PAUSES", (0.02,))
    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        syncing = asyncio.create_task(report_of(port, journal, accounts))
        await asyncio.sleep(0.1)
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        report = await syncing
        await runner.cleanup()
    assert report.done
    assert report.records == 2 * accounts


@pytest.mark.sampled(1)
@pytest.mark.parametrize("accounts", [1, 30])
async def test_an_api_that_never_starts_fails_each_part_with_the_cause(
    port: int, accounts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual_time: VirtualClock
) -> None:
    monkeypatch.setattr(contact, "_PATIENCE", 0.1)
    monkeypatch.setattr(contact, "_PAUSES", (0.02,))
    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        report = await report_of(port, journal, accounts)
    assert len(report.failed) == 2 * accounts
    assert {type(part.error).__name__ for part in report.failed} == {"ConnectFailed"}
    assert virtual_time.elapsed < 3


async def test_another_address_of_the_same_sync_continues(port: int, tmp_path: Path) -> None:
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    sources = {"items": Source("items", total="total"), "bills": Source("http://unknown.invalid/bills", total="total")}
    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        async with aiohttp.ClientSession(url, middlewares=stack()) as session:
            report = await sync.run(session, sources, journal=journal)
    await runner.cleanup()
    assert [(part.resource, part.done) for part in report.parts] == [("items", True), ("bills", False)]
    assert "unknown.invalid" in str(report.failed[0].error)
