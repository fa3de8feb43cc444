"""Where calls wait for their turn: first come, first served."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from heapq import heapify, heappop, heappush
from typing import Final

from lamella.call import Call
from lamella.policy.pace import Hold, Sent

__all__ = ["Gate"]

_turns: Final = itertools.count()

Ask = Callable[[Call, int, int], Awaitable[Sent | Hold]]
"""Whether a call may go now, by the number of those in flight, and of those that come first."""


class _Waiter:
    """A call in the queue, or one that has left it."""

    __slots__ = ("asks_again", "call", "left", "turn", "woken")

    def __init__(self, call: Call, turn: int) -> None:
        self.call = call
        self.turn = turn
        self.left = False
        self.asks_again = False
        """Whether it was woken while it did not sleep: a store may take its time to answer."""
        self.woken: asyncio.Future[None] | None = None

    def __lt__(self, other: _Waiter) -> bool:
        return self.turn < other.turn

    def wake(self) -> None:
        self.asks_again = True
        if self.woken is not None and not self.woken.done():
            self.woken.set_result(None)

    async def wait(self, loop: asyncio.AbstractEventLoop, seconds: float | None) -> None:
        """Until it is woken, or *seconds* have passed. None: until it is woken."""
        if self.asks_again:
            return
        self.woken = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self.wake)
        try:
            await self.woken
        finally:
            self.woken = None
            if timer is not None:
                timer.cancel()


class Gate:
    """Lets the calls for one account pass, one after another, as *ask* says.

    Only the first in the queue asks, in its own task. When it goes, or is cancelled, the next one is woken: so there
    is no task and no timer but those of calls that wait. *count* is told of each call that begins to wait (1), and of
    each that has ended to (-1).
    """

    __slots__ = ("_ask", "_count", "_gone", "_queue", "closed_until", "in_flight", "parked")

    def __init__(self, ask: Ask, count: Callable[[int], None]) -> None:
        self._ask = ask
        self._count = count
        self._queue: list[_Waiter] = []
        self._gone = 0
        """How many in the queue have left it."""
        self.in_flight = 0
        self.parked = 0
        """How many calls have had to wait, all in all."""
        self.closed_until = 0.0
        """By the loop's clock, as far as is known here."""

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._queue) - self._gone

    async def enter(self, call: Call) -> Sent | Hold:
        """Wait until *call* may be sent. A Hold: its turn would come after its deadline, so it did not wait for it.

        A call that comes again keeps its place before all that came later.
        """
        if not self._queue:
            answer = await self._ask(call, self.in_flight, 0)
            if isinstance(answer, Sent):
                self.in_flight += 1
                return answer
        if call.turn is None:
            call.turn = next(_turns)
        waiter = _Waiter(call, call.turn)
        heappush(self._queue, waiter)
        try:
            return await self._wait(waiter)
        finally:
            self._leave(waiter)
            if call.parked is not None:
                self._count(-1)
                call.gate_wait += asyncio.get_running_loop().time() - call.parked[0]

    async def _wait(self, waiter: _Waiter) -> Sent | Hold:
        loop = asyncio.get_running_loop()
        call = waiter.call
        while True:
            waiter.asks_again = False
            first = self._first() is waiter
            now = loop.time()
            seconds = None
            if first or (call.deadline is not None and call.parked is None):
                ahead = 0 if first else sum(1 for other in self._queue if other < waiter and not other.left)
                answer = await self._ask(call, self.in_flight, ahead)
                if isinstance(answer, Sent):
                    self.in_flight += 1
                    return answer
                now, seconds = loop.time(), answer.seconds
                if answer.closed and seconds is not None:
                    self.closed_until = now + seconds
                if _too_late(call, now, seconds):
                    return answer
            if _too_late(call, now, self.closed_until - now):
                return Hold(self.closed_until - now, closed=True)
            if call.parked is None:
                self.parked += 1
                self._count(1)
                call.parked = now, self.closed_until
            if self._first() is waiter:
                await waiter.wait(loop, seconds if first else 0)
            else:
                await waiter.wait(loop, None)

    def left(self) -> None:
        """A send has ended: perhaps the next one can go."""
        self.in_flight -= 1
        if self._queue:
            self._first_wakes()

    def close(self, until: float) -> None:
        """Nothing passes *until* then, by the loop's clock: whoever cannot wait so long has to know it now."""
        self.closed_until = until
        for waiter in self._queue:
            if waiter.call.parked is not None:
                waiter.call.parked = waiter.call.parked[0], until
            if waiter.call.deadline is not None and waiter.call.deadline <= until:
                waiter.wake()

    def _first(self) -> _Waiter | None:
        queue = self._queue
        while queue and queue[0].left:
            heappop(queue)
            self._gone -= 1
        return queue[0] if queue else None

    def _first_wakes(self) -> None:
        first = self._first()
        if first is not None:
            first.wake()

    def _leave(self, waiter: _Waiter) -> None:
        waiter.left = True
        self._gone += 1
        if self._gone * 2 > len(self._queue):
            # Those that were cancelled behind a first that waits long must not pile up.
            self._queue = [other for other in self._queue if not other.left]
            heapify(self._queue)
            self._gone = 0
        self._first_wakes()


def _too_late(call: Call, now: float, seconds: float | None) -> bool:
    return seconds is not None and call.deadline is not None and now + seconds >= call.deadline
