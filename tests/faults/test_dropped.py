"""A host that drops what comes: no refusal, no connection, nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from tests.faults.wire import full_backlog
from tests.sdk import Tracing

from lamella import ConnectFailed, ConnectTimeout, StopReason, maesn
from lamella.testing import VirtualClock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops a SYN where a backlog is full")


@pytest.fixture
def silent() -> Iterator[str]:
    with full_backlog() as port:
        yield f"http://127.0.0.1:{port}"


def _files() -> set[str]:
    return {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_attempt_timeout_while_connecting_means_nothing_was_sent(
    silent: str, method: str, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    tasks = asyncio.all_tasks()
    async with maesn.session(
        "key", "account", silent, attempts=2, attempt_timeout=10, tracer_provider=tracing.provider
    ) as session:
        with pytest.raises(ConnectTimeout) as caught:
            await session.request(method, "/accounting/invoices")
    assert len(caught.value.attempts) == len(tracing.sends) == 2
    assert caught.value.stopped is StopReason.ATTEMPTS_USED_UP
    assert all(record.took == pytest.approx(10, abs=0.5) for record in caught.value.attempts)
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() == tasks


async def test_a_connect_timeout_means_nothing_was_sent(silent: str, virtual_time: VirtualClock) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=3)
    before = _files()
    async with maesn.session("key", "account", silent, attempts=2, timeout=timeout) as session:
        with pytest.raises(ConnectFailed) as caught:
            await session.post("/accounting/invoices", json={})
    assert len(caught.value.attempts) == 2
    await asyncio.sleep(0.1)
    assert len(_files()) <= len(before)
