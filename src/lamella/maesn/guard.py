"""``ErrorGuard``: stop sending before the target system blocks a key for too many errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Collection
from typing import Final

import aiohttp

from lamella.call import Call
from lamella.checks import check_seconds, check_whole
from lamella.classify.failures import ERROR_STATUS, rejected
from lamella.errors import ApiError, RequestRejected
from lamella.maesn.account import current_account
from lamella.maesn.limits import path_of
from lamella.maesn.published.systems import COUNTED_ERRORS
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import Failure, StopReason
from lamella.store.shared import hash_key
from lamella.telemetry.names import ERRORS, GUARD_EVENT

MOST_PLACES: Final = 2_000
"""The number of paths of accounts from which those without recent errors are forgotten."""


class TooManyErrors(RequestRejected):
    """Not sent: one more error on this path could make the target system block the account."""

    failure = Failure.TOO_MANY_ERRORS


class _Place:
    """The recent errors of one account on one path."""

    __slots__ = ("changed", "errors", "key", "proven", "under_way")

    def __init__(self, key: tuple[str, str], *, proven: bool) -> None:
        self.key = key
        self.errors: tuple[float, ...] = ()
        """When the most recent errors arrived, by the loop's clock."""
        self.under_way = 0
        self.proven = proven
        """Whether the last response did not count as an error."""
        self.changed: asyncio.Event | None = None
        """Set by the next call that ends. None: no call waits. An event takes much memory."""


class ErrorGuard(Layer):
    """Reject calls to a path with :class:`lamella.maesn.TooManyErrors` after too many errors of the account on that
    path.

    Some target systems block a key after ten errors on one path within an hour. While a path has recent errors, or has
    not answered yet, the guard allows only as many calls in flight as may still fail; further calls wait until one of
    them ends.

    Args:
        most: How many errors one account may have on one path within *per* seconds.
        per: How long an error counts, in seconds.
        statuses: The statuses that count as errors.

    Raises:
        ValueError: A number is out of its range.
    """

    slot = Slot.ATTEMPT_SPAN

    def __init__(self, most: int = 9, per: float = 3600.0, *, statuses: Collection[int] = COUNTED_ERRORS) -> None:
        check_whole("most", most)
        check_seconds("per", per)
        self._most = most
        self._per = per
        self._statuses = frozenset(statuses)
        self._places: dict[tuple[str, str], _Place | None] = {}
        """None: the last response did not count as an error, and the account has no recent errors there."""
        self._most_places = MOST_PLACES
        self._calls: dict[Call, _Place] = {}

    def before(self, call: Call) -> Awaitable[None] | None:
        place = self._place(call.request)
        if not self._may_go(call, place):
            return self._wait(call, place)
        place.under_way += 1
        self._calls[call] = place
        return None

    async def _wait(self, call: Call, place: _Place) -> None:
        while not self._may_go(call, place):
            place.changed = place.changed or asyncio.Event()
            await place.changed.wait()
        place.under_way += 1
        self._calls[call] = place

    def after(self, call: Call, result: Result) -> None:
        place = self._calls.pop(call)
        place.under_way -= 1
        status = result.status if isinstance(result, aiohttp.ClientResponse | ApiError) else None
        if status in self._statuses:
            place.errors = (*place.errors, call.request.loop.time())[-self._most :]
            place.proven = False
        elif status is not None and status < ERROR_STATUS:
            place.proven = True
        if place.changed is not None:
            place.changed.set()
            place.changed = None
        elif place.proven and not place.under_way and not place.errors:
            self._places[place.key] = None

    def _may_go(self, call: Call, place: _Place) -> bool:
        """Return whether a call may be sent now; if not, it waits until another call ends.

        Raises TooManyErrors if the limit of errors is reached.
        """
        now = call.request.loop.time()
        while place.errors and now - place.errors[0] >= self._per:
            place.errors = place.errors[1:]
        if len(place.errors) >= self._most:
            raise self._rejected(call, place, now)
        if not place.errors and place.proven:
            return True
        return len(place.errors) + place.under_way < self._most

    def _rejected(self, call: Call, place: _Place, now: float) -> TooManyErrors:
        if call.span is not None:
            call.span.add_event(GUARD_EVENT, {ERRORS: len(place.errors)})
        first = place.errors[0]
        until = first + self._per - now
        return rejected(TooManyErrors, call, since=now - first, until=until, stopped=StopReason.TOO_MANY_ERRORS)

    def _place(self, request: aiohttp.ClientRequest) -> _Place:
        key = hash_key(None, current_account()), path_of(request)
        place = self._places.get(key)
        if place is None:
            is_proven = key in self._places
            if len(self._places) >= self._most_places:
                now = request.loop.time()
                self._places = {
                    key: each
                    for key, each in self._places.items()
                    if each is not None and (each.under_way or now - max(each.errors, default=-math.inf) < self._per)
                }
                # Otherwise, if most of them stay, each new one would check them all again.
                self._most_places = max(MOST_PLACES, 2 * len(self._places))
            place = self._places[key] = _Place(key, proven=is_proven)
        return place
