"""A store as a network would have it: what comes of a swap is known a round trip later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lamella.store.network import VERSION, NetworkStore, Swap, Swapped

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
        replies = [self._swapped(*swap) for swap in swaps]
        database.asked += len(swaps)
        await asyncio.sleep(database.slow / 2)
        return replies

    def _swapped(self, key: str, version: str, replacement: str | None) -> Swapped:
        texts, now = self.database.texts, self.database.now()
        has = texts.get(key, "")
        if replacement is None or has[:VERSION] != version:
            return Swapped(False, has[:VERSION], has[VERSION:], now)
        texts[key] = replacement
        return Swapped(True, replacement[:VERSION], "", now)

    async def aclose(self) -> None:
        """Nothing is open."""
        await self.finish()
