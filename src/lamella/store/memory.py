"""``MemoryStore``: states in the memory of this process."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final, TypeVar, TypeVarTuple

from lamella.checks import check_whole
from lamella.pipeline import runs_beside

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")


class MemoryStore:
    """Keeps at most *keys* states in this process. The least recently used ones are dropped.

    Args:
        keys: The number of states.
        clock: Returns the time in seconds. None means the clock of the running loop.

    Raises:
        ValueError: *keys* is less than 1.
    """

    __slots__ = ("_keys", "_loop", "_states", "clock")

    def __init__(self, keys: int = 10_000, *, clock: Callable[[], float] | None = None) -> None:
        check_whole("keys", keys)
        self._keys = keys
        self.clock: Callable[[], float] | None = clock
        """Returns the time in seconds. None means the clock of the running loop."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._states: OrderedDict[str, Any] = OrderedDict()

    def work_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve the calls of *loop*.

        Raises:
            RuntimeError: The store serves another running loop, in another thread.
        """
        if runs_beside(self._loop, loop):
            raise RuntimeError(
                "MemoryStore is in use in another thread, and cannot be shared with it: "
                "make one for each event loop, or give each a RedisStore or PostgresStore"
            )
        self._loop = loop

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """Implement :meth:`Store.update` without waiting."""
        return change(self.of(key, new), self.now(asyncio.get_running_loop().time()), *args)

    def of(self, key: str, new: Callable[[], _S]) -> _S:
        """Return the state of *key* for an immediate change, which is ten times as fast as `update`."""
        found = self._states.get(key)
        if found is None or type(found) is bytes:
            found = new() if found is None else _unpacked(found)
            self.keep(key, found)
        else:
            self._states.move_to_end(key)
        state: _S = found
        return state

    def peek(self, key: str) -> object | None:
        """Return the state of *key*, or None. This does not count as a use."""
        state = self._states.get(key)
        return _unpacked(state) if type(state) is bytes else state

    def pack(self, key: str) -> None:
        """Store the state of *key* as JSON until its next use, to save memory. No other reference to it may exist."""
        state = self._states.get(key)
        if state is not None and type(state) is not bytes:
            self._states[key] = _packed(state)

    def now(self, loop_time: float) -> float:
        """Return the time for a change. *loop_time* is the time of the running loop."""
        return loop_time if self.clock is None else self.clock()

    def keep(self, key: str, state: object) -> None:
        """Replace the state of *key*."""
        self._states[key] = state
        self._states.move_to_end(key)
        if len(self._states) > self._keys:
            self._states.popitem(last=False)

    def __len__(self) -> int:
        return len(self._states)

    def __repr__(self) -> str:
        return f"MemoryStore({self._keys})"


_KINDS: Final[list[Any]] = []
"""The types of packed states."""


def _packed(state: Any) -> bytes:
    """Return the values of a state that differ from those of a new one, and where they belong."""
    kind: Any = type(state)
    if kind not in _KINDS:
        _KINDS.append(kind)
    names, usual = _new(kind)
    found = [getattr(state, name) for name in names]
    places = bytes(place for place, value in enumerate(found) if value != usual[place])
    values = _KINDS.index(kind), [*places], *(found[place] for place in places)
    return json.dumps(values, separators=(",", ":")).encode()


def _unpacked(packed: bytes) -> Any:
    number, places, *values = json.loads(packed)
    kind = _KINDS[number]
    names, _ = _new(kind)
    return kind(**{names[place]: value for place, value in zip(places, values, strict=True)})


@lru_cache
def _new(kind: Any) -> tuple[list[str], list[Any]]:
    """Return the names and the values of a new state."""
    names = [field.name for field in fields(kind)]
    return names, [getattr(kind(), name) for name in names]
