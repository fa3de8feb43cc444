"""Read all invoices of two accounts through one session.

    python examples/maesn_invoices.py

Against the real API, leave the sandbox out and set MAESN_API_KEY: everything else stays.
"""

from __future__ import annotations

import asyncio

import aiohttp

from lamella import maesn
from lamella.maesn.sandbox import Sandbox
from lamella.testing import Fault


async def count(session: aiohttp.ClientSession, account_key: str) -> int:
    with maesn.account(account_key):
        return len([invoice async for invoice in maesn.records(session, "invoices")])


async def main() -> None:
    async with Sandbox(accounts=2) as sandbox:
        sandbox.script(500, Fault.CUT_BODY, 429)
        async with maesn.session(sandbox.api_key, base_url=sandbox.url, rules=maesn.RULES.scaled(0.001)) as session:
            async with asyncio.TaskGroup() as tasks:
                counts = [tasks.create_task(count(session, account.key)) for account in sandbox.accounts]
        print("invoices:", [task.result() for task in counts])
        print("requests that it took:", len(sandbox.received))


if __name__ == "__main__":
    asyncio.run(main())
