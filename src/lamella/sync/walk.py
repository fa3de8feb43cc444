"""One reading of a list, as the journal keeps it, and what it proves of the records that are stored."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

Each = tuple[str, str]
"""The names of an account and a resource."""


@dataclass(slots=True)
class Walk:
    """One reading of a list: its row of sync_parts. Moments are in microseconds since the epoch."""

    run: int
    page_size: int
    since: str | None
    walk: int
    walks: int = 1  # how often the list was read in this run
    began: int | None = None  # the API's time at the first answer
    highest: int | None = None  # the newest change that was read
    total: int | None = None  # the greatest number of records that the API has stated
    pages: int | None = None  # the greatest number of pages that it has stated; of a chain, how many there are
    unsteady: str | None = None  # how the list has moved while it was read
    changed: int = 0  # records of this run that were new, or not as they were
    ended: bool = False
    mark: int | None = None  # the moment up to which all is stored
    gap: bool = False  # records between the mark and `since` are left out
    read: int = 0  # how many records its pages hold
    largest: int = 0  # how many records the largest page holds
    seen: int = 0  # how many different records there are
    old: int = 0  # how many of these were there before it began, as far as known
    undated: int = 0  # how many of the others do not say when they were changed
    dated: bool = False  # whether any record says so
    first: int | None = None  # the total by page 1
    more: int = 0  # how many pages beyond the last one are read, since records are missing
    repeated: int | None = None  # a page that brought no new record
    empty: int = 0  # how many pages in a row were empty, of a chain
    bad: str | None = None  # the first record that could not be stored
    least: int | None = None  # the lowest number of records that the API has stated
    fresh: int = 0  # how many of the different records were not stored, or marked as deleted, when it began
    full: int | None = None  # when the last walk began that has read the whole list
    exact: int | None = None  # the last walk before this one whose records were those of the list
    verify: bool = False  # whether the list is read once more where that is needed to know what is deleted
    compared: bool = False  # whether it has proved which of the stored records the API has
    missing: int = 0  # records of this run that an earlier run should have stored
    deleted: int = 0  # records of this run that were marked as deleted
    unmet: int = 0  # stored records that were not read, where it is not proved that they are deleted
    nameless: int = 0  # records without an id

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
        )

    @property
    def has_ended(self) -> bool:
        """Whether all of it is stored."""
        return bool(self.ended)  # the journal has it as a number

    @property
    def has_all(self) -> bool:
        """Whether it has read as many records as were there when it began, as far as the API counts.

        Records that are new since then do not replace others; without dates they cannot be distinguished.
        Where more old ones were read than page 1 counted, its count is wrong.
        """
        if self.total is None:
            return True
        old = self.old + (0 if self.dated else self.undated)
        return self.seen >= self.total if self.first is None or old > self.first else old == self.first

    def is_exact(self, met: int) -> bool:
        """Return whether the records that it has read, *met* of them, are those of the list.

        That is so by a count that has not changed meanwhile.
        """
        counts = {self.total, self.least, self.first}
        return self.since is None and counts == {met} and self.repeated is None

    def is_deleted(self, last: int) -> bool:
        """Return whether a stored record is deleted that this walk, which is exact, has not read.

        It may have moved to a page that had been read, when another one was deleted, and one was created so that the
        count stayed the same; but then not all of the others were stored before. An answer that holds nothing may be a
        mistake. In both cases, another exact walk must have missed it as well.

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
        if name not in there:  # a journal of before there was such a column
            default = getattr(blank, name)
            db.execute(
                f"ALTER TABLE sync_parts ADD COLUMN {name} DEFAULT {'NULL' if default is None else int(default)}"
            )


def load(db: sqlite3.Connection, each: Each) -> Walk | None:
    """Return the last walk of a list. None: there was none."""
    found = db.execute("SELECT * FROM sync_parts WHERE account = ? AND resource = ?", each)
    row = found.fetchone()
    if row is None:
        return None
    values = dict(zip((name for name, *_ in found.description), row, strict=True))
    # What is only looked at may be a journal of before there was such a column.
    return Walk(**{name: values[name] for name in _COLUMNS if name in values})


def save(db: sqlite3.Connection, each: Each, walk: Walk) -> None:
    """Store a walk in the place of the last one."""
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
