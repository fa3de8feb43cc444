"""The pytest plugin of the Maesn sandbox: the fixtures `sandbox` and `make_sandbox`.

Every pytest run loads this module, so it is outside the package `maesn`, whose import loads aiohttp and OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from lamella.testing.plugin import async_fixtures, in_loop_of_test

if TYPE_CHECKING:
    from lamella.maesn.sandbox import Sandbox


class MakeSandbox(Protocol):
    """The type of the fixture `make_sandbox`: takes the arguments of a `Sandbox`, returns a started one."""

    async def __call__(self, **options: Any) -> Sandbox: ...


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Yield a started `Sandbox` with defaults in the loop of the test, and close it afterwards."""
    started: Sandbox = in_loop_of_test("sandbox", request)
    return started


@pytest.fixture
def make_sandbox(request: pytest.FixtureRequest) -> MakeSandbox:
    """Return a function that starts a `Sandbox`: `await make_sandbox(accounts=3)`. All are closed after the test."""
    make: MakeSandbox = in_loop_of_test("make_sandbox", request)
    return make


async def _sandbox() -> AsyncIterator[Sandbox]:
    from lamella.maesn.sandbox import Sandbox

    async with Sandbox() as sandbox:
        yield sandbox


async def _make_sandbox() -> AsyncIterator[MakeSandbox]:
    from lamella.maesn.sandbox import Sandbox

    async with AsyncExitStack() as stack:

        async def make(**options: Any) -> Sandbox:
            return await stack.enter_async_context(Sandbox(**options))

        yield make


globals().update(async_fixtures(sandbox=_sandbox, make_sandbox=_make_sandbox))
