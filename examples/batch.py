"""Run a batch of pages that fails in the middle, and run it again: completed pages are not read twice.

    python examples/batch.py

It starts the sandbox, with three accounts, of which one has been logged out.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lamella import Breaker, Unauthorized, maesn
from lamella.batch.journal import Journal
from lamella.batch.runner import Batch
from lamella.maesn.sandbox import Account, Sandbox
from lamella.testing import Fault

RULES = maesn.RULES.scaled(0.001)  # a thousandth of every delay, for this example


class Item(NamedTuple):
    """One page of the invoices of an account."""

    account: str
    page: int

    def __repr__(self) -> str:
        return f"page {self.page} of {self.account}"


async def sync(sandbox: Sandbox, path: Path, keys: dict[str, str]) -> None:
    items = [Item(account, page) for page in range(1, 6) for account in keys]

    async with (
        Journal.open(path, batch="invoices, November") as journal,
        maesn.session(sandbox.api_key, None, sandbox.url, rules=RULES, breaker=Breaker()) as session,
    ):

        async def fetch(item: Item) -> int:
            with maesn.account(keys[item.account]):
                async with session.get("/accounting/invoices", params={"page": item.page, "limit": 50}) as response:
                    return len((await response.json())["data"])

        what: Counter[str] = Counter()
        async with Batch(
            fetch,
            items,
            at_once=10,
            account=lambda item: item.account,
            at_once_per_account=1,
            stop_on=Unauthorized,
            in_order=True,
            journal=journal,
            key=repr,
            keep=str,
        ) as batch:
            async for outcome in batch:
                what["skipped" if outcome.skipped else "done" if outcome.done else "failed"] += 1
                if outcome.error is not None:
                    print(f"  {outcome.item} failed: {type(outcome.error).__name__}")
        print(f"{what['done']} done, {what['failed']} failed, {what['skipped']} skipped;", await journal.counts())


async def main() -> None:
    names = {"north": "sandbox-key-north", "south": "sandbox-key-south", "west": "sandbox-key-west"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        accounts = [Account(names["north"]), Account(names["south"]), Account(names["west"], state="expired")]
        async with Sandbox(accounts=accounts) as sandbox:
            # One page is truncated and retried; another always fails.
            sandbox.script(200, Fault.CUT_BODY, account=names["south"])
            sandbox.script(200, 200, 404, account=names["north"])
            print("first run:")
            await sync(sandbox, path, names)

        async with Sandbox(accounts=[Account(key) for key in names.values()]) as sandbox:
            print("second run, when west has logged in again:")
            await sync(sandbox, path, names)
            print("requests that it took:", len(sandbox.received))


if __name__ == "__main__":
    asyncio.run(main())
