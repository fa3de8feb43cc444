"""Which tests run, and what the summary of a run says about that.

A run of whole folders leaves out the slow tests (``-m "not slow"`` in pyproject.toml). A run of single files or tests,
or with ``-k``, takes all that it names.

Of a test with more than eight cases a part is not slow, the same in each run: of one list of parameters eight cases, of
several lists as many as it takes for each value of each list to occur. ``sampled`` does so to a test with fewer cases,
and ``sampled(n)`` leaves n of them.
"""

from __future__ import annotations

import os
import random
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = [
    "pytest_collection_modifyitems",
    "pytest_configure_node",
    "pytest_terminal_summary",
    "take_slow_tests_if_named",
]

_WITHOUT_SLOW: Final = "not slow"
_MANY: Final = 8
"""The number of cases that a test may have without being sampled."""


def take_slow_tests_if_named(config: pytest.Config) -> None:
    """Take the slow tests as well if the command line names files or tests, and has no ``-m`` of its own."""
    if told := getattr(config, "workerinput", None):  # a worker of pytest-xdist
        config.option.markexpr = told["markexpr"]
        return
    arguments = config.invocation_params.args
    named = config.option.keyword or any("::" in argument or argument.endswith(".py") for argument in config.args)
    if named and "-m" not in arguments:
        config.option.markexpr = ""


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist which marks to take; it parses the options of pyproject.toml again."""
    node.workerinput["markexpr"] = node.config.option.markexpr


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of a test with many of them as slow, but for a sample."""
    cases: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for test, of_test in cases.items():
        sampled = of_test[0].get_closest_marker("sampled")
        if sampled or len(of_test) > _MANY:
            random.Random(test).shuffle(of_test)
            for case in _left_out(of_test, *(sampled.args if sampled else ())):
                case.add_marker("slow")


def _left_out(cases: list[pytest.Function], wanted: int | None = None) -> list[pytest.Function]:
    """Return the *cases* beside the sample. *wanted* None: as many as the parameters need."""
    missing = {case: _values(case) for case in cases}
    if wanted is not None or len(missing[cases[0]]) == 1:
        return cases[wanted or _MANY :]
    while any(missing.values()):
        taken = missing.pop(max(missing, key=lambda case: len(missing[case])))
        missing = {case: values - taken for case, values in missing.items()}
    return [*missing]


def _values(case: pytest.Function) -> set[tuple[tuple[str, int], ...]]:
    """Return which object each parameter of *case* is, together for those of the same ``parametrize``."""
    names = [mark.args[0] for mark in case.iter_markers("parametrize")]
    together = [[name.strip() for name in (each.split(",") if isinstance(each, str) else each)] for each in names]
    of_fixtures = case.callspec.params.keys() - {name for group in together for name in group}
    together += [[name] for name in sorted(of_fixtures)]
    return {tuple((name, id(case.callspec.params[name])) for name in group) for group in together}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show how to repeat the first test that failed, and how to run the slow tests that were left out."""
    failed = [report for outcome in ("error", "failed") for report in terminalreporter.getreports(outcome)]
    if failed:
        python = Path(sys.executable)
        command = os.path.relpath(python) if python.is_relative_to(Path.cwd()) else str(python)
        terminalreporter.write_line(f"To repeat one: {shlex.join([command, '-m', 'pytest', failed[0].nodeid])}")
    if config.option.markexpr == _WITHOUT_SLOW:
        terminalreporter.write_line("Slow tests were left out; `make test-all` runs all tests.")
