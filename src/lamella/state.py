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

__all__ = ["MemoryStore", "SharedState", "Store"]

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")

_LOGGER: Final = logging.getLogger("lamella")


class Store(Protocol):
    """What a shared store has to offer, so that a fleet of processes knows what one of them has learned."""

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """Apply ``change(state, now, *args)`` to the state of *key*, and return what it returns.

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

    __slots__ = ("_clock", "_keys", "_states")

    def __init__(self, keys: int = 10_000, *, clock: Callable[[], float] | None = None) -> None:
        if keys < 1:
            raise ValueError(f"keys must be at least 1, not {keys!r}")
        self._keys = keys
        self._clock = clock
        self._states: OrderedDict[str, Any] = OrderedDict()

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """As :meth:`Store.update` has it; it never fails, and never waits."""
        states = self._states
        if key in states:
            states.move_to_end(key)
            state = states[key]
        else:
            state = states[key] = new()
            if len(states) > self._keys:
                states.popitem(last=False)
        now = asyncio.get_running_loop().time() if self._clock is None else self._clock()
        return change(state, now, *args)

    def __len__(self) -> int:
        """How many states are kept now."""
        return len(self._states)

    def __repr__(self) -> str:
        return f"MemoryStore({self._keys})"


class SharedState:
    """A layer's way to a store: where that fails or is slow, what this process knows has to do. No call fails for it.

    Args:
        store: The store. None means one in memory, of the layer's own.
        patience: The longest that an answer may take, in seconds.
        pause: For how many seconds a store that has failed is left alone.
    """

    __slots__ = ("_failed", "_local", "_patience", "_pause", "_store")

    def __init__(self, store: Store | None, *, patience: float = 0.25, pause: float = 5.0) -> None:
        for name, value in (("patience", patience), ("pause", pause)):
            if not isfinite(value) or value <= 0:
                raise ValueError(f"{name} must be a finite number of seconds greater than 0, not {value!r}")
        self._local = store if isinstance(store, MemoryStore) else MemoryStore()
        self._store = None if isinstance(store, MemoryStore) else store
        self._patience = patience
        self._pause = pause
        self._failed: float | None = None
        """When the store failed, by the loop's clock."""

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
        if self._failed is not None and now < self._failed + self._pause:
            return await self._local.update(key, new, change, *args)
        try:
            async with asyncio.timeout(self._patience):
                answer = await store.update(key, new, change, *args)
        except Exception as exc:  # noqa: BLE001 - a store of the user's may fail in any way
            self._warn(exc, span)
            self._failed = asyncio.get_running_loop().time()
            return await self._local.update(key, new, change, *args)
        self._failed = None
        return answer

    def _warn(self, exc: Exception, span: trace.Span | None) -> None:
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
