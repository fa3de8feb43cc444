"""``lamella sync --sandbox``: that it runs, and that its checks find faults."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.progress import api_error
from typer.testing import CliRunner

from lamella.cli import sandboxed
from lamella.cli.app import app
from lamella.cli.sandboxed import checks
from lamella.maesn.sandbox import Received, Sandbox
from lamella.sync import Part

pytest.importorskip("pyarrow")

Row = dict[str, Any]


@pytest.mark.usefixtures("fast")
class TestTheCommand:
    @pytest.mark.slow
    def test_a_sync_with_the_sandbox_passes_all_checks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("MAESN_API_KEY", raising=False)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there, and the sandbox needs none
        shown = CliRunner().invoke(app, ["sync", "--sandbox", "--report", "page.html", "--journal", "a.journal"])
        assert (shown.exit_code, shown.stderr) == (0, "")
        lines = shown.stdout.splitlines()
        assert lines[0] == "24 generated accounts on a local server that fails on purpose."
        titles = ("Outcome", "Failures", "Output", "A successful call", "Checked", "Page")
        assert [line for line in lines if line in titles] == list(titles)
        assert sum(line.startswith("ok ") for line in lines) == 3
        assert any(line.startswith("  after 503 ") for line in lines), "the outage"
        assert any(line.startswith("3 × 401 Unauthorized") for line in lines)
        assert any(line.startswith("3 × 403 Forbidden") for line in lines)
        assert "The failures above were injected (exit code 0).\n" in shown.stdout
        # Nothing else is left, and with a journal it can go on.
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.journal", "page.html"]
        again = CliRunner().invoke(app, ["sync", "--sandbox", "--journal", "a.journal", "--resume", "--json"])
        report = json.loads(again.stdout)
        assert (again.exit_code, report["exit_code"], report["resumed"]) == (0, 0, True)
        assert [check["fault"] for check in report["checks"]] == [None] * 3
        assert report["totals"]["skipped"] == 66

    def test_a_failed_check_exits_with_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandboxed, "_lost", lambda *_: "1 record missing")
        shown = CliRunner().invoke(app, ["sync", "--sandbox", "--resource", "items"])
        assert shown.exit_code == 1
        assert "\nOutput\n" not in shown.stdout, "nothing of it stays"
        assert "FAILED Every record" in shown.stdout
        assert shown.stderr == "lamella: 1 record missing\n"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    # The records of all 24 take a third of a second.
    names = ("Ahornhof Bäckerei", "Berger & Söhne", "Hafenkontor Emden", "Optik Sommer", "Praxis am Markt")
    monkeypatch.setattr(sandboxed, "_NAMES", names)
    return Sandbox(accounts=sandboxed._made().values(), api_key=sandboxed.API_KEY)


@pytest.fixture
def output(sandbox: Sandbox, tmp_path: Path) -> Path:
    """What a sync writes in which all went well."""
    path = tmp_path / "records.jsonl"
    _write(path, _rows(sandbox))
    return path


def _rows(sandbox: Sandbox) -> list[Row]:
    return [
        {"account": name, "resource": "items", "id": record["id"], "record": record}
        for name, account in sandboxed._made().items()
        if account.state == "active"
        for record in sandbox.records("items", account.key)
    ]


def _write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _parts() -> tuple[Part, ...]:
    errors = {"expired": api_error(401), "inactive": api_error(403)}
    return tuple(
        Part(name, "items", None, done=account.state == "active", error=errors.get(account.state))
        for name, account in sandboxed._made().items()
    )


def faults(sandbox: Sandbox, output: Path | None, parts: tuple[Part, ...] | None = None) -> list[str]:
    found = checks(sandbox, ("items",), output, parts or _parts())
    return [check.fault for check in found if check.fault]


class TestTheChecks:
    """Each of them fails for what it is there to find."""

    def test_all_checks_pass(self, sandbox: Sandbox, output: Path) -> None:
        assert faults(sandbox, output) == []

    def test_the_check_finds_a_missing_record(self, sandbox: Sandbox, output: Path) -> None:
        _write(output, _rows(sandbox)[1:])
        assert faults(sandbox, output) == ["1 record missing"]

    def test_the_check_finds_a_duplicate_record(self, sandbox: Sandbox, output: Path) -> None:
        rows = _rows(sandbox)
        _write(output, [*rows, rows[7]])
        assert faults(sandbox, output) == ["1 record there twice"]

    def test_the_check_finds_a_changed_record(self, sandbox: Sandbox, output: Path) -> None:
        rows = _rows(sandbox)
        rows[3] = {**rows[3], "record": {**rows[3]["record"], "name": "x"}}
        rows[4] = {**rows[4], "account": "Hafenkontor Emden"}
        _write(output, rows)
        assert faults(sandbox, output) == ["1 record missing; 2 records unlike the API's"]

    def test_the_check_finds_a_missing_output(self, sandbox: Sandbox, output: Path) -> None:
        assert faults(sandbox, None) == ["there is no output"]

    def test_the_check_finds_unreported_and_unexpected_failures(self, sandbox: Sandbox, output: Path) -> None:
        broken = tuple(
            replace(part, done=part.account == "Hafenkontor Emden", error=None)
            if part.account in {"Hafenkontor Emden", "Optik Sommer"}
            else part
            for part in _parts()
        )
        assert faults(sandbox, output, broken) == ["2 parts differ: items of Hafenkontor Emden ended with no failure"]
        wrong = tuple(
            replace(part, error=api_error(404)) if part.account == "Praxis am Markt" else part for part in _parts()
        )
        assert faults(sandbox, output, wrong) == ["1 part differs: items of Praxis am Markt ended with 404"]

    def test_the_check_finds_too_many_requests(self, sandbox: Sandbox, output: Path) -> None:
        sandbox.received += [Received(1, 0.0, "GET", "/", {}, {}, None)] * 1000  # type: ignore[arg-type]
        [fault] = faults(sandbox, output)
        assert fault.startswith("more than 2 per needed request, of which there are ")

    def test_the_check_reads_any_output_format(self, sandbox: Sandbox, tmp_path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        rows = [{**row, "record": json.dumps(row["record"])} for row in _rows(sandbox)]
        names = ("account", "resource", "id", "record")
        table = pa.table({name: [row[name] for row in rows] for name in names})
        parquet.write_table(table, tmp_path / "a.parquet")
        with closing(sqlite3.connect(tmp_path / "a.db")) as db:
            db.execute("CREATE TABLE records (account, resource, id, record)")
            db.executemany("INSERT INTO records VALUES (:account, :resource, :id, :record)", rows)
            db.commit()
        for name in ("a.parquet", "a.db"):
            assert faults(sandbox, tmp_path / name) == []
