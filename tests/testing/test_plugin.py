"""The fixtures in runs of pytest of their own, under each of the plugins that run async tests."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest
import stamina
from tests.environment import HANGS

import lamella.maesn.sandbox
import lamella.testing.virtual_time  # so that the inner runs do not import them anew

pytest_plugins = ["pytester"]


@pytest.fixture
def inner(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> Any:
    """Run a file of tests with warnings as errors; the entry point loads the plugin, if lamella is installed."""

    def run(
        source: str, *arguments: str, mode: str = "auto", ini: str = "", own_process: bool = False
    ) -> pytest.RunResult:
        pytester.makeini(
            f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n{ini}"
            if "no:asyncio" not in arguments
            else "[pytest]\n"
        )
        pytester.makepyfile(source)
        is_there = request.config.pluginmanager.has_plugin("lamella")
        plugin = () if is_there else ("-p", "lamella.testing.plugin", "-p", "lamella.pytest_maesn")
        run = pytester.runpytest_subprocess if own_process else pytester.runpytest_inprocess
        spared = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
        return run(*plugin, *spared, "-W", "error", *arguments)

    return run


VIRTUAL = """
    import asyncio
    import time

    import aiohttp
    import pytest
    from lamella.testing import VirtualTimeLoop

    {marker}
    async def test_virtual({fixtures}):
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        assert virtual_time.now == loop.time()
        began = time.perf_counter()
        for _ in range(2):
            async with aiohttp.ClientSession(sandbox.url, headers={{"X-API-KEY": sandbox.api_key}}) as session:
                async with session.get("/auth/xero") as response:
                    assert response.status == 200
            await asyncio.sleep(900)
        assert virtual_time.elapsed == pytest.approx(1800)
        assert time.perf_counter() - began < 10

    {marker}
    async def test_real(sandbox):
        assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
        await asyncio.sleep(0.001)
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("scope", "fixtures"),
    [
        ("function", "virtual_time, sandbox"),
        ("function", "sandbox, virtual_time"),
        ("class", "virtual_time, sandbox"),
        ("module", "virtual_time, sandbox"),
        ("package", "virtual_time, sandbox"),
        ("session", "virtual_time, sandbox"),
        ("session", "sandbox, virtual_time"),
    ],
)
def test_pytest_asyncio(inner: Any, scope: str, fixtures: str) -> None:
    marker = f"@pytest.mark.asyncio(loop_scope={scope!r})"
    result = inner(VIRTUAL.format(marker=marker, fixtures=fixtures), mode="strict")
    result.assert_outcomes(passed=2)


def test_pytest_asyncio_in_auto_mode(inner: Any) -> None:
    inner(VIRTUAL.format(marker="", fixtures="virtual_time, sandbox")).assert_outcomes(passed=2)


def test_pytest_asyncio_with_another_default_scope(inner: Any) -> None:
    source = VIRTUAL.format(marker="", fixtures="virtual_time, sandbox")
    inner(source, ini="asyncio_default_test_loop_scope = session").assert_outcomes(passed=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="with pytest-asyncio"),
        pytest.param(("-p", "no:asyncio"), id="alone", marks=pytest.mark.slow),
    ],
)
def test_anyio(inner: Any, arguments: tuple[str, ...]) -> None:
    backend = """
    @pytest.fixture
    def anyio_backend():
        return "asyncio"
    """
    source = VIRTUAL.format(marker="@pytest.mark.anyio", fixtures="virtual_time, sandbox") + backend
    # anyio takes the process's loop away, and pytest-asyncio 1.0 in auto mode its async fixtures.
    inner(source, *arguments, mode="strict", own_process=True).assert_outcomes(passed=2)


def test_the_fixture_says_which_plugin_it_needs(inner: Any) -> None:
    result = inner("def test_it(sandbox): pass", "-p", "no:asyncio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the fixture sandbox needs pytest-asyncio*"])


def test_make_sandbox_closes_all(inner: Any) -> None:
    result = inner("""
        import asyncio
        import pytest

        made = []

        async def test_make(make_sandbox):
            made.append(await make_sandbox(accounts=3))
            made.append(await make_sandbox(api_key="mine"))
            assert [len(sandbox.accounts) for sandbox in made] == [3, 1]
            assert made[0].url != made[1].url

        async def test_closed():
            for sandbox in made:
                with pytest.raises(OSError):
                    await asyncio.open_connection("127.0.0.1", int(sandbox.url.rsplit(":")[-1]))
    """)
    result.assert_outcomes(passed=2)


@pytest.mark.usefixtures("no_waits")
def test_no_waits_keeps_the_attempts() -> None:
    calls: list[int] = []

    @stamina.retry(on=ValueError, attempts=7, wait_initial=3600, wait_max=3600, timeout=None)
    def fail() -> None:
        calls.append(1)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  raised three lines above
        fail()
    assert len(calls) == 7


def test_no_waits_ends_with_the_test(inner: Any) -> None:
    result = inner("""
        import stamina

        def test_with(no_waits):
            assert stamina.is_testing()

        def test_without():
            assert not stamina.is_testing()
    """)
    result.assert_outcomes(passed=2)
    assert not stamina.is_testing()


def test_no_waits_restores_what_was_set(inner: Any) -> None:
    with stamina.set_testing(True, attempts=3):
        inner("def test_with(no_waits): pass").assert_outcomes(passed=1)
        assert stamina.is_testing()
    assert not stamina.is_testing()


def test_fixtures_are_listed(inner: Any) -> None:
    result = inner("", "--fixtures")
    for name in ("sandbox", "make_sandbox", "virtual_time", "no_waits"):
        result.stdout.fnmatch_lines([f"{name} -- *"])
    result.stdout.no_fnmatch_line("*_on_*loop*")


def test_importing_the_plugins_imports_no_server() -> None:
    """Every run of pytest pays for it. What lamella itself imports is not counted."""
    script = """
import sys
import lamella
before = set(sys.modules)
import lamella.testing.plugin
import lamella.pytest_maesn
new = {name for name in set(sys.modules) - before if name.startswith(("lamella", "aiohttp.web", "stamina"))}
assert new == {"lamella.testing", "lamella.testing.plugin", "lamella.pytest_maesn"}, new
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANGS)  # noqa: S603  our own script


def test_names_of_the_package() -> None:
    assert set(lamella.testing.__all__) <= set(dir(lamella.testing))
    for name in lamella.testing.__all__:
        assert getattr(lamella.testing, name).__module__.startswith("lamella.testing.")
    with pytest.raises(AttributeError, match=r"module 'lamella.testing' has no attribute 'Nothing'"):
        _ = lamella.testing.Nothing


def test_entry_points() -> None:
    try:
        distribution = importlib.metadata.distribution("lamella")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("lamella is not installed")
    points = distribution.entry_points.select(group="pytest11")
    assert {point.value for point in points} == {"lamella.testing.plugin", "lamella.pytest_maesn"}
