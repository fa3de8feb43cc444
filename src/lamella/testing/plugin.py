"""The pytest plugin: the fixtures `sandbox`, `make_sandbox`, `virtual_time` and `no_waits`.

pytest-asyncio and the plugin of anyio both give an async fixture a loop by rules of their own, and pytest-asyncio not
always the test's. The fixtures here are therefore plain ones, which look up how the test at hand runs and hand over to
an async fixture that runs in the same loop.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import pytest

if TYPE_CHECKING:
    from .sandbox import Sandbox
    from .virtual_time import VirtualClock

__all__ = ("MakeSandbox", "make_sandbox", "no_waits", "sandbox", "virtual_time")


class MakeSandbox(Protocol):
    """What the fixture `make_sandbox` is: give it the arguments of a `Sandbox`, and it returns a started one."""

    async def __call__(self, **options: Any) -> Sandbox: ...


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """A started `Sandbox` with its defaults, in the loop of the test; closed afterwards."""
    started: Sandbox = _in_loop_of_test("sandbox", request)
    return started


@pytest.fixture
def make_sandbox(request: pytest.FixtureRequest) -> MakeSandbox:
    """Start a `Sandbox` of one's own: `await make_sandbox(accounts=3)`. All are closed after the test."""
    make: MakeSandbox = _in_loop_of_test("make_sandbox", request)
    return make


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> VirtualClock:
    """Put the loop of the test on virtual time, where no wait takes any; see `VirtualTimeLoop`.

    The value is its `VirtualClock`, with `now` and `elapsed` in seconds.
    """
    clock: VirtualClock = _in_loop_of_test("virtual_time", request)
    return clock


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Take the waits out of everything that retries by stamina. There are as many attempts as without."""
    import stamina

    # Capped at what nobody reaches, the number of attempts stays what the code says.
    with stamina.set_testing(True, attempts=sys.maxsize, cap=True):
        yield


_PYTEST_ASYNCIO = ("asyncio", "pytest_asyncio.plugin")  # by its entry point, or by -p
_LoopScope = Literal["function", "class", "module", "package", "session"]


def _in_loop_of_test(name: str, request: pytest.FixtureRequest) -> Any:
    """The value of the async fixture of this name that runs where the test does."""
    if "anyio_backend" in request.fixturenames:
        return request.getfixturevalue(f"_{name}_on_anyio")
    if not any(map(request.config.pluginmanager.has_plugin, _PYTEST_ASYNCIO)):
        pytest.fail(f"the fixture {name} needs pytest-asyncio, or a test that the anyio plugin runs", pytrace=False)
    marker = request.node.get_closest_marker("asyncio")
    options = marker.kwargs if marker else {}
    scope = (
        options.get("loop_scope")
        or options.get("scope")  # its name of old
        or request.config.getini("asyncio_default_test_loop_scope")
    )
    return request.getfixturevalue(f"_{name}_on_{scope}_loop")


def _async_fixtures() -> dict[str, Callable[[], AsyncIterator[object]]]:
    """The functions behind the fixtures; made anew at each call, for a function can be one fixture only."""

    async def sandbox() -> AsyncIterator[Sandbox]:
        from .sandbox import Sandbox

        async with Sandbox() as sandbox:
            yield sandbox

    async def make_sandbox() -> AsyncIterator[MakeSandbox]:
        from .sandbox import Sandbox

        async with AsyncExitStack() as stack:

            async def make(**options: Any) -> Sandbox:
                return await stack.enter_async_context(Sandbox(**options))

            yield make

    async def virtual_time() -> AsyncIterator[VirtualClock]:
        from .virtual_time import virtual_clock

        with virtual_clock() as clock:
            yield clock

    return {"sandbox": sandbox, "make_sandbox": make_sandbox, "virtual_time": virtual_time}


def _register() -> None:
    """Give this module the async fixtures, one for each way in which a test can have got its loop."""
    for name, function in _async_fixtures().items():
        unique = f"_{name}_on_anyio"
        globals()[unique] = pytest.fixture(name=unique)(function)
    if find_spec("pytest_asyncio") is None:
        return
    import pytest_asyncio

    for scope in get_args(_LoopScope):
        for name, function in _async_fixtures().items():
            unique = f"_{name}_on_{scope}_loop"
            globals()[unique] = pytest_asyncio.fixture(loop_scope=scope, name=unique)(function)


_register()
