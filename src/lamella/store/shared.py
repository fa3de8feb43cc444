"""``SharedState``: a layer's access to a store. No call fails or waits long because the store does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from opentelemetry.trace import Span, get_current_span

from lamella.checks import check_seconds
from lamella.logger import LOGGER
from lamella.origins import Origin, origin_text
from lamella.store.memory import MemoryStore
from lamella.store.protocol import Store, StoreUnavailable
from lamella.telemetry.names import ERROR_TYPE, STORE_EVENT

if TYPE_CHECKING:  # most programs share no store with other processes
    from lamella.store.network import NetworkStore

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")


@lru_cache(maxsize=1024)
def hash_key(origin: Origin | None, key: str | None) -> str:
    """Return a hash of *origin* and *key*, which may be a credential. It is the same in every process."""
    text = f"{'' if origin is None else origin_text(origin)}\n{key or ''}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def network_store(store: Store | None) -> NetworkStore | None:
    """Return *store* if it is a `NetworkStore`, or None."""
    if store is None or isinstance(store, MemoryStore):
        return None
    from lamella.store.network import NetworkStore

    return store if isinstance(store, NetworkStore) else None


class SharedState:
    """The states of a layer in a store. While the store fails, the layer uses the last states that this process has
    read.

    All times are by the store's clock, even while it fails. So no state mixes the times of two clocks, and a failure of
    the store ends no episode.

    Args:
        store: The store. None means one in memory, for this layer alone.
        patience: Maximum duration of a store operation in seconds. A `NetworkStore` has its own, which does not count
            the time in which this process is busy.
        pause: Seconds for which a failed store is not asked. A `NetworkStore` has its own.
    """

    __slots__ = ("_ahead", "_failed", "_failures", "_is_own", "_local", "_patience", "_pause", "_store", "memory")

    def __init__(self, store: Store | None, *, patience: float = 0.25, pause: float = 5.0) -> None:
        check_seconds("patience", patience)
        check_seconds("pause", pause)
        has_own = network_store(store) is not None
        self._patience = None if has_own else patience
        self._pause = 0.0 if has_own else pause
        self._store: Store | None = None
        self._local = MemoryStore()
        self._is_own = store is None
        if isinstance(store, MemoryStore):
            self._local = store
        elif store is not None:
            self._store, self._local = store, MemoryStore(clock=self._clock)
        self.memory: MemoryStore | None = self._local if self._store is None else None
        """The store, if it is in memory: a layer may use it without waiting."""
        self._failed: float | None = None  # time of the last failure by the loop's clock. None: the store works
        self._failures = 0
        self._ahead: float | None = None  # seconds that the store's clock is ahead of the loop's. None: unknown

    def work_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve the calls of *loop*. Raise RuntimeError if the store is in use in another thread."""
        store = network_store(self._store) if self.memory is None else self.memory
        if store is not None:
            store.work_in(loop)

    def last_known(self, key: str) -> object | None:
        """Return the last state of *key* that this process has read, or None. The caller must not change it."""
        return self._local.peek(key)

    def pack(self, key: str) -> None:
        """Keep the state of *key* in less memory while it is not used, if no other layer has the store."""
        if self._is_own:
            self._local.pack(key)

    def now(self) -> float:
        """Return the time by the store's clock, or by the loop's clock while that is unknown."""
        time = asyncio.get_running_loop().time()
        return self._clock() if self.memory is None else self.memory.now(time)

    def _clock(self) -> float:
        return asyncio.get_running_loop().time() + (self._ahead or 0.0)

    async def note(
        self, span: Span | None, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts
    ) -> _R:
        """Do the same as `update`, even if the caller is cancelled meanwhile, for results that must not be lost.

        After a cancellation the change may have been applied twice.
        """
        if self.memory is not None:
            return await self.memory.update(key, new, change, *args)  # it does not wait
        from anyio import CancelScope  # importing it takes longer than importing this module

        with CancelScope(shield=True):  # in a cancelled scope, nothing could be awaited
            try:
                return await self.update(span, key, new, change, *args)
            except asyncio.CancelledError:
                await self.update(span, key, new, change, *args)
                raise
        raise AssertionError("a shield swallows nothing")

    async def update(
        self, span: Span | None, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts
    ) -> _R:
        """Implement :meth:`Store.update`. If the store fails, warn on *span*; None means the current one."""
        store, now = self._store, asyncio.get_running_loop().time()
        if store is None or (self._failed is not None and now < self._failed + self._pause):
            return await self._local.update(key, new, change, *args)
        if self._failed is not None:
            self._failed = now  # this call tests the store; other calls do not wait for the answer
        failures = self._failures
        try:
            return await self._ask(store, key, new, change, *args)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure: BaseException = exc  # something in the store was cancelled, not this task
        except Exception as exc:  # noqa: BLE001 - a store of the user's may fail in any way
            failure = exc
        if self._failures == failures:  # only the first of several concurrent failures is reported
            self._failures += 1
            if self._failed is None:
                self._warn(failure, span)
            self._failed = asyncio.get_running_loop().time()
        return await self._local.update(key, new, change, *args)

    async def _ask(
        self, store: Store, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts
    ) -> _R:
        loop = asyncio.get_running_loop()
        applied: list[tuple[_S, float, _R]] = []

        def changed(state: _S, moment: float, *args: *_Ts) -> _R:
            result = change(state, moment, *args)
            applied.append((state, moment - loop.time(), result))
            return result

        failures = self._failures
        async with asyncio.timeout(self._patience):
            given = await store.update(key, new, changed, *args)
        found = next((each for each in reversed(applied) if each[2] is given or each[2] == given), None)
        if found is None:
            raise TypeError("the store has not returned what the change returned")
        state, ahead, result = found
        if self._failures == failures:
            self._failed = None
        if self._ahead is None:
            self._local = MemoryStore(clock=self._clock)  # the times in the states so far are by another clock
        self._ahead = ahead
        self._local.keep(key, state)
        return result

    def _warn(self, exc: BaseException, span: Span | None) -> None:
        kind = type(exc).__qualname__  # its message may hold the store's address, with a password
        if not isinstance(exc, StoreUnavailable):  # which the store has logged
            LOGGER.warning(
                "the store of shared state failed (%s): this process uses its own copy until the store answers",
                kind,
                extra={"lamella.store_error": kind},
            )
        (span or get_current_span()).add_event(STORE_EVENT, {ERROR_TYPE: kind})
