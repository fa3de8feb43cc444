"""Record the ends of items in the journal, after the sink has taken their values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, cast

from lamella.batch.awaiting import uncancelled
from lamella.batch.journal import Journal
from lamella.batch.outcome import Item, ItemOutcome, Value


@dataclass(slots=True)
class Recording(Generic[Item, Value]):
    """What happens to the outcome of an item before it is handed out."""

    journal: Journal | None
    keep: Callable[[Value], str] | None
    sink: Callable[[ItemOutcome[Item, Value]], Awaitable[object]] | None

    async def ended(self, keys: Iterable[str]) -> set[str]:
        """Return those of *keys* whose items are done by the journal."""
        return set() if self.journal is None else await self.journal.ended(keys)

    async def sunk(self, outcome: ItemOutcome[Item, Value]) -> tuple[ItemOutcome[Item, Value], str | None]:
        """Give a success to the sink. Return the outcome, with the error of the sink, and the text to keep."""
        if outcome.error is not None:
            return outcome, None
        try:
            text = None if self.keep is None else self.keep(cast(Value, outcome.value))
            if self.sink is not None:
                await uncancelled(self.sink(outcome))
        except Exception as exc:  # noqa: BLE001 - it is the outcome of this item alone
            return replace(outcome, value=None, error=exc), None
        return outcome, text

    async def record(self, key: str, error: Exception | None, text: str | None) -> None:
        """Record the end of the item with *key* in the journal.

        Raises:
            Exception: The journal cannot be written.
        """
        if self.journal is None:
            return
        failure = None if error is None else str(error) or repr(error)
        if failure is not None:
            failure = failure.encode("utf-8", "backslashreplace").decode()  # SQLite rejects lone surrogates
        await self.journal.end(key, result=text, error=failure)
