"""The targets run wherever the checkout lies, and whatever the user has set for other programs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make") or ""
pytestmark = pytest.mark.skipif(not MAKE, reason="there is no make")

PLACES = ["lamella", "größe 1/lamella", """[x] it's "a" $HOME ;&|%s *?#/lamella""", f"{'long/' * 20}{'l' * 200}"]
EACH_PLACE = [PLACES[2], *(pytest.param(place, marks=pytest.mark.slow) for place in PLACES if place != PLACES[2])]
TARGETS = [
    *("demo", "test", "test-all", "lint", "format", "types", "docs", "dist", "audit", "coverage", "lowest"),
    *("backends", "browser", "dask", "test-fleet", "fleet"),
    *("bench", "bench-instructions", "bench-storm", "bench-batch", "bench-sync", "bench-dask"),
    *("soak", "picture"),
]
# It notes how it is run. An environment that it makes has an interpreter like it, and nothing else.
INTERPRETER = """
import json, os, shutil, sys
notes, name, *arguments = sys.argv[1:]
with open(notes, "a", encoding="utf-8") as file:
    file.write(json.dumps([os.fsencode(os.path.abspath(name)).hex(), arguments, dict(os.environ)]) + chr(10))
if arguments[:2] == ["-m", "venv"]:
    os.makedirs(os.path.join(arguments[2], "bin"))
    shutil.copy(name, os.path.join(arguments[2], "bin", "python"))
elif arguments[0] == "-c":
    print("3.11.0")
"""
SET = {
    "ARGS": "--of-another-program",
    "COVERAGE_FILE": "/no/such/folder/.coverage",
    "HYPOTHESIS_STORAGE_DIRECTORY": "/no/such/folder",
    "LAMELLA_CHROMIUM": "/no/such/browser",
    "LANG": "tr_TR.UTF-8",
    "LC_ALL": "C",
    "LC_CTYPE": "de_DE.ISO-8859-1",
    "MAESN_API_KEY": "somebody's",
    "MYPYPATH": "/no/such/folder",
    "MYPY_CACHE_DIR": "/no/such/folder",
    "NODE_OPTIONS": "--no-such-option",
    "OTEL_SDK_DISABLED": "true",
    "PIP_TARGET": "/no/such/folder",
    "PIP_USER": "1",
    "PYRIGHT_PYTHON_FORCE_VERSION": "latest",
    "PYTEST_ADDOPTS": "--collect-only",
    "PYTEST_PLUGINS": "no_such_plugin",
    "PYTHONHOME": "/no/such/folder",
    "PYTHONOPTIMIZE": "2",
    "PYTHONPATH": "/no/such/folder",
    "PYTHONWARNINGS": "error",
    "RUFF_OUTPUT_FORMAT": "json",
    "SSLKEYLOGFILE": "/no/such/folder/keys",
    "VENV": "of-another-program",
}
NETWORK = {
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "PIP_INDEX_URL": "https://packages.example",
    "SSL_CERT_FILE": "/etc/own.pem",
    "https_proxy": "http://127.0.0.1:9",
}


class Run(NamedTuple):
    """How an interpreter was run."""

    python: Path
    arguments: list[str]
    environ: dict[str, str]


class Checkout:
    """A checkout, and interpreters that only note how they are run."""

    def __init__(self, folder: Path, beside: Path) -> None:
        self.folder = folder
        self._notes = beside / "notes"
        self._programs = beside / "programs"
        for name in (
            "Makefile",
            "pyproject.toml",
            "scripts/lowest_versions.py",
            "scripts/make_venv.sh",
            "tests/backends/phoenix.txt",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        program = beside / "interpreter.py"
        program.write_text(INTERPRETER, "utf-8")
        command = shlex.join([sys.executable, "-IS", str(program), str(self._notes)])
        self._programs.mkdir()
        python = self._programs / "python3"
        python.write_text(f'#!/bin/sh\nexec {command} "$0" "$@"\n', "utf-8")
        python.chmod(0o755)

    def make(self, *targets: str) -> list[Run]:
        """Make the targets; the runs of interpreters that this took."""
        self._notes.write_text("", "utf-8")
        done = subprocess.run(  # noqa: S603
            [MAKE, *targets],
            cwd=self.folder,
            env=os.environ | SET | NETWORK | {"PATH": f"{self._programs}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = map(json.loads, self._notes.read_text("utf-8").splitlines())
        return [Run(Path(os.fsdecode(bytes.fromhex(path))), arguments, environ) for path, arguments, environ in lines]


@pytest.fixture
def checkout(tmp_path: Path, request: pytest.FixtureRequest) -> Checkout:
    return Checkout(tmp_path / getattr(request, "param", PLACES[1]), tmp_path)


@pytest.fixture(scope="module", params=EACH_PLACE)
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, list[Run]]:
    """The folder of a checkout in which all targets were made, and the runs of interpreters that this took."""
    beside = tmp_path_factory.mktemp("beside")
    checkout = Checkout(beside / request.param, beside)
    return checkout.folder, checkout.make(*TARGETS)


@pytest.mark.slow
def test_each_target_uses_its_own_interpreter(made: tuple[Path, list[Run]]) -> None:
    """Where a path is long or has a space in it, a script in the environment's bin may not start."""
    folder, runs = made
    own = [run for run in runs if run.python.is_relative_to(folder)]
    assert {run.python.relative_to(folder).parts[1:] for run in own} == {("bin", "python")}
    ran = [run.arguments[:2] for run in own]
    for module in ("coverage", "lamella", "mkdocs", "mypy", "pip", "pyright", "pytest", "ruff"):
        assert ["-m", module] in ran, module
    for script in ("audit", "backends", "dist", "lowest_versions"):
        assert [run for run in own if run.arguments[0] == f"scripts/{script}.py"], script
    assert {run.arguments[0] for run in runs if run not in own} <= {"-c", "-m"}


@pytest.mark.slow
def test_foreign_environment_variables_reach_no_target(made: tuple[Path, list[Run]]) -> None:
    _, runs = made
    for run in runs:
        assert not [name for name, value in SET.items() if run.environ.get(name) == value], run.arguments
        assert SET["ARGS"] not in run.arguments
    installations = [run for run in runs if run.arguments[:2] == ["-m", "pip"]]
    assert len(installations) == 2 * 11  # of pip and then of the packages, for each environment
    for run in installations:
        assert run.environ.items() >= NETWORK.items()
    benchmarks = [run for run in runs if run.arguments[0].startswith("benchmarks/")]
    assert len(benchmarks) == 8
    assert {(run.environ["NO_PROXY"], run.environ["no_proxy"]) for run in benchmarks} == {("*", "*")}


@pytest.mark.slow
@pytest.mark.parametrize("checkout", EACH_PLACE, indirect=True)
def test_an_environment_is_created_once_per_location(checkout: Checkout, tmp_path: Path) -> None:
    made = ["-m", "venv", ".venv"]
    assert made in [run.arguments for run in checkout.make("types")]
    assert [run.arguments[:2] for run in checkout.make("types")] == [["-m", "mypy"], *[["-m", "pyright"]] * 2]
    checkout.folder = checkout.folder.rename(tmp_path / "another place")
    assert made in [run.arguments for run in checkout.make("types")]


def test_arguments_reach_pytest_and_only_test_all_takes_the_slow_tests(checkout: Checkout) -> None:
    runs = checkout.make("test", "test-all", "ARGS=tests/test_call.py -k 'a b'")
    quick, every = [run.arguments for run in runs if run.arguments[:2] == ["-m", "pytest"]]
    assert quick[-3:] == every[-3:] == ["tests/test_call.py", "-k", "a b"]
    assert quick[2:].count("-m") == 0
    assert every[every.index("-m", 2) + 1] == ""


def test_help_shows_how_to_run_one_file() -> None:
    done = subprocess.run([MAKE, "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    [line] = [line for line in done.stdout.splitlines() if "ARGS=tests/" in line]
    [path] = re.findall(r"tests/\S+\.py", line)
    assert (ROOT / path).is_file()
