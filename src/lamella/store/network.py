"""``NetworkStore``: a store that processes share over a network, by compare and swap."""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple

from lamella.checks import check_seconds
from lamella.telemetry.log import LOGGER

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")

_PATIENCE: Final = 1.0  # seconds for an answer, from when the swaps are written
_MORE: Final = 0.05  # seconds more: the answer may have come while this process did not run
PAUSE: Final = 0.25  # seconds until a store that has failed is asked again
_MOST: Final = 256  # swaps that are sent together
_SEEN: Final = 10_000  # states
_DRIFT: Final = 1.01  # by how much slower than the fastest answer one may be to set the clock, for each answer
_WENT_BACK: Final = 1.0  # seconds
_TRIES: Final = 50
VERSION: Final = 16  # characters


class StoreUnavailable(Exception):
    """The store does not answer, which it has reported already."""


class Swap(NamedTuple):
    """Replace a state, if it is still the one that was seen."""

    key: str
    version: str
    """Of the state that was seen. Empty: there was none."""
    replacement: str | None
    """The new version and the new state. None: only read."""


class Swapped(NamedTuple):
    """The result of a swap."""

    done: bool
    version: str
    """Of the state that the store has now. Empty: it has none."""
    state: str
    """That state, if the swap was not done."""
    server: float
    """The time in seconds by the store's clock, which may go back."""


class NetworkStore(ABC):
    """A store of texts that are replaced by compare and swap. Subclasses say how to send swaps.

    The swaps that begin in one turn of the event loop are sent together. When the store fails, it is not asked for a
    quarter of a second, and then by one swap at a time; one warning is logged until it answers again.
    """

    def __init__(self, *, ttl: float) -> None:
        check_seconds("ttl", ttl)
        self.ttl = ttl
        """For how many seconds a state is kept that is not used."""
        self.ahead: float | None = None
        """By how many seconds the store's clock is ahead of the loop's. None: not known yet."""
        self.error: float = 0.0
        """By how many seconds that may be wrong: the answer from which it is known took twice as long."""
        self._fastest = float("inf")
        self._queue: list[tuple[Swap, asyncio.Future[Swapped]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._failed: float | None = None  # when it failed last, by the loop's clock. None: it works
        self._seen: OrderedDict[str, tuple[str, str]] = OrderedDict()  # version and state, of those that `update` uses

    @abstractmethod
    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        """Send *swaps* and return the result of each. Any exception means that the store has failed."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections."""

    async def swap(self, key: str, version: str, state: str | None = None) -> Swapped:
        """Replace the state of *key*, if it is still of *version*. *state* None: only read it.

        Raises:
            StoreUnavailable: The store does not answer. The swap may have been done.
        """
        loop = asyncio.get_running_loop()
        if self._failed is not None:
            if loop.time() < self._failed + PAUSE:
                raise StoreUnavailable
            self._failed = loop.time()  # this one asks; the others do not wait for the answer
        done: asyncio.Future[Swapped] = loop.create_future()
        replacement = None if state is None else os.urandom(VERSION // 2).hex() + state
        self._queue.append((Swap(key, version, replacement), done))
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
        if self._failed is None:
            kind = type(exc).__qualname__  # its message may hold the store's address, with a password
            LOGGER.warning(
                "the store of shared state failed (%s): this process goes by its share of what it knows until the "
                "store answers",
                kind,
                extra={"lamella.store_error": kind},
            )
        self._failed = asyncio.get_running_loop().time()

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """Do what :meth:`Store.update` says.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        version, text = self._seen.get(key, ("", ""))
        if not text or self.ahead is None:
            _, version, found, _ = await self.swap(key, "")
            text = found or text
        for _ in range(_TRIES):
            whole: dict[str, Any] = json.loads(text) if text else {"clock": 1000.0, "server": None, "state": None}
            state = new() if whole["state"] is None else type(new())(**whole["state"])
            now = whole["clock"] = self._tick(whole["clock"], whole["server"])
            whole["server"] = asyncio.get_running_loop().time() + (self.ahead or 0.0)
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
            text = found or text  # what the store has forgotten is put back
        raise StoreUnavailable

    def _tick(self, clock: float, server: float | None) -> float:
        """Return the time of a state that never goes back, though the store's clock may."""
        now = asyncio.get_running_loop().time() + (self.ahead or 0.0)
        return clock if server is None else clock + max(now - server, 0.0)


def _done_before(swap: Swap, reply: Swapped) -> Swapped:
    """Return *reply*, or that the swap was done: it may have been sent twice because an answer was lost."""
    if swap.replacement is not None and not reply.done and reply.version == swap.replacement[:VERSION]:
        return reply._replace(done=True, state="")
    return reply
