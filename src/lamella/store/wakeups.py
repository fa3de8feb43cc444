"""``Wakeups``: receives the messages with which other processes wake the holders of this one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final, Protocol
from weakref import WeakValueDictionary

ID: Final = 6  # characters of a holder's name that identify its process

_PAUSE: Final = (0.25, 30.0)  # seconds until a connection that was lost or refused is opened again, doubled each time


class Sleeper(Protocol):
    """A holder that may wait for another process."""

    @property
    def waits(self) -> bool:
        """Whether it waits for another process."""
        ...

    def wake(self) -> None:
        """Ask the store at once."""
        ...


class Wakeups:
    """Wakes the holders of this process. Without a connection they ask the store themselves every 250 ms.

    Args:
        listen: Implements :meth:`lamella.store.network.NetworkStore.listen`.
    """

    __slots__ = ("_holders", "_id", "_listen", "_pause", "_task")

    def __init__(self, listen: Callable[[str, Callable[[str], None]], Awaitable[None]]) -> None:
        self._listen = listen
        self._id = os.urandom(ID // 2).hex()
        self._holders: WeakValueDictionary[str, Sleeper] = WeakValueDictionary()
        self._task: asyncio.Task[None] | None = None
        self._pause = _PAUSE[0]

    def add(self, holder: Sleeper) -> str:
        """Return a new name for *holder*, by which other processes wake it."""
        name = self._id + os.urandom(ID // 2).hex()
        self._holders[name] = holder
        return name

    def start(self) -> None:
        """Listen in the running event loop until :meth:`stop`."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run())

    async def stop(self) -> None:
        """Close the connection of the running event loop."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        self._pause = _PAUSE[0]
        while True:
            try:
                await self._listen(self._id, self._heard)
            except NotImplementedError:
                return
            except Exception:  # noqa: BLE001, S110 - the store reports its failures when it is asked
                pass
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _PAUSE[1])

    def _heard(self, name: str) -> None:
        if name:
            holder = self._holders.get(name)
            if holder is not None:
                holder.wake()
            return
        self._pause = _PAUSE[0]
        for each in list(self._holders.values()):  # messages may have been lost
            if each.waits:
                each.wake()
