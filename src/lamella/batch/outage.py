"""Pause the items of a batch while a service is down, and probe with a few whether it is back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, NamedTuple

import stamina

from lamella.batch.outcome import Item
from lamella.classify.failures import service_works
from lamella.errors import LamellaError, RequestRejected
from lamella.rules import StopReason

# Retry uses these reasons only where a repeat is safe.
_PAUSING: Final = frozenset({StopReason.CIRCUIT_OPEN, StopReason.RETRY_BUDGET_EMPTY})
_USED_UP: Final = StopReason.ATTEMPTS_USED_UP
_INTERVAL: Final = 5.0
"""Seconds between probes if neither the service nor a rule states them."""
_LONGEST: Final = 4.0
"""The longest interval between probes, as a multiple of the first."""


class Entered(NamedTuple):
    """An item that is being tried."""

    generation: int
    probe: bool


class Outage:
    """The state of one service: up or in an outage.

    In an outage one item at a time is tried as a probe. After a success two run at a time, then four, up to *at_most*.
    So a recovering service is not overloaded, and a half-open circuit rejects no item.
    """

    def __init__(self, at_most: int) -> None:
        self.active: bool = False
        self.error: LamellaError | None = None
        """The last failure of the service, or the error of an open circuit if no failure is known."""
        self._cause: LamellaError | None = None
        """The last failure of the service. None: no failure since the last success."""
        self._closed = False
        self._at_most = at_most
        self._failures = 0
        """Consecutive failures, counted from the one that began the outage."""
        self._generation = 0
        """How many failures have renewed the outage. Results of items tried before the last of them do not count."""
        self._resting = False
        """Whether the next probe is not due yet."""
        self._let = 1
        """Maximum number of concurrent probes."""
        self._out = 0
        """Number of running probes."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the last probe failed, or items still wait."""
        return self.active and (self._let == 1 or bool(self._waiting))

    async def wait(self) -> None:
        """Wait until an item may be tried. The caller must then enter at once."""
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
                    self._wake()  # pass the permission on to another item
                elif woken in self._waiting:
                    self._waiting.remove(woken)
                raise

    def enter(self) -> Entered:
        """Begin to try an item; :meth:`leave` or :meth:`give_back` ends it."""
        if self.active:
            self._out += 1
        return Entered(self._generation, self.active)

    def give_back(self, entered: Entered) -> None:
        """Undo :meth:`enter` for an item that was not tried."""
        if entered.probe:
            self._out -= 1
        self._wake()

    def leave(self, entered: Entered, error: Exception | None) -> bool:
        """End an item, which failed with *error* or succeeded (None). Return whether to try it again."""
        if entered.probe:
            self._out -= 1
        if self._closed:
            return False
        works = _works(error)
        again = False
        if isinstance(error, LamellaError):
            again = error.stopped in _PAUSING or (
                # With stamina disabled, Retry has not checked whether a repeat is safe.
                self.active and not works and error.stopped is _USED_UP and stamina.is_active()
            )
            news = error.stopped in _PAUSING or (self.active and works is False)
            if works is False:
                self._cause = error
                if isinstance(self.error, RequestRejected):
                    self.error = error
            if news and entered.generation == self._generation:
                self._renew(error)
        if works and not self.active:
            self._cause = None
        if works and entered.probe and self.active and entered.generation == self._generation:
            # One more per success, so the number doubles when all succeed.
            self._let += 1
            if self._let > self._at_most:
                self.active, self._cause, self._failures = False, None, 0
        self._wake()
        return again

    def close(self) -> None:
        """Release all waiting items, now and later."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _renew(self, error: LamellaError) -> None:
        self._generation += 1
        self._failures += 1
        self.error = (self._cause or error) if isinstance(error, RequestRejected) else error
        self.active = True
        self._let = 1
        rule = error.rule.retry
        first = rule.low if rule is not None and rule.low > 0 else _INTERVAL
        interval = error.retry_after or min(first * 2.0 ** min(self._failures - 1, 30), first * _LONGEST)
        if self._timer is not None:
            self._timer.cancel()
        self._resting = True
        self._timer = asyncio.get_running_loop().call_later(interval, self._go)

    def _go(self) -> None:
        self._resting = False
        self._wake()

    def _wake(self) -> None:
        """Wake as many items as may be tried now."""
        if self._closed or not self.active:
            number = len(self._waiting)
        else:
            number = 0 if self._resting else self._let - self._out
        while number > 0 and self._waiting:
            woken = self._waiting.popleft()
            if not woken.done():
                woken.set_result(None)
                number -= 1


class Services(Generic[Item]):
    """The services that the items of a batch need. *of* returns that of an item; None means one service for all."""

    def __init__(self, of: Callable[[Item], Hashable] | None, at_most: int) -> None:
        self._of = of
        self._at_most = at_most
        self._outages: dict[Hashable, Outage] = {}

    def outage(self, item: Item) -> Outage:
        """Return the state of the service of *item*."""
        service = None if self._of is None else self._of(item)
        outage = self._outages.get(service)
        if outage is None:
            outage = self._outages[service] = Outage(self._at_most)
        return outage

    @property
    def error(self) -> LamellaError | None:
        """The last failure of a service during its outage. None: no outage is known."""
        return next((outage.error for outage in self._outages.values() if outage.goes_on), None)

    def close(self) -> None:
        """Release all waiting items, now and later."""
        for outage in self._outages.values():
            outage.close()


def _works(error: Exception | None) -> bool | None:
    """Return whether the outcome of an item shows that the service works; None if it shows nothing."""
    if isinstance(error, LamellaError):
        return service_works(error)
    return True if error is None else None
