"""A total limit for all calls made inside of a block, at any depth."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf, isfinite
from typing import Final, NamedTuple

__all__ = ["deadline", "inherited", "inherited_deadline"]


class _Inherited(NamedTuple):
    """When the calls made in a context must have ended, by the loop's clock. inf: at no fixed time."""

    shared: float = inf
    """Holds for the tasks started inside, too."""
    own: float = inf
    """Holds for *task* alone."""
    task: weakref.ref[asyncio.Task[object]] | None = None


_NOTHING: Final = _Inherited()
_current: ContextVar[_Inherited] = ContextVar("lamella_deadline", default=_NOTHING)


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
    if not isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds must be a finite number greater than 0, not {seconds!r}")
    end = asyncio.get_running_loop().time() + seconds
    outer = _current.get()
    with _set(outer._replace(shared=min(end, outer.shared))):
        yield


@contextmanager
def inherited_deadline(moment: float | None) -> Iterator[None]:
    """Pass *moment*, by the loop's clock, on to the calls that the current task makes, unless there is an earlier one.

    The tasks started inside inherit neither. None: there is no moment to add.
    """
    outer, task = inherited(), asyncio.current_task()
    own = min(inf if moment is None else moment, inf if outer is None else outer)
    # A weak reference: a task started inside may outlive this one, and must not keep its result alive.
    with _set(_Inherited(own=own, task=None if task is None else weakref.ref(task))):
        yield


def inherited() -> float | None:
    """When the calls that this one is nested in must have ended, by the loop's clock. None: at no fixed time."""
    current = _current.get()
    moment = current.shared
    if current.own < moment and (current.task is None or current.task() is asyncio.current_task()):
        moment = current.own
    return None if moment == inf else moment


@contextmanager
def _set(value: _Inherited) -> Iterator[None]:
    token = _current.set(value)
    try:
        yield
    finally:
        _current.reset(token)
