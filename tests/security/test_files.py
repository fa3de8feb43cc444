"""What is written to disk: who may read it, and that no key is in it, whatever the server says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella import maesn
from lamella.batch import Batch, Journal
from lamella.maesn.sandbox import Account, Reply
from lamella.pytest_maesn import MakeSandbox

API_KEY, ACCOUNT_KEY = "zq-api-key-4711", "zq-account-key-0815"
RULES = maesn.RULES.scaled(1e-5)


@pytest.mark.parametrize("suffix", [".jsonl", ".sqlite", ".parquet"])
async def test_a_sync_writes_no_key_and_private_files(suffix: str, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(api_key=API_KEY, accounts=[Account(ACCOUNT_KEY)])
    echo = {"errors": {"message": f"{API_KEY} {ACCOUNT_KEY}"}}
    sandbox.script(403, 500, Reply(400, {"X-Echo": API_KEY}, echo), path="*/contacts")
    output = tmp_path / f"records{suffix}"
    before = os.umask(0)  # the worst of all: what one forgets to forbid is allowed
    try:
        async with (
            maesn.session(API_KEY, None, sandbox.url, rules=RULES) as session,
            Journal.open(tmp_path / "journal", batch="b") as journal,
        ):
            report = await maesn.sync(
                session, {"north": ACCOUNT_KEY}, ["contacts", "invoices"], journal=journal, output=output
            )
            found = {path.name: path for path in tmp_path.iterdir()}  # noqa: ASYNC240
            assert {"journal", "journal-wal", output.name} <= set(found)
            for path in found.values():
                assert not path.stat().st_mode & 0o077, path.name
                content = path.read_bytes()
                assert API_KEY.encode() not in content
                assert ACCOUNT_KEY.encode() not in content
    finally:
        os.umask(before)
    assert [part.account for part in report.failed] == ["north"]


async def test_a_journal_stores_no_key_of_a_failed_item(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(api_key=API_KEY, accounts=[Account(ACCOUNT_KEY)])
    steps: list[Reply | int] = [
        Reply(400, {}, {"errors": {"message": f"{API_KEY} {ACCOUNT_KEY}"}}),
        Reply(200, {"Content-Type": "text/html"}, b"<html>"),
        500,
        401,
    ]
    async with (
        maesn.session(API_KEY, None, sandbox.url, rules=RULES, attempts=1) as session,
        Journal.open(tmp_path / "journal", batch="b") as journal,
    ):

        async def call(item: int) -> None:
            sandbox.script(steps[item])
            with maesn.account(ACCOUNT_KEY):
                async with session.get("/accounting/invoices") as response:
                    await response.json()

        async with Batch(call, range(len(steps)), at_once=1, journal=journal, key=str) as batch:
            assert not [outcome async for outcome in batch if outcome.done]
        errors = [error async for _, error in journal.failures()]
        assert len(errors) == len(steps)
        for path in tmp_path.iterdir():  # noqa: ASYNC240
            content = path.read_bytes()
            assert API_KEY.encode() not in content
            assert ACCOUNT_KEY.encode() not in content
