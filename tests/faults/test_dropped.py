"""A host that drops what comes: no refusal, no connection, nothing."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
from tests.conftest import Tracing

from lamella import AttemptTimeout, ConnectFailed, StopReason, maesn
from lamella.testing import VirtualClock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops a SYN where a backlog is full")


@pytest.fixture
def silent() -> Iterator[str]:
    """A port whose backlog is full: the kernel drops every further SYN."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(10):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            if not select.select([], [client], [], 0.02)[1]:
                break
        else:
            pytest.fail("the backlog takes more than it was told to")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _files() -> set[str]:
    return {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_it_is_a_timeout_of_the_attempt(
    silent: str, method: str, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    """Whether anything was sent cannot be told from outside of the connection: a POST is not sent again."""
    tasks = asyncio.all_tasks()
    async with maesn.session(
        "key", "account", silent, attempts=2, attempt_timeout=10, tracer_provider=tracing.provider
    ) as session:
        with pytest.raises(AttemptTimeout) as caught:
            await session.request(method, "/accounting/invoices")
    sends = 2 if method == "GET" else 1
    assert len(caught.value.attempts) == len(tracing.sends) == sends
    assert caught.value.stopped is (StopReason.ATTEMPTS_USED_UP if sends == 2 else StopReason.UNSAFE_METHOD)
    assert all(record.took == pytest.approx(10, abs=0.5) for record in caught.value.attempts)
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() == tasks


async def test_with_a_limit_for_connecting_it_is_known_that_nothing_was_sent(
    silent: str, virtual_time: VirtualClock
) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=3)
    before = _files()
    async with maesn.session("key", "account", silent, attempts=2, timeout=timeout) as session:
        with pytest.raises(ConnectFailed) as caught:
            await session.post("/accounting/invoices", json={})
    assert len(caught.value.attempts) == 2
    await asyncio.sleep(0.1)
    assert len(_files()) <= len(before)
