"""Two nights of a sync: all records of three accounts, and then what has changed. One account has been logged out.

    python examples/sync.py

It starts the sandbox, whose answers fail now and then.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path

import aiohttp

from lamella import Breaker, maesn
from lamella.batch import Journal
from lamella.maesn.sandbox import Account, Sandbox
from lamella.testing import Fault

RULES = maesn.RULES.scaled(0.001)  # a thousandth of every delay, for this example
ACCOUNTS = {"north": "sandbox-key-north", "south": "sandbox-key-south", "west": "sandbox-key-west"}


async def night(session: aiohttp.ClientSession, folder: Path) -> None:
    async with Journal.open(folder / "sync.journal", batch="the sandbox's records") as journal:
        report = await maesn.sync(
            session, ACCOUNTS, ["contacts", "invoices"], journal=journal, output=folder / "records.jsonl", limit=50
        )
    print(f"run {report.run}: {report.pages} pages, {report.records} records that were new or had changed")
    for part in report.failed:
        print(f"  {part.resource} of {part.account} failed: {type(part.error).__name__}")


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
                sandbox.script(200, method="POST")  # this one does not fail: a POST is not sent again
                await session.post("accounting/contacts", json={"companyName": "Somebody new"})
            await night(session, Path(folder))
        print("in the file:", dict(Counter(lists_in(Path(folder, "records.jsonl")))))


if __name__ == "__main__":
    asyncio.run(main())
