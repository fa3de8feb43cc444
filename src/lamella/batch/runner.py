"""``Batch``: call a function for each of many items with limited concurrency, and yield an outcome for each."""

from __future__ import annotations

import asyncio
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
from dataclasses import KW_ONLY, dataclass, replace
from math import inf
from types import TracebackType
from typing import Final, Generic, Self, TypeVar, cast

import anyio

from lamella.batch.jobs import Job, Lanes
from lamella.batch.journal import Journal
from lamella.batch.outage import Outage
from lamella.batch.outcome import AccountStopped, Item, ItemOutcome, Value
from lamella.checks import check_seconds, check_whole
from lamella.errors import LamellaError, RequestRejected

_T = TypeVar("_T")

_AHEAD: Final = 4
"""How many items may be taken ahead of their outcomes, as a multiple of *at_once*."""
_CHUNK: Final = 64
"""Keys per look-up in the journal."""


@dataclass(eq=False, repr=False)
class Batch(Generic[Item, Value]):
    """Call *function* for each of *items* with limited concurrency, and yield an outcome for each.

    ::

        async with Batch(fetch, pages, at_once=50) as batch:
            async for outcome in batch:
                ...

    A failed item yields an outcome with an error and does not end the batch. While a service is down (its circuit is
    open, or the session's retry budget is empty), the batch pauses: items wait, and a few probe whether the service is
    back. Then *function* is called again from its beginning for the items that failed in the outage, so a write in it
    should be its last call or have an ``Idempotency-Key``. An item keeps its slot until its outcome is taken, so a slow
    consumer applies backpressure.

    Leaving the ``async with`` block ends the batch. Running items then have *grace* seconds to end, also after Ctrl-C
    or a cancellation. If *items* raises, or the journal cannot be written, the iteration raises that exception after
    the last outcome. An item that could not be recorded has its value and the journal's error.

    Args:
        function: Called with an item, in its own copy of the context at ``async with``. Use one session for all items.
        items: Any number of items. The batch takes only as many as it needs to stay busy.
        at_once: Maximum number of concurrent items.
        account: Returns the account of an item. None means one account for all.
        at_once_per_account: Maximum number of running or paused items of one account. Items of other accounts are taken
            from the next ``4 * at_once``. None means *at_once*.
        stop_on: Errors that stop an account: its items that have not begun fail with :class:`AccountStopped`. Without
            *account*, no more items are taken.
        in_order: Whether outcomes are in the order of the items. A slow item then delays the outcomes after it.
        service: Returns the service of an item. An outage pauses only the items of its service. None means one service
            for all.
        patience: Maximum total pause of an item in seconds; then it fails with its last error. None means no limit.
        journal: Records the end of each item. Items already done in it are skipped. None means no journal.
        key: Returns the key of an item in the journal, unique within the batch.
        keep: Returns the text that the journal stores for a value. None means that values are not stored.
        sink: Called with the outcome of an item before it is recorded as done. If the sink raises, the item has failed.
        grace: Seconds that running items have to end when the block is left.

    Raises:
        ValueError: A number is out of range, or an argument that another one requires is missing.
    """

    function: Callable[[Item], Awaitable[Value]]
    items: Iterable[Item] | AsyncIterable[Item]
    _: KW_ONLY
    at_once: int = 100
    account: Callable[[Item], Hashable] | None = None
    at_once_per_account: int | None = None
    stop_on: type[Exception] | tuple[type[Exception], ...] = ()
    in_order: bool = False
    service: Callable[[Item], Hashable] | None = None
    patience: float | None = 3600.0
    journal: Journal | None = None
    key: Callable[[Item], str] | None = None
    keep: Callable[[Value], str] | None = None
    sink: Callable[[ItemOutcome[Item, Value]], Awaitable[object]] | None = None
    grace: float = 10.0

    def __post_init__(self) -> None:
        check_whole("at_once", self.at_once)
        check_whole("at_once_per_account", 1 if self.at_once_per_account is None else self.at_once_per_account)
        check_seconds("patience", 0 if self.patience is None else self.patience, zero=True)
        check_seconds("grace", self.grace, zero=True)
        if self.at_once_per_account is not None and self.account is None:
            raise ValueError("at_once_per_account requires account, which returns the account of an item")
        if self.journal is not None and self.key is None:
            raise ValueError("journal requires key, which identifies an item")
        if self.keep is not None and self.journal is None:
            raise ValueError("keep requires journal, which stores the values")
        self._begun = False
        self._ending = False
        self._has_all = False
        """Whether the source is exhausted."""
        self._error: Exception | None = None
        """The exception that the iteration raises after the outcomes. None: no exception, or already raised."""
        self._number = 0
        self._lanes = Lanes[Item](self.at_once_per_account)
        self._stopped: dict[Hashable, Exception] = {}
        self._outages: dict[Hashable, Outage] = {}
        self._early: dict[int, ItemOutcome[Item, Value]] = {}
        """Outcomes that wait for earlier items."""
        self._next = 1
        """The number of the item whose outcome is next, if in order."""

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can run only once: create another one")
        self._begun = True
        self._ready_in, self._ready_out = anyio.create_memory_object_stream[Job[Item]](inf)  # bounded by _room
        self._out_in, self._out_out = anyio.create_memory_object_stream[ItemOutcome[Item, Value]](0)
        self._room = anyio.CapacityLimiter(self.at_once * _AHEAD)
        """Borrowed by the numbers of items whose outcome has not been taken yet."""
        self._feeding = anyio.CancelScope()
        self._working = anyio.CancelScope(shield=True)  # running items keep their grace when the block is cancelled
        self._idle = anyio.Event()
        self._context = copy_context()
        """Each item runs in a copy of this context."""
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
            with anyio.CancelScope(shield=True), anyio.move_on_after(self.grace):
                await self._idle.wait()
        finally:
            self._working.cancel()
            try:
                # Without the block's own exception, which the task group would wrap.
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
            raise RuntimeError("a batch must be iterated inside its `async with` block")
        try:
            return await self._out_out.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):  # cancelled: the block has been left
            pass
        if self._early:  # after stop(): earlier items were not begun
            return self._early.pop(min(self._early))
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopAsyncIteration

    @property
    def outage(self) -> LamellaError | None:
        """The last failure of a service during its outage. None: no outage is known."""
        return next((outage.error for outage in self._outages.values() if outage.goes_on), None)

    def stop(self) -> None:
        """Begin no more items. Running items finish; the others have no outcome."""
        self._ending = True
        self._feeding.cancel()
        for outage in self._outages.values():
            outage.close()
        self._ready_in.close()

    async def _run(self) -> None:
        try:
            with self._working:
                async with anyio.create_task_group() as self._tasks:
                    for _ in range(self.at_once):
                        self._tasks.start_soon(self._work)
                    self._tasks.start_soon(self._feed)
        finally:
            self._out_in.close()
            self._idle.set()

    async def _feed(self) -> None:
        try:
            source = aiter(self.items) if isinstance(self.items, AsyncIterable) else iter(self.items)
            with self._feeding:
                while not self._has_all:
                    await self._begin(await self._take(source))
            if isinstance(source, AsyncGenerator):
                await source.aclose()
        except Exception as error:  # noqa: BLE001 - raised after the outcomes
            self._error = self._error or error
        self._has_all = True
        self._end_if_done()

    async def _take(self, source: Iterator[Item] | AsyncIterator[Item]) -> list[Item]:
        """Wait for room and take an item; with a journal, take all available items up to a chunk."""
        taken: list[Item] = []
        number = self._number + 1
        try:
            self._room.acquire_on_behalf_of_nowait(number)
        except anyio.WouldBlock:
            await self._room.acquire_on_behalf_of(number)
        try:
            await asyncio.sleep(0)  # items taken before begin first
            if isinstance(source, AsyncIterator):
                taken.append(await _uncancelled(anext(source)))
            else:
                taken.append(next(source))
                while self.journal is not None and len(taken) < _CHUNK and self._room.available_tokens:
                    taken.append(next(source))
                    self._room.acquire_on_behalf_of_nowait(number + len(taken) - 1)
        except (StopIteration, StopAsyncIteration):
            self._has_all = True
        except Exception as error:  # noqa: BLE001 - raised after the outcomes
            self._has_all, self._error = True, self._error or error
        finally:
            if not taken:
                self._room.release_on_behalf_of(number)
        return taken

    async def _begin(self, items: list[Item]) -> None:
        """Make jobs of *items*, except those that are done."""
        jobs: list[Job[Item]] = []
        ended: list[ItemOutcome[Item, Value]] = []
        for item in items:
            self._number += 1
            try:
                jobs.append(self._job(item))
            except Exception as error:  # noqa: BLE001 - it is the outcome of this item alone
                ended.append(ItemOutcome(self._number, item, error=error))
        with anyio.CancelScope(shield=True):  # every taken item must have an outcome
            done: set[str] = set()
            if self.journal is not None:
                try:
                    done = await self.journal.ended(job.key for job in jobs)
                except Exception as error:  # noqa: BLE001 - raised after the outcomes
                    self._fail(error)
            for job in jobs:
                if job.key in done:
                    ended.append(ItemOutcome(job.number, job.item))
                else:
                    self._line_up(job)
            for outcome in ended:
                await self._hand_out(outcome)

    def _job(self, item: Item) -> Job[Item]:
        service = None if self.service is None else self.service(item)
        outage = self._outages.get(service)
        if outage is None:
            outage = self._outages[service] = Outage(self.at_once)
        account = None if self.account is None else self.account(item)
        return Job(self._number, item, outage, account, "" if self.key is None else self.key(item))

    def _line_up(self, job: Job[Item]) -> None:
        if not self._ending and self._lanes.enter(job):
            self._ready_in.send_nowait(job)

    async def _work(self) -> None:
        """Try one item, then start a new task, so that context variables set by *function* stay with the item."""
        async for job in self._ready_out:
            if not self._ending:
                await self._try(job)
                self._context.run(self._tasks.start_soon, self._work)
                return

    async def _try(self, job: Job[Item]) -> None:
        """Call the function for an item. In an outage the item may be paused, which occupies no worker."""
        entered, job.entered = job.entered, None
        stopped = self._stopped.get(job.account)
        if stopped is not None and not job.tries:
            if entered is not None:
                job.outage.give_back(entered)
            await self._end(job, None, AccountStopped(stopped))
            return
        if entered is None:
            if job.outage.active:
                self._tasks.start_soon(self._pause, job)
                return
            entered = job.outage.enter()
        job.tries += 1
        try:
            value = await _uncancelled(self.function(job.item))
        except Exception as error:  # noqa: BLE001 - it is the outcome of this item alone
            if job.outage.leave(entered, error):
                job.error = error
                self._tasks.start_soon(self._pause, job)
            else:
                await self._end(job, None, error)
        else:
            job.outage.leave(entered, None)
            await self._end(job, value, None)

    async def _pause(self, job: Job[Item]) -> None:
        """Wait until an item may be tried, within its patience."""
        began = anyio.current_time()
        with anyio.move_on_after(None if self.patience is None else max(self.patience - job.paused, 0.0)) as patience:
            await job.outage.wait()
        job.paused += anyio.current_time() - began
        if self._ending:
            return
        if not patience.cancelled_caught:
            job.entered = job.outage.enter()
            self._ready_in.send_nowait(job)
            return
        error, known = job.error, job.outage.error
        if error is None or (isinstance(error, RequestRejected) and not isinstance(known, RequestRejected)):
            error = known or error  # the cause is more informative than CircuitOpen
        error = error or TimeoutError("an outage lasted longer than the batch's patience")
        await self._end(job, None, error)

    async def _end(self, job: Job[Item], value: Value | None, error: Exception | None) -> None:
        """Record the outcome of an item, begin the next one of its account, and deliver the outcome."""
        outcome, text = ItemOutcome(job.number, job.item, value, error, job.tries, job.paused), None
        if error is None:
            try:
                text = None if self.keep is None else self.keep(cast(Value, value))
                if self.sink is not None:
                    await _uncancelled(self.sink(outcome))
            except Exception as exc:  # noqa: BLE001 - it is the outcome of this item alone
                outcome, text = replace(outcome, value=None, error=exc), None
        if isinstance(outcome.error, self.stop_on) and job.account not in self._stopped:
            self._stopped[job.account] = outcome.error
            if self.account is None:
                self._feeding.cancel()
        if self.journal is not None:
            failure = None if outcome.error is None else str(outcome.error) or repr(outcome.error)
            if failure is not None:
                failure = failure.encode("utf-8", "backslashreplace").decode()  # SQLite rejects lone surrogates
            try:
                await self.journal.end(job.key, result=text, error=failure)
            except Exception as exc:  # noqa: BLE001 - raised after the outcomes
                self._fail(exc)
                outcome = replace(outcome, error=outcome.error or exc)
        following = self._lanes.leave(job.account)
        if following is not None and not self._ending:
            self._ready_in.send_nowait(following)
        await self._hand_out(outcome)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self.stop()

    async def _hand_out(self, outcome: ItemOutcome[Item, Value]) -> None:
        """Wait until the outcome is taken. If in order, leave it to an earlier item that has not ended."""
        try:
            if not self.in_order:
                await self._out_in.send(outcome)
                self._taken(outcome.number)
                return
            self._early[outcome.number] = outcome
            if outcome.number != self._next:
                return
            # _next changes only when an outcome is taken, so one item at a time gets here.
            while self._next in self._early:
                await self._out_in.send(self._early.pop(self._next))
                self._taken(self._next)
                self._next += 1
        except anyio.BrokenResourceError:
            pass  # the block has been left

    def _taken(self, number: int) -> None:
        self._room.release_on_behalf_of(number)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._has_all and not self._room.borrowed_tokens:
            self._ready_in.close()


async def _uncancelled(call: Awaitable[_T]) -> _T:
    """Await *call*; turn a CancelledError that does not cancel this task into a RuntimeError."""
    try:
        return await call
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("it raised CancelledError without being cancelled") from error
