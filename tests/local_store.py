"""A store as a network would have it: what comes of a swap is known a round trip later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lamella.store.network import VERSION, NetworkStore, Swap, Swapped
from lamella.store.wakeups import ID

__all__ = ["Database", "LocalStore"]


class Database:
    """What the stores of several processes have in common."""

    def __init__(self, *, slow: float = 0.001, ahead: float = 1e6) -> None:
        self.texts: dict[str, str] = {}
        self.slow = slow
        self.ahead = ahead
        """By how many seconds its clock is ahead of the loop's."""
        self.hangs = False
        self.fails: Exception | None = None
        self.asked = 0
        self.listeners: dict[str, tuple[Callable[[str], None], asyncio.Future[None]]] = {}
        """The connections for wake-ups, by process. Each is lost when its future is done."""
        self.refuses = False
        """Whether it refuses such connections."""
        self.woken: list[str] = []
        """The names that were sent."""

    def jump(self, seconds: float) -> None:
        """Set its clock so much ahead."""
        self.ahead += seconds

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


class LocalStore(NetworkStore):
    """The store of one process."""

    def __init__(self, database: Database) -> None:
        super().__init__(ttl=3600)
        self.database = database

    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        database = self.database
        await asyncio.sleep(database.slow / 2)
        while database.hangs:  # noqa: ASYNC110 - until it is cancelled
            await asyncio.sleep(0.01)
        if database.fails is not None:
            raise database.fails
        replies = [self._swapped(swap) for swap in swaps]
        database.asked += len(swaps)
        await asyncio.sleep(database.slow / 2)
        return replies

    def _swapped(self, swap: Swap) -> Swapped:
        key, version, replacement, wakes = swap
        texts, now = self.database.texts, self.database.now()
        has = texts.get(key, "")
        if replacement is None or has[:VERSION] != version:
            return Swapped(False, has[:VERSION], has[VERSION:], now)
        texts[key] = replacement
        self.database.woken.extend(wakes)
        for name in wakes:
            asyncio.get_running_loop().call_later(self.database.slow / 2, self._wake, name)
        return Swapped(True, replacement[:VERSION], "", now)

    def _wake(self, name: str) -> None:
        if (listener := self.database.listeners.get(name[:ID])) is not None:
            listener[0](name)

    async def listen(self, process: str, heard: Callable[[str], None]) -> None:
        await asyncio.sleep(self.database.slow)
        if self.database.refuses:
            raise ConnectionError
        lost = asyncio.get_running_loop().create_future()
        self.database.listeners[process] = heard, lost
        try:
            heard("")
            await lost
        finally:
            del self.database.listeners[process]

    async def aclose(self) -> None:
        """Nothing is open."""
        await self.finish()
