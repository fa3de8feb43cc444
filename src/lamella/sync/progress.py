"""How far a sync has come, and its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lamella.batch import Batch
from lamella.errors import LamellaError
from lamella.sync.marks import Position, Wanted
from lamella.sync.tables import Misfits


@dataclass(frozen=True, slots=True)
class Part:
    """One resource of one account, and how far a sync has come with it."""

    account: str
    """The account's name."""
    resource: str
    since: str | None
    """Only what was changed since then is read (ISO 8601). None means everything."""
    pages: int = 0
    """How many are stored."""
    total_pages: int | None = None
    """How many there are. None: not known yet."""
    records: int = 0
    """How many were new, or not as they were stored before: in the whole run, where it was resumed."""
    running: int = 0
    """How many of its pages are being read."""
    done: bool = False
    """All is stored, and the next sync continues from here."""
    skipped: bool = False
    """It was done already when the run was resumed."""
    error: Exception | None = None
    """Why it failed: the error of the first page that could not be read or stored, or of the incomplete list."""
    gap: bool = False
    """It is done, but records that were last changed before `since` may be missing, since no run has read the list up
    to it. The mark has not moved, so that a run without *since* reads them."""
    total: int | None = None
    """The most records that the API has counted. None: it has not, so that it cannot be proved that all are there."""
    warnings: tuple[str, ...] = ()
    """What the API has said beside the records; the first ten."""
    bad: tuple[str, ...] = ()
    """Records that could not be stored, each with its page and position; the first ten."""
    compared: bool = False
    """The whole list was read, and it is proved which of the stored records the API has: it counts as many different
    records as were read, in each of its answers. Stored records that it no longer has are marked as deleted."""
    missing: int = 0
    """How many records a reading of the whole list has brought that an earlier run should have: by their date of
    change they are older than its mark."""
    missing_ids: tuple[str, ...] = ()
    """The first ten of them."""
    deleted: int = 0
    """How many records were marked as deleted, since the API no longer has them."""
    deleted_ids: tuple[str, ...] = ()
    """The first ten of them."""
    unmet: int = 0
    """How many stored records a reading of the whole list did not bring, without a proof that they are deleted."""
    nameless: int = 0
    """How many records have no id. Their content identifies them. Each run reads the whole list, and then drops the
    ones that it has not read: they were changed, or are gone."""
    dropped: bool = False
    """What was stored for the account was of another company, or of another list: the run drops it when it begins,
    and reads it again."""


class Progress:
    """How far a sync has come; the same object all the time, which changes."""

    def __init__(
        self,
        run: int,
        parts: Iterable[Part],
        batch: Batch[Any, Any],
        *,
        resumed: bool,
        departed: tuple[str, ...] = (),
    ) -> None:
        self.run = run
        """The run's number in its journal, from 1."""
        self.resumed = resumed
        self.departed = departed
        """The accounts that are no longer synced, and that the journal had records of when the run began; of those that
        it keeps, the ones that are not marked."""
        self.changed: Part | None = None
        """The part that has changed last. None at the beginning."""
        self.misfits: Misfits = Misfits()
        """What does not fit the typed columns of the output, when it is written."""
        self._parts = {(part.account, part.resource): part for part in parts}
        self._batch = batch

    def take(self, part: Part) -> None:
        """Replace the part with a newer state of it."""
        self._parts[part.account, part.resource] = self.changed = part

    @property
    def parts(self) -> Mapping[tuple[str, str], Part]:
        """The parts, by the account's name and the resource, in the order in which they were given."""
        return MappingProxyType(self._parts)

    @property
    def outage(self) -> LamellaError | None:
        """The last failure of the API while its outage pauses the sync."""
        return self._batch.outage


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a sync."""

    run: int
    """Its number in the journal, from 1."""
    resumed: bool
    parts: tuple[Part, ...]
    took: float
    """Seconds."""
    departed: tuple[str, ...] = ()
    """The accounts that are no longer synced, and that the journal had records of when the run began; of those that it
    keeps, the ones that are not marked."""
    misfits: Misfits = field(default_factory=Misfits)
    """Values that do not fit the typed columns of the output, where they are null: how many, and the first ten. The
    records themselves are there."""

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
        """The parts that are done, and of which the API gives no total."""
        return tuple(part for part in self.parts if part.done and part.total is None)

    @property
    def pages(self) -> int:
        """How many are stored."""
        return sum(part.pages for part in self.parts)

    @property
    def records(self) -> int:
        """How many were new or changed."""
        return sum(part.records for part in self.parts)


def part_of(wanted: Wanted, position: Position) -> Part:
    """Return a list as a part of the sync."""
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
