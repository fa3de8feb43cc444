"""What the shards of one process share: a session that is made once, and closed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from opentelemetry.trace import Tracer, TracerProvider

from lamella.dataset.scratch import scratch_folder
from lamella.telemetry.tracing import Tracing

_T = TypeVar("_T")


class Process:
    """An async context manager; it belongs to the event loop that it was entered on.

    Args:
        scratch: The folder for journals of shards that are under way. None means one of this user in the folder for
            temporary files. It stays when the process is killed, so that the next one here goes on from it.
        tracer_provider: Where the spans of the shards go. None means the global one.
    """

    def __init__(self, scratch: Path | None = None, *, tracer_provider: TracerProvider | None = None) -> None:
        self.scratch: Path = scratch_folder(scratch)
        self.tracer: Tracer = Tracing(tracer_provider).tracer
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
        """Return what was entered for *key*: at the first call *make()*. It is left with the process."""
        found = self._opened.get(key)
        if found is None:
            found = self._opened[key] = asyncio.get_running_loop().create_future()
            try:
                found.set_result(await self._stack.enter_async_context(make()))
            except BaseException as exc:
                del self._opened[key]
                found.set_exception(exc)
                found.exception()  # read: others may not wait for it
                raise
        value: _T = await asyncio.shield(found)
        return value

    async def instead_of(self, key: tuple[str, int]) -> None:
        """Stop the work on a shard that an earlier run has begun here, wait for its end, and take its place."""
        while (other := self._shards.get(key)) is not None and other is not asyncio.current_task():
            other.cancel()
            await asyncio.wait([other])
            if self._shards.get(key) is other:
                del self._shards[key]
        task = asyncio.current_task()
        if task is not None:
            self._shards[key] = task

    def ended(self, key: tuple[str, int]) -> None:
        """Note that the work of this task has ended."""
        if self._shards.get(key) is asyncio.current_task():
            del self._shards[key]

    def stop(self, dataset: str) -> None:
        """Have the work on all shards of a dataset end in order."""
        for (place, _), task in self._shards.items():
            if place == dataset:
                task.cancel()
