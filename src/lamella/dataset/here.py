"""An engine that runs the shards in this process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from opentelemetry.trace import TracerProvider

from lamella.checks import check_whole
from lamella.dataset.process import Process
from lamella.dataset.shard import run_shard
from lamella.dataset.work import OnCount, Outcome, Work


class Here:
    """Runs shards on the event loop of the caller. It is an :class:`Engine`.

    Args:
        at_once: How many shards run at the same time.
        scratch: The folder for the journals of running shards, as for :class:`Process`.
        tracer_provider: Receives the spans of the shards. None means the global one.
    """

    def __init__(
        self, at_once: int = 1, scratch: Path | None = None, *, tracer_provider: TracerProvider | None = None
    ) -> None:
        check_whole("at_once", at_once)
        self._at_once = at_once
        self._scratch = scratch
        self._tracer_provider = tracer_provider

    async def __aenter__(self) -> Self:
        self._slots = asyncio.Semaphore(self._at_once)
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._stopped = False
        self._stack = AsyncExitStack()
        self._process = await self._stack.enter_async_context(
            Process(self._scratch, tracer_provider=self._tracer_provider)
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def slots(self) -> int:
        """Return the number of shards that may run at the same time."""
        return self._at_once

    async def run(self, work: Work, on_count: OnCount | None) -> Outcome:
        """Run a shard in this process and return its outcome."""
        async with self._slots:
            if self._stopped:
                return Outcome(work.shard, "interrupted")
            task = asyncio.create_task(run_shard(self._process, work, on_count))
            self._tasks.add(task)
            try:
                await asyncio.wait([task])
            finally:
                self._tasks.discard(task)
                task.cancel()
            return Outcome(work.shard, "interrupted") if task.cancelled() else task.result()

    async def stop(self) -> None:
        """Interrupt the running shards and start no other ones."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
