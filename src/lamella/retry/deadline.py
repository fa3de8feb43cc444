"""The deadline of a call, and the timer that ends its attempts."""

from __future__ import annotations

import asyncio
from contextvars import Token
from math import inf
from typing import Any, Final

import aiohttp

from lamella._aiohttp import has_no_total, total_of
from lamella.call import BLOCK_END, Call, PerCall
from lamella.limits import cancels
from lamella.scope import NOTHING, SCOPE, Scope, enter, inherited, leave

# We end waits and attempts before a session's total timeout does, so that the caller gets our error.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.05, 0.1
_LONG: Final = _MARGIN_SECONDS / _MARGIN_SHARE  # seconds
_FIRM: Final = PerCall[float](lambda: inf)
"""The time of other deadlines, by the loop's clock, of a call whose deadline is the session's total timeout."""


def seconds_left(call: Call, own: float | None, outer: float | None, now: float) -> float | None:
    """Return the seconds left: the minimum of *own*, those until *outer*, and the session's total; None if unlimited.

    *outer* is the result of :func:`block_end`.
    """
    firm = inf if own is None else own
    if outer is not None:
        firm = min(firm, outer - now)
    total = _session_total(call.request)
    if total < firm:
        call.state[_FIRM] = now + firm
        return total
    _FIRM.take(call)
    return None if firm == inf else firm


def block_end(call: Call) -> float | None:
    """Return the deadline of *call* from surrounding blocks and calls, by the loop's clock; None if unlimited."""
    if SCOPE.get() is NOTHING:
        return None
    # A middleware may have run the inner layers in a task that does not inherit the deadline.
    moment = min(BLOCK_END.of(call), inf if (outer := inherited()) is None else outer)
    return None if moment == inf else moment


def _session_total(request: aiohttp.ClientRequest) -> float:
    total = request.session.timeout.total
    # A timeout given with the request replaces it, and is visible here only if it has no total.
    if not total or has_no_total(request):
        return inf
    return total - (_MARGIN_SECONDS if total > _LONG else total * _MARGIN_SHARE)


class AttemptLimit:
    """Cancel the current task at a given time, by the rules of ``asyncio.timeout``, unless stopped before."""

    __slots__ = ("_call", "_cancelling", "_inherited", "_rung", "_task", "_timer")

    def __init__(self, call: Call, moment: float) -> None:
        loop = call.request.loop
        self._call = call
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline works only inside a task")
        self._task: asyncio.Task[Any] = task
        self._cancelling = task.cancelling()
        self._rung = False
        self._timer = loop.call_at(moment, self._ring)
        self._inherited: Token[Scope] = enter(moment)

    def _ring(self) -> None:
        firm = _FIRM.take(self._call)
        if firm is not None and self._goes_on(firm):
            return
        if cancels(self._call):
            self._rung = True
            self._task.cancel()

    def _goes_on(self, firm: float) -> bool:
        """Return whether the request has a longer total than the session. If so, it ends by that total or at *firm*."""
        call = self._call
        assumed, total = call.request.session.timeout.total or 0.0, total_of(call.request)
        # If the total is unknown, aiohttp ends the request itself.
        more = inf if total is None else total - assumed
        if more <= 0:
            return False
        moment = min(firm, self._timer.when() + more)
        if moment < inf:
            call.deadline = moment
            self._timer = call.request.loop.call_at(moment, self._ring)
        return True

    def stop(self) -> bool:
        """Stop the timer. Return whether it alone has cancelled the task."""
        self._timer.cancel()
        leave(self._inherited)
        if not self._rung:
            return False
        self._rung = False
        return self._task.uncancel() <= self._cancelling
