"""Where calls wait for their turn: first come, first served."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from lamella.pipeline import Call, PerCall
from lamella.throttle.estimator import Hold, Permit

__all__ = ["TURN", "WAITING", "Queue", "no_longer_waiting", "waiting_of"]

_turns: Final = itertools.count()

# By how many seconds the same moment may differ when it is reckoned twice.
_NOISE: Final = 1e-3
_MANY: Final = 20
"""The first in the queue asks again each time that so many more wait: a longer queue may let more go at once."""

Ask = Callable[[Call, Sequence[float], int], Awaitable[Permit | Hold]]
"""Whether a call may go now, by the moments when those in flight were sent, and the number of those that come first."""


TURN: Final = PerCall[int](lambda: next(_turns))
"""The place of a call in the order in which calls came: a re-send keeps it."""
WAITING: Final = PerCall[tuple[float, float] | None](lambda: None)


def waiting_of(call: Call) -> tuple[float, float] | None:
    """Return since when *call* waits, and until when its account is closed, by the loop's clock. None: it does not."""
    return WAITING.of(call)


def no_longer_waiting(call: Call) -> None:
    """Forget that *call* waits."""
    WAITING.take(call)


class _Waiter:
    """A call in the queue, or one that has left it."""

    __slots__ = ("asks_again", "call", "left", "loop", "queued", "turn", "woken")

    def __init__(self, call: Call, turn: int, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.turn = turn
        self.loop = loop
        self.left = False
        self.asks_again = False
        """Whether it was woken while it did not sleep: a store may take its time to answer."""
        self.woken: asyncio.Future[None] | None = None
        self.queued: tuple[float, float] | None = None
        """Since when it waits, and until when the queue is closed, by the loop's clock. None: it does not wait yet."""

    def queue(self, since: float, until: float) -> None:
        self.queued = since, until
        WAITING.set(self.call, self.queued)

    def __lt__(self, other: _Waiter) -> bool:
        return self.turn < other.turn

    def wake(self) -> None:
        self.asks_again = True
        # In a loop that is closed nobody waits any more, though some may still be there to be thrown away.
        if self.woken is not None and not self.woken.done() and not self.loop.is_closed():
            self.woken.set_result(None)

    async def wait(self, seconds: float | None) -> None:
        """Until it is woken, or *seconds* have passed. None: until it is woken."""
        if self.asks_again:
            return
        self.woken = self.loop.create_future()
        timer = None if seconds is None else self.loop.call_later(seconds, self.wake)
        try:
            await self.woken
        finally:
            self.woken = None
            if timer is not None:
                timer.cancel()


class Queue:
    """Lets the calls for one account pass, one after another, as *ask* says.

    Only the first in the queue asks, in its own task. When it goes, or is cancelled, the next one is woken: so there
    is no task and no timer but those of calls that wait. *count* is called for each call that begins to wait (1), and
    for each that no longer does (-1).
    """

    __slots__ = (
        "_ask",
        "_asking",
        "_count",
        "_gone",
        "_queue",
        "_youngest",
        "closed_until",
        "queued",
        "sent",
        "too_long",
    )

    def __init__(self, ask: Ask, count: Callable[[int], None]) -> None:
        self._ask = ask
        self._count = count
        self._queue: list[_Waiter] = []
        self._gone = 0
        """How many in the queue have left it."""
        self._asking = False
        """Whether the one that was the first is waiting for the answer to what it has asked."""
        self._youngest = -1
        """The highest turn that there has been."""
        self.sent: list[float] = []
        """When each send that is in flight was made, by the store's clock, the oldest first."""
        self.queued = 0
        """How many calls have had to wait so far."""
        self.closed_until = 0.0
        """By the loop's clock, as far as is known here."""
        self.too_long = False
        """Whether that is too long for a call to wait."""

    @property
    def in_flight(self) -> int:
        """How many sends are under way."""
        return len(self.sent)

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._queue) - self._gone

    @property
    def is_free(self) -> bool:
        """Whether nobody waits, so that a call may ask at once, without :meth:`enter`."""
        return not self._queue

    def let_pass(self, call: Call, sent: Permit) -> None:
        """*call* has asked at once, and may be sent."""
        self._goes(sent)
        if TURN not in call.state:
            call.state[TURN] = self._youngest = next(_turns)
        else:
            self._youngest = max(self._youngest, TURN.of(call))

    def _goes(self, sent: Permit) -> None:
        if not self.sent or self.sent[-1] <= sent.at:
            self.sent.append(sent.at)
        else:
            insort(self.sent, sent.at)  # a slow store, or one with another clock that has failed

    def _turn(self, call: Call) -> int:
        if TURN not in call.state:
            call.state[TURN] = next(_turns)
        turn = TURN.of(call)
        self._youngest = max(self._youngest, turn)
        return turn

    async def enter(self, call: Call) -> Permit | Hold:
        """Wait until *call* may be sent. A Hold: that would be after its deadline or take too long, so it did not wait.

        A call that comes again keeps its place before all that came later.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(call, self._turn(call), loop)
        heappush(self._queue, waiter)
        if not self.waiting % _MANY and self.closed_until <= loop.time():
            self._first_wakes()
        try:
            return await self._wait(waiter)
        finally:
            self._leave(waiter)
            if waiter.queued is not None:
                self._count(-1)
                call.queued += loop.time() - waiter.queued[0]

    async def _wait(self, waiter: _Waiter) -> Permit | Hold:
        loop, call = waiter.loop, waiter.call
        while True:
            waiter.asks_again = False
            # One asks at a time: two that are told of the same sends in flight could both take the last place.
            first = not self._asking and self._first() is waiter
            now = loop.time()
            seconds = None
            if first or (call.deadline is not None and waiter.queued is None):
                answer = await (self._ask_first(waiter) if first else self._ask(call, self.sent, self._ahead(waiter)))
                if isinstance(answer, Permit):
                    return answer
                now, seconds = loop.time(), answer.seconds
                if answer.closed and seconds is not None and now + seconds > self.closed_until + _NOISE:
                    # Another process that shares the store was refused.
                    self.close(now + seconds, too_long=answer.too_long)
                if answer.too_long or _too_late(call, now, seconds):
                    return answer
                if answer.again is not None:
                    seconds = answer.again if seconds is None else min(seconds, answer.again)
            closed_for = self.closed_until - now
            too_long = self.too_long and closed_for > 0
            if too_long or _too_late(call, now, closed_for):
                return Hold(closed_for, closed=True, too_long=too_long)
            if waiter.queued is None:
                self.queued += 1
                self._count(1)
                waiter.queue(now, self.closed_until)
            if first or self._asking or self._first() is not waiter:
                await waiter.wait(seconds if first else None)

    async def _ask_first(self, waiter: _Waiter) -> Permit | Hold:
        self._asking = True
        try:
            answer = await self._ask(waiter.call, self.sent, 0)
            if isinstance(answer, Permit):
                self._goes(answer)
            return answer
        finally:
            self._asking = False
            # A re-send may have come before it meanwhile.
            if self._first() is not waiter:
                self._first_wakes()

    def _ahead(self, waiter: _Waiter) -> int:
        """How many come before *waiter*, who is not the first."""
        if waiter.turn == self._youngest:
            return max(self.waiting - 1, 1)
        return max(sum(1 for other in self._queue if other < waiter and not other.left), 1)

    def left(self, sent: Permit) -> None:
        """A send has ended: perhaps the next one can go."""
        del self.sent[bisect_left(self.sent, sent.at)]
        if self._queue:
            self._first_wakes()

    def close(self, until: float, *, too_long: bool = False) -> None:
        """Let nothing pass before *until*, by the loop's clock, and wake the calls that cannot wait until then.

        *too_long* means that none can.
        """
        self.closed_until, self.too_long = until, too_long
        for waiter in self._queue:
            if waiter.queued is not None:
                waiter.queue(waiter.queued[0], until)
            if too_long or (waiter.call.deadline is not None and waiter.call.deadline <= until):
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
        was_first = self._first() is waiter
        waiter.left = True
        self._gone += 1
        if self._gone * 2 > len(self._queue):
            # Those that were cancelled behind a first that waits long must not pile up.
            self._queue = [other for other in self._queue if not other.left]
            heapify(self._queue)
            self._gone = 0
        if was_first:
            self._first_wakes()


def _too_late(call: Call, now: float, seconds: float | None) -> bool:
    return seconds is not None and call.deadline is not None and now + seconds >= call.deadline
