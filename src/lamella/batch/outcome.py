"""The outcome of one item of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


class AccountStopped(Exception):
    """Not tried: an earlier item of the same account failed with an error in ``stop_on``.

    ``__cause__`` is that error.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"not tried: an earlier item of the same account failed with {type(cause).__name__}: {cause}")
        self.__cause__: BaseException | None = cause


@dataclass(frozen=True, slots=True)
class ItemOutcome(Generic[Item, Value]):
    """One item with its value or its error."""

    number: int
    """The position of the item in the source, from 1."""
    item: Item
    value: Value | None = None
    """The return value of the function. None if it failed, or was not called because the journal records the item as
    done. A value together with an error: the function succeeded, but the journal could not record that."""
    error: Exception | None = None
    """Why the item failed; None if it did not. A ``LamellaError`` has the attempts."""
    tries: int = 0
    """How often the function was called: more than once after an outage, 0 if never."""
    paused: float = 0.0
    """Seconds spent waiting for outages to end."""

    @property
    def done(self) -> bool:
        """Whether the item succeeded, in this run or an earlier one."""
        return self.error is None

    @property
    def skipped(self) -> bool:
        """Whether the item was done in an earlier run."""
        return self.error is None and self.tries == 0
