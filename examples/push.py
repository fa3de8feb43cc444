"""Push records with a process that is killed in the middle, and resume with another: no record is created twice.

    python examples/push.py

It starts the sandbox, and itself twice in a process of its own: the first of the two kills itself. Nothing published
says that Maesn knows a write by an Idempotency-Key, so each run looks first for the bills that are there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from lamella import maesn
from lamella.batch import Batch, Journal
from lamella.maesn.sandbox import Sandbox

RECORDS = 300


async def push(path: Path, dies_after: int) -> None:
    """Push all records that are not done; kill the process after a number of responses."""
    answered = known = 0
    # Keys and address come from the environment.
    async with Journal.open(path, batch="bills, November") as journal, maesn.session() as session:
        # Search by our own number, because the journal lacks a write if the process was killed before recording it.
        there = {bill["billNumber"]: bill["id"] async for bill in maesn.records(session, "bills")}

        async def write(number: int) -> str:
            nonlocal answered, known
            name = f"B-{number}"
            if name in there:
                known += 1
                return str(there[name])
            async with session.post("/accounting/bills", json={"billNumber": name, "currency": "EUR"}) as response:
                record = (await response.json())["data"]
            answered += 1
            if answered == dies_after:
                os.kill(os.getpid(), signal.SIGKILL)  # the bill exists, but the journal has no record of it
            return str(record["id"])

        what: Counter[str] = Counter()
        async with Batch(write, range(RECORDS), at_once=20, journal=journal, key=str, keep=str) as batch:
            async for outcome in batch:
                what["skipped" if outcome.skipped else "done" if outcome.done else "failed"] += 1
        print(f"  {what['done']} done, {what['failed']} failed, {what['skipped']} skipped", flush=True)
        print(f"  of those done, {known} had been there, unknown to the journal", flush=True)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "journal")
        async with Sandbox(records=0) as sandbox:
            os.environ["MAESN_API_KEY"] = sandbox.api_key
            os.environ["MAESN_ACCOUNT_KEY"] = sandbox.account_key
            os.environ["MAESN_BASE_URL"] = sandbox.url
            for run, dies_after in (("first", RECORDS // 2), ("second", 0)):
                print(f"{run} run:", flush=True)
                process = await asyncio.create_subprocess_exec(sys.executable, __file__, path, str(dies_after))
                if await process.wait() == -signal.SIGKILL:
                    print(f"  killed, with {len(sandbox.created('bills'))} bills at the sandbox")
        print(f"{len(sandbox.created('bills'))} bills at the sandbox, {sandbox.duplicates} of them twice")


if __name__ == "__main__":
    asyncio.run(push(Path(sys.argv[1]), int(sys.argv[2])) if sys.argv[1:] else main())
