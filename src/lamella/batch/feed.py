"""Take the items of a batch from their source, and make jobs of those that are not done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic

import anyio

from lamella.batch.awaiting import uncancelled
from lamella.batch.delivery import Delivery
from lamella.batch.jobs import Job, Jobs
from lamella.batch.outage import Services
from lamella.batch.outcome import Item, ItemOutcome, Value
from lamella.batch.recording import Recording

_CHUNK: Final = 64
"""Keys per look-up in the journal."""


class Intake(Generic[Item, Value]):
    """The items that are not taken yet.

    Args:
        items: The source.
        delivery: Its room limits how many items are taken.
        at_most: Maximum number of available items that are taken together.
    """

    def __init__(
        self, items: Iterable[Item] | AsyncIterable[Item], delivery: Delivery[Item, Value], *, at_most: int
    ) -> None:
        self._source: Iterator[Item] | AsyncIterator[Item]
        self._source = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        self._delivery = delivery
        self._at_most = at_most
        self._number = 0
        self.has_ended: bool = False
        """Whether there are no more items."""
        self.error: Exception | None = None
        """The exception of the source that has ended it."""

    async def take(self) -> list[tuple[int, Item]]:
        """Wait for room and take an item with its number, and further ones that are available."""
        taken: list[tuple[int, Item]] = []
        await self._delivery.reserve(self._number + 1)
        try:
            await asyncio.sleep(0)  # items taken before begin first
            if isinstance(self._source, AsyncIterator):
                taken.append((self._number + 1, await uncancelled(anext(self._source))))
            else:
                taken.append((self._number + 1, next(self._source)))
                while len(taken) < self._at_most and self._delivery.has_room:
                    number = self._number + len(taken) + 1
                    taken.append((number, next(self._source)))
                    await self._delivery.reserve(number)
        except (StopIteration, StopAsyncIteration):
            self.has_ended = True
        except Exception as error:  # noqa: BLE001 - raised after the outcomes
            self.has_ended, self.error = True, error
        finally:
            if not taken:
                self._delivery.release(self._number + 1)
        self._number += len(taken)
        return taken

    async def close(self) -> None:
        """Close the source if it is an async generator."""
        if isinstance(self._source, AsyncGenerator):
            await self._source.aclose()


@dataclass(eq=False, repr=False, slots=True)
class Feed(Generic[Item, Value]):
    """The way of the items to the jobs. *items*, *account* and *key* are those of the batch."""

    items: Iterable[Item] | AsyncIterable[Item]
    account: Callable[[Item], Hashable] | None
    key: Callable[[Item], str] | None
    services: Services[Item]
    recording: Recording[Item, Value]
    jobs: Jobs[Item]
    delivery: Delivery[Item, Value]
    fail: Callable[[Exception], object]
    """Called with an error of the journal. It ends the batch."""

    async def run(self, until: anyio.CancelScope) -> None:
        """Make jobs until the source ends or *until* is cancelled.

        Raises:
            Exception: The source has raised it.
        """
        intake = Intake(self.items, self.delivery, at_most=1 if self.recording.journal is None else _CHUNK)
        with until:
            while not intake.has_ended:
                await self._begin(await intake.take())
        await intake.close()
        if intake.error is not None:
            raise intake.error

    async def _begin(self, items: list[tuple[int, Item]]) -> None:
        made: list[Job[Item]] = []
        ended: list[ItemOutcome[Item, Value]] = []
        for number, item in items:
            try:
                made.append(self._job(number, item))
            except Exception as error:  # noqa: BLE001 - it is the outcome of this item alone
                ended.append(ItemOutcome(number, item, error=error))
        with anyio.CancelScope(shield=True):  # every taken item must have an outcome
            done: set[str] = set()
            try:
                done = await self.recording.ended(job.key for job in made)
            except Exception as error:  # noqa: BLE001 - raised after the outcomes
                self.fail(error)
            for job in made:
                if job.key in done:
                    ended.append(ItemOutcome(job.number, job.item))
                else:
                    self.jobs.enter(job)
            for outcome in ended:
                await self.delivery.hand_out(outcome)

    def _job(self, number: int, item: Item) -> Job[Item]:
        account = None if self.account is None else self.account(item)
        return Job(number, item, self.services.outage(item), account, "" if self.key is None else self.key(item))
