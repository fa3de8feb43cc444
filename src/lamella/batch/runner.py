"""``Batch``: a function for each of many items, so many at a time, and an outcome for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
)
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from math import inf
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import anyio

from lamella.batch.journal import Journal
from lamella.batch.outage import Entered, Outage
from lamella.batch.outcome import AccountStopped, ItemOutcome
from lamella.checks import check_seconds, check_whole
from lamella.errors import LamellaError, RequestRejected

__all__ = ["Batch"]

Item = TypeVar("Item")
Value = TypeVar("Value")
_T = TypeVar("_T")

_AHEAD: Final = 4
"""How many times *at_once* items may have been taken from the source whose outcomes are not handed out."""
_CHUNK: Final = 64
"""How many keys the journal is asked for at a time."""


@dataclass(slots=True)
class _Lane(Generic[Item]):
    """The items of one account that are under way, or wait for those to end."""

    running: int = 0
    waiting: deque[_Job[Item]] = field(default_factory=deque)


@dataclass(slots=True)
class _Job(Generic[Item]):
    number: int
    item: Item
    outage: Outage
    account: Hashable
    key: str
    tries: int = 0
    queued: float = 0.0
    error: Exception | None = None
    """What the last try ended in. None: there was none."""
    entered: Entered | None = None
    """It has waited for an outage to end, and may be tried now."""


class Batch(Generic[Item, Value]):
    """Calls *function* for each of *items*, so many at a time, and tells what became of each.

    ::

        async with Batch(fetch, pages, at_once=50) as batch:
            async for outcome in batch:
                ...

    An item that fails is an outcome with an error, and not the end of the batch. While a service is down (its circuit
    is open, or the session's retry budget is empty) its items wait together, and a few find out whether it is back.
    Then *function* is called again, from its beginning, for those that it had failed for: a write in it should be its
    last call, or have an ``Idempotency-Key``. An outcome that nobody takes keeps its place: who is slow to take them
    slows the batch down.

    Leaving the ``async with`` block ends the batch; what is under way then has *grace* seconds to end. So it is with
    Ctrl-C, and with a cancellation.

    If *items* raises, or the journal cannot be written, the iteration raises that after the last outcome. An item that
    could not be recorded has its value, and the journal's error.

    Args:
        function: What is done for an item, in a copy of the context in which the batch was entered: a context variable
            that it sets is seen by no other item. Use one session for all items.
        items: The items, as many as there are. No more are taken than are needed to keep the batch busy.
        at_once: How many items may be under way at a time.
        account: Which account an item belongs to. None means that all belong together.
        at_once_per_account: How many items of one account may be under way at a time, or wait for an outage to end. The
            others are looked for among the next ``4 * at_once`` items. None means *at_once*.
        stop_on: Errors that end the part of an account, since its other items would fail, too: those that have not
            begun end in :class:`AccountStopped`. Without *account*, no more items are taken.
        in_order: Whether the outcomes come in the order of the items. A slow item keeps the outcomes of others back.
        service: Which service an item is for: in an outage of one, the items of the others go on. None means that all
            are for one.
        patience: How many seconds an item may wait for outages to end, in sum; then it fails with its last error. None
            means as long as it takes.
        journal: Where the end of each item is recorded. What it has as done is not done again. None means nowhere.
        key: What identifies an item in the journal, and in no other of the same batch.
        keep: The text that the journal keeps of a value. None means that it keeps none.
        sink: Takes what was done, before it is recorded as done: an item whose sink fails has failed.
        grace: How many seconds what is under way may go on when the block is left.

    Raises:
        ValueError: A number is out of its range, or of two arguments that need each other one is missing.
    """

    def __init__(
        self,
        function: Callable[[Item], Awaitable[Value]],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        at_once: int = 100,
        account: Callable[[Item], Hashable] | None = None,
        at_once_per_account: int | None = None,
        stop_on: type[Exception] | tuple[type[Exception], ...] = (),
        in_order: bool = False,
        service: Callable[[Item], Hashable] | None = None,
        patience: float | None = 3600.0,
        journal: Journal | None = None,
        key: Callable[[Item], str] | None = None,
        keep: Callable[[Value], str] | None = None,
        sink: Callable[[ItemOutcome[Item, Value]], Awaitable[object]] | None = None,
        grace: float = 10.0,
    ) -> None:
        for name, number in (("at_once", at_once), ("at_once_per_account", at_once_per_account)):
            if number is not None:
                check_whole(name, number)
        for name, seconds in (("patience", patience), ("grace", grace)):
            if seconds is not None:
                check_seconds(name, seconds, zero=True)
        if at_once_per_account is not None and account is None:
            raise ValueError("at_once_per_account needs account, which says what an item belongs to")
        if journal is not None and key is None:
            raise ValueError("a journal needs key, which identifies an item")
        if keep is not None and journal is None:
            raise ValueError("keep needs journal, where the values are kept")
        self._function = function
        self._items = items
        self._at_once = at_once
        self._account = account
        self._per_account = at_once_per_account
        self._stop_on = stop_on
        self._in_order = in_order
        self._service = service
        self._patience = inf if patience is None else patience
        self._journal = journal
        self._key = key
        self._keep = keep
        self._sink = sink
        self._grace = grace

        self._begun = False
        self._ending = False
        self._fed = False
        """Whether there are no more items."""
        self._error: Exception | None = None
        """What the batch itself ends in, after its outcomes. None: nothing, or the consumer has been told."""
        self._number = 0
        self._lanes: dict[Hashable, _Lane[Item]] = {}
        self._stopped: dict[Hashable, Exception] = {}
        self._outages: dict[Hashable, Outage] = {}
        self._early: dict[int, ItemOutcome[Item, Value]] = {}
        """Outcomes whose turn has not come."""
        self._turn = 1

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch runs once: make another one")
        self._begun = True
        self._ready_in, self._ready_out = anyio.create_memory_object_stream[_Job[Item]](inf)  # bounded by the room
        self._out_in, self._out_out = anyio.create_memory_object_stream[ItemOutcome[Item, Value]](0)
        self._room = anyio.CapacityLimiter(self._at_once * _AHEAD)
        """Items, by their numbers, whose outcome is not handed out yet."""
        self._feeding = anyio.CancelScope()
        # Whoever cancels the block does not cancel what is under way: that has its grace.
        self._working = anyio.CancelScope(shield=True)
        self._idle = anyio.Event()
        self._context = copy_context()
        """Each item runs in a copy of it."""
        self._host = anyio.create_task_group()
        await self._host.__aenter__()
        self._host.start_soon(self._run)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._out_out.close()
        try:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._grace):
                await self._idle.wait()
        finally:
            self._working.cancel()
            try:
                # Not told of the block's own exception, which it would wrap in a group.
                await self._host.__aexit__(None, None, None)
            finally:
                for stream in (self._ready_in, self._ready_out, self._out_in):
                    stream.close()
        if exc is None and self._error is not None:
            raise self._error

    def __aiter__(self) -> AsyncIterator[ItemOutcome[Item, Value]]:
        return self

    async def __anext__(self) -> ItemOutcome[Item, Value]:
        if not self._begun:
            raise RuntimeError("a batch is iterated inside of its `async with` block")
        try:
            return await self._out_out.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):  # the latter: the block has been left
            pass
        if self._early:  # stopped: those before them were not begun
            return self._early.pop(min(self._early))
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopAsyncIteration

    @property
    def outage(self) -> LamellaError | None:
        """The last failure of a service that is down now, as far as one is known. None: there is no outage."""
        return next((outage.error for outage in self._outages.values() if outage.goes_on), None)

    def stop(self) -> None:
        """Begin nothing more: what is under way comes to its end, the outcomes of the rest are left out."""
        self._ending = True
        self._feeding.cancel()
        for outage in self._outages.values():
            outage.close()
        self._ready_in.close()

    async def _run(self) -> None:
        try:
            with self._working:
                async with anyio.create_task_group() as self._tasks:
                    for _ in range(self._at_once):
                        self._tasks.start_soon(self._work)
                    self._tasks.start_soon(self._feed)
        finally:
            self._out_in.close()
            self._idle.set()

    async def _feed(self) -> None:
        """Take the items, as many as there is room for."""
        try:
            source = aiter(self._items) if isinstance(self._items, AsyncIterable) else iter(self._items)
            with self._feeding:
                while not self._fed:
                    await self._begin(await self._take(source))
            if isinstance(source, AsyncGenerator):
                await source.aclose()
        except Exception as error:  # noqa: BLE001 - the consumer is told, after the outcomes
            self._error = self._error or error
        self._fed = True
        self._end_when_done()

    async def _take(self, source: Iterator[Item] | AsyncIterator[Item]) -> list[Item]:
        """Wait for room, and take an item; more where the journal is asked for many at a time, and none has to wait."""
        taken: list[Item] = []
        number = self._number + 1
        try:
            self._room.acquire_on_behalf_of_nowait(number)
        except anyio.WouldBlock:
            await self._room.acquire_on_behalf_of(number)
        try:
            await asyncio.sleep(0)  # what was taken before begins first
            if isinstance(source, AsyncIterator):
                taken.append(await _uncancelled(anext(source)))
            else:
                taken.append(next(source))
                while self._journal is not None and len(taken) < _CHUNK and self._room.available_tokens:
                    taken.append(next(source))
                    self._room.acquire_on_behalf_of_nowait(number + len(taken) - 1)
        except (StopIteration, StopAsyncIteration):
            self._fed = True
        except Exception as error:  # noqa: BLE001 - the consumer is told, after the outcomes
            self._fed, self._error = True, self._error or error
        finally:
            if not taken:
                self._room.release_on_behalf_of(number)
        return taken

    async def _begin(self, items: list[Item]) -> None:
        """Line *items* up, except for those that are done."""
        jobs: list[_Job[Item]] = []
        ended: list[ItemOutcome[Item, Value]] = []
        for item in items:
            self._number += 1
            try:
                jobs.append(self._job(item))
            except Exception as error:  # noqa: BLE001 - it is the outcome of this item alone
                ended.append(ItemOutcome(self._number, item, error=error))
        done: set[str] = set()
        if self._journal is not None:
            with anyio.CancelScope(shield=True):  # what is taken has an outcome
                try:
                    done = await self._journal.ended(job.key for job in jobs)
                except Exception as error:  # noqa: BLE001 - the consumer is told
                    self._fail(error)
        for job in jobs:
            if job.key in done:
                ended.append(ItemOutcome(job.number, job.item))
            else:
                self._line_up(job)
        if ended:
            with anyio.CancelScope(shield=True):
                for outcome in ended:
                    await self._hand_out(outcome)

    def _job(self, item: Item) -> _Job[Item]:
        service = None if self._service is None else self._service(item)
        outage = self._outages.get(service)
        if outage is None:
            outage = self._outages[service] = Outage(self._at_once)
        account = None if self._account is None else self._account(item)
        return _Job(self._number, item, outage, account, "" if self._key is None else self._key(item))

    def _line_up(self, job: _Job[Item]) -> None:
        if self._ending:
            return
        if self._per_account is None:
            self._ready_in.send_nowait(job)
            return
        lane = self._lanes.get(job.account)
        if lane is None:
            lane = self._lanes[job.account] = _Lane()
        if lane.running < self._per_account:
            lane.running += 1
            self._ready_in.send_nowait(job)
        else:
            lane.waiting.append(job)

    async def _work(self) -> None:
        """Try one item, then leave the place to a new task: what *function* sets in its context stays with the item."""
        async for job in self._ready_out:
            if not self._ending:
                await self._try(job)
                self._context.run(self._tasks.start_soon, self._work)
                return

    async def _try(self, job: _Job[Item]) -> None:
        """Call the function for an item. In an outage the item may have to wait, which takes no worker."""
        entered, job.entered = job.entered, None
        stopped = self._stopped.get(job.account)
        if stopped is not None and not job.tries:
            if entered is not None:
                job.outage.give_back(entered)
            await self._failed(job, AccountStopped(stopped))
            return
        if entered is None:
            if job.outage.active:
                self._tasks.start_soon(self._queue, job)
                return
            entered = job.outage.enter()
        job.tries += 1
        try:
            value = await _uncancelled(self._function(job.item))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome of this item alone
            if job.outage.leave(entered, error):
                job.error = error
                self._tasks.start_soon(self._queue, job)
            else:
                await self._failed(job, error)
            return
        job.outage.leave(entered, None)
        await self._done(job, value)

    async def _queue(self, job: _Job[Item]) -> None:
        """Wait until an item may be tried, as long as there is patience."""
        began = anyio.current_time()
        with anyio.move_on_after(None if self._patience == inf else max(self._patience - job.queued, 0.0)) as patience:
            await job.outage.wait()
        job.queued += anyio.current_time() - began
        if self._ending:
            return
        if not patience.cancelled_caught:
            job.entered = job.outage.enter()
            self._ready_in.send_nowait(job)
            return
        error, known = job.error, job.outage.error
        if error is None or (isinstance(error, RequestRejected) and not isinstance(known, RequestRejected)):
            # The cause says more than that a circuit is open.
            error = known or error
        await self._failed(job, error or TimeoutError("an outage lasted longer than the batch's patience"))

    async def _done(self, job: _Job[Item], value: Value) -> None:
        outcome = ItemOutcome(job.number, job.item, value, None, job.tries, job.queued)
        try:
            text = None if self._keep is None else self._keep(value)
            if self._sink is not None:
                await _uncancelled(self._sink(outcome))
        except Exception as error:  # noqa: BLE001 - what is not confirmed is not done
            await self._failed(job, error)
        else:
            await self._end(job, outcome, text)

    async def _failed(self, job: _Job[Item], error: Exception) -> None:
        if isinstance(error, self._stop_on) and job.account not in self._stopped:
            self._stopped[job.account] = error
            if self._account is None:
                self._feeding.cancel()
        await self._end(job, ItemOutcome(job.number, job.item, None, error, job.tries, job.queued), None)

    async def _end(self, job: _Job[Item], outcome: ItemOutcome[Item, Value], text: str | None) -> None:
        """Record the end of an item, let the next one of its account begin, and hand the outcome out."""
        if self._journal is not None:
            try:
                await self._journal.end(job.key, result=text, error=_text(outcome.error))
            except Exception as error:  # noqa: BLE001 - the consumer is told
                self._fail(error)
                outcome = replace(outcome, error=outcome.error or error)
        if self._per_account is not None:
            self._next_in_lane(job.account)
        await self._hand_out(outcome)

    def _next_in_lane(self, account: Hashable) -> None:
        lane = self._lanes[account]
        if lane.waiting and not self._ending:
            self._ready_in.send_nowait(lane.waiting.popleft())
        else:
            lane.running -= 1
            if not lane.running:
                del self._lanes[account]

    def _fail(self, error: Exception) -> None:
        """End the batch in *error*."""
        self._error = self._error or error
        self.stop()

    async def _hand_out(self, outcome: ItemOutcome[Item, Value]) -> None:
        """Wait until somebody takes it, or with those before it if they come in order."""
        try:
            if not self._in_order:
                await self._out_in.send(outcome)
                self._handed_out(outcome.number)
                return
            self._early[outcome.number] = outcome
            if outcome.number != self._turn:
                return
            # The turn is passed on when one is taken, so nobody else comes as far as here meanwhile.
            while self._turn in self._early:
                await self._out_in.send(self._early.pop(self._turn))
                self._handed_out(self._turn)
                self._turn += 1
        except anyio.BrokenResourceError:
            pass  # nobody takes them any more

    def _handed_out(self, number: int) -> None:
        self._room.release_on_behalf_of(number)
        self._end_when_done()

    def _end_when_done(self) -> None:
        if self._fed and not self._room.borrowed_tokens:
            self._ready_in.close()


async def _uncancelled(call: Awaitable[_T]) -> _T:
    """Await *call*. A CancelledError that nobody has asked for is an error like any other."""
    try:
        return await call
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it ended in a CancelledError, though nobody had cancelled it") from error


def _text(error: Exception | None) -> str | None:
    """What the journal keeps of an error: a text that is not empty, and that SQLite takes."""
    if error is None:
        return None
    return (str(error) or repr(error)).encode("utf-8", "backslashreplace").decode()
