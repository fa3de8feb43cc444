"""Which tests run, and what the summary of a run says about that.

A run of whole folders leaves out the slow tests (``-m "not slow"`` in pyproject.toml). A run of single files or tests,
or with ``-k``, takes all that it names.

Of a test with more than four cases a part is not slow, the same in each run: of one list of parameters four cases, of
several lists as many as it takes for each value of each list to occur. ``sampled`` does so to a test with fewer cases,
and ``sampled(n)`` leaves n of them.
"""

from __future__ import annotations

import os
import random
import shlex
import sys
from collections.abc import Generator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = [
    "compile_together",
    "pytest_configure_node",
    "pytest_pycollect_makeitem",
    "pytest_pycollect_sample",
    "pytest_terminal_summary",
    "pytest_xdist_auto_num_workers",
    "take_slow_tests_if_named",
]

_WITHOUT_SLOW: Final = "not slow"
_MANY: Final = 4
"""The number of cases that a test may have without being sampled."""
_ELSEWHERE: Final = {"backends", "browser", "dask", "fleet"}
"""The folders of tests with an environment of their own."""


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


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Start three processes for two cores: a third of a test's time is waiting for a disk, a socket or a process."""
    cores = yield
    return cores + (cores + 1) // 2


def compile_together(config: pytest.Config) -> None:
    """Import the test modules in each worker of pytest-xdist from another one on, if all of them are collected.

    In a fresh clone each is compiled for 40 ms. In the same order every worker compiles each of them at the same time.
    """
    if config.args != config.getini("testpaths") or not (told := getattr(config, "workerinput", None)):
        return
    paths = [path for folder in config.args for path in sorted(Path(folder).rglob("test_*.py"))]
    names = [".".join(path.with_suffix("").parts) for path in paths if path.parts[1] not in _ELSEWHERE]
    first = len(names) * int(told["workerid"].removeprefix("gw")) // told["workercount"]
    for name in names[first:] + names[:first]:
        with suppress(Exception, pytest.skip.Exception):  # the collection reports it
            import_module(name)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> list[pytest.Item] | None:
    """Collect nothing of a slow function or class if slow tests are left out: a deselected item costs time as well."""
    if collector.config.option.markexpr != _WITHOUT_SLOW or not name.lower().startswith("test"):
        return None
    marks = getattr(obj, "pytestmark", None)
    return [] if isinstance(marks, list) and any(mark.name == "slow" for mark in marks) else None


@pytest.hookimpl(wrapper=True, trylast=True, specname="pytest_pycollect_makeitem")
def pytest_pycollect_sample(collector: pytest.Module | pytest.Class) -> Generator[None, object, object]:
    """Mark the cases of a test with many of them as slow, but for a sample. Drop them if slow tests are left out.

    ``trylast``: before pytest-asyncio makes an item of its own of each case.
    """
    made = yield
    if not isinstance(made, list):
        return made
    quick = [item for item in made if isinstance(item, pytest.Function) and not item.get_closest_marker("slow")]
    if not quick:
        return made
    sampled = quick[0].get_closest_marker("sampled")
    if sampled or len(quick) > _MANY:
        left_out = _left_out(quick, *(sampled.args if sampled else ()))
        for item in left_out:
            item.add_marker(pytest.mark.slow)
        dropped = set(left_out)
        quick = [item for item in quick if item not in dropped]
    return quick if collector.config.option.markexpr == _WITHOUT_SLOW else made


def _left_out(items: list[pytest.Function], wanted: int | None = None) -> list[pytest.Function]:
    """Return the *items*, the cases of one test, beside the sample. *wanted* None: as many as the parameters need."""
    first = items[0]
    assert first.parent is not None
    cases = [*items]
    random.Random(f"{first.parent.nodeid}::{first.originalname}").shuffle(cases)
    names = [mark.args[0] for mark in first.iter_markers("parametrize")]
    together = [[name.strip() for name in (each.split(",") if isinstance(each, str) else each)] for each in names]
    of_fixtures = first.callspec.params.keys() - {name for group in together for name in group}
    together += [[name] for name in sorted(of_fixtures)]
    if wanted is not None or len(together) == 1:
        return cases[wanted or _MANY :]
    missing = {case: _values(case.callspec.params, together) for case in cases}
    while any(missing.values()):
        taken = missing.pop(max(missing, key=lambda case: len(missing[case])))
        missing = {case: values - taken for case, values in missing.items()}
    return [*missing]


def _values(params: Mapping[str, object], together: list[list[str]]) -> set[tuple[tuple[str, int], ...]]:
    """Return which object each parameter of a case is, *together* for those of the same ``parametrize``."""
    return {tuple((name, id(params[name])) for name in group) for group in together}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show how to repeat the first test that failed, and how to run the slow tests that were left out."""
    failed = [report for outcome in ("error", "failed") for report in terminalreporter.getreports(outcome)]
    if failed:
        python = Path(sys.executable)
        command = os.path.relpath(python) if python.is_relative_to(Path.cwd()) else str(python)
        terminalreporter.write_line(f"To repeat one: {shlex.join([command, '-m', 'pytest', failed[0].nodeid])}")
    if config.option.markexpr == _WITHOUT_SLOW:
        terminalreporter.write_line("Slow tests were left out; `make test-all` runs all tests.")
