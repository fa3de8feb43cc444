"""What `import lamella` loads, and that its names are what they say however they are asked for."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any, NamedTuple

import pytest

import lamella


def ran(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


IMPORTS = """
import json, sys, types

import lamella
loaded = [name for name in sys.modules if name.startswith("lamella.")]
from lamella import TooManyRequests
with_an_error = [name for name in ("lamella.pipeline",) if name in sys.modules]
import lamella.maesn
unused = ["anyio", "importlib.metadata", "lamella.maesn.published.records"]
unused += ["lamella.store.network", "lamella.store.postgres", "lamella.store.redis", "lamella.throttle.parts"]
with_maesn = [name for name in ("lamella.maesn", *unused) if name in sys.modules]
import lamella.stacking, lamella.retry, lamella.batch
modules = [name for name in lamella.__all__ if isinstance(getattr(lamella, name), types.ModuleType)]
print(json.dumps([loaded, with_an_error, with_maesn, modules]))
"""


class Imported(NamedTuple):
    """What one process after the other of its imports has loaded, of what is asked for."""

    loaded: list[str]
    with_an_error: list[str]
    with_maesn: list[str]
    modules: list[str]
    """The public names that are modules in the end."""


@pytest.fixture(scope="module")
def imported() -> Imported:
    """One process for several tests: it takes half a second."""
    return Imported(*json.loads(ran(IMPORTS)))


def test_modules_are_loaded_on_first_use(imported: Imported) -> None:
    assert imported.loaded == []


def test_an_error_class_needs_no_layer(imported: Imported) -> None:
    assert imported.with_an_error == []


def test_no_module_hides_a_public_name(imported: Imported) -> None:
    """A submodule, once it is loaded, is an attribute of its package, too."""
    assert imported.modules == []


@pytest.mark.slow
def test_each_public_name_is_there_if_nothing_was_imported_before() -> None:
    program = """
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


def test_maesn_does_not_load_what_few_programs_use(imported: Imported) -> None:
    assert imported.with_maesn == ["lamella.maesn"]


PROGRAM = """
import io, json, os, sys
from contextlib import redirect_stdout, suppress
from lamella.cli import main

asked = ("aiohttp", "jinja2", "lamella.dataset", "lamella.maesn", "lamella.maesn.sandbox", "lamella.sync", "pyarrow",
    "opentelemetry", "opentelemetry.exporter", "pydantic", "requests", "rich", "stamina")
ran = []
for arguments, variables in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    os.environ |= variables
    with redirect_stdout(io.StringIO()) as output, suppress(SystemExit):
        main()
    ran.append((output.getvalue(), [name for name in asked if name in sys.modules]))
    for name in variables:
        del os.environ[name]
print(json.dumps(ran))
"""
TYPER = {"pydantic", "rich"}  # typer loads them, depending on its version
DRY_RUN = ["sync", "--dry-run", "--resource", "items"]
KEYS = {"MAESN_API_KEY": "a-key", "MAESN_ACCOUNT_KEY": "b-key"}
COMPLETION = {"_LAMELLA_COMPLETE": "complete_bash", "COMP_WORDS": "lamella sync --ver", "COMP_CWORD": "2"}
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "a completion": ([], COMPLETION),
    "--version": (["--version"], {}),
    "--help": (["--help"], {}),
    "sync --help": (["sync", "--help"], {}),
    "dataset list --help": (["dataset", "list", "--help"], {}),
    "a sync": (DRY_RUN, KEYS),
}
"""The arguments and variables. The last one loads most."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, set[str]]]:
    """What each command prints, and what it and those before it have loaded. One process: each takes half a second."""
    journal = ("--journal", str(tmp_path_factory.mktemp("dry run") / "j"))
    each = [([*given, *(journal if given is DRY_RUN else ())], variables) for given, variables in COMMANDS.values()]
    got: list[Any] = json.loads(ran(PROGRAM, json.dumps(each)))
    return {name: (output, {*loaded}) for name, (output, loaded) in zip(COMMANDS, got, strict=True)}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("--version", "lamella "),
        pytest.param("--help", "Thin layers for an aiohttp session", marks=pytest.mark.slow),
        ("sync --help", "Sync the records of many accounts"),
        pytest.param("dataset list --help", "Show the shards and the last run", marks=pytest.mark.slow),
    ],
)
def test_the_help_and_the_version_load_no_command(
    arguments: str, shown: str, commands: dict[str, tuple[str, set[str]]]
) -> None:
    output, loaded = commands[arguments]
    assert shown in output
    assert loaded <= TYPER


def test_a_completion_loads_no_command(commands: dict[str, tuple[str, set[str]]]) -> None:
    output, loaded = commands["a completion"]
    assert output.split() == ["--verify", "--verbose"]
    assert loaded <= TYPER


def test_a_sync_loads_no_server_and_no_exporter(commands: dict[str, tuple[str, set[str]]]) -> None:
    output, loaded = commands["a sync"]
    assert "items" in output
    assert loaded - TYPER == {"aiohttp", "lamella.maesn", "lamella.sync", "opentelemetry", "stamina"}
