"""The progress of a sync and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lamella.batch import Batch
from lamella.errors import LamellaError
from lamella.sync.marks import Position, Wanted
from lamella.sync.tables import Misfits


@dataclass(frozen=True, slots=True)
class Part:
    """One resource of one account, and its progress in a sync."""

    account: str
    """The account's name."""
    resource: str
    since: str | None
    """Only records changed since this time are read (ISO 8601). None means all records."""
    pages: int = 0
    """The number of stored pages."""
    total_pages: int | None = None
    """The number of pages. None: not known yet."""
    records: int = 0
    """The number of records that were new or changed. For a resumed run: since its beginning."""
    running: int = 0
    """The number of pages that are being read."""
    done: bool = False
    """All records are stored, and the next sync continues from here."""
    skipped: bool = False
    """It was already done when the run was resumed."""
    error: Exception | None = None
    """The error of the first page that could not be read or stored, or of the incomplete list. Only those of the first
    ten parts that fail have a traceback, a cause, and the headers and the body of the response: all of them would take
    much memory."""
    gap: bool = False
    """It is done, but records last changed before `since` may be missing, because no run has read the list up to that
    time, or the clock of the API has gone back since then. A run without *since* reads them."""
    total: int | None = None
    """The highest record count that the API has stated. None: it stated none, so nothing proves that the list is
    complete."""
    warnings: tuple[str, ...] = ()
    """The first ten warnings of the API, and one if a full first page does not mention a next page."""
    bad: tuple[str, ...] = ()
    """The first ten records that could not be stored, each with its page and position."""
    compared: bool = False
    """The whole list was read, and it is proved which stored records the API still has: in each answer, it counts as
    many records as were read. Stored records that it no longer has are marked as deleted."""
    missing: int = 0
    """The number of records that only a reading of the whole list found, although an earlier run should have: they were
    last changed before its mark."""
    missing_ids: tuple[str, ...] = ()
    """The first ten of them."""
    deleted: int = 0
    """The number of records marked as deleted, because the API no longer has them."""
    deleted_ids: tuple[str, ...] = ()
    """The first ten of them."""
    unmet: int = 0
    """The number of stored records that a reading of the whole list did not find, without a proof that they are
    deleted."""
    nameless: int = 0
    """The number of records without an id. Their content identifies them. Each run reads the whole list, and then drops
    the records without an id that it has not read: they were changed or deleted."""
    dropped: bool = False
    """The stored records belong to another company or another list. The run drops them when it begins, and reads the
    list again."""


class Progress:
    """The progress of a sync. It is one object, which changes during the run."""

    def __init__(
        self,
        run: int,
        parts: dict[tuple[str, str], Part],
        batch: Batch[Any, Any],
        *,
        resumed: bool,
        departed: tuple[str, ...] = (),
        not_read: tuple[str, ...] = (),
    ) -> None:
        self.run = run
        """The run's number in its journal, from 1."""
        self.resumed = resumed
        self.departed = departed
        """The accounts that had records in the journal when the run began, but are no longer synced. Accounts that are
        already marked are left out."""
        self.not_read = not_read
        """The resources that have records of these accounts in the journal, but are not among the sources."""
        self.changed: Part | None = None
        """The part that changed last. None at the beginning."""
        self.misfits: Misfits = Misfits()
        """The values that do not fit the typed columns of the output, once it is written."""
        self._parts = parts
        self._batch = batch

    def take(self, part: Part) -> None:
        """Replace the part with a newer state of it."""
        self._parts[part.account, part.resource] = self.changed = part

    @property
    def parts(self) -> Mapping[tuple[str, str], Part]:
        """The parts by account name and resource, in the given order."""
        return MappingProxyType(self._parts)

    @property
    def outage(self) -> LamellaError | None:
        """The last failure of the API, while an outage pauses the sync."""
        return self._batch.outage


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a sync."""

    run: int
    """The number of the run in the journal, from 1."""
    resumed: bool
    parts: tuple[Part, ...]
    took: float
    """Seconds."""
    departed: tuple[str, ...] = ()
    """The accounts that had records in the journal when the run began, but are no longer synced. Accounts that are
    already marked are left out."""
    misfits: Misfits = field(default_factory=Misfits)
    """The number and the first ten of the values that do not fit the typed columns of the output, and are null there.
    The records themselves are complete."""
    not_read: tuple[str, ...] = ()
    """The resources that have records of these accounts in the journal and the output, but are not among the sources.
    Their records are those of an earlier run."""

    @property
    def done(self) -> bool:
        """Whether every part is done."""
        return all(part.done for part in self.parts)

    @property
    def failed(self) -> tuple[Part, ...]:
        """The parts that are not done, each with its error."""
        return tuple(part for part in self.parts if not part.done)

    @property
    def unproved(self) -> tuple[Part, ...]:
        """The parts that are done although the API states no total for them."""
        return tuple(part for part in self.parts if part.done and part.total is None)

    @property
    def pages(self) -> int:
        """The number of stored pages."""
        return sum(part.pages for part in self.parts)

    @property
    def records(self) -> int:
        """The number of records that were new or changed."""
        return sum(part.records for part in self.parts)


def part_of(wanted: Wanted, position: Position) -> Part:
    """Return the part for a list."""
    return Part(
        *wanted,
        since=position.since,
        pages=position.stored,
        total_pages=position.pages,
        records=position.changed,
        done=position.ended,
        skipped=position.skipped,
        gap=position.ended and position.gap,
        total=position.total,
        compared=position.ended and position.compared,
        missing=position.missing,
        deleted=position.deleted,
        unmet=position.unmet,
        nameless=position.nameless,
        dropped=position.dropped,
    )
