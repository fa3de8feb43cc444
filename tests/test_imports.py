"""What `import lamella` loads, and that its names are what they say however they are asked for."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lamella


def ran(program: str, *arguments: str, **variables: str) -> str:
    command, env = [sys.executable, "-c", program, *arguments], {**os.environ, **variables}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


def test_modules_are_loaded_on_first_use() -> None:
    loaded = ran("import sys, lamella; print(sorted(name for name in sys.modules if name.startswith('lamella.')))")
    assert loaded == "[]"


def test_an_error_class_needs_no_layer() -> None:
    program = "import sys; from lamella import TooManyRequests; print('lamella.pipeline' in sys.modules)"
    assert ran(program) == "False"


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", marks=pytest.mark.slow),
        "import lamella.stacking, lamella.retry, lamella.maesn, lamella.batch",
    ],
)
def test_no_module_hides_a_public_name(before: str) -> None:
    """A submodule, once it is loaded, is an attribute of its package, too."""
    program = f"""
{before}
import types
import lamella
print([name for name in lamella.__all__ if isinstance(getattr(lamella, name), types.ModuleType)])
"""
    assert ran(program) == "[]"


def test_all_public_names_can_be_imported() -> None:
    assert set(dir(lamella)) == {*lamella.__all__, "__version__", "batch", "maesn", "oauth", "sync", "testing"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lamella.nothing  # type: ignore[attr-defined]


def test_type_checkers_and_python_find_each_name_in_the_same_module() -> None:
    block = next(node for node in ast.parse(inspect.getsource(lamella)).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.module != "lamella"]
    assert {alias.name: node.module for node in imports for alias in node.names} == lamella._MODULES
    assert set(lamella.__all__) == set(lamella._MODULES)


@pytest.mark.slow
def test_completion_shows_only_public_names() -> None:
    program = "import lamella.retry.loop, lamella; lamella.Rule; print(*dir(lamella))"
    assert ran(program).split() == dir(lamella)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "maesn.session",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("batch.Batch", "testing.VirtualClock")),
    ],
)
def test_subpackages_need_no_separate_import(name: str) -> None:
    assert ran(f"import lamella; print(callable(lamella.{name}))") == "True"


def test_the_version_is_the_installed_one() -> None:
    assert lamella.__version__ == version("lamella")


def test_maesn_does_not_load_the_modules_for_the_version() -> None:
    program = "import sys, lamella.maesn; print('importlib.metadata' in sys.modules, 'lamella.maesn' in sys.modules)"
    assert ran(program) == "False True"


COMMAND = """
import atexit, sys
from lamella.cli import main

asked = ("aiohttp", "jinja2", "lamella.dataset", "lamella.maesn", "lamella.maesn.sandbox", "lamella.sync", "pyarrow",
    "opentelemetry", "opentelemetry.exporter", "pydantic", "requests", "rich", "stamina")
atexit.register(lambda: print("loaded:", *[name for name in asked if name in sys.modules]))
main()
"""
TYPER = {"pydantic", "rich"}  # typer loads them, depending on its version


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--version"], "lamella "),
        pytest.param(["--help"], "Thin layers for an aiohttp session", marks=pytest.mark.slow),
        (["sync", "--help"], "Sync the records of many accounts"),
        pytest.param(["dataset", "list", "--help"], "Show the shards and the last run", marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_the_help_and_the_version_load_no_command(arguments: list[str], shown: str) -> None:
    output, _, loaded = ran(COMMAND, *arguments).rpartition("loaded:")
    assert shown in output
    assert set(loaded.split()) <= TYPER


def test_a_completion_loads_no_command() -> None:
    variables = {"_LAMELLA_COMPLETE": "complete_bash", "COMP_WORDS": "lamella sync --ver", "COMP_CWORD": "2"}
    output, _, loaded = ran(COMMAND, **variables).rpartition("loaded:")
    assert output.split() == ["--verify", "--verbose"]
    assert set(loaded.split()) <= TYPER


def test_a_sync_loads_no_server_and_no_exporter(tmp_path: Path) -> None:
    arguments = ("sync", "--dry-run", "--resource", "items", "--journal", str(tmp_path / "j"))
    output, _, loaded = ran(COMMAND, *arguments, MAESN_API_KEY="a-key", MAESN_ACCOUNT_KEY="b-key").rpartition("loaded:")
    assert "items" in output
    needed = {"aiohttp", "lamella.maesn", "lamella.sync", "opentelemetry", "stamina"}
    assert set(loaded.split()) - TYPER == needed
