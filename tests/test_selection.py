"""A run of whole folders leaves out the slow tests; a run of what is named takes all of it."""

from __future__ import annotations

import shlex
import sys

import pytest

pytest_plugins = ["pytester"]

INI = """
[pytest]
addopts = --strict-markers -m "not slow" -p no:cacheprovider -p no:asyncio
markers = slow: long
"""
CONFTEST = """
from tests.selection import pytest_terminal_summary, take_slow_tests_if_named as pytest_configure
"""
TESTS = """
import pytest

def test_quick(): pass

@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b"])
def test_slow(name): assert not name
"""


@pytest.mark.parametrize(
    ("arguments", "runs_slow"),
    [
        ([], False),
        (["folder"], False),
        (["folder/test_it.py"], True),
        (["folder/test_it.py::test_slow"], True),
        (["-k", "slow"], True),
        (["-m", ""], True),
        (["-m", "slow"], True),
        (["folder/test_it.py", "-m", "not slow"], False),
    ],
)
def test_slow_tests_run_where_they_are_named(pytester: pytest.Pytester, arguments: list[str], runs_slow: bool) -> None:
    pytester.makeini(INI)
    pytester.makeconftest(CONFTEST)
    pytester.mkdir("folder").joinpath("test_it.py").write_text(TESTS, "utf-8")
    result = pytester.runpytest_inprocess(*arguments)
    shown = result.stdout.str()
    assert result.parseoutcomes().get("failed", 0) == runs_slow
    assert ("test-all" in shown) is not runs_slow
    command = shlex.join([sys.executable, "-m", "pytest", "folder/test_it.py::test_slow[a b]"])
    assert (f"To repeat one: {command}" in shown) is runs_slow
