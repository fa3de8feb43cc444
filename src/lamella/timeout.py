"""``Timeout``: limit the duration of each attempt."""

from __future__ import annotations

import asyncio
from typing import Any

from lamella.call import OPTIONS, Call
from lamella.checks import check_seconds
from lamella.classify.failures import timed_out
from lamella.limits import ATTEMPT_END, cancels
from lamella.pipeline import Layer, Result, Slot

# A timer may fire this many seconds early.
_CLOCK = 1e-3


class Timeout(Layer):
    """End an attempt that takes too long with :class:`lamella.AttemptTimeout`.

    An attempt that is still connecting ends with :class:`lamella.ConnectTimeout`: nothing was sent.

    It belongs inside ``Retry``, so that a timeout fails one attempt, and outside ``Buffer``, so that it includes the
    body. If ``Buffer`` does not read the body, the attempt ends with the response headers. An error response whose body
    does not end in time raises the error of its status.

    Args:
        seconds: Maximum duration of one attempt: connecting, sending, receiving the headers, and the body if ``Buffer``
            reads it.

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
        """Limits of calls that have their own."""

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
        error = timed_out(call, result, None, f"no complete response within {alarm.seconds:g} s")
        error.__cause__ = result
        return error

    def __repr__(self) -> str:
        return f"Timeout({self._seconds:g})"


class _Alarm:
    """One timer for all attempts in a loop. All have the same limit, so they expire in the order of their start.

    A timer for each would cost 2.5 µs. An unused timer is cancelled in the next iteration of the loop, since another
    call often follows at once. Attempts are cancelled by the rules of ``asyncio.timeout``.
    """

    __slots__ = ("_idle", "_rung", "_timer", "_watched", "loop", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self._watched: dict[Call, tuple[float, asyncio.Task[Any], int]] = {}
        """Running attempts, oldest first: the end, the task, and the task's earlier cancellations."""
        self._rung: dict[Call, tuple[float, asyncio.Task[Any], int]] = {}
        """Attempts that we cancelled and that have not ended yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False
        """Whether the timer is about to be cancelled."""

    def watch(self, call: Call) -> None:
        when = call.state[ATTEMPT_END] = call.now + self.seconds
        task = asyncio.current_task(self.loop)
        if task is None:
            raise RuntimeError("Timeout works only inside a task")
        self._watched[call] = when, task, task.cancelling()
        if self._timer is None:
            self._timer = self.loop.call_at(when, self._ring)

    def forget(self, call: Call) -> bool:
        """Stop watching *call*. Return False if it has already taken too long."""
        known = self._watched.pop(call, None) is not None
        if not self._watched and self._timer is not None and not self._idle and not self.loop.is_closed():
            self._idle = True
            self.loop.call_soon(self._put_away)
        return known

    def take_back(self, call: Call) -> bool:
        """Undo our cancellation. Return whether there was one and no other."""
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
            # A timer may fire slightly early.
            if when > now + _CLOCK:
                self._timer = self.loop.call_at(when, self._ring)
                return
            del self._watched[call]
            if not cancels(call):
                continue
            self._rung[call] = limit
            task.cancel()
