"""Where layers keep what they know of an account, an origin or a session: behind one small interface.

What is known is a *state*: a dataclass with defaults whose fields are JSON values, so that another process can read it.
A layer changes it by a plain function, which the store applies to the newest state, whole or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from math import isfinite
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

from opentelemetry import trace

from lamella import telemetry
from lamella.call import runs_beside

__all__ = ["MemoryStore", "SharedState", "Store"]

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")

_LOGGER: Final = logging.getLogger("lamella")


class Store(Protocol):
    """What a shared store has to offer, so that a fleet of processes knows what one of them has learned."""

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """Apply ``change(state, now, *args)`` to the state of *key*, and return just what it returns.

        *new* makes the state of a key that has none; it is a dataclass of JSON values, and its fields are all there
        is to keep. *now* is in seconds by a clock that never goes back and that all who share the store go by. The
        change alters the state in place. It depends on nothing else, so a store may apply it again to a newer state
        where another process came first (compare and swap). It is quick, and does not wait.

        A store may forget a state that nobody has asked for in a while.

        Raises:
            Exception: Whatever is wrong with the store. Nothing is changed then, and the caller goes on alone.
        """
        ...


class MemoryStore:
    """Keeps states in this process, and no more than *keys* of them: the least recently used is forgotten first.

    Args:
        keys: How many states are kept.
        clock: The time in seconds. None means the running loop's.

    Raises:
        ValueError: *keys* is less than 1.
    """

    __slots__ = ("_clock", "_keys", "_loop", "_states")

    def __init__(self, keys: int = 10_000, *, clock: Callable[[], float] | None = None) -> None:
        if keys < 1:
            raise ValueError(f"keys must be at least 1, not {keys!r}")
        self._keys = keys
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._states: OrderedDict[str, Any] = OrderedDict()

    def work_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on *loop* is where calls ask for what is known.

        Raises:
            RuntimeError: They do in another one that is running, in another thread.
        """
        if runs_beside(self._loop, loop):
            raise RuntimeError(
                "MemoryStore is in use in another thread, and cannot be shared with it: "
                "make one for each event loop, or give a Store that processes can share"
            )
        self._loop = loop

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """As :meth:`Store.update` has it; it never fails, and never waits."""
        return change(self.of(key, new), self.now(asyncio.get_running_loop().time()), *args)

    def of(self, key: str, new: Callable[[], _S]) -> _S:
        """The state of *key* itself, for who changes it at once: a tenth of what it takes to await the store."""
        state: _S | None = self._states.get(key)
        if state is None:
            state = new()
            self.keep(key, state)
        else:
            self._states.move_to_end(key)
        return state

    def now(self, loop_time: float) -> float:
        """The time that goes with it; *loop_time* is the running loop's."""
        return loop_time if self._clock is None else self._clock()

    def keep(self, key: str, state: object) -> None:
        """Put *state* in the place of what is known under *key*."""
        self._states[key] = state
        self._states.move_to_end(key)
        if len(self._states) > self._keys:
            self._states.popitem(last=False)

    def __len__(self) -> int:
        """How many states are kept now."""
        return len(self._states)

    def __repr__(self) -> str:
        return f"MemoryStore({self._keys})"


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
            if not isfinite(value) or value <= 0:
                raise ValueError(f"{name} must be a finite number of seconds greater than 0, not {value!r}")
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
        _LOGGER.warning(
            "the store of shared state failed (%s): for %g s this process goes by what it knows itself",
            kind,
            self._pause,
            extra={"lamella.store_error": kind},
        )
        where = span or trace.get_current_span()
        where.add_event(telemetry.STORE_EVENT, {telemetry.ERROR_TYPE: kind})
