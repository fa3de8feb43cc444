"""``Batch``: call a function for each of many items with limited concurrency, and yield an outcome for each."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Final, Generic, Self

import anyio

from lamella.batch.delivery import Delivery
from lamella.batch.feed import Feed
from lamella.batch.jobs import Jobs
from lamella.batch.journal import Journal
from lamella.batch.outage import Services
from lamella.batch.outcome import Item, ItemOutcome, Value
from lamella.batch.recording import Recording
from lamella.batch.work import Work
from lamella.checks import check_seconds, check_whole
from lamella.errors import LamellaError

_AHEAD: Final = 4
"""How many items may be taken ahead of their outcomes, as a multiple of *at_once*."""


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
        check_whole("at_once", at_once)
        check_whole("at_once_per_account", 1 if at_once_per_account is None else at_once_per_account)
        check_seconds("patience", 0 if patience is None else patience, zero=True)
        check_seconds("grace", grace, zero=True)
        if at_once_per_account is not None and account is None:
            raise ValueError("at_once_per_account requires account, which returns the account of an item")
        if journal is not None and key is None:
            raise ValueError("journal requires key, which identifies an item")
        if keep is not None and journal is None:
            raise ValueError("keep requires journal, which stores the values")
        recording = Recording(journal, keep, sink)
        self._services = Services(service, at_once)
        self._feed = partial(Feed, items, account, key, self._services, recording)
        self._work = partial(Work, function, patience, stop_on, recording)
        self._at_once = at_once
        self._at_once_per_account = at_once_per_account
        self._in_order = in_order
        self._grace = grace
        self._has_accounts = account is not None
        self._begun = False
        self._has_all = False
        """Whether the source is exhausted."""
        self._error: Exception | None = None
        """The exception that the iteration raises after the outcomes. None: no exception, or already raised."""

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can run only once: create another one")
        self._begun = True
        self._jobs = Jobs[Item](self._at_once_per_account)
        self._delivery = Delivery[Item, Value](self._at_once * _AHEAD, in_order=self._in_order, taken=self._end_if_done)
        self._feeding = anyio.CancelScope()
        self._working = anyio.CancelScope(shield=True)  # running items keep their grace when the block is cancelled
        self._idle = anyio.Event()
        self._host = anyio.create_task_group()
        await self._host.__aenter__()
        self._host.start_soon(self._run)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._delivery.leave()
        try:
            with anyio.CancelScope(shield=True), anyio.move_on_after(self._grace):
                await self._idle.wait()
        finally:
            self._working.cancel()
            try:
                # Without the block's own exception, which the task group would wrap.
                await self._host.__aexit__(None, None, None)
            finally:
                self._jobs.close()
                self._delivery.end()
        if exc is None and self._error is not None:
            raise self._error

    def __aiter__(self) -> AsyncIterator[ItemOutcome[Item, Value]]:
        return self

    async def __anext__(self) -> ItemOutcome[Item, Value]:
        if not self._begun:
            raise RuntimeError("a batch must be iterated inside its `async with` block")
        outcome = await self._delivery.take()
        if outcome is not None:
            return outcome
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopAsyncIteration

    @property
    def outage(self) -> LamellaError | None:
        """The last failure of a service during its outage. None: no outage is known."""
        return self._services.error

    def stop(self) -> None:
        """Begin no more items. Running items finish; the others have no outcome."""
        self._feeding.cancel()
        self._jobs.stop()
        self._services.close()

    async def _run(self) -> None:
        try:
            with self._working:
                async with anyio.create_task_group() as tasks:
                    feeding = None if self._has_accounts else self._feeding
                    work = self._work(self._jobs, self._delivery, tasks, copy_context(), self._fail, feeding)
                    tasks.start_soon(work.run, self._at_once)
                    tasks.start_soon(self._feed_jobs)
        finally:
            self._delivery.end()
            self._idle.set()

    async def _feed_jobs(self) -> None:
        try:
            await self._feed(self._jobs, self._delivery, self._fail).run(self._feeding)
        except Exception as error:  # noqa: BLE001 - raised after the outcomes
            self._error = self._error or error
        self._has_all = True
        self._end_if_done()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self.stop()

    def _end_if_done(self) -> None:
        if self._has_all and self._delivery.is_empty:
            self._jobs.end()
