"""What `import lamella` loads, and that its names are what they say however they are asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import lamella


def ran(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
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
    assert set(lamella.__all__) == set(lamella._MODULES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lamella.nothing  # type: ignore[attr-defined]


def test_completion_shows_only_public_names() -> None:
    program = "import lamella.retry.loop, lamella; lamella.Rule; print(*dir(lamella))"
    assert ran(program).split() == dir(lamella)


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
