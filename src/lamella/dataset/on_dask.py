"""Run shards on the workers of a Dask cluster. Each worker has a thread with its own event loop and session.

A task is one shard. It waits in a thread of its worker while the event loop of the plugin's thread does the work. JSON
and Parquet therefore never block the loop that sends the heartbeats of the worker to the scheduler.
"""

# distributed is an extra.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import astuple
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

from distributed import Client, Worker, WorkerPlugin, get_worker, secede
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from lamella.dataset.commits import DatasetError
from lamella.dataset.driver import WorkLost
from lamella.dataset.process import Process
from lamella.dataset.shard import run_shard
from lamella.dataset.work import Count, OnCount, Outcome, Work

_T = TypeVar("_T")

_PLUGIN: Final = "lamella"
_TOPIC: Final = "lamella-counts"
_LEAVE: Final = 10.0
"""Seconds in which the workers must close their sessions after a run."""


class OnDask:
    """Runs shards on the cluster of a client. It is a :class:`lamella.dataset.Engine`.

    Args:
        client: A ``distributed.Client``, with or without ``asynchronous=True``. It is not closed.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._name = f"{_PLUGIN}-{uuid4().hex}"
        self._counting: dict[int, OnCount] = {}

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._on_its_loop(self._begin())
        return self

    async def __aexit__(self, *exc: object) -> None:
        with suppress(OSError, TimeoutError):  # the scheduler is gone
            await self._on_its_loop(self._end())

    async def slots(self) -> int:
        """Return the number of threads of all workers."""
        try:
            found: dict[str, int] = await self._on_its_loop(self._nthreads())
        except OSError as exc:
            raise DatasetError(f"the scheduler cannot be reached: {exc}; the next run continues from here") from exc
        return sum(found.values())

    async def run(self, work: Work, on_count: OnCount | None) -> Outcome:
        """Submit a shard as a task, and wait for its outcome."""
        if on_count is not None:
            self._counting[work.shard] = on_count
        try:
            outcome: Outcome = await self._on_its_loop(self._submit(work))
            return outcome
        except KilledWorker as exc:
            raise WorkLost(str(exc).partition("\n")[0]) from exc
        except FutureCancelledError as exc:
            raise DatasetError("the scheduler has lost the shard; the next run continues from here") from exc
        finally:
            self._counting.pop(work.shard, None)

    async def stop(self) -> None:
        """Interrupt the shards of each worker and start no other ones."""
        with suppress(OSError, TimeoutError):
            await self._on_its_loop(self._stop())

    async def _on_its_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run *work* on the loop of the client, which differs from this one if the client has its own thread."""
        loop = self._client.loop.asyncio_loop
        if loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    async def _begin(self) -> None:
        await self._client.register_plugin(_Shards(self._name))
        self._client.subscribe_topic(self._topic, self._take)

    async def _end(self) -> None:
        self._client.unsubscribe_topic(self._topic)
        async with asyncio.timeout(_LEAVE):  # a frozen worker does not answer
            await self._client.unregister_worker_plugin(self._name)

    async def _nthreads(self) -> dict[str, int]:
        found: dict[str, int] = await self._client.nthreads()
        return found

    async def _submit(self, work: Work) -> Outcome:
        key = f"{self._name}-{work.shard}-{uuid4().hex}"
        future = self._client.submit(_do, work, self._name, self._topic, key=key, pure=False)
        try:
            outcome: Outcome = await future
            return outcome
        finally:
            future.release()

    async def _stop(self) -> None:
        await self._client.run(_stop, self._name, on_error="ignore")

    @property
    def _topic(self) -> str:
        return f"{_TOPIC}-{self._name}"

    def _take(self, event: tuple[float, Any]) -> None:
        """Pass the count of a shard to the loop of the run."""
        count = Count(*event[1])
        on_count = self._counting.get(count.shard)
        if on_count is not None:
            self._loop.call_soon_threadsafe(on_count, count)


# The code below runs on the workers.


class _Shards(WorkerPlugin):  # type: ignore[misc]
    """Runs the shards of a worker in a thread with its own event loop and shared resources.

    Args:
        name: The name of the plugin, with which the keys of its tasks begin.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, worker: Worker) -> None:
        self._work: dict[str, asyncio.Task[Outcome]] = {}
        self._released: set[str] = set()
        self._stopped = False
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="lamella-shards", daemon=True)
        self._thread.start()

    async def teardown(self, worker: Worker) -> None:
        """Interrupt the shards, close the session, and wait until both are done."""
        await asyncio.to_thread(self.stop)
        await asyncio.to_thread(self._leave)

    def transition(self, key: object, start: str, finish: str, **_: Any) -> None:
        """Interrupt a shard whose task is released while it runs: its driver is lost."""
        if (start, finish) == ("executing", "released") and isinstance(key, str) and key.startswith(self.name):
            self._released.add(key)
            self._ready.result().call_soon_threadsafe(self._cancel)

    def do(self, key: str, work: Work, on_count: OnCount) -> Outcome:
        """Run a shard and wait for its outcome."""
        loop = self._ready.result()
        if self._stopped:
            return Outcome(work.shard, "interrupted")
        read = threading.Event()
        outcome = asyncio.run_coroutine_threadsafe(self._do(key, work, on_count, read.set), loop)
        outcome.add_done_callback(lambda _: read.set())
        read.wait()
        if not outcome.done():
            secede()  # the worker reads its next shard while this one is committed
        return outcome.result()

    def stop(self) -> None:
        """Interrupt the shards and start no other ones."""
        self._stopped = True
        self._ready.result().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        for key, task in self._work.items():
            # A second cancellation would interrupt the commit of the journal.
            if (self._stopped or key in self._released) and not task.cancelling():
                task.cancel()

    def _leave(self) -> None:
        self._ready.result().call_soon_threadsafe(self._left.set)
        self._thread.join()

    async def _main(self) -> None:
        self._left = asyncio.Event()
        try:
            async with Process() as self._process:
                self._ready.set_result(asyncio.get_running_loop())
                await self._left.wait()
                if self._work:
                    await asyncio.wait(self._work.values())
        except Exception as exc:
            if self._ready.done():
                raise
            self._ready.set_exception(exc)

    async def _do(self, key: str, work: Work, on_count: OnCount, on_read: Callable[[], object]) -> Outcome:
        task = self._work[key] = asyncio.create_task(run_shard(self._process, work, on_count, on_read))
        self._cancel()
        try:
            await asyncio.wait([task])
        finally:
            del self._work[key]
            self._released.discard(key)
        return Outcome(work.shard, "interrupted") if task.cancelled() else task.result()


def _do(work: Work, plugin: str, topic: str) -> Outcome:
    worker = get_worker()
    shards: _Shards = worker.plugins[plugin]

    def on_count(count: Count) -> None:
        worker.loop.add_callback(worker.log_event, topic, astuple(count))

    return shards.do(worker.get_current_task(), work, on_count)


def _stop(plugin: str, dask_worker: Worker) -> None:
    found = dask_worker.plugins.get(plugin)
    if found is not None:
        found.stop()
