"""The code on the page about Dask."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.dask.cluster import Cluster
from tests.dataset.conftest import write_accounts

from lamella import dataset
from lamella.maesn.sandbox import Account
from lamella.pytest_maesn import MakeSandbox

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "dask.md"


async def test_the_first_block_of_the_page_runs(
    make_sandbox: MakeSandbox,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sandbox = await make_sandbox(accounts=[Account("key-0", records=7)])
    write_accounts(tmp_path / "accounts.csv", sandbox)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAESN_BASE_URL", sandbox.url)  # the workers get it from the driver
    cluster.add(1)
    found = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    code = found[1].replace("tcp://scheduler:8786", cluster.address)
    for name in ("accounts.csv", "records/"):
        code = code.replace(f'"{name}"', repr(str(tmp_path / name)))
    block = "async def main():\n" + "".join(f"    {line}\n" for line in code.splitlines())
    names: dict[str, object] = {}
    exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    await names["main"]()  # type: ignore[operator]
    assert capsys.readouterr().out.startswith("True ")
    assert dataset.verify(tmp_path / "records") == []
