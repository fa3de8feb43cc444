"""``lamella sync --param``, and what a sync says of records without an id."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.cli.serving import API_KEY, served, write_accounts
from typer.testing import CliRunner

from lamella.cli.app import app
from lamella.maesn.params import params_for
from lamella.maesn.sandbox import Odd, Sandbox


def sync(sandbox: Sandbox, folder: Path, *arguments: str) -> tuple[int, Any, str]:
    accounts = str(write_accounts(folder, "Ada"))
    given = ("sync", "--accounts", accounts, "--journal", str(folder / "j"), "--base-url", sandbox.url, "--json")
    result = CliRunner().invoke(app, [*given, *arguments], env={"MAESN_API_KEY": API_KEY})
    return result.exit_code, json.loads(result.stdout) if result.stdout else None, result.stderr


def test_a_parameter_is_sent_to_the_lists_that_have_it(tmp_path: Path) -> None:
    params = "--param", "fiscalYear=2026", "--param", "items:type=SERVICE"
    with served(system="datev-rewe", quotas=[]) as sandbox:
        code, report, _ = sync(sandbox, tmp_path, "--resource", "openItems,items,trialBalance", *params)
        asked = {
            (received.path.rpartition("/")[2], received.query.get("fiscalYear"), received.query.get("type"))
            for received in sandbox.received
        }
    assert code == 0
    assert asked == {("openItems", "2026", None), ("trialBalance", "2026", None), ("items", None, "SERVICE")}
    assert report["totals"]["records"] > 60


def test_records_without_an_id_are_reported(tmp_path: Path) -> None:
    with served(odd=Odd(nameless=9)) as sandbox:
        code, report, said = sync(sandbox, tmp_path, "--resource", "bills,items,trialBalance")
    assert code == 0
    assert {part["resource"]: part.get("nameless") for part in report["parts"]} == {
        "bills": 5,
        "items": 5,
        "trialBalance": 45,
    }
    told = "55 records of bills, items, trialBalance have no id: stored by content, as often as the API returns them."
    assert told in " ".join(said.split()), said


def test_the_resume_command_has_the_parameters(tmp_path: Path) -> None:
    with served(unsupported={"offers"}) as sandbox:
        code, _, said = sync(sandbox, tmp_path, "--resource", "offers", "--param", "offers:status=SENT")
        assert len(sandbox.received) == 1
    assert code == 1
    assert "--param offers:status=SENT" in " ".join(said.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fiscalYear", "'fiscalYear' must be like fiscalYear=2026 or openItems:fiscalYear=2026"),
        ("colour=red", "unknown parameter 'colour'; expected one of: "),
        ("page=2", "params must not contain 'page', which lamella sets itself"),
        ("dueDateFrom=2026", "none of bills, items has a published parameter 'dueDateFrom'"),
        ("openItems:fiscalYear=2026", "openItems is not a list of this sync; expected one of: bills, items"),
    ],
)
def test_a_bad_parameter(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        params_for([text], ["bills", "items"])
