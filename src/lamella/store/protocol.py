"""What a shared store has to offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple

__all__ = ["Store"]

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")


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
