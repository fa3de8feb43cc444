"""Which tests run, and what the summary of a run says about that.

A run of whole folders leaves out the slow tests (``-m "not slow"`` in pyproject.toml). A run of single files or tests,
or with ``-k``, takes all that it names.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Final

import pytest

__all__ = ["pytest_terminal_summary", "take_slow_tests_if_named"]

_WITHOUT_SLOW: Final = "not slow"


def take_slow_tests_if_named(config: pytest.Config) -> None:
    """Take the slow tests as well if the command line names files or tests, and has no ``-m`` of its own."""
    arguments = config.invocation_params.args
    named = config.option.keyword or any("::" in argument or argument.endswith(".py") for argument in config.args)
    if named and "-m" not in arguments and not hasattr(config, "workerinput"):  # pytest-xdist's workers are told
        config.option.markexpr = ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show how to repeat the first test that failed, and how to run the slow tests that were left out."""
    failed = [report for outcome in ("error", "failed") for report in terminalreporter.getreports(outcome)]
    if failed:
        python = Path(sys.executable)
        command = os.path.relpath(python) if python.is_relative_to(Path.cwd()) else str(python)
        terminalreporter.write_line(f"To repeat one: {shlex.join([command, '-m', 'pytest', failed[0].nodeid])}")
    if config.option.markexpr == _WITHOUT_SLOW:
        terminalreporter.write_line("Slow tests were left out; `make test-all` runs all tests.")
