"""``Store``: the interface of a shared state store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple, runtime_checkable

_S = TypeVar("_S")
_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")


class StoreUnavailable(Exception):
    """The store does not answer, which it has already logged, or it is closed."""


@runtime_checkable
class Store(Protocol):
    """A store of states that processes may share."""

    async def update(self, key: str, new: Callable[[], _S], change: Callable[[_S, float, *_Ts], _R], *args: *_Ts) -> _R:
        """Apply ``change(state, now, *args)`` to the state of *key* atomically, and return its result.

        A state is a dataclass of JSON values. *new* creates the state of a new key. *now* is in seconds, by a clock
        that never goes back and that all users of the store share. *change* alters the state in place without waiting,
        and depends on nothing else: the store may apply it again to a newer state (compare and swap).

        A store may forget a state that has not been used for a while.

        Raises:
            Exception: The store has failed and has changed nothing. The caller continues with its own copy of the
                state.
        """
        ...
