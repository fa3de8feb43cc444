"""Call the function of a batch for each job, and pause the jobs of a service that is down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Generic

import anyio
from anyio.abc import TaskGroup

from lamella.batch.awaiting import uncancelled
from lamella.batch.delivery import Delivery
from lamella.batch.jobs import Job, Jobs
from lamella.batch.outcome import AccountStopped, Item, ItemOutcome, Value
from lamella.batch.recording import Recording
from lamella.errors import RequestRejected, summary_of


@dataclass(eq=False, repr=False, slots=True)
class Work(Generic[Item, Value]):
    """The work on the jobs of a batch. *function*, *patience* and *stop_on* are those of the batch."""

    function: Callable[[Item], Awaitable[Value]]
    patience: float | None
    stop_on: type[Exception] | tuple[type[Exception], ...]
    recording: Recording[Item, Value]
    jobs: Jobs[Item]
    delivery: Delivery[Item, Value]
    tasks: TaskGroup
    context: Context
    """Each item runs in a copy of this context."""
    fail: Callable[[Exception], object]
    """Called with an error of the journal. It ends the batch."""
    feeding: anyio.CancelScope | None
    """Cancelled when an error stops the account of all items. None: items have accounts."""
    stopped: dict[Hashable, Exception] = field(default_factory=dict)
    """The errors that have stopped an account."""

    async def run(self, at_once: int) -> None:
        """Try the jobs, each in a new task, so that context variables set by *function* stay with the item."""
        free = anyio.Semaphore(at_once, fast_acquire=True)
        while True:
            await free.acquire()
            job = await self.jobs.take()
            if job is None:
                return
            self.context.run(self.tasks.start_soon, self._run, job, free)

    async def _run(self, job: Job[Item], free: anyio.Semaphore) -> None:
        try:
            await self._try(job)
        finally:
            free.release()

    async def _try(self, job: Job[Item]) -> None:
        """Call the function for an item. In an outage the item may be paused, which occupies no worker."""
        entered, job.entered = job.entered, None
        stopped = self.stopped.get(job.account)
        if stopped is not None and not job.tries:
            if entered is not None:
                job.outage.give_back(entered)
            await self._end(job, None, AccountStopped(stopped))
            return
        if entered is None:
            if job.outage.active:
                self.tasks.start_soon(self._pause, job)
                return
            entered = job.outage.enter()
        job.tries += 1
        try:
            value = await uncancelled(self.function(job.item))
        except Exception as error:  # noqa: BLE001 - it is the outcome of this item alone
            if job.outage.leave(entered, error):
                job.error = error
                self.tasks.start_soon(self._pause, job)
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
        if self.jobs.stopped:
            return
        if not patience.cancelled_caught:
            job.entered = job.outage.enter()
            self.jobs.again(job)
            return
        error, known = job.error, job.outage.error
        if error is None or (isinstance(error, RequestRejected) and not isinstance(known, RequestRejected)):
            error = known or error  # the cause is more informative than CircuitOpen
        error = error or TimeoutError("an outage lasted longer than the batch's patience")
        await self._end(job, None, error)

    async def _end(self, job: Job[Item], value: Value | None, error: Exception | None) -> None:
        """Record the outcome of an item, begin the next one of its account, and deliver the outcome."""
        outcome = ItemOutcome(job.number, job.item, value, error, job.tries, job.paused)
        outcome, text = await self.recording.sunk(outcome)
        if isinstance(outcome.error, self.stop_on):
            self.stopped.setdefault(job.account, summary_of(outcome.error))
            if self.feeding is not None:
                self.feeding.cancel()
        try:
            await self.recording.record(job.key, outcome.error, text)
        except Exception as exc:  # noqa: BLE001 - raised after the outcomes
            self.fail(exc)
            outcome = replace(outcome, error=outcome.error or exc)
        self.jobs.leave(job.account)
        await self.delivery.hand_out(outcome)
