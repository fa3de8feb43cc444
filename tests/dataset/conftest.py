"""A sandbox, the file of its accounts, and a sync of them to a dataset."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.dataset.workers import SESSION

from lamella import dataset, maesn
from lamella.dataset import DatasetReport, Here
from lamella.maesn.sandbox import Sandbox

SyncTo = Callable[..., Coroutine[Any, Any, DatasetReport]]

RESOURCES = ["bills", "contacts"]


def write_accounts(path: Path, sandbox: Sandbox, *, leave_out: int = 0) -> Path:
    """Write the accounts file of the accounts of *sandbox*, without the last ones."""
    rows = [f"account {number},{account.key}" for number, account in enumerate(sandbox.accounts)]
    path.write_text("\n".join(["name,key", *rows[: len(rows) - leave_out]]) + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def sync_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SyncTo:
    """Sync all accounts of a sandbox to the dataset ``out`` in the temporary folder."""

    async def sync(sandbox: Sandbox, **options: Any) -> DatasetReport:
        monkeypatch.setenv("MAESN_API_KEY", sandbox.api_key)
        accounts = options.pop("accounts", None) or write_accounts(tmp_path / "accounts.csv", sandbox)
        given = {
            "on": Here(2, tmp_path / "scratch"),
            "output": tmp_path / "out",
            "base_url": sandbox.url,
            "session": SESSION,
            "shards": 4,
            "limit": 5,
        }
        return await maesn.sync(accounts, RESOURCES, **{**given, **options})

    return sync


def records_in(place: Path) -> dict[tuple[str, str, str], Any]:
    """Return the records of a dataset of JSON Lines; each is there once."""
    found = {}
    for path in dataset.files(place):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            key = row["account"], row["resource"], row["id"]
            assert key not in found
            found[key] = row["record"]
    return found


def expected_of(sandbox: Sandbox) -> dict[tuple[str, str, str], Any]:
    """Return what the API has."""
    return {
        (f"account {number}", resource, record["id"]): record
        for number, account in enumerate(sandbox.accounts)
        for resource in RESOURCES
        for record in sandbox.records(resource, account.key)
    }


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; it is looked at once a turn of the loop."""
    while not condition():  # noqa: ASYNC110 - what it depends on is in another process
        await asyncio.sleep(0)
