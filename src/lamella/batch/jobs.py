"""The items taken by a batch, in the order in which they may run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import Generic

import anyio

from lamella.batch.outage import Entered, Outage
from lamella.batch.outcome import Item


@dataclass(slots=True)
class Job(Generic[Item]):
    """An item that is not done yet."""

    number: int
    item: Item
    outage: Outage
    account: Hashable
    key: str
    tries: int = 0
    paused: float = 0.0
    error: Exception | None = None
    """The error of the last try. None: no try yet."""
    entered: Entered | None = None
    """Set when the item has waited for an outage to end and may be tried now."""


class Jobs(Generic[Item]):
    """The jobs that may run: at most *limit* of each account at a time; the others wait here. None means no limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = inf if limit is None else limit
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[Job[Item]]] = {}
        # Bounded, because the batch takes few items ahead.
        self._ready_in, self._ready_out = anyio.create_memory_object_stream[Job[Item]](inf)
        self.stopped: bool = False
        """Whether no more jobs run."""

    def enter(self, job: Job[Item]) -> None:
        """Add a job. It may run when fewer than *limit* of its account do."""
        if self._running[job.account] < self._limit:
            self._running[job.account] += 1
            self.again(job)
        else:
            self._waiting.setdefault(job.account, deque()).append(job)

    def again(self, job: Job[Item]) -> None:
        """Let a job run once more. It counts as running all the time."""
        if not self.stopped:
            self._ready_in.send_nowait(job)

    def leave(self, account: Hashable) -> None:
        """End a job of *account*: its next one may run."""
        if waiting := self._waiting.get(account):
            self.again(waiting.popleft())
            return
        self._waiting.pop(account, None)
        self._running[account] -= 1
        if not self._running[account]:
            del self._running[account]

    async def take(self) -> Job[Item] | None:
        """Wait for a job that may run. None: there will be no more."""
        try:
            job = await self._ready_out.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return None
        return None if self.stopped else job

    def end(self) -> None:
        """State that there will be no more jobs."""
        self._ready_in.close()

    def stop(self) -> None:
        """Let no more jobs run."""
        self.stopped = True
        self.end()

    def close(self) -> None:
        """Stop, and close what the jobs were waited for with."""
        self.stop()
        self._ready_out.close()
