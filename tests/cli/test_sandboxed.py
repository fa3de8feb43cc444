"""``lamella sync --sandbox``: that it plays, and that its checks find what they are there to find."""

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
from yarl import URL

from lamella.cli import sandboxed
from lamella.cli.app import app
from lamella.cli.sandboxed import Stage, checks
from lamella.cli.sync import Settings, Synced
from lamella.maesn import Part
from lamella.maesn.sandbox import Received, Sandbox

pytest.importorskip("pyarrow")

Row = dict[str, Any]


@pytest.mark.usefixtures("fast")
class TestTheCommand:
    def test_all_holds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("MAESN_API_KEY", raising=False)
        shown = CliRunner().invoke(app, ["sync", "--sandbox", "--report", "page.html", "--journal", "a.journal"])
        assert (shown.exit_code, shown.stderr) == (0, "")
        lines = shown.stdout.splitlines()
        assert lines[0] == "24 accounts, all made up, at a server on this machine that misbehaves."
        titles = ("Outcome", "Failures", "Output", "A call that ended well", "Checked", "Page")
        assert [line for line in lines if line in titles] == list(titles)
        assert sum(line.startswith("ok ") for line in lines) == 3
        assert any(line.startswith("  after 503 ") for line in lines), "the outage"
        assert any(line.startswith("3 × 401 Unauthorized") for line in lines)
        assert any(line.startswith("3 × 403 Forbidden") for line in lines)
        assert "these failures are the play (exit code 0).\n" in shown.stdout
        # Nothing else is left, and with a journal it can go on.
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.journal", "page.html"]
        again = CliRunner().invoke(app, ["sync", "--sandbox", "--journal", "a.journal", "--resume", "--json"])
        report = json.loads(again.stdout)
        assert (again.exit_code, report["exit_code"], report["resumed"]) == (0, 0, True)
        assert [check["fault"] for check in report["checks"]] == [None] * 3
        assert report["totals"]["skipped"] == 66

    def test_what_does_not_hold_is_exit_code_1(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandboxed, "_lost", lambda _: "1 record missing")
        shown = CliRunner().invoke(app, ["sync", "--sandbox", "--resource", "items"])
        assert shown.exit_code == 1
        assert "\nOutput\n" not in shown.stdout, "nothing of it stays"
        assert "FAILED Every record" in shown.stdout
        assert shown.stderr == "lamella: 1 record missing\n"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """After a sync in which all went well."""
    sandbox = Sandbox(accounts=[each.theirs for each in sandboxed._made()], api_key=sandboxed.API_KEY)
    path = tmp_path / "records.jsonl"
    settings = Settings(sandboxed.API_KEY, URL("http://a/"), sandboxed.accounts(), ("items",), tmp_path / "j", path)
    _write(path, _rows(sandbox))
    return Stage(sandbox, settings)


def _rows(sandbox: Sandbox) -> list[Row]:
    return [
        {"account": each.account.name, "resource": "items", "id": record["itemId"], "record": record}
        for each in sandboxed._made()
        if each.theirs.state == "active"
        for record in sandbox.records("items", each.account.key)
    ]


def _write(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _synced() -> Synced:
    errors = {"expired": api_error(401), "inactive": api_error(403)}
    parts = (
        Part(
            each.account.name,
            "items",
            None,
            done=each.theirs.state == "active",
            error=errors.get(each.theirs.state),
        )
        for each in sandboxed._made()
    )
    return Synced(1, False, tuple(parts), 1.0)


def faults(stage: Stage, synced: Synced | None = None) -> list[str]:
    return [check.fault for check in checks(stage, synced or _synced()) if check.fault]


class TestTheChecks:
    """Each of them fails for what it is there to find."""

    def test_all_is_well(self, stage: Stage) -> None:
        assert faults(stage) == []

    def test_a_record_is_missing(self, stage: Stage) -> None:
        assert stage.settings.output is not None
        _write(stage.settings.output, _rows(stage.sandbox)[1:])
        assert faults(stage) == ["1 record missing"]

    def test_a_record_is_there_twice(self, stage: Stage) -> None:
        assert stage.settings.output is not None
        rows = _rows(stage.sandbox)
        _write(stage.settings.output, [*rows, rows[7]])
        assert faults(stage) == ["1 record there twice"]

    def test_a_record_is_another(self, stage: Stage) -> None:
        assert stage.settings.output is not None
        rows = _rows(stage.sandbox)
        rows[3] = {**rows[3], "record": {**rows[3]["record"], "name": "x"}}
        rows[4] = {**rows[4], "account": "Hafenkontor Emden"}
        _write(stage.settings.output, rows)
        assert faults(stage) == ["1 record missing; 2 records not as the API has it"]

    def test_no_output(self, stage: Stage) -> None:
        assert faults(replace(stage, settings=replace(stage.settings, output=None))) == ["there is no output"]

    def test_a_failure_that_is_not_reported_or_should_not_be(self, stage: Stage) -> None:
        synced = _synced()
        broken = tuple(
            replace(part, done=part.account == "Hafenkontor Emden", error=None)
            if part.account in {"Hafenkontor Emden", "Optik Sommer"}
            else part
            for part in synced.parts
        )
        assert faults(stage, replace(synced, parts=broken)) == [
            "2 parts otherwise: items of Hafenkontor Emden ended in nothing bad"
        ]
        wrong = tuple(
            replace(part, error=api_error(404)) if part.account == "Praxis am Markt" else part for part in synced.parts
        )
        assert faults(stage, replace(synced, parts=wrong)) == [
            "1 part otherwise: items of Praxis am Markt ended in 404"
        ]

    def test_too_many_requests(self, stage: Stage) -> None:
        stage.sandbox.received += [Received(1, 0.0, "GET", "/", {}, {}, None)] * 1000  # type: ignore[arg-type]
        [fault] = faults(stage)
        assert fault.startswith("more than 2 for each of the ")

    def test_any_format_of_the_output(self, stage: Stage, tmp_path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        rows = [{**row, "record": json.dumps(row["record"])} for row in _rows(stage.sandbox)]
        names = ("account", "resource", "id", "record")
        table = pa.table({name: [row[name] for row in rows] for name in names})
        parquet.write_table(table, tmp_path / "a.parquet")
        with closing(sqlite3.connect(tmp_path / "a.db")) as db:
            db.execute("CREATE TABLE records (account, resource, id, record)")
            db.executemany("INSERT INTO records VALUES (:account, :resource, :id, :record)", rows)
            db.commit()
        for name in ("a.parquet", "a.db"):
            assert faults(replace(stage, settings=replace(stage.settings, output=tmp_path / name))) == []
