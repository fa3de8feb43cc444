"""``NetworkStore``: a store that processes share over a network. It uses compare and swap."""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar, TypeVarTuple
from weakref import WeakSet

from lamella.checks import check_seconds
from lamella.logger import LOGGER
from lamella.pipeline import runs_beside
from lamella.store.protocol import StoreUnavailable
from lamella.store.wakeups import Wakeups

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")

_PATIENCE: Final = 1.0  # seconds to wait for an answer after the swaps were written
_MORE: Final = 0.05  # further seconds: the answer may have arrived while this process was not running
PAUSE: Final = 0.25  # seconds until a failed store is asked again
_MOST: Final = 256  # maximum number of swaps sent together
_TTL: Final = (1.0, 1e9)  # seconds: longer than between two exchanges, and less than the servers can count
_SEEN: Final = 10_000  # maximum number of states
_DRIFT: Final = 1.01  # factor per answer by which an answer that sets the clock may be slower than the fastest one
_WENT_BACK: Final = 1.0  # seconds
_MOST_WRONG: Final = 0.1  # seconds
TIMER_ERROR: Final = 0.0005  # seconds: a timer may be too early by a rounding error
_TRIES: Final = 50
_LAST: Final = 0.5  # maximum seconds for the last reports
VERSION: Final = 16  # characters


class Swap(NamedTuple):
    """A request to replace a state if its version has not changed."""

    key: str
    version: str
    """The expected version. Empty: no state is expected."""
    replacement: str | None
    """The new version and the new state. None: only read the state."""
    wakes: Sequence[str] = ()
    """The names of the holders to wake if the state is replaced."""


class Swapped(NamedTuple):
    """The result of a swap."""

    done: bool
    version: str
    """The version of the state that the store has now. Empty: it has no state."""
    state: str
    """The state that the store has, if the swap was not done."""
    server: float
    """The time in seconds by the store's clock, which may go back."""


class Stored(NamedTuple):
    """What a store holds."""

    states: dict[str, str]
    """Some of the states by their keys, in the order of the keys."""
    number: int
    """The number of states."""
    is_exact: bool
    """Whether *number* is exact. False: there are at least as many."""
    server: float
    """The time in seconds by the store's clock."""


class Holder(Protocol):
    """Something that holds permits of a store."""

    def leave(self) -> Awaitable[object] | None:
        """Report for the last time. None: there is nothing to report."""
        ...


class NetworkStore(ABC):
    """A store of texts, which are replaced by compare and swap. Subclasses implement the sending of swaps.

    The swaps that begin in one iteration of the event loop are sent together. After a failure the store is not asked
    for a quarter of a second, and then by one swap at a time. One warning is logged until it stores a state again.
    """

    def __init__(self, *, ttl: float) -> None:
        check_seconds("ttl", ttl)
        if not _TTL[0] <= ttl <= _TTL[1]:
            raise ValueError(f"ttl must be a number of seconds from {_TTL[0]:g} to {_TTL[1]:,.0f}, got {ttl!r}")
        self.ttl = ttl
        """Seconds for which an unused state is kept, at least 1."""
        self.ahead: float | None = None
        """Seconds by which the store's clock is ahead of the loop's clock. None: not known yet."""
        self.error: float = 0.0
        """Maximum error of `ahead` in seconds: half the duration of the exchange that determined it."""
        self.holders: WeakSet[Holder] = WeakSet()
        """Those that report for the last time when the store is closed."""
        self._fastest = float("inf")
        self.begin()
        self._closed_in: asyncio.AbstractEventLoop | None = None
        self._failed: float | None = None  # time of the last failure by the loop's clock. None: the store works
        self._warned = False  # since a state was stored: a store that is full or read-only still answers
        self._seen: OrderedDict[str, tuple[str, str]] = OrderedDict()  # version and state by key, for `update`
        _STORES.add(self)

    def begin(self) -> None:
        """Begin without connections and tasks, at first and in a fork of the process."""
        self.wakeups: Wakeups = Wakeups(self.listen)
        """Wakes the holders of this process when others send their names."""
        self._queue: list[tuple[Swap, asyncio.Future[Swapped]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._loop_in_use: asyncio.AbstractEventLoop | None = None

    def work_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve the calls of *loop*.

        Raises:
            RuntimeError: The store serves another running loop, in another thread.
        """
        if runs_beside(self._loop_in_use, loop):
            raise RuntimeError(
                f"{type(self).__name__} is in use in another thread, and cannot be shared with it: make one for each "
                "event loop, with the same arguments"
            )
        self._loop_in_use = loop

    @property
    def doubt(self) -> float:
        """Seconds by which the times of two processes may differ."""
        return 2 * min(self.error, _MOST_WRONG) + TIMER_ERROR

    @abstractmethod
    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        """Send *swaps* and return the result of each. Any exception means that the store has failed."""

    async def listen(self, process: str, heard: Callable[[str], None]) -> None:
        """Call *heard* with each name that others send to *process*, the first six characters of the names.

        Call it with an empty name whenever a connection is ready. Return when the connection is lost.

        Raises:
            NotImplementedError: The store sends no names. Its holders ask it every 250 ms.
            Exception: There is no connection. It is opened again later.
        """
        raise NotImplementedError

    def listen_here(self) -> None:
        """Receive wake-ups in the running event loop, unless the store is closed in it."""
        if self._closed_in is not asyncio.get_running_loop():
            self.wakeups.start()

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections, after `finish`."""

    async def finish(self) -> None:
        """Let the holders report for at most half a second, then refuse further swaps of this event loop.

        Otherwise a later report might open a connection after the store is closed.
        """
        loop = asyncio.get_running_loop()
        if self._failed is None and self._closed_in is not loop:
            reports = [report for each in self.holders if (report := each.leave()) is not None]
            if reports:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST):
                        await asyncio.gather(*reports, return_exceptions=True)
        self._closed_in = loop
        await self.wakeups.stop()
        if self._sender is not None and self._sender.get_loop() is self._closed_in:
            await asyncio.wait({self._sender})

    async def __aenter__(self) -> Self:
        self._closed_in = None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def swap(self, key: str, version: str, state: str | None = None, wakes: Sequence[str] = ()) -> Swapped:
        """Replace the state of *key* if it still has *version*, and wake *wakes*. *state* None: only read it.

        Raises:
            StoreUnavailable: The store does not answer, or is closed. The swap may have been done.
        """
        loop = asyncio.get_running_loop()
        if self._closed_in is loop:
            raise StoreUnavailable
        if self._failed is not None:
            if loop.time() < self._failed + PAUSE:
                raise StoreUnavailable
            self._failed = loop.time()  # this swap tests the store; other swaps do not wait for the answer
        done: asyncio.Future[Swapped] = loop.create_future()
        replacement = None if state is None else os.urandom(VERSION // 2).hex() + state
        self._queue.append((Swap(key, version, replacement, wakes), done))
        if self._sender is None or self._sender.done() or self._sender.get_loop() is not loop:
            self._sender = loop.create_task(self._send_all())
        return await done

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch, self._queue = self._queue[:_MOST], self._queue[_MOST:]
            batch = [each for each in batch if each[1].get_loop() is loop and not each[1].done()]
            if not batch:
                continue
            began = loop.time()
            try:
                replies = await self._patiently([swap for swap, _ in batch])
            except asyncio.CancelledError:
                for _, done in batch:
                    done.cancel()
                raise
            except Exception as exc:  # noqa: BLE001 - of a client library
                self._has_failed(exc)
                for _, done in (*batch, *self._queue):
                    if not done.done():
                        done.set_exception(StoreUnavailable())
                self._queue.clear()
                return
            self._failed = None
            self._warned = self._warned and not any(reply.done for reply in replies)
            self._set_clock(replies[-1].server, began, loop.time())
            for (swap, done), reply in zip(batch, replies, strict=True):
                if not done.done():
                    done.set_result(_done_before(swap, reply))

    async def _patiently(self, swaps: Sequence[Swap]) -> list[Swapped]:
        sending = asyncio.get_running_loop().create_task(self.send(swaps))
        try:
            for seconds in (_PATIENCE, _MORE):
                await asyncio.wait({sending}, timeout=seconds)
                if sending.done():
                    return sending.result()
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait({sending})
        raise TimeoutError

    def _set_clock(self, server: float, began: float, ended: float) -> None:
        took, ahead = ended - began, server - (began + ended) / 2
        self._fastest *= _DRIFT
        if self.ahead is None or took <= self._fastest or abs(ahead - self.ahead) > took + _WENT_BACK:
            self._fastest, self.ahead, self.error = took, ahead, took / 2

    def _has_failed(self, exc: Exception) -> None:
        if not self._warned:
            self._warned = True
            kind = type(exc).__qualname__  # the message may contain the store's address with a password
            LOGGER.warning(
                "the store of shared state failed (%s): this process uses its share of the last known limits until the "
                "store answers",
                kind,
                extra={"lamella.store_error": kind},
            )
        self._failed = asyncio.get_running_loop().time()

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """Implement :meth:`Store.update`.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        version, text = self._seen.get(key, ("", ""))
        if not text or self.ahead is None:
            _, version, found, _ = await self.swap(key, "")
            text = found or text
        for _ in range(_TRIES):
            server = asyncio.get_running_loop().time() + (self.ahead or 0.0)
            # If the store has lost a state, the times of the next one can be compared with its times.
            whole: dict[str, Any] = json.loads(text) if text else {"clock": server, "server": server, "state": None}
            state = new() if whole["state"] is None else type(new())(**whole["state"])
            # It never goes back, although the store's clock may.
            now = whole["clock"] = whole["clock"] + max(server - whole["server"], 0.0)
            whole["server"] = server
            result = change(state, now, *args)
            whole["state"] = asdict(state)  # type: ignore[call-overload]
            changed = json.dumps(whole, separators=(",", ":"))
            done, version, found, _ = await self.swap(key, version, changed)
            if done:
                self._seen[key] = version, changed
                self._seen.move_to_end(key)
                if len(self._seen) > _SEEN:
                    self._seen.popitem(last=False)
                return result
            text = found or text  # restore a state that the store has lost
        raise StoreUnavailable


_STORES: Final[WeakSet[NetworkStore]] = WeakSet()
_INHERITED: Final[list[object]] = []
"""Connections of the process that this one is a fork of. Closing them here would cut that process off as well."""


def _forked() -> None:
    for store in list(_STORES):
        _INHERITED.append(vars(store).copy())
        store.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _done_before(swap: Swap, reply: Swapped) -> Swapped:
    """Return *reply*, or that the swap was done: it may have been sent twice because an answer was lost."""
    if swap.replacement is not None and not reply.done and reply.version == swap.replacement[:VERSION]:
        return reply._replace(done=True, state="")
    return reply
