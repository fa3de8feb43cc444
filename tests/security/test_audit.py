"""`make audit` never says that nothing is known of what it could not look up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "audit.py"
HOLE = {"id": "CVE-1", "fix_versions": ["9.9"]}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _clean(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bandit and zizmor find nothing."""
    monkeypatch.setattr(audit, "bandit", lambda: True)
    monkeypatch.setattr(audit, "workflows", lambda: True)


def answering(how: str, audit: ModuleType) -> Any:
    """What a database says: of the hole that is known, and of all packages."""

    def ask(service: str, wanted: Iterable[str]) -> tuple[list[dict[str, Any]], str]:
        names = [text.partition("==") for text in wanted]
        if how == "unreachable" or service == "pypi":  # the second one is asked, too
            return [], "no route to host"
        if how == "knows nothing":  # as pip-audit tells of a 404
            return [{"name": name, "skip_reason": "not found"} for name, _, _ in names], ""
        found: list[dict[str, Any]] = [{"name": name, "version": version, "vulns": []} for name, _, version in names]
        if [f"{name}=={version}" for name, _, version in names] == [audit.KNOWN_HOLE] or how == "one hole":
            found[0]["vulns"] = [HOLE]
        elif how == "one missing":
            found[0] = {"name": found[0]["name"], "skip_reason": "not found"}
        elif how == "one left out":
            del found[0]
        return found, ""

    return ask


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_clean")
@pytest.mark.parametrize(
    ("how", "code", "strict", "said"),
    [
        ("unreachable", 0, 1, "NOT CHECKED: the packages"),
        ("knows nothing", 0, 1, "NOT CHECKED: the packages"),
        ("all is well", 0, 0, "nothing is known of them"),
        ("one hole", 1, 1, "CVE-1, mended in 9.9"),
        ("one missing", 1, 1, "could not be looked up"),
        ("one left out", 1, 1, "could not be looked up"),
    ],
)
def test_the_audit_reports_what_it_could_not_look_up(
    how: str,
    code: int,
    strict: int,
    said: str,
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "ask", answering(how, audit))
    assert audit.main([]) == code
    shown = "".join(capsys.readouterr())
    assert said in shown
    assert ("nothing is known" in shown) is (how == "all is well")
    assert audit.main(["--strict"]) == strict


def test_a_bandit_finding_always_fails_the_audit(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "bandit", lambda: False)
    monkeypatch.setattr(audit, "workflows", lambda: True)
    for how in ("all is well", "unreachable"):
        monkeypatch.setattr(audit, "ask", answering(how, audit))
        assert audit.main([]) == 1


def test_bandit_gets_no_path_of_the_checkout(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """It skips each file with ".git", "CVS" or the like anywhere in its path, and then finds nothing."""
    ran: list[tuple[list[str], object]] = []

    def run(command: list[str], *, cwd: object = None, check: bool) -> subprocess.CompletedProcess[str]:
        ran.append((command, cwd))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.bandit()
    [([python, *arguments], cwd)] = ran
    assert python == sys.executable
    assert cwd == SCRIPT.parents[1]
    assert not [argument for argument in arguments if str(SCRIPT.parents[1]) in argument]
    assert {"src", "scripts", "benchmarks", "examples"} <= set(arguments)


def test_the_audited_packages_are_those_a_user_installs(audit: ModuleType) -> None:
    found = audit.closure("lamella", audit.EXTRAS)
    assert {"aiohttp", "yarl", "multidict", "stamina", "tenacity", "jinja2", "markupsafe", "pyarrow"} <= set(found)
    assert not {"pytest", "hypothesis", "mypy"} & set(found)
    assert "jinja2" not in audit.closure("lamella")
