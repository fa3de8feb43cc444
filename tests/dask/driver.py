"""A driver that is killed or interrupted: python -m tests.dask.driver ACCOUNTS DATASET BASE_URL [OPTIONS]."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from distributed import Client
from tests.dataset.conftest import RESOURCES
from tests.dataset.workers import SESSION

from lamella import maesn


async def main(accounts: str, output: str, base_url: str, options: str = "{}") -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
    given: dict[str, Any] = {"shards": 8, "limit": 5, "at_once_per_account": 1, "watch": 0.2, "checkpoint": 1.0}
    async with Client(os.environ["LAMELLA_TEST_SCHEDULER"], asynchronous=True) as client:
        report = await maesn.sync(
            accounts,
            RESOURCES,
            on=client,
            output=output,
            base_url=base_url,
            session=SESSION,
            **given | json.loads(options),
        )
    print(report)  # noqa: T201 - for the log of a test that fails
    return 0 if report.done else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(*sys.argv[1:])))
    except asyncio.CancelledError:
        sys.exit(130)
