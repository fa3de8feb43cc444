"""The tests hold nothing that is worth stealing; and what docs/explanation/security.md says of them is so."""

from __future__ import annotations

import ast
import os
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from tests.environment import cleaned

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "security.md"
HEADS = ("| who | what", "| what | what")
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_the_environment_of_tests_has_no_key_of_the_user() -> None:
    keys = {"MAESN_API_KEY": "a real one", "MAESN_ACCOUNT_KEY": "a real one", "MAESN_BASE_URL": "https://api.example"}
    assert not cleaned(keys).keys() & keys
    assert not [name for name in os.environ if name.startswith("MAESN")]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_crashed_test_leaves_no_core_dump() -> None:
    import resource

    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def test_pytest_shows_no_locals_by_default(pytestconfig: pytest.Config) -> None:
    assert "showlocals" not in " ".join(pytestconfig.getini("addopts"))


@cache
def _tests_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def test_each_line_of_the_threat_model_names_an_existing_test() -> None:
    text = PAGE.read_text("utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| who |", "| attack |"))
    ]
    assert len(rows) > 20
    for row in rows:
        found = REFERENCE.findall(row)
        assert found, f"no test: {row}"
        for path, name in found:
            assert (ROOT / path).is_file(), path
            assert not name or name in _tests_of(ROOT / path), f"{path}::{name}"
