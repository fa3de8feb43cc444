"""What a sync keeps in memory for each account, in bytes that Python allocates: they do not depend on the machine."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import Breaker, maesn
from lamella.batch import Journal
from lamella.store.shared import hash_key
from lamella.sync import Progress

ACCOUNTS = 200
LISTS = ("bills", "items")
FIRST, LAST = 60, 156
"""The numbers of finished accounts at the two measurements. Between them are three times the lists of a look-up, so
that as many lists are ahead."""
MOST = 500
"""Bytes that may stay for an account when its lists are read. Most of them are its learned limit, which is kept for the
10,000 accounts that were used last."""
MOST_FAILED = 5000
"""The same if both lists fail: two errors with their texts, and the state of the account in the layers."""


async def answer(request: web.Request) -> web.Response:
    records = [{"id": f"{request.headers['X-ACCOUNT-KEY']}-{number}"} for number in range(3)]
    return web.json_response({"data": records, "meta": {"pagination": {"total": 3, "totalPages": 1}}})


async def refuse(_: web.Request) -> web.Response:
    body = {"message": "Forbidden", "more": ["x" * 100] * 200}
    return web.json_response(body, status=403, headers={"X-Request-Id": "7"})


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "most"), [(answer, MOST), (refuse, MOST_FAILED)], ids=["done", "failed"])
async def test_little_stays_for_an_account_that_is_finished(
    answer: Callable[[web.Request], Awaitable[web.Response]],
    most: int,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("CRITICAL", "lamella")  # pytest keeps each message
    # As with so many accounts that most of the idle ones are dropped.
    monkeypatch.setattr("lamella.throttle.layer.MOST_IDLE", FIRST // 4)
    monkeypatch.setattr("lamella.maesn.guard.MOST_PLACES", FIRST // 4)
    traced: dict[int, int] = {}

    def measure(progress: Progress) -> None:
        ended = sum(part.done or part.error is not None for part in progress.parts.values())
        if ended in (FIRST * len(LISTS), LAST * len(LISTS)) and ended not in traced:
            hash_key.cache_clear()  # it keeps the last 1,024
            gc.collect()
            traced[ended] = tracemalloc.get_traced_memory()[0]

    accounts = {f"account {number}": f"key-of-{number}" for number in range(ACCOUNTS)}
    session = maesn.session("api-key", base_url=await serve(answer), breaker=Breaker(), guard=maesn.ErrorGuard())
    tracemalloc.start()
    try:
        async with session, Journal.open(tmp_path / "journal", batch="b") as journal:
            report = await maesn.sync(session, accounts, LISTS, journal=journal, at_once=1, on_progress=measure)
    finally:
        tracemalloc.stop()
    assert report.done or len(report.failed) == ACCOUNTS * len(LISTS)
    first, last = traced.values()
    assert (last - first) / (LAST - FIRST) < most
