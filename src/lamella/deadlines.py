"""One total limit for whatever is called inside of it, at any depth."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite

__all__ = ["deadline", "inherited", "inherited_deadline"]

_current: ContextVar[float | None] = ContextVar("lamella_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let the calls inside the ``with`` block take *seconds* altogether, all their sends and waits included.

    It holds for the task that it is entered in and for the tasks started inside. Inside of another one, or of a call
    that has a deadline (as a function for :class:`lamella.HeaderAuth` is), the earlier end counts. ``Retry`` carries
    it out: what cannot end in time fails at once, with ``StopReason.DEADLINE``.

    Raises:
        ValueError: *seconds* is not a finite number greater than 0.
        RuntimeError: No event loop is running.
    """
    if not isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds must be a finite number greater than 0, not {seconds!r}")
    with inherited_deadline(asyncio.get_running_loop().time() + seconds):
        yield


@contextmanager
def inherited_deadline(moment: float) -> Iterator[None]:
    """Hand *moment*, by the loop's clock, down to nested calls, unless there is an earlier one."""
    before = _current.get()
    token = _current.set(moment if before is None else min(before, moment))
    try:
        yield
    finally:
        _current.reset(token)


def inherited() -> float | None:
    """When the calls that this one is nested in must have ended, by the loop's clock. None: at no fixed time."""
    return _current.get()
