"""What the types promise to users, and which module may know of which."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lamella

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(lamella.__file__).resolve().parent


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


ELSEWHERE = ("lamella.dataset.on_dask",)
"""Modules that need an extra, which only another environment has: tests/dask imports them."""
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(lamella.__path__, "lamella.")
    if not any(part.startswith("_") for part in name.split(".")) and name not in ELSEWHERE
)
OUTSIDE = ("lamella.maesn", "lamella.pytest_maesn", "lamella.testing", "lamella.cli")
CORE = [name for name in ("lamella", *MODULES) if not within(name, *OUTSIDE)]


def imported_by(module: str) -> set[str]:
    """The modules and names that *module* imports, wherever in its code, with their full names."""
    path = SOURCE.joinpath(*module.split(".")[1:])
    is_package = path.is_dir()
    path = path / "__init__.py" if is_package else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.slow
def test_the_public_api_has_the_types_that_its_users_rely_on(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("mypy")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), str(Path("tests", "typing", "api.py"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_contains_py_typed() -> None:
    assert (SOURCE / "py.typed").is_file()


@pytest.mark.parametrize("module", [name for name in ["lamella", *MODULES] if hasattr(import_module(name), "__all__")])
def test_every_name_in_all_exists(module: str) -> None:
    loaded = import_module(module)
    names = loaded.__all__

    assert len(set(names)) == len(names)
    for name in names:
        assert hasattr(loaded, name), name


PURE = (
    "lamella.checks",
    "lamella.error_body",
    "lamella.rules",
    "lamella.throttle.belief",
    "lamella.throttle.estimate",
    "lamella.throttle.evidence",
    "lamella.throttle.learning",
    "lamella.throttle.limit",
    "lamella.throttle.permits",
    "lamella.throttle.stated",
    "lamella.throttle.usage",
    "lamella.breaker.circuit",
    "lamella.retry.budget",
)


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, *PURE)])
def test_policy_modules_import_only_policy_and_the_standard_library(module: str) -> None:
    # A Limit has functions of a request, whose type it names.
    types = {"aiohttp"} if module == "lamella.throttle.limit" else set()
    for name in imported_by(module) - types:
        assert within(name, *PURE) or name.split(".")[0] in sys.stdlib_module_names, name
        assert not within(name, "asyncio", "random", "time", "socket"), name


@pytest.mark.parametrize("module", ["lamella.errors", "lamella.redaction"])
def test_errors_import_no_layer_and_no_client(module: str) -> None:
    below = ("rules", "redaction", "secret_names", "error_body", "attempt_record")
    for name in imported_by(module):
        assert not within(name, "aiohttp.client", "aiohttp.ClientSession"), name
        assert not within(name, "lamella") or within(name, *(f"lamella.{each}" for each in below)), name


@pytest.mark.parametrize("module", CORE)
def test_the_core_does_not_import_what_is_built_on_it(module: str) -> None:
    # `lamella.maesn` and `lamella.testing` are names of the package for those who use it.
    outside = OUTSIDE if module != "lamella" else ("lamella.cli",)
    assert not [name for name in imported_by(module) if within(name, *outside)]


LAYERS = (
    "lamella.auth.header_auth",
    "lamella.breaker.layer",
    "lamella.buffer",
    "lamella.classify.layer",
    "lamella.retry.layer",
    "lamella.telemetry.attempt_span",
    "lamella.telemetry.call_span",
    "lamella.throttle.layer",
    "lamella.timeout",
)


@pytest.mark.parametrize("module", LAYERS)
def test_a_layer_does_not_import_other_layers(module: str) -> None:
    others = [name for name in LAYERS if name != module]
    assert not [name for name in imported_by(module) if within(name, *others, "lamella.stacking")]


def test_the_lists_of_modules_are_not_empty() -> None:
    assert {"lamella.rules.book", "lamella.retry.layer", "lamella.errors", "lamella.maesn.rules"} <= set(MODULES)
    assert {"lamella", "lamella.rules", "lamella.errors", "lamella.stacking"} <= set(CORE)
    assert {"aiohttp", "lamella.rules.Rule"} <= imported_by("lamella.errors")
