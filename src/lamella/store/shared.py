"""Where layers keep what they know of an account, an origin or a session: behind one small interface.

What is known is a *state*: a dataclass with defaults whose fields are JSON values, so that another process can read it.
A layer changes it by a plain function, which the store applies to the newest state, whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from opentelemetry import trace

from lamella.checks import check_seconds
from lamella.store.memory import MemoryStore
from lamella.store.protocol import Store
from lamella.telemetry.log import LOGGER
from lamella.telemetry.names import ERROR_TYPE, STORE_EVENT

__all__ = ["SharedState"]

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")


class SharedState:
    """A layer's way to a store: where that fails or is slow, what this process knows has to do. No call fails for it.

    What it knows is what it last saw in the store, and it goes by the store's clock: so an episode does not end
    because a store did, and no state ever holds moments by two clocks.

    Args:
        store: The store. None means one in memory, of the layer's own.
        patience: The longest that an answer may take, in seconds.
        pause: For how many seconds a store that has failed is left alone.
    """

    __slots__ = ("_ahead", "_failed", "_failures", "_local", "_patience", "_pause", "_store", "memory")

    def __init__(self, store: Store | None, *, patience: float = 0.25, pause: float = 5.0) -> None:
        for name, value in (("patience", patience), ("pause", pause)):
            check_seconds(name, value)
        self._store: Store | None = None
        self._local = MemoryStore()
        if isinstance(store, MemoryStore):
            self._local = store
        elif store is not None:
            self._store, self._local = store, MemoryStore(clock=self._clock)
        self.memory = self._local if self._store is None else None
        """The store, where it is one in memory: that can be asked at once. None: it may take its time."""
        self._patience = patience
        self._pause = pause
        self._failed: float | None = None
        """When the store failed, by the loop's clock. None: it works, as far as is known."""
        self._failures = 0
        self._ahead: float | None = None
        """By how many seconds the store's clock is ahead of the loop's. None: it has never been asked."""

    def work_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """As :meth:`MemoryStore.work_in`, where the store is one in memory."""
        if self.memory is not None:
            self.memory.work_in(loop)

    def _clock(self) -> float:
        return asyncio.get_running_loop().time() + (self._ahead or 0.0)

    async def update(
        self,
        span: trace.Span | None,
        key: str,
        new: Callable[[], _S],
        change: Callable[[_S, float, *_Ts], _R],
        *args: *_Ts,
    ) -> _R:
        """As :meth:`Store.update` has it; a warning about the store goes on *span*, None meaning the current one."""
        store = self._store
        if store is None:
            return await self._local.update(key, new, change, *args)
        now = asyncio.get_running_loop().time()
        if self._failed is not None:
            if now < self._failed + self._pause:
                return await self._local.update(key, new, change, *args)
            # This one finds out whether it is well again: the others need not wait for it meanwhile.
            self._failed = now
        failures = self._failures
        try:
            return await self._ask(store, key, new, change, *args)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure: BaseException = exc  # something inside of the store was cancelled, and not we
        except Exception as exc:  # noqa: BLE001 - a store of the user's may fail in any way
            failure = exc
        if self._failures == failures:  # of those that asked together, one warns
            self._failures += 1
            self._failed = asyncio.get_running_loop().time()
            self._warn(failure, span)
        return await self._local.update(key, new, change, *args)

    async def _ask(
        self, store: Store, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts
    ) -> _R:
        loop = asyncio.get_running_loop()
        seen: list[tuple[_S, float, _R]] = []

        def changed(state: _S, moment: float, *args: *_Ts) -> _R:
            answer = change(state, moment, *args)
            seen.append((state, moment - loop.time(), answer))
            return answer

        failures = self._failures
        async with asyncio.timeout(self._patience):
            given = await store.update(key, new, changed, *args)
        found = next((each for each in reversed(seen) if each[2] is given or each[2] == given), None)
        if found is None:
            raise TypeError("what the store has returned is not what the change did")
        state, ahead, answer = found
        if self._failures == failures:
            self._failed = None
        if self._ahead is None:
            # Until now it went by another clock.
            self._local = MemoryStore(clock=self._clock)
        self._ahead = ahead
        self._local.keep(key, state)
        return answer

    def _warn(self, exc: BaseException, span: trace.Span | None) -> None:
        # The message of a store's error may hold its address, and a password in it: only its class is told.
        kind = type(exc).__qualname__
        LOGGER.warning(
            "the store of shared state failed (%s): for %g s this process goes by what it knows itself",
            kind,
            self._pause,
            extra={"lamella.store_error": kind},
        )
        where = span or trace.get_current_span()
        where.add_event(STORE_EVENT, {ERROR_TYPE: kind})
