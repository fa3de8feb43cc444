"""The pytest plugin: the fixtures `virtual_time` and `no_waits`.

pytest-asyncio and anyio's plugin choose the loop of an async fixture by different rules, and pytest-asyncio does not
always choose the test's loop. So the fixtures here are plain ones that determine how the test runs and delegate to an
async fixture in the same loop.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, get_args

import pytest

if TYPE_CHECKING:
    from .virtual_time import VirtualClock


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> VirtualClock:
    """Put the loop of the test on virtual time, where waits take no time; see `VirtualTimeLoop`.

    The value is its `VirtualClock`, with `now` and `elapsed` in seconds.
    """
    clock: VirtualClock = in_loop_of_test("virtual_time", request)
    return clock


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Remove the waits from everything that retries with stamina. The number of attempts stays the same."""
    import stamina

    # The cap is never reached, so the code's own number of attempts applies.
    with stamina.set_testing(True, attempts=sys.maxsize, cap=True):
        yield


_PYTEST_ASYNCIO = ("asyncio", "pytest_asyncio.plugin")  # loaded by its entry point or with -p
_LoopScope = Literal["function", "class", "module", "package", "session"]


def in_loop_of_test(name: str, request: pytest.FixtureRequest) -> Any:
    """Return the value of the fixture that `async_fixtures` made for *name* and the loop of the test."""
    if "anyio_backend" in request.fixturenames:
        return request.getfixturevalue(f"_{name}_on_anyio")
    if not any(map(request.config.pluginmanager.has_plugin, _PYTEST_ASYNCIO)):
        pytest.fail(f"the fixture {name} needs pytest-asyncio or a test run by the anyio plugin", pytrace=False)
    marker = request.node.get_closest_marker("asyncio")
    options = marker.kwargs if marker else {}
    scope = (
        options.get("loop_scope")
        or options.get("scope")  # name in older versions
        or request.config.getini("asyncio_default_test_loop_scope")
    )
    return request.getfixturevalue(f"_{name}_on_{scope}_loop")


def async_fixtures(**functions: Callable[[], AsyncIterator[object]]) -> dict[str, object]:
    """Return the async fixtures for a plugin module by name, one for each way in which a test can get its loop."""
    makers: dict[str, Callable[..., Any]] = {"anyio": pytest.fixture}
    if find_spec("pytest_asyncio") is not None:
        import pytest_asyncio

        for scope in get_args(_LoopScope):
            makers[f"{scope}_loop"] = pytest_asyncio.fixture(loop_scope=scope)
    fixtures: dict[str, object] = {}
    for name, function in functions.items():
        for loop, make in makers.items():
            # A function can be only one fixture.
            copy = FunctionType(function.__code__, function.__globals__)
            fixtures[f"_{name}_on_{loop}"] = make(copy)
    return fixtures


async def _virtual_time() -> AsyncIterator[VirtualClock]:
    from .virtual_time import virtual_clock

    with virtual_clock() as clock:
        yield clock


globals().update(async_fixtures(virtual_time=_virtual_time))
