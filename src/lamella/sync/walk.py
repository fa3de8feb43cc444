"""One reading of a list, as stored in the journal, and its evidence about the stored records."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

MOST_WALKS: Final = 3
"""Maximum readings of a list in a run, if it changes during a reading, or is incomplete."""

Each = tuple[str, str]
"""The names of an account and a resource."""


@dataclass(slots=True)
class Walk:
    """One reading of a list: its row of sync_parts. Times are in microseconds since the epoch."""

    run: int
    page_size: int
    since: str | None
    walk: int
    walks: int = 1  # the number of readings in this run
    began: int | None = None  # the API's time at the first answer
    highest: int | None = None  # the newest date of change of the records
    total: int | None = None  # the greatest number of records that the API has stated
    pages: int | None = None  # the greatest number of pages that the API has stated. For a chain, the number of pages
    unsteady: str | None = None  # how the list changed during the reading
    changed: int = 0  # records of this run that were new or changed
    ended: bool = False
    mark: int | None = None  # the time up to which all records are stored
    gap: bool = False  # records between the mark and `since` are not read
    read: int = 0  # the number of records on its pages
    largest: int = 0  # the number of records on the largest page
    seen: int = 0  # the number of distinct records
    old: int = 0  # how many of them existed before the walk began, as far as known
    undated: int = 0  # how many of the others have no date of change
    dated: bool = False  # whether any record has a date of change
    first: int | None = None  # the total that page 1 stated
    more: int = 0  # pages after the last one that are read because records are missing
    repeated: int | None = None  # a page that brought no new record
    empty: int = 0  # consecutive empty pages of a chain
    bad: str | None = None  # the first record that could not be stored
    least: int | None = None  # the lowest number of records that the API has stated
    fresh: int = 0  # how many of the different records were not stored, or were marked as deleted, when the walk began
    full: int | None = None  # when the last walk that read the whole list began
    exact: int | None = None  # the last earlier walk whose records were exactly those of the list
    verify: bool = False  # whether to read the list again if deletions are not proved yet
    compared: bool = False  # whether the walk proved which stored records the API still has
    missing: int = 0  # records of this run that an earlier run should have stored
    deleted: int = 0  # records of this run that were marked as deleted
    unmet: int = 0  # stored records that were not read and not proved to be deleted
    nameless: int = 0  # records without an id
    equal: bool = False  # whether one of them was on two pages
    equals: int = 0  # consecutive pages of a chain, each equal to an earlier one
    honours: int | None = None  # as for is_to_ask()

    def again(self, *, walks: int) -> Walk:
        """Return the next reading of the same list in the same run."""
        return Walk(
            *(self.run, self.page_size, self.since, self.walk + 1, walks),
            changed=self.changed,
            mark=self.mark,
            gap=self.gap,
            full=self.full,
            exact=self.exact,
            verify=self.verify,
            missing=self.missing,
            deleted=self.deleted,
            honours=self.honours,
        )

    @property
    def has_ended(self) -> bool:
        """Whether the whole list is stored."""
        return bool(self.ended)  # the journal stores it as a number

    @property
    def has_all(self) -> bool:
        """Whether the walk has read as many records as existed when it began, by the API's count.

        Records created since then do not replace missing ones; without dates, they cannot be distinguished. If more old
        records were read than page 1 counted, that count is wrong.
        """
        if self.total is None:
            return True
        old = self.old + (0 if self.dated else self.undated)
        return self.seen >= self.total if self.first is None or old > self.first else old == self.first

    def is_exact(self, met: int) -> bool:
        """Return whether the *met* records that it has read are exactly those of the list.

        This requires a count that did not change during the walk.
        """
        counts = {self.total, self.least, self.first}
        return self.since is None and counts == {met} and self.repeated is None

    def is_deleted(self, last: int) -> bool:
        """Return whether a stored record that this exact walk has not read is deleted.

        If another record was deleted and a new one created, the count stayed the same, but the record may have moved to
        a page that was already read. In this case, not all other records were stored before. An empty answer may be a
        mistake. In both cases, another exact walk must also have missed the record.

        Args:
            last: The walk that has read the record.
        """
        sure = self.seen > 0 and (self.pages == 1 or not self.fresh)
        return sure or (self.exact is not None and last < self.exact)


_COLUMNS: Final = [field.name for field in fields(Walk)]
_values: Final = attrgetter(*_COLUMNS)
_TABLES: Final = (
    f"""CREATE TABLE IF NOT EXISTS sync_parts (account TEXT NOT NULL, resource TEXT NOT NULL,
    {", ".join(_COLUMNS)}, PRIMARY KEY (account, resource))""",
    # The pages of the walk that are stored; `token` leads to the next one.
    """CREATE TABLE IF NOT EXISTS sync_pages (account TEXT NOT NULL, resource TEXT NOT NULL, page INTEGER NOT NULL,
    token TEXT, PRIMARY KEY (account, resource, page)) WITHOUT ROWID""",
)


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables of the walks."""
    for table in _TABLES:
        db.execute(table)
    there = {name for _, name, *_ in db.execute("PRAGMA table_info(sync_parts)")}
    blank = Walk(0, 0, None, 0)
    for name in _COLUMNS:
        if name not in there:  # a journal from before this column existed
            default = getattr(blank, name)
            db.execute(
                f"ALTER TABLE sync_parts ADD COLUMN {name} DEFAULT {'NULL' if default is None else int(default)}"
            )


def load(db: sqlite3.Connection, each: Each) -> Walk | None:
    """Return the last walk of a list. None: there was no walk."""
    found = db.execute("SELECT * FROM sync_parts WHERE account = ? AND resource = ?", each)
    row = found.fetchone()
    if row is None:
        return None
    values = dict(zip((name for name, *_ in found.description), row, strict=True))
    # A journal that is only read may be from before some column existed.
    return Walk(**{name: values[name] for name in _COLUMNS if name in values})


def begun(db: sqlite3.Connection, each: Each) -> Walk:
    """Return the current walk of a list. Raises LookupError if there is none."""
    walk = load(db, each)
    if walk is None:
        raise LookupError(f"{each} was not begun")
    return walk


def save(db: sqlite3.Connection, each: Each, walk: Walk) -> None:
    """Store a walk in place of the last one."""
    names, places = ", ".join(_COLUMNS), ", ".join("?" * (2 + len(_COLUMNS)))
    sql = f"INSERT OR REPLACE INTO sync_parts (account, resource, {names}) VALUES ({places})"  # noqa: S608 - as above
    db.execute(sql, (*each, *_values(walk)))


def forget_pages(db: sqlite3.Connection, each: Each) -> None:
    """Forget which pages of a list are stored."""
    db.execute("DELETE FROM sync_pages WHERE account = ? AND resource = ?", each)


def count_pages(db: sqlite3.Connection, each: Each) -> int:
    """Return how many pages of a list are stored."""
    [stored] = db.execute("SELECT count(*) FROM sync_pages WHERE account = ? AND resource = ?", each).fetchone()
    return int(stored)
