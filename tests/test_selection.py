"""A run of whole folders leaves out slow tests and most cases of sampled ones; a run of what is named takes all."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

pytest_plugins = ["pytester"]

INI = """
[pytest]
addopts = --strict-markers -m "not slow" -p no:cacheprovider -p no:asyncio
markers =
    slow: long
    sampled: in part
"""
CONFTEST = """
from tests.selection import *
from tests.selection import take_slow_tests_if_named as pytest_configure
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


SAMPLED = """
import pytest

@pytest.mark.sampled
@pytest.mark.parametrize("letter", "abcde")
@pytest.mark.parametrize(("number", "name"), [(1, "one"), (1, "uno"), pytest.param(2, "two", marks=pytest.mark.slow)])
@pytest.mark.parametrize("flag", [True, False])
def test_it(letter, number, name, flag): print("case:", letter, name, flag)
"""


def test_some_cases_of_a_sampled_test_are_not_slow(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makeconftest(CONFTEST)
    pytester.mkdir("folder").joinpath("test_it.py").write_text(SAMPLED, "utf-8")
    samples = []
    for _ in range(2):
        shown = pytester.runpytest_inprocess("-s").stdout.str()
        samples.append(re.findall(r"case: (\w+) (\w+) (\w+)", shown))
    assert samples[0] == samples[1]
    assert len(samples[0]) == 5  # as many as the parameter with the most values has
    letters, names, flags = (set(values) for values in zip(*samples[0], strict=True))
    assert (letters, names, flags) == (set("abcde"), {"one", "uno"}, {"True", "False"})
    assert pytester.runpytest_inprocess("-m", "").parseoutcomes() == {"passed": 30}
