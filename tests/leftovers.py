"""Timers and tasks of lamella that are still in the running loop.

They are recognized by the modules that their code is from, not by their text: that has no module, but may have the path
of a checkout with "lamella" in its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from types import CoroutineType, MethodType
from typing import Any

__all__ = ["owner_of", "tasks_of_lamella", "timers_of_lamella"]


def timers_of_lamella() -> list[asyncio.TimerHandle]:
    """Return the timers that would call, or hand over, something of lamella."""
    timers: list[Any] = vars(asyncio.get_running_loop())["_scheduled"]
    return [
        timer
        for timer in timers
        if not timer.cancelled() and any(map(_is_of_lamella, _parts((timer._callback, timer._args))))
    ]


def tasks_of_lamella() -> list[asyncio.Task[object]]:
    """Return the tasks that wait somewhere in code of lamella, without the current one."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return [task for task in others if any(map(_is_lamella, _modules(task)))]


def owner_of(timer: asyncio.TimerHandle) -> object:
    """Return the object whose method a timer calls; None for a function."""
    return getattr(timer._callback, "__self__", None)  # type: ignore[attr-defined]


def _parts(value: object) -> Iterator[object]:
    """What a callback consists of: functions, the objects that they are methods of, arguments."""
    if isinstance(value, partial):
        yield from _parts((value.func, value.args, tuple(value.keywords.values())))
    elif isinstance(value, MethodType):
        yield from _parts((value.__func__, value.__self__))
    elif isinstance(value, tuple):
        for one in value:
            yield from _parts(one)
    else:
        yield value


def _is_of_lamella(part: object) -> bool:
    """Return whether a function or a class is lamella's, or the class of any other object."""
    return _is_lamella(getattr(part, "__module__", None))


def _is_lamella(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == "lamella"


def _modules(task: asyncio.Task[object]) -> Iterator[str]:
    """The modules of the coroutines that *task* is in, from the outermost to where it waits."""
    coroutine: object = task.get_coro()
    while isinstance(coroutine, CoroutineType) and coroutine.cr_frame is not None:
        yield coroutine.cr_frame.f_globals["__name__"]
        coroutine = coroutine.cr_await
