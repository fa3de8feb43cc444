"""The queue of an account: its calls wait for permits, first come, first served."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable
from operator import attrgetter
from typing import Final, TypeAlias

from lamella.call import Call, PerCall
from lamella.throttle.estimate import Permit, Wait

_NOISE: Final = 1e-3  # seconds by which two computations of the same time may differ
_LOOKED_AT: Final = 100  # so many of the first calls may be put first
_MANY: Final = 20  # the first call asks again after this many arrivals: a longer queue may get more at once

Count: TypeAlias = Callable[[Call, int], object]
"""Called with a call and 1 when its wait begins, and with -1 when the wait ends."""

_places: Final = itertools.count()
_by_place: Final = attrgetter("place")

PLACE: Final = PerCall[int](lambda: next(_places))
"""The place of a call in the order of arrival. Its retries keep it."""
WAITING: Final = PerCall[tuple[float, float] | None](lambda: None)


def waiting_of(call: Call) -> tuple[float, float] | None:
    """Return when *call* was queued and the end of its account's block, by the loop's clock. None: not queued."""
    return WAITING.of(call)


class _Waiter:
    """A call in the queue."""

    __slots__ = ("call", "inner", "loop", "moved", "outer", "place", "queued", "wakeup", "woken")

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop, outer: Queue | None) -> None:
        self.call: Call = call
        self.outer: Queue | None = outer  # the queue in which the same call is already the first
        self.inner: _Waiter | None = None  # the entry of the same call in the next queue
        self.place: int = PLACE.of(call)
        self.loop: asyncio.AbstractEventLoop = loop
        self.moved: bool = False  # whether it has to leave, see `Queue.dismiss`
        self.woken: bool = False  # it may be woken while it asks a slow store; then it asks again
        self.wakeup: asyncio.Future[None] | None = None
        self.queued: tuple[float, float] | None = None  # see `waiting_of`

    def queue(self, since: float, until: float) -> None:
        self.queued = since, until
        WAITING.set(self.call, self.queued)

    def wake(self) -> None:
        self.woken = True
        # When garbage collection ends a call after its loop has closed, the other calls no longer wait.
        if self.wakeup is not None and not self.wakeup.done() and not self.loop.is_closed():
            self.wakeup.set_result(None)

    def gives_way(self) -> bool:
        """Return whether an older call has entered an outer queue in the meantime."""
        outer = self.outer
        return outer is not None and (outer.first_has_come or (outer.asking is not None and outer.asking.gives_way()))

    async def wait(self, seconds: float | None) -> None:
        """Wait for :meth:`wake`, at most *seconds*. None: without a limit."""
        if self.woken:
            return
        self.wakeup = self.loop.create_future()
        timer = None if seconds is None else self.loop.call_later(seconds, self.wake)
        try:
            await self.wakeup
        finally:
            self.wakeup = None
            if timer is not None:
                timer.cancel()


class Queue:
    """The calls of one account that wait for a permit, and the attempts of the account in flight.

    Only the first call asks for a permit, in its own task, and wakes the next one when it leaves. The queue needs no
    other task, and only the first call has a timer.

    Args:
        ask: Asks for a permit for a call. Its last argument is the number of calls before it in the queue.
        count: Counts the calls that wait.
    """

    __slots__ = ("_ask", "_count", "asking", "blocked_until", "points", "queued", "sent_at", "too_long", "waiters")

    def __init__(self, ask: Callable[[Call, Queue, int], Awaitable[Permit | Wait]], count: Count) -> None:
        self._ask = ask
        self._count = count
        self.waiters: list[_Waiter] = []  # ordered by place
        self.asking: _Waiter | None = None  # the call that is asking for a permit
        self.sent_at: list[float] = []  # when each attempt in flight was sent, by the store's clock, in order
        self.points: float = 0.0  # the points that these attempts use
        self.queued: int = 0  # the number of calls that have had to wait so far
        self.blocked_until: float = 0.0  # by the loop's clock, as far as this process knows
        self.too_long: bool = False  # whether the block is too long for a call to wait

    @property
    def in_flight(self) -> int:
        """The number of attempts in flight."""
        return len(self.sent_at)

    @property
    def waiting(self) -> int:
        """The number of calls in the queue."""
        return len(self.waiters)

    def start(self, call: Call, permit: Permit) -> None:
        """Count an attempt of *call*, which got its *permit* without waiting because the queue is empty."""
        insort(self.sent_at, permit.at)
        self.points += permit.cost
        if PLACE not in call.state:
            call.state[PLACE] = next(_places)

    def end(self, permit: Permit) -> None:
        """Count an attempt as ended. The next call may get a permit."""
        del self.sent_at[bisect_left(self.sent_at, permit.at)]
        self.points = self.points - permit.cost if self.sent_at else 0.0  # rounding errors do not add up
        if self.waiters:
            self._wake_first()

    def block(self, until: float, *, too_long: bool = False) -> None:
        """Issue no permits before *until*, by the loop's clock, and wake calls that cannot wait until then.

        *too_long* means that no call can.
        """
        self.blocked_until, self.too_long = until, too_long
        for waiter in self.waiters:
            if waiter.queued is not None:
                waiter.queue(waiter.queued[0], until)
            if too_long or (waiter.call.deadline is not None and waiter.call.deadline <= until):
                waiter.wake()

    def dismiss(self, which: Callable[[Call], bool]) -> None:
        """Let the calls leave for which *which* returns true. They get a Wait with *moved*."""
        for waiter in self.waiters:
            if which(waiter.call):
                waiter.moved = True
                waiter.wake()
        self._wake_first()

    def put_first(self, rank: Callable[[Call], int]) -> bool:
        """Put the call with the lowest rank first, among the first hundred. Return False if it is the first already."""
        first, *others = self.waiters[:_LOOKED_AT]
        best = min((first, *others), key=lambda waiter: rank(waiter.call))
        if best is first:
            return False
        self.waiters.remove(best)
        best.place = first.place - 1
        self.waiters.insert(0, best)
        best.wake()
        return True

    @property
    def first_has_come(self) -> bool:
        """Whether an older call has entered while the current one asks for a permit."""
        return self.asking is not None and self.waiters[0] is not self.asking

    async def enter(self, call: Call, outer: Queue | None = None) -> Permit | Wait:
        """Wait for a permit for *call*. Return a Wait if it would come after its deadline, or would take too long.

        *outer* is a queue in which *call* is the first and asks for a permit. It may already count as waiting there. If
        an older call enters *outer*, this call leaves without a permit and gets a Wait.
        """
        waiter = _Waiter(call, asyncio.get_running_loop(), outer)
        insort(self.waiters, waiter, key=_by_place)
        if outer is not None and outer.asking is not None:
            outer.asking.inner = waiter
        if self.first_has_come:
            self._wake_inner()
        if not self.waiting % _MANY and self.blocked_until <= waiter.loop.time():
            self._wake_first()
        try:
            return await self._permit(waiter)
        finally:
            if outer is not None and outer.asking is not None:
                outer.asking.inner = None
            index = self._index(waiter)
            del self.waiters[index]
            if not index:
                self._wake_first()
            if waiter.queued is not None:
                self._count(call, -1)
                call.queued += waiter.loop.time() - waiter.queued[0]

    async def _permit(self, waiter: _Waiter) -> Permit | Wait:
        loop, call = waiter.loop, waiter.call
        while True:
            waiter.woken = False
            if waiter.moved:
                return Wait(None, blocked=False, moved=True)
            if waiter.gives_way():
                return Wait(None, blocked=False)
            # Only one call asks at a time: two that see the same attempts in flight could both take the last permit.
            first = self.asking is None and self.waiters[0] is waiter
            now = loop.time()
            seconds = None
            if first or (call.deadline is not None and waiter.queued is None):
                ahead = 0 if first else max(self._index(waiter), 1)
                answer = await (self._ask_first(waiter) if first else self._ask(call, self, ahead))
                if isinstance(answer, Permit):
                    return answer
                now, seconds = loop.time(), answer.seconds
                if answer.blocked and seconds is not None and now + seconds > self.blocked_until + _NOISE:
                    # An attempt of another process was refused.
                    self.block(now + seconds, too_long=answer.too_long)
                if answer.too_long or answer.moved or _is_too_late(call, now, seconds):
                    return answer
                if answer.again is not None:
                    seconds = answer.again if seconds is None else min(seconds, answer.again)
            blocked_for = self.blocked_until - now
            too_long = self.too_long and blocked_for > 0
            if too_long or _is_too_late(call, now, blocked_for):
                return Wait(blocked_for, blocked=True, too_long=too_long)
            if waiter.queued is None and (waiter.outer is None or waiting_of(call) is None):
                self.queued += 1
                self._count(call, 1)
                waiter.queue(now, self.blocked_until)
            if first or self.asking is not None or self.waiters[0] is not waiter:
                await waiter.wait(seconds if first else None)

    async def _ask_first(self, waiter: _Waiter) -> Permit | Wait:
        self.asking = waiter
        try:
            answer = await self._ask(waiter.call, self, 0)
            if isinstance(answer, Permit):
                insort(self.sent_at, answer.at)
                self.points += answer.cost
            return answer
        finally:
            self.asking = None
            if self.waiters[0] is not waiter:
                self._wake_first()  # an older call has returned in the meantime

    def _index(self, waiter: _Waiter) -> int:
        """Return the number of calls before *waiter*."""
        index = 0 if self.waiters[0] is waiter else bisect_left(self.waiters, waiter.place, key=_by_place)
        while self.waiters[index] is not waiter:
            index += 1
        return index

    def _wake_inner(self) -> None:
        inner = None if self.asking is None else self.asking.inner
        while inner is not None:
            inner.wake()
            inner = inner.inner

    def _wake_first(self) -> None:
        if self.waiters:
            self.waiters[0].wake()


def _is_too_late(call: Call, now: float, seconds: float | None) -> bool:
    return seconds is not None and call.deadline is not None and now + seconds >= call.deadline
