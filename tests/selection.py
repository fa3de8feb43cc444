"""Which tests run, and what the summary of a run says about that.

A run of whole folders leaves out the slow tests (``-m "not slow"`` in pyproject.toml). A run of single files or tests,
or with ``-k``, takes all that it names. Of a test that is marked ``sampled`` a part is not slow.
"""

from __future__ import annotations

import os
import random
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

__all__ = ["pytest_collection_modifyitems", "pytest_terminal_summary", "take_slow_tests_if_named"]

_WITHOUT_SLOW: Final = "not slow"


def take_slow_tests_if_named(config: pytest.Config) -> None:
    """Take the slow tests as well if the command line names files or tests, and has no ``-m`` of its own."""
    arguments = config.invocation_params.args
    named = config.option.keyword or any("::" in argument or argument.endswith(".py") for argument in config.args)
    if named and "-m" not in arguments and not hasattr(config, "workerinput"):  # pytest-xdist's workers are told
        config.option.markexpr = ""


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of a sampled test as slow, but for a few in which each value of each parameter occurs."""
    cases: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for test, of_test in cases.items():
        random.Random(test).shuffle(of_test)
        missing = {case: _values(case) for case in of_test if not case.get_closest_marker("slow")}
        while any(missing.values()):
            taken = missing.pop(max(missing, key=lambda case: len(missing[case])))
            missing = {case: values - taken for case, values in missing.items()}
        for case in missing:
            case.add_marker("slow")


def _values(case: pytest.Function) -> set[tuple[tuple[str, int], ...]]:
    """Return which object each parameter of *case* is, together for those of the same ``parametrize``."""
    names = [mark.args[0] for mark in case.iter_markers("parametrize")]
    together = [group.split(",") if isinstance(group, str) else group for group in names]
    return {tuple((name, id(case.callspec.params[name.strip()])) for name in group) for group in together}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show how to repeat the first test that failed, and how to run the slow tests that were left out."""
    failed = [report for outcome in ("error", "failed") for report in terminalreporter.getreports(outcome)]
    if failed:
        python = Path(sys.executable)
        command = os.path.relpath(python) if python.is_relative_to(Path.cwd()) else str(python)
        terminalreporter.write_line(f"To repeat one: {shlex.join([command, '-m', 'pytest', failed[0].nodeid])}")
    if config.option.markexpr == _WITHOUT_SLOW:
        terminalreporter.write_line("Slow tests were left out; `make test-all` runs all tests.")
