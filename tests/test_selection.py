"""A run of whole folders leaves out slow tests and a part of many cases; a run of what is named takes all."""

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


@pytest.fixture(autouse=True)
def _no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of pytest inside a test looks through every package for plugins, which takes half of its time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


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
        pytest.param(["-p", "xdist", "--numprocesses", "1", "folder/test_it.py"], True, marks=pytest.mark.slow),
        pytest.param(["-p", "xdist", "--numprocesses", "1"], False, marks=pytest.mark.slow),
        pytest.param(
            ["-p", "xdist", "--numprocesses", "1", "folder/test_it.py", "-m", "not slow"], False, marks=pytest.mark.slow
        ),
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


MANY = """
import pytest

@pytest.fixture(params="xyz")
def third(request): return request.param

@pytest.mark.parametrize("number", range(4))
def test_four(number): print("four:", number)

@pytest.mark.parametrize("number", range(5))
def test_five(number): print("five:", number)

@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("letter", "ab")
def test_two(number, letter, third): print("two:", number, letter, third)

@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("letter", "abc")
def test_few(number, letter): print("few:", number)
"""


@pytest.mark.slow
def test_of_many_cases_a_sample_is_not_slow(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    pytester.makeconftest(CONFTEST)
    file = pytester.mkdir("folder").joinpath("test_it.py")
    file.write_text(MANY, "utf-8")
    samples = [pytester.runpytest_inprocess("-s").stdout.str() for _ in range(2)]
    assert "deselected" not in samples[0], "a case that is left out must not cost the time of an item"
    chosen = [re.findall(r"five: (\d+)", shown) for shown in samples]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == samples[0].count("four: ") == 4
    of_two = re.findall(r"two: (\d+) (\w) (\w)", samples[0])
    assert len(of_two) == 8  # as many as the longest list has
    numbers, letters, thirds = (set(values) for values in zip(*of_two, strict=True))
    assert (len(numbers), letters, thirds) == (8, set("ab"), set("xyz"))
    assert samples[0].count("few: ") == 2
    everything = {"passed": 4 + 5 + 8 * 2 * 3 + 3 * 3}
    assert pytester.runpytest_inprocess("-m", "").parseoutcomes() == everything
    assert pytester.runpytest_inprocess(str(file)).parseoutcomes() == everything
