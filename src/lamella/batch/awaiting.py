"""Await the functions of the user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")


async def uncancelled(call: Awaitable[_T]) -> _T:
    """Await *call*; turn a CancelledError that does not cancel this task into a RuntimeError."""
    try:
        return await call
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it raised CancelledError without being cancelled") from error
