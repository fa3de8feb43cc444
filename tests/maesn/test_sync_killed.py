"""A sync by a process that is killed again and again comes to what an undisturbed one comes to."""

from __future__ import annotations

import os
import random
from pathlib import Path

import anyio
import pytest
from tests.killing import completed, killed

from lamella import maesn
from lamella.batch import Journal
from lamella.maesn.sandbox import Account, Sandbox
from lamella.testing import Fault

RESOURCES = ["bills", "invoices", "items"]


async def sync(url: str, api_key: str, names: dict[str, str], folder: Path) -> None:
    rules = maesn.RULES.scaled(0.0001)
    # Which requests fail depends on their order alone: five in a row can be those of one call.
    async with maesn.session(api_key, None, url, rules=rules, attempts=20) as session:
        async with Journal.open(folder / "journal", batch="nightly") as journal:
            report = await maesn.sync(
                session,
                names,
                RESOURCES,
                journal=journal,
                output=folder / "out.jsonl",
                resume=True,
                limit=5,
                at_once_per_account=2,
            )
            assert report.done, report.failed


async def sync_and_stay(url: str, api_key: str, names: dict[str, str], folder: Path) -> None:
    """To be killed: it does not end by itself."""
    await sync(url, api_key, names, folder)
    await anyio.sleep_forever()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
async def test_a_sync_killed_at_any_time_has_the_same_result(tmp_path: Path, kills: int) -> None:
    moments = random.Random(7)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    for folder in (calm, stormy):
        folder.mkdir()
    accounts = [Account(f"key-{number}", records=100 - number) for number in range(5)]
    async with Sandbox(accounts=accounts, chances={500: 0.05, Fault.CUT_BODY: 0.02}) as sandbox:
        names = {f"account {number}": account.key for number, account in enumerate(accounts)}
        there = sandbox.url, sandbox.api_key, names
        await completed(sync, *there, calm)
        expected, ended = (calm / "out.jsonl").read_bytes(), stormy / "out.jsonl"
        for _ in range(kills):
            requests = len(sandbox.received) + moments.choice([0, 1, 2, 4, 7, 11])

            def arrived(requests: int = requests) -> bool:
                return len(sandbox.received) >= requests or ended.exists()

            await killed(sync_and_stay, *there, stormy, when=arrived, turns=moments.randrange(200))
            if ended.exists():  # it was faster than usual: once more, from the beginning
                assert ended.read_bytes() == expected
                ended.unlink()
                (stormy / "journal").unlink()
        await completed(sync, *there, stormy)
    assert ended.read_bytes() == expected
    assert sorted(os.listdir(stormy)) == ["journal", "out.jsonl"]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
async def test_a_kill_during_the_export_leaves_the_old_or_new_output(tmp_path: Path, kills: int) -> None:
    moments = random.Random(3)
    output = tmp_path / "out.jsonl"
    async with Sandbox(records=100) as sandbox:
        there = sandbox.url, sandbox.api_key, {"account": sandbox.account_key}
        await completed(sync, *there, tmp_path)
        whole = output.read_bytes()
        for _ in range(kills):
            output.write_bytes(b"old\n")

            def writing() -> bool:
                return any(name.endswith(".tmp") for name in os.listdir(tmp_path)) or output.read_bytes() != b"old\n"

            await killed(sync_and_stay, *there, tmp_path, when=writing, turns=moments.randrange(5))
            assert output.read_bytes() in {b"old\n", whole}
        await completed(sync, *there, tmp_path)
    assert output.read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["journal", "out.jsonl"]
