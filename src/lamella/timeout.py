"""``Timeout``: no attempt takes longer than this."""

from __future__ import annotations

import asyncio
from typing import Any

from lamella.call import OPTIONS, Call
from lamella.checks import check_seconds
from lamella.classify.failures import timed_out
from lamella.limits import ATTEMPT_END, cancels
from lamella.pipeline import Layer, Result, Slot

# By how many seconds a timer may be due early.
_CLOCK = 1e-3


class Timeout(Layer):
    """Ends an attempt that takes too long with :class:`lamella.AttemptTimeout`.

    An attempt that is still connecting ends with :class:`lamella.ConnectTimeout`: nothing was sent.

    It stands inside of ``Retry``, so that a timeout is one attempt that failed, and outside of ``Buffer``, so that
    a body which does not end is a timeout too. Where ``Buffer`` does not read the body, the attempt ends with the
    headers of the answer. An error answer whose body does not end in time raises the error of its status.

    Args:
        seconds: The longest that one attempt may take: connecting, sending, the answer's headers and the body that
            ``Buffer`` reads.

    Raises:
        ValueError: *seconds* is not a finite number greater than 0.
    """

    slot = Slot.TIMEOUT
    single = True

    def __init__(self, seconds: float) -> None:
        check_seconds("seconds", seconds)
        self._seconds = seconds
        self._alarm: _Alarm | None = None
        self._others: dict[Call, _Alarm] = {}
        """Of the calls that have a time of their own."""

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = _Alarm(loop, self._seconds)

    def before(self, call: Call) -> None:
        alarm = self._alarm
        if OPTIONS in call.state and "attempt_timeout" in (given := OPTIONS.of(call)):
            if (seconds := given["attempt_timeout"]) is None:
                return
            alarm = self._others[call] = _Alarm(call.request.loop, seconds)
        if alarm is not None:  # as it is from share_in() on
            alarm.watch(call)

    def after(self, call: Call, result: Result) -> Result | None:
        alarm = self._alarm if not self._others else self._others.pop(call, self._alarm)
        if alarm is None or alarm.forget(call) or not alarm.take_back(call):
            return None
        if not isinstance(result, asyncio.CancelledError):
            return None
        error = timed_out(call, result, None, f"no whole answer within {alarm.seconds:g} s")
        error.__cause__ = result
        return error

    def __repr__(self) -> str:
        return f"Timeout({self._seconds:g})"


class _Alarm:
    """One timer for all attempts in a loop: they may all take equally long, so they expire in the order they began.

    A timer for each would cost 2.5 µs. One that nobody needs any more is put away in the loop's next round, since a
    call often follows another at once. An attempt is cancelled by the rules of ``asyncio.timeout``.
    """

    __slots__ = ("_idle", "_rung", "_timer", "_watched", "loop", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self._watched: dict[Call, tuple[float, asyncio.Task[Any], int]] = {}
        """Those under way, the oldest first: until when, in which task, and how often that was cancelled before."""
        self._rung: dict[Call, tuple[float, asyncio.Task[Any], int]] = {}
        """Those that were cancelled by us, and have not ended yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False
        """Whether the timer will be put away."""

    def watch(self, call: Call) -> None:
        when = call.state[ATTEMPT_END] = call.now + self.seconds
        task = asyncio.current_task(self.loop)
        if task is None:
            raise RuntimeError("Timeout works inside of a task only")
        self._watched[call] = when, task, task.cancelling()
        if self._timer is None:
            self._timer = self.loop.call_at(when, self._ring)

    def forget(self, call: Call) -> bool:
        """Watch *call* no more. False: it has taken too long already."""
        known = self._watched.pop(call, None) is not None
        if not self._watched and self._timer is not None and not self._idle and not self.loop.is_closed():
            self._idle = True
            self.loop.call_soon(self._put_away)
        return known

    def take_back(self, call: Call) -> bool:
        """Take a cancellation of ours back. Returns whether there was one, and no other."""
        rung = self._rung.pop(call, None)
        if rung is None:
            return False
        _, task, cancelling = rung
        return task.uncancel() <= cancelling

    def _put_away(self) -> None:
        self._idle = False
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        for call, limit in list(self._watched.items()):
            when, task, _ = limit
            # A timer may be due a little early.
            if when > now + _CLOCK:
                self._timer = self.loop.call_at(when, self._ring)
                return
            del self._watched[call]
            if not cancels(call):
                continue
            self._rung[call] = limit
            task.cancel()
