"""pyarrow, DuckDB and pandas read the files of a dataset."""

from __future__ import annotations

import decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.dataset
from tests.dataset.conftest import SyncTo, expected_of

from lamella import dataset
from lamella.maesn.sandbox import Account
from lamella.pytest_maesn import MakeSandbox
from lamella.sync import Table


async def test_other_readers_read_the_parquet_files(make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path) -> None:
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=12) for number in range(5)])
    tables = {
        "bills": Table({"totalNetAmount": "decimal(38, 18)"}, {"lineItems": {"totalNetAmount": "decimal(38, 18)"}})
    }
    report = await sync_to(sandbox, suffix=".parquet", tables=tables)
    assert report.done, report
    assert dataset.verify(tmp_path / "out") == []
    expected = {(account, resource, name) for account, resource, name in expected_of(sandbox)}
    files = dataset.files(tmp_path / "out")
    assert len(files) > 1
    found = pyarrow.dataset.dataset(files).to_table(columns=["account", "resource", "id"]).to_pylist()
    assert len(found) == len(expected)
    assert {(row["account"], row["resource"], row["id"]) for row in found} == expected
    frame = pd.concat(pd.read_parquet(file) for file in files)
    assert {(row.account, row.resource, row.id) for row in frame.itertuples()} == expected
    with duckdb.connect() as db:
        rows = db.execute("SELECT account, resource, id FROM read_parquet(?)", [files]).fetchall()
        assert set(rows) == expected
        [(many, total)] = db.execute(
            'SELECT count(*), sum("totalNetAmount") FROM read_parquet(?)', [dataset.files(tmp_path / "out", "bills")]
        ).fetchall()
    assert many == 5 * 12
    assert isinstance(total, decimal.Decimal)
    assert dataset.files(tmp_path / "out", "bills_lineItems")


async def test_other_readers_read_the_json_lines_files(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=12) for number in range(5)])
    await sync_to(sandbox)
    with duckdb.connect() as db:
        rows = db.execute(
            "SELECT account, resource, id FROM read_json(?, format = 'newline_delimited', columns ="
            " {account: 'VARCHAR', resource: 'VARCHAR', id: 'VARCHAR', record: 'JSON'})",
            [dataset.files(tmp_path / "out")],
        ).fetchall()
    assert set(rows) == set(expected_of(sandbox))
    frame = pd.concat(pd.read_json(file, lines=True, dtype=False) for file in dataset.files(tmp_path / "out"))
    assert len(frame) == len(rows)
