"""The deadline of a call: how long it may take, and the timer that ends its attempts."""

from __future__ import annotations

import asyncio
from contextvars import Token
from typing import Any

import aiohttp

from lamella._aiohttp import has_no_total
from lamella.limits import cancels
from lamella.pipeline import Call
from lamella.scope import Scope, enter, inherited, leave

__all__ = ["AttemptLimit", "seconds_left"]

# A session's total timeout ends our wait and our attempt first, so that the caller gets our error for it.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.05, 0.1


def seconds_left(request: aiohttp.ClientRequest, own: float | None, now: float) -> float | None:
    """Return the seconds left: the least of *own*, the session's total and what is inherited. None: no limit."""
    limits = [own, _session_total(request), None if (outer := inherited()) is None else outer - now]
    return min((limit for limit in limits if limit is not None), default=None)


def _session_total(request: aiohttp.ClientRequest) -> float | None:
    total = request.session.timeout.total
    # A timeout given with the request can lift the session's; the request only shows that there is none.
    if not total or has_no_total(request):
        return None
    return total - min(total * _MARGIN_SHARE, _MARGIN_SECONDS)


class AttemptLimit:
    """Cancels the current task at a moment, by the rules of ``asyncio.timeout``, unless it is stopped before."""

    __slots__ = ("_call", "_cancelling", "_inherited", "_rung", "_task", "_timer")

    def __init__(self, call: Call, moment: float) -> None:
        loop = call.request.loop
        self._call = call
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline works inside of a task only")
        self._task: asyncio.Task[Any] = task
        self._cancelling = task.cancelling()
        self._rung = False
        self._timer = loop.call_at(moment, self._ring)
        self._inherited: Token[Scope] = enter(moment)

    def _ring(self) -> None:
        if cancels(self._call):
            self._rung = True
            self._task.cancel()

    def stop(self) -> bool:
        """Stop the timer. Return whether it has cancelled the task, and nothing else has."""
        self._timer.cancel()
        leave(self._inherited)
        if not self._rung:
            return False
        self._rung = False
        return self._task.uncancel() <= self._cancelling
