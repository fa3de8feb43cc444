"""What became of one item of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


class AccountStopped(Exception):
    """An item was not tried: an earlier one of the same account ended in a way that ends the account's part.

    ``__cause__`` is how that one ended.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"not tried: an earlier item of the same account ended in {type(cause).__name__}: {cause}")
        self.__cause__: BaseException | None = cause


@dataclass(frozen=True, slots=True)
class ItemOutcome(Generic[Item, Value]):
    """One item, and its value or its error."""

    number: int
    """Which item it was, from 1, in the order in which they came."""
    item: Item
    value: Value | None = None
    """What the function returned. None, too, where it failed, or was not called since the journal has it as done.
    With an error beside it: it ended well, and the journal could not record that."""
    error: Exception | None = None
    """Why it failed. A ``LamellaError`` has its attempts."""
    tries: int = 0
    """How often the function was called: more than once after an outage, 0 where it was not called at all."""
    paused: float = 0.0
    """How many seconds it waited for outages to end."""

    @property
    def done(self) -> bool:
        """Whether it ended well, in this run or an earlier one."""
        return self.error is None

    @property
    def skipped(self) -> bool:
        """Whether it was done in an earlier run already."""
        return self.error is None and self.tries == 0
