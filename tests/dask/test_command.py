"""``lamella sync --dask`` and ``lamella dataset``."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.dataset.conftest import write_accounts

from lamella import dataset
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox


async def command(folder: Path, sandbox: Sandbox, *arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "lamella", *arguments],
        env={**os.environ, "MAESN_API_KEY": sandbox.api_key, "MAESN_BASE_URL": sandbox.url, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )
    return done.returncode, done.stdout, done.stderr


async def test_the_command_syncs_on_a_local_cluster(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=7) for number in range(6)])
    write_accounts(tmp_path / "accounts.csv", sandbox)
    given = ("--accounts", "accounts.csv", "--resource", "bills,contacts", "--output", "out", "--shards", "4")
    code, told, errors = await command(tmp_path, sandbox, "sync", "--dask", "local:2", *given, "--json")
    assert code == 0, errors
    report = json.loads(told)
    assert (report["run"], report["result"]["done"], report["result"]["records"]) == (1, 12, 6 * 2 * 7)
    assert errors.splitlines()[-1].startswith("Run 1: 12 of 12 parts done in")
    assert [line for line in errors.splitlines()[:-1] if not line.startswith("run 1: ")] == []
    assert dataset.verify(tmp_path / "out") == []
    write_accounts(tmp_path / "accounts.csv", sandbox, leave_out=4)
    code, _, errors = await command(tmp_path, sandbox, "sync", "--dask", "local:1", *given, "--departed", "forget")
    assert code == 2
    assert errors.splitlines()[-1] == (
        "lamella: --departed forget would remove the records of 4 accounts, more than the 2 that stay. "
        "If the accounts file is complete, run once with --departed mark first"
    )
    assert (await command(tmp_path, sandbox, "dataset", "verify", "out"))[0] == 0
    code, told, errors = await command(tmp_path, sandbox, "dataset", "list", "out")
    assert (code, errors) == (0, "")
    assert "Run 1 has ended." in told
    code, told, _ = await command(tmp_path, sandbox, "dataset", "files", "out")
    assert told.splitlines() == dataset.files(tmp_path / "out")
    Path(told.splitlines()[0]).unlink()  # noqa: ASYNC240 - quick
    code, _, errors = await command(tmp_path, sandbox, "dataset", "verify", "out")
    assert code == 1
    assert "is missing" in errors
    assert (await command(tmp_path, sandbox, "dataset", "clean", "out"))[1] == "0 files removed.\n"


async def test_the_command_reports_errors_in_one_line(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox()
    write_accounts(tmp_path / "accounts.csv", sandbox)
    given = ("--accounts", "accounts.csv", "--resource", "bills", "--output", "out")
    for arguments, what in (
        ((*given, "--dask", "nonsense"), "--dask must be the address of a scheduler"),
        ((*given, "--dask", "local:0"), "--dask must be the address of a scheduler"),
        ((*given, "--dask", "local:1", "--journal", "j"), "--dask has no --journal"),
        ((*given[:4], "--dask", "local:1", "--output", "gs://bucket/out"), "--output must be a folder or an s3:// URL"),
        ((*given[2:], "--dask", "local:1"), "--dask needs --accounts FILE"),
        ((*given, "--parquet"), "--shards and --parquet are for --dask"),
    ):
        code, told, errors = await command(tmp_path, sandbox, "sync", *arguments)
        assert (code, told) == (2, "")
        assert what in errors
        assert errors.count("\n") == 1


def test_the_dask_example_prints_the_expected_output(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "sync_on_dask.py"
    done = subprocess.run(  # noqa: S603
        [sys.executable, example], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "run 1: 12 of 12 lists, 1440 records that were new or had changed",
        "run 2: 12 of 12 lists, 1 records that were new or had changed",
        "in the dataset: {'contacts': 721, 'invoices': 720}",
        "faults: []",
    ]
