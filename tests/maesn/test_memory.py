"""What a sync keeps in memory for each account, in bytes that Python allocates: they do not depend on the machine."""

from __future__ import annotations

import gc
import tracemalloc
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


async def answer(request: web.Request) -> web.Response:
    records = [{"id": f"{request.headers['X-ACCOUNT-KEY']}-{number}"} for number in range(3)]
    return web.json_response({"data": records, "meta": {"pagination": {"total": 3, "totalPages": 1}}})


@pytest.mark.slow
async def test_little_stays_for_an_account_that_is_finished(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with so many accounts that most of the idle ones are dropped.
    monkeypatch.setattr("lamella.throttle.layer.MOST_IDLE", FIRST // 4)
    monkeypatch.setattr("lamella.maesn.guard.MOST_PLACES", FIRST // 4)
    traced: dict[int, int] = {}

    def measure(progress: Progress) -> None:
        done = sum(part.done for part in progress.parts.values())
        if done in (FIRST * len(LISTS), LAST * len(LISTS)) and done not in traced:
            hash_key.cache_clear()  # it keeps the last 1,024
            gc.collect()
            traced[done] = tracemalloc.get_traced_memory()[0]

    accounts = {f"account {number}": f"key-of-{number}" for number in range(ACCOUNTS)}
    session = maesn.session("api-key", base_url=await serve(answer), breaker=Breaker(), guard=maesn.ErrorGuard())
    tracemalloc.start()
    try:
        async with session, Journal.open(tmp_path / "journal", batch="b") as journal:
            report = await maesn.sync(session, accounts, LISTS, journal=journal, at_once=1, on_progress=measure)
    finally:
        tracemalloc.stop()
    assert report.done
    first, last = traced.values()
    assert (last - first) / (LAST - FIRST) < MOST
