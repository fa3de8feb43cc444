"""Cancel or close a coroutine at any of its awaits, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar

__all__ = ["cancelled_at", "thrown_away_at"]

T = TypeVar("T")


@coroutine
def cancelled_at(step: int, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, tuple[bool, T]]:
    """Run *work*, cancel it while it waits for the *step*-th time; return whether it waited so often, and its value."""
    count = 0
    resume = partial(work.send, None)
    while True:
        try:
            waits_for = resume()
        except StopIteration as end:
            return count >= step, end.value
        count += 1
        if count == step:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            yield waits_for
        except BaseException as exc:  # noqa: BLE001 - handed on
            resume = partial(work.throw, exc)
        else:
            resume = partial(work.send, None)


@coroutine
def thrown_away_at(step: int, work: Coroutine[Any, Any, object]) -> Generator[Any, Any, bool]:
    """Run *work*, and close it while it waits for the *step*-th time; return whether it waits so often."""
    for count in range(step):
        try:
            waits_for = work.send(None)
        except StopIteration:
            return False
        if count < step - 1:
            yield waits_for
    work.close()
    return True
