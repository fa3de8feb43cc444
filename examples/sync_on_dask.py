"""Two nights of a sync on Dask: the first with two workers, the second with one, which reads what has changed.

    python examples/sync_on_dask.py

It needs `pip install 'lamella[sync,dask]'`, and starts the sandbox and the workers on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

from distributed import Client, LocalCluster

from lamella import dataset, maesn
from lamella.maesn.sandbox import Sandbox

RESOURCES = ["contacts", "invoices"]


async def night(workers: int, folder: Path, base_url: str) -> None:
    async with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        report = await maesn.sync(
            folder / "accounts.csv", RESOURCES, on=client, output=folder / "records", base_url=base_url, shards=4
        )
    found = report.result
    print(
        f"run {report.run}: {found.done} of {found.parts} lists, {found.records} records that were new or had changed"
    )


def look_at(place: Path) -> None:
    lines = [line for file in dataset.files(place) for line in Path(file).read_text().splitlines()]
    print("in the dataset:", dict(Counter(json.loads(line)["resource"] for line in lines)))
    print("faults:", dataset.verify(place))


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with Sandbox(accounts=6, records=120) as sandbox:
            rows = [f"account {number},{account.key}" for number, account in enumerate(sandbox.accounts)]
            (folder / "accounts.csv").write_text("\n".join(["name,key", *rows]))
            (folder / "accounts.csv").chmod(0o600)
            os.environ["MAESN_API_KEY"] = sandbox.api_key  # the workers have the environment of this process
            await night(2, folder, sandbox.url)
            async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
                await session.post("accounting/contacts", json={"companyName": "Somebody new"})
            await night(1, folder, sandbox.url)
        look_at(folder / "records")


if __name__ == "__main__":
    asyncio.run(main())
