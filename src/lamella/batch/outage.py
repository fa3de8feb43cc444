"""While a service is down the items of a batch wait together, and a few at a time find out whether it is back."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

import stamina

from lamella.classify.failures import service_works
from lamella.errors import LamellaError, RequestRejected
from lamella.rules import StopReason

__all__ = ["Entered", "Outage"]

# Retry gives these reasons only where a repeat does no harm.
_QUEUEING: Final = frozenset({StopReason.CIRCUIT_OPEN, StopReason.RETRY_BUDGET_EMPTY})
_USED_UP: Final = StopReason.ATTEMPTS_USED_UP
_PAUSE: Final = 5.0
"""Seconds between the probes of an outage, where neither the service nor a rule says how many."""
_LONGEST: Final = 4.0
"""How many times the first pause the pause may become."""


class Entered(NamedTuple):
    """An item that is being tried."""

    generation: int
    probe: bool


class Outage:
    """The outage of one service, or that there is none.

    In an outage one item at a time is let through, a probe. When it ends well it is two at a time, then four, and so on
    up to *at_most*: what has just come back is not to be run over, nor to be refused by a circuit that is half-open.
    """

    __slots__ = (
        "_at_most",
        "_cause",
        "_closed",
        "_failures",
        "_generation",
        "_let",
        "_out",
        "_resting",
        "_timer",
        "_waiting",
        "active",
        "error",
    )

    def __init__(self, at_most: int) -> None:
        self.active = False
        self.error: LamellaError | None = None
        """The last failure of the service; the error of an open circuit if no failure is known."""
        self._cause: LamellaError | None = None
        """The last failure of the service. None: there was none since it worked."""
        self._closed = False
        self._at_most = at_most
        self._failures = 0
        """In a row: the first one, and then the probes."""
        self._generation = 0
        """How often there was news of it: what was tried before is no news."""
        self._resting = False
        """Whether it is too early for the next probe."""
        self._let = 1
        """How many probes may be under way at a time."""
        self._out = 0
        """How many are."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the last news of it was bad, or items wait still for it to be over."""
        return self.active and (self._let == 1 or bool(self._waiting))

    async def wait(self) -> None:
        """Wait until an item may be tried; who has waited has to enter at once."""
        again = False
        while not self._closed and self.active and (self._resting or self._out >= self._let):
            woken = asyncio.get_running_loop().create_future()
            if again:
                self._waiting.appendleft(woken)
            else:
                self._waiting.append(woken)
            again = True
            try:
                await woken
            except asyncio.CancelledError:
                if not woken.cancelled():
                    self._wake()  # it was its turn
                elif woken in self._waiting:
                    self._waiting.remove(woken)
                raise

    def enter(self) -> Entered:
        """Begin to try an item. What comes of it is to be told to :meth:`leave`, or :meth:`give_back`."""
        if self.active:
            self._out += 1
        return Entered(self._generation, self.active)

    def give_back(self, entered: Entered) -> None:
        """An item that has entered was not tried."""
        if entered.probe:
            self._out -= 1
        self._wake()

    def leave(self, entered: Entered, error: Exception | None) -> bool:
        """An item that has entered has ended, with *error* or well. Returns whether it is to be tried again."""
        if entered.probe:
            self._out -= 1
        if self._closed:
            return False
        works = _works(error)
        again = False
        if isinstance(error, LamellaError):
            again = error.stopped in _QUEUEING or (
                # With stamina switched off nobody has asked whether a repeat does harm.
                self.active and not works and error.stopped is _USED_UP and stamina.is_active()
            )
            news = error.stopped in _QUEUEING or (self.active and works is False)
            if works is False:
                self._cause = error
            if news and entered.generation == self._generation:
                self._goes_on(error)
        if works and not self.active:
            self._cause = None
        if works and entered.probe and self.active and entered.generation == self._generation:
            # One more for each that ends well doubles them each time round.
            self._let += 1
            if self._let > self._at_most:
                self._is_over()
        self._wake()
        return again

    def close(self) -> None:
        """Nobody waits any more."""
        self._closed = True
        self._disarm()
        self._wake()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _goes_on(self, error: LamellaError) -> None:
        self._generation += 1
        self._failures += 1
        self.error = (self._cause or error) if isinstance(error, RequestRejected) else error
        self.active = True
        self._let = 1
        rule = error.rule.retry
        first = rule.low if rule is not None and rule.low > 0 else _PAUSE
        pause = error.retry_after or min(first * 2.0 ** min(self._failures - 1, 30), first * _LONGEST)
        self._disarm()
        self._resting = True
        self._timer = asyncio.get_running_loop().call_later(pause, self._go)

    def _go(self) -> None:
        self._resting = False
        self._wake()

    def _is_over(self) -> None:
        self.active = False
        self._cause = None
        self._failures = 0

    def _wake(self) -> None:
        """Wake as many as may be tried now."""
        if self._closed or not self.active:
            number = len(self._waiting)
        else:
            number = 0 if self._resting else self._let - self._out
        while number > 0 and self._waiting:
            woken = self._waiting.popleft()
            if not woken.done():
                woken.set_result(None)
                number -= 1


def _works(error: Exception | None) -> bool | None:
    """Whether the service works, going by how an item has ended. None: that says nothing of it."""
    if isinstance(error, LamellaError):
        return service_works(error)
    return True if error is None else None
