"""The workflows of GitHub do what .ci/run does, on the Pythons that it supports and on those that are to come."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CI = (ROOT / ".ci" / "run").read_text("utf-8")
WORKFLOWS = {path.stem: path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_workflows_run_each_target_of_the_ci_script() -> None:
    steps = [line for line in CI.splitlines() if line.strip().startswith("step ")]
    made = {found[1] for line in steps if (found := re.search(r"(?:make|hostile_make\[@\]\}\") ([a-z][a-z-]+)", line))}
    assert made >= {"lint", "types", "test", "test-all", "lowest", "docs", "dist", "audit", "browser", "backends"}
    assert made <= set(re.findall(r"make ([a-z-]+)", WORKFLOWS["ci"]))


def test_workflows_test_each_supported_python() -> None:
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    [tested] = re.findall(r"python: \[(.*)\]", WORKFLOWS["ci"])
    assert set(supported) <= set(re.findall(r"3\.\d+", tested))


def test_only_tested_systems_are_classifiers() -> None:
    """Where all tests run is on the page of compatibility."""
    systems = [name for name in PROJECT["classifiers"] if name.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    page = (ROOT / "docs" / "reference" / "compatibility.md").read_text("utf-8")
    assert "All tests run on Linux. They have not been run on macOS and Windows." in page


def test_workflow_actions_are_pinned_by_commit() -> None:
    used = [each for text in WORKFLOWS.values() for each in re.findall(r"uses: (\S+)", text)]
    assert len(used) > 10
    assert [each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", each)] == []


def test_the_release_workflow_uses_no_token() -> None:
    assert "secrets." not in "".join(WORKFLOWS.values())
    assert "id-token: write" in WORKFLOWS["release"]
