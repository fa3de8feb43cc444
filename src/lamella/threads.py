"""Complete work even if the caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

import anyio

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def run_to_its_end(executor: Executor, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run *work* in *executor* and return its result; a cancellation takes effect when the work has ended.

    A thread cannot be stopped, and resources that it opened must be closed. (``anyio.to_thread`` does not wait for the
    thread when the task is cancelled with ``Task.cancel``.)
    """
    return await to_its_end(asyncio.get_running_loop().run_in_executor(executor, partial(work, *args, **kwargs)))


async def to_its_end(running: asyncio.Future[_T]) -> _T:
    """Return the result of *running*; a cancellation takes effect when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as exc:
                cancelled = exc
    value = running.result()
    if cancelled is not None:
        raise cancelled
    return value
