"""``Timeout``: no attempt takes longer than this."""

from __future__ import annotations

import asyncio
from math import isfinite

import aiohttp

from lamella.call import ORDER, Call, Layer, Send, secrets_of
from lamella.errors import AttemptTimeout
from lamella.policy import Failure, RuleBook

__all__ = ["Timeout"]

# By how many seconds a timer may be due early.
_CLOCK = 1e-3
_RULE = RuleBook().rule_for(Failure.ATTEMPT_TIMEOUT)


class Timeout(Layer):
    """Ends an attempt that takes too long with :class:`lamella.AttemptTimeout`.

    It stands inside of ``Retry``, so that a timeout is one attempt that failed, and outside of ``Buffer``, so that
    a body which does not end is a timeout too. Without ``Buffer`` it ends with the headers of the answer.

    Args:
        seconds: The longest that one attempt may take: connecting, sending, the answer's headers and, with
            ``Buffer``, its body.

    Raises:
        ValueError: *seconds* is not a finite number greater than 0.
    """

    rank = ORDER.index("Timeout")

    def __init__(self, seconds: float) -> None:
        if not isfinite(seconds) or seconds <= 0:
            raise ValueError(f"seconds must be a finite number greater than 0, not {seconds!r}")
        self._seconds = seconds
        self._alarm: _Alarm | None = None

    async def around(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        alarm, loop = self._alarm, request.loop
        if alarm is None or alarm.loop is not loop:
            alarm = self._alarm = _Alarm(loop)
        limit = _Limit(loop, self._seconds)
        alarm.watch(limit)
        try:
            return await send(request, call)
        except asyncio.CancelledError as exc:
            if not limit.take_back():
                raise
            reason = f"no whole answer within {self._seconds:g} s"
            raise AttemptTimeout(request.method, request.url, _RULE, reason, secrets=secrets_of(request)) from exc
        finally:
            alarm.forget(limit)
            limit.take_back()

    def __repr__(self) -> str:
        return f"Timeout({self._seconds:g})"


class _Limit:
    """One attempt that may not take too long, by the rules of ``asyncio.timeout``."""

    __slots__ = ("_cancelling", "_expired", "_task", "when")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("Timeout works inside of a task only")
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False
        self.when = loop.time() + seconds

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def take_back(self) -> bool:
        """Take a cancellation of ours back. Returns whether there was one, and no other."""
        if not self._expired:
            return False
        self._expired = False
        return self._task.uncancel() <= self._cancelling


class _Alarm:
    """One timer for all attempts in a loop: they may all take equally long, so they expire in the order they began.

    A timer for each would cost 2.5 µs; with 50 at a time that is most of what this layer takes.
    """

    __slots__ = ("_timer", "limits", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.limits: dict[_Limit, None] = {}
        """Those under way, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, limit: _Limit) -> None:
        self.limits[limit] = None
        if self._timer is None:
            self._timer = self.loop.call_at(limit.when, self._ring)

    def forget(self, limit: _Limit) -> None:
        """Watch *limit* no more. Where there is nothing else to watch, no timer is left behind."""
        self.limits.pop(limit, None)
        if not self.limits and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        for limit in list(self.limits):
            # A timer may be due a little early.
            if limit.when > now + _CLOCK:
                self._timer = self.loop.call_at(limit.when, self._ring)
                return
            del self.limits[limit]
            limit.expire()
