"""States in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from lamella.checks import check_whole
from lamella.pipeline import runs_beside

__all__ = ["MemoryStore"]

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")


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
        check_whole("keys", keys)
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
