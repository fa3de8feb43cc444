"""The items taken by a batch, and the limit of concurrent items per account."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import Generic

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


class Lanes(Generic[Item]):
    """Run at most *limit* jobs of each account at a time; the others wait here. None means no limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = inf if limit is None else limit
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[Job[Item]]] = {}

    def enter(self, job: Job[Item]) -> bool:
        """Return whether *job* may run now. If not, :meth:`leave` returns it later."""
        if self._running[job.account] < self._limit:
            self._running[job.account] += 1
            return True
        self._waiting.setdefault(job.account, deque()).append(job)
        return False

    def leave(self, account: Hashable) -> Job[Item] | None:
        """End a job of *account* and return the next one that may run."""
        if waiting := self._waiting.get(account):
            return waiting.popleft()
        self._waiting.pop(account, None)
        self._running[account] -= 1
        if not self._running[account]:
            del self._running[account]
        return None
