"""A total limit for all calls made inside of a block, at any depth."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from math import inf
from typing import Final, NamedTuple

from lamella.checks import check_seconds

__all__ = ["Inherited", "deadline", "enter", "inherited", "inherited_deadline", "leave"]


class Inherited(NamedTuple):
    """When the calls made in a context must have ended, by the loop's clock. inf: at no fixed time."""

    shared: float = inf
    """Holds for the tasks started inside, too."""
    own: float = inf
    """Holds for *task* alone."""
    task: weakref.ref[asyncio.Task[object]] | None = None


_NOTHING: Final = Inherited()
_current: ContextVar[Inherited] = ContextVar("lamella_deadline", default=_NOTHING)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let the calls inside the ``with`` block take *seconds* altogether, with all their attempts and waits.

    It holds for the current task and for the tasks started inside. Inside of another block, or of a call that has a
    deadline (as a function for :class:`lamella.HeaderAuth` is), the earlier end counts. ``Retry`` carries it out: a
    call that cannot end in time fails at once, with ``StopReason.DEADLINE``.

    A task that is started inside of a call, such as the refresh of a token that other calls wait for too, inherits
    neither the deadline of that call nor that of a block around it.

    Raises:
        ValueError: *seconds* is not a finite number greater than 0.
        RuntimeError: No event loop is running.
    """
    check_seconds("the deadline", seconds)
    end = asyncio.get_running_loop().time() + seconds
    outer = _current.get()
    token = _current.set(outer._replace(shared=min(end, outer.shared)))
    try:
        yield
    finally:
        leave(token)


@contextmanager
def inherited_deadline(moment: float | None) -> Iterator[None]:
    """Pass *moment*, by the loop's clock, on to the calls that the current task makes, unless there is an earlier one.

    The tasks started inside inherit neither. None: there is no moment to add.
    """
    token = enter(moment)
    try:
        yield
    finally:
        leave(token)


def enter(moment: float | None) -> Token[Inherited]:
    """Do what :func:`inherited_deadline` does at its begin; *leave* ends it."""
    outer, task = inherited(), asyncio.current_task()
    own = min(inf if moment is None else moment, inf if outer is None else outer)
    # A weak reference: a task started inside may outlive this one, and must not keep its result alive.
    return _current.set(Inherited(own=own, task=None if task is None else weakref.ref(task)))


def leave(token: Token[Inherited]) -> None:
    """End what *enter* has begun."""
    with suppress(ValueError):  # thrown away in another context, where it does not matter
        _current.reset(token)


def inherited() -> float | None:
    """Return when the calls around this one must have ended, by the loop's clock. None: there is no limit."""
    current = _current.get()
    moment = current.shared
    if current.own < moment and (current.task is None or current.task() is asyncio.current_task()):
        moment = current.own
    return None if moment == inf else moment
