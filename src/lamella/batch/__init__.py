"""Process many items with limited concurrency, an outcome for each, and a journal of completed ones."""

from lamella.batch.journal import Counts, Journal, end_of
from lamella.batch.journal_errors import JournalDamaged, JournalError, JournalLocked, JournalMismatch
from lamella.batch.outcome import AccountStopped, ItemOutcome
from lamella.batch.runner import Batch

__all__ = [
    "AccountStopped",
    "Batch",
    "Counts",
    "ItemOutcome",
    "Journal",
    "JournalDamaged",
    "JournalError",
    "JournalLocked",
    "JournalMismatch",
    "end_of",
]
