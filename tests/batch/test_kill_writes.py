"""Writes with an Idempotency-Key, by a process that is killed again and again: each is made once."""

from __future__ import annotations

import random
from collections import Counter
from http import HTTPStatus
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from tests.killing import completed, killed

from lamella import HeaderAuth, RuleBook, stack
from lamella.batch.journal import Counts, Journal
from lamella.batch.runner import Batch
from lamella.maesn.sandbox import Sandbox

BATCH = "records to push"


async def push(sandbox: tuple[str, dict[str, str]], path: Path, records: int | None) -> None:
    """Push the first *records*. None: one after the other, until it is killed."""
    url, keys = sandbox
    layers = stack(RuleBook(), auth=HeaderAuth(keys, origin=url))
    async with Journal.open(path, batch=BATCH) as journal, aiohttp.ClientSession(url, middlewares=layers) as session:

        async def write(number: int) -> None:
            headers = {"Idempotency-Key": journal.idempotency_key(str(number))}
            await session.post("/accounting/bills", json={"number": number}, headers=headers)

        items = count() if records is None else range(records)
        async with Batch(write, items, at_once=8, journal=journal, key=str) as batch:
            async for outcome in batch:
                assert outcome.done, outcome.error


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20, pytest.param(50, marks=pytest.mark.slow)])
async def test_a_push_killed_at_any_time_creates_each_record_once(tmp_path: Path, kills: int) -> None:
    moments = random.Random(5)
    path = tmp_path / "journal"
    async with Sandbox(records=0, idempotency_keys=True) as sandbox:
        there = sandbox.url, {"X-API-KEY": sandbox.api_key, "X-ACCOUNT-KEY": sandbox.account_key}
        for _ in range(kills):
            requests = len(sandbox.received) + moments.choice([1, 2, 8, 9, 30])

            def arrived(requests: int = requests) -> bool:
                return len(sandbox.received) >= requests

            await killed(push, there, path, None, when=arrived, turns=moments.randrange(200))
        made = [record["number"] for record in sandbox.created("bills")]
        records = max(made) + 20
        await completed(push, there, path, records)
        assert sorted(record["number"] for record in sandbox.created("bills")) == list(range(records))
        assert sandbox.duplicates == 0
        # Else it would not be the keys that are tested: some were made again, since the journal did not know of them.
        answered = Counter(received.body for received in sandbox.received if received.outcome == HTTPStatus.CREATED)
        assert max(answered.values()) > 1
    async with Journal.open(path, batch=BATCH) as journal:
        assert await journal.counts() == Counts(done=records, failed=0)
