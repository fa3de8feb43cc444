"""Sync three accounts on several nights: all records, then the changes, then a comparison of whole lists.

One account has been logged out.

    python examples/sync.py

It starts the sandbox, whose answers fail now and then.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import aiohttp

from lamella import Breaker, maesn
from lamella.batch import Journal
from lamella.maesn.sandbox import Account, Sandbox
from lamella.sync import Table
from lamella.testing import Fault

RULES = maesn.RULES.scaled(0.001)  # a thousandth of every delay, for this example
TABLES = {"invoices": Table({"totalAmount": "decimal(18, 2)"}, {"lineItems": {"itemsAmount": "decimal(18, 2)"}})}
ACCOUNTS = {"north": "sandbox-key-north", "south": "sandbox-key-south", "west": "sandbox-key-west"}


async def night(session: aiohttp.ClientSession, folder: Path) -> None:
    async with Journal.open(folder / "sync.journal", batch="the sandbox's records") as journal:
        report = await maesn.sync(
            session, ACCOUNTS, ["contacts", "invoices"], journal=journal, output=folder / "records.jsonl", limit=50
        )
    print(f"run {report.run}: {report.pages} pages, {report.records} records that were new or had changed")
    for part in report.failed:
        print(f"  {part.resource} of {part.account} failed: {type(part.error).__name__}")


async def comparison(session: aiohttp.ClientSession, folder: Path) -> None:
    """Read whole lists, compare them with the journal, and write typed columns and line items as tables."""
    async with Journal.open(folder / "sync.journal", batch="the sandbox's records") as journal:
        report = await maesn.sync(
            session,
            ACCOUNTS,
            ["contacts", "invoices"],
            journal=journal,
            output=folder / "records.db",
            tables=TABLES,
            full_every=0,
        )
    for part in report.parts:
        if part.compared:
            print(f"{part.resource} of {part.account}: {part.missing} had been missing, {part.deleted} are deleted")
    with closing(sqlite3.connect(folder / "records.db")) as db:
        cents = "SELECT count(DISTINCT id) FROM invoices_lineItems WHERE itemsAmount LIKE '%.__'"
        [count] = db.execute(cents).fetchone()
    print(f"invoices with line items: {count}; values that do not fit: {report.misfits.count}")


def lists_in(path: Path) -> list[str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [f"{line['account']}/{line['resource']}" for line in lines]


async def main() -> None:
    accounts = [Account(key) for key in ACCOUNTS.values()]
    accounts[2] = Account(ACCOUNTS["west"], state="expired")
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Sandbox(accounts=accounts, chances={500: 0.1, Fault.CUT_BODY: 0.05}) as sandbox,
            maesn.session(sandbox.api_key, None, sandbox.url, rules=RULES, breaker=Breaker()) as session,
        ):
            await night(session, Path(folder))
            with maesn.account(ACCOUNTS["south"]):
                sandbox.script(200, method="POST")  # this POST must not fail, because it would not be retried
                await session.post("accounting/contacts", json={"companyName": "Somebody new"})
            await night(session, Path(folder))
            await comparison(session, Path(folder))
        print("in the file:", dict(Counter(lists_in(Path(folder, "records.jsonl")))))


if __name__ == "__main__":
    asyncio.run(main())
