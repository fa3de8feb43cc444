"""The report for machines: what the states are, and that no secret gets into it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.progress import api_error

from lamella.cli import report
from lamella.cli.causes import causes_of
from lamella.cli.report import Check, Synced
from lamella.cli.secrets import Secrets
from lamella.cli.terminal import json_text
from lamella.sync import Part

KEY = "k3y-of-4da"
PARTS = (
    Part("Ada", "a", "2026-01-01T00:00:00Z", pages=2, total_pages=2, records=130, done=True),
    Part("Ada", "b", None, pages=1, total_pages=1, done=True, skipped=True, error=api_error(404)),
    Part("Ada", "c", None, pages=1, total_pages=4, running=2),
    Part("Bob", "a", None, error=api_error(500)),
    Part("Bob", "b", None, error=RuntimeError(f"something about {KEY}\x1b")),
)


def as_json(*arguments: Any, **options: Any) -> Any:
    """Return the report as it is printed."""
    return json.loads("".join(json_text(report.as_json(*arguments, **options))))


def test_json_has_the_state_of_each_part() -> None:
    found = as_json(Synced(3, True, PARTS, 1.23456), (), output=None, exit_code=1)
    assert [part["state"] for part in found["parts"]] == ["done", "skipped", "open", "failed", "failed"]
    assert found["totals"] == {
        "accounts": 2, "parts": 5, "done": 1, "skipped": 1, "failed": 2, "open": 1, "pages": 4, "records": 130,
    }  # fmt: skip
    assert (found["run"], found["resumed"], found["took"], found["output"]) == (3, True, 1.235, None)
    assert found["parts"][0]["since"] == "2026-01-01T00:00:00Z"
    assert found["parts"][1]["error"] is None, "what was made good"
    assert "checks" not in found


def test_secrets_in_json_are_redacted() -> None:
    synced = Synced(1, False, PARTS, 1.0, fault=f"the journal of {KEY} is full")
    secrets = Secrets("", {"Ada": "another key", "Bob": KEY})
    told = causes_of(PARTS, secrets)
    found = as_json(synced, told, output=Path("a.db"), exit_code=1, secrets=secrets)
    assert KEY not in json.dumps(found)
    assert found["parts"][-1]["error"] == {
        "type": "RuntimeError",
        "status": None,
        "message": "something about REDACTED",
        "hint": None,
        "stopped": None,
    }
    assert found["fault"] == "the journal of REDACTED is full"
    assert [cause["said"] for cause in found["causes"]] == [None, "something about REDACTED"]


def test_messages_of_our_own_errors_are_not_truncated() -> None:
    error = api_error(404, "x" * 290)
    found = as_json(Synced(1, False, (Part("a", "x", None, error=error),), 1.0), (), output=None, exit_code=1)
    assert found["parts"][0]["error"]["message"] == str(error)
    assert len(str(error)) > 300


def test_json_has_the_checks_of_a_sync_with_the_sandbox() -> None:
    checks = (Check("All is well.", None), Check("Nothing is lost.", "1 record missing"))
    found = as_json(Synced(1, False, (), 1.0), (), output=None, exit_code=1, checks=checks)
    assert found["checks"] == [
        {"what": "All is well.", "fault": None},
        {"what": "Nothing is lost.", "fault": "1 record missing"},
    ]


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"a": 1},
        {"a": [], "b": {}, "c": ""},
        {"a": [1, {"b": [None, "two\nlines"]}], "c": {"d": {"e": 1.5}}},
        {'quoted "name"': "\x1b é", "b": [[], [[]]]},
    ],
)
def test_the_text_is_that_of_the_standard_library(found: dict[str, object]) -> None:
    assert "".join(json_text(found)) == json.dumps(found, indent=2)
    lists = {name: iter(value) if isinstance(value, list) else value for name, value in found.items()}
    assert "".join(json_text(lists)) == json.dumps(found, indent=2)


def test_a_long_list_is_not_in_memory() -> None:
    """The report of 100,000 lists takes 60 MB as a text."""

    def many() -> Iterator[dict[str, object]]:
        for number in range(10_000):
            yield {"account": f"account {number}", "warnings": ["x" * 100]}

    tracemalloc.start()
    try:
        size = sum(map(len, json_text({"parts": many()})))
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
    assert size > 1_000_000


def test_only_the_key_of_its_account_is_looked_for_in_a_text() -> None:
    """Looking for each key of thousands of accounts in each of their texts took minutes."""
    secrets = Secrets("the api key", {"Ada": "key of Ada", "Bob": KEY})
    assert secrets.of("Bob") == ("the api key", KEY)
    assert secrets.of("Zoe") == ("the api key", "")
    assert secrets.all == ("the api key", "key of Ada", KEY)
    assert KEY not in repr(secrets)
