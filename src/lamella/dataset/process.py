"""Resources that the shards of one process share, such as a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from opentelemetry.trace import TracerProvider

from lamella.dataset.scratch import scratch_folder
from lamella.telemetry.tracing import Tracing

_T = TypeVar("_T")


class Process:
    """Holds the shared resources. It is an async context manager and belongs to the event loop that entered it.

    Args:
        scratch: The folder for the journals of running shards. None means a folder of this user in the folder for
            temporary files. It is kept if the process is killed: the next one on this machine continues from it.
        tracer_provider: Receives the spans of the shards. None means the global one.
    """

    def __init__(self, scratch: Path | None = None, *, tracer_provider: TracerProvider | None = None) -> None:
        self.scratch: Path = scratch_folder(scratch)
        self.tracing: Tracing = Tracing(tracer_provider)
        self._opened: dict[Hashable, asyncio.Future[Any]] = {}
        self._shards: dict[tuple[str, int], asyncio.Task[Any]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._shards.values():
            task.cancel()
        await asyncio.gather(*self._shards.values(), return_exceptions=True)
        await self._stack.aclose()

    async def shared(self, key: Hashable, make: Callable[[], AbstractAsyncContextManager[_T]]) -> _T:
        """Return the shared resource of *key*. The first call enters *make()*; the end of the process exits it."""
        found = self._opened.get(key)
        if found is None:
            found = self._opened[key] = asyncio.get_running_loop().create_future()
            try:
                found.set_result(await self._stack.enter_async_context(make()))
            except BaseException as exc:
                del self._opened[key]
                found.set_exception(exc)
                found.exception()  # mark it as retrieved: there may be no other waiter
                raise
        value: _T = await asyncio.shield(found)
        return value

    async def instead_of(self, key: tuple[str, int]) -> None:
        """Stop an earlier run of a shard in this process, wait for its end and take its place."""
        while (other := self._shards.get(key)) is not None and other is not asyncio.current_task():
            if not other.cancelling():  # a second cancellation would interrupt the commit of its journal
                other.cancel()
            await asyncio.wait([other])
            if self._shards.get(key) is other:
                del self._shards[key]
        task = asyncio.current_task()
        if task is not None:
            self._shards[key] = task

    def ended(self, key: tuple[str, int]) -> None:
        """Record that the current task has ended its shard."""
        if self._shards.get(key) is asyncio.current_task():
            del self._shards[key]
