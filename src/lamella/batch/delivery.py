"""Hand the outcomes of a batch to its consumer, and limit how many items are taken ahead of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

import anyio

from lamella.batch.outcome import Item, ItemOutcome, Value


class Delivery(Generic[Item, Value]):
    """The outcomes on their way to the consumer.

    Args:
        ahead: Maximum number of items that are taken and whose outcome is not.
        in_order: Whether outcomes are in the order of the items.
        taken: Called after the consumer has taken an outcome.
    """

    def __init__(self, ahead: int, *, in_order: bool, taken: Callable[[], object]) -> None:
        self._in, self._out = anyio.create_memory_object_stream[ItemOutcome[Item, Value]](0)
        self._room = anyio.CapacityLimiter(ahead)
        """Borrowed by the numbers of items whose outcome has not been taken yet."""
        self._in_order = in_order
        self._on_taken = taken
        self._early: dict[int, ItemOutcome[Item, Value]] = {}
        """Outcomes that wait for earlier items."""
        self._next = 1
        """The number of the item whose outcome is next, if in order."""

    @property
    def is_empty(self) -> bool:
        """Whether the outcome of each item that was taken has been taken."""
        return not self._room.borrowed_tokens

    @property
    def has_room(self) -> bool:
        """Whether :meth:`reserve` would not wait."""
        return self._room.available_tokens > 0

    async def reserve(self, number: int) -> None:
        """Wait until item *number* may be taken."""
        try:
            self._room.acquire_on_behalf_of_nowait(number)
        except anyio.WouldBlock:
            await self._room.acquire_on_behalf_of(number)

    def release(self, number: int) -> None:
        """Undo :meth:`reserve` for an item that does not exist."""
        self._room.release_on_behalf_of(number)

    async def hand_out(self, outcome: ItemOutcome[Item, Value]) -> None:
        """Wait until the outcome is taken. If in order, leave it to an earlier item that has not ended."""
        try:
            if not self._in_order:
                await self._in.send(outcome)
                self._taken(outcome.number)
                return
            self._early[outcome.number] = outcome
            if outcome.number != self._next:
                return
            # _next changes only when an outcome is taken, so one item at a time gets here.
            while self._next in self._early:
                await self._in.send(self._early.pop(self._next))
                self._taken(self._next)
                self._next += 1
        except anyio.BrokenResourceError:
            pass  # the block has been left

    async def take(self) -> ItemOutcome[Item, Value] | None:
        """Return the next outcome. None: there are no more."""
        try:
            return await self._out.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):  # cancelled: the block has been left
            # After stop(), earlier items were not begun.
            return self._early.pop(min(self._early)) if self._early else None

    def end(self) -> None:
        """State that there are no more outcomes."""
        self._in.close()

    def leave(self) -> None:
        """Take no more outcomes: the block has been left."""
        self._out.close()

    def _taken(self, number: int) -> None:
        self.release(number)
        self._on_taken()
