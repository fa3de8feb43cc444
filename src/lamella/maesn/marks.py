"""How far each list has been read, and from where on it is read next, in the journal of a sync.

It is changed in transactions (``Journal.commit``): the records of a page together with the fact that it is stored, and
the high-water mark together with the last page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from lamella.maesn.list_errors import IncompleteList, RepeatedPage, UnsteadyList
from lamella.maesn.page import Page, greater
from lamella.maesn.record import EPOCH, MICROSECOND, OVERLAP, microseconds, updated_of
from lamella.maesn.stored import TABLES, Books, checked_id, compact, has_table, of_other_books, put
from lamella.maesn.walk import are_all

__all__ = ["Position", "Wanted", "begin", "look", "missing", "store"]

_MOST_WALKS: Final = 3
"""How often a list is read that changes while it is read, or is incomplete."""

# The columns are explained at _Walk.
_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS maesn_parts (account TEXT NOT NULL, resource TEXT NOT NULL, run INTEGER NOT NULL,
    page_size INTEGER NOT NULL, since TEXT, walk INTEGER NOT NULL, walks INTEGER NOT NULL, began INTEGER,
    highest INTEGER, total INTEGER, pages INTEGER, unsteady INTEGER NOT NULL, changed INTEGER NOT NULL,
    ended INTEGER NOT NULL, mark INTEGER, PRIMARY KEY (account, resource))""",
    """CREATE TABLE IF NOT EXISTS maesn_walks (account TEXT NOT NULL, resource TEXT NOT NULL, walk INTEGER NOT NULL,
    gap INTEGER NOT NULL, read INTEGER NOT NULL, largest INTEGER NOT NULL, seen INTEGER NOT NULL,
    old INTEGER NOT NULL, first INTEGER, more INTEGER NOT NULL, repeated INTEGER, PRIMARY KEY (account, resource))""",
    # The pages of the walk that are stored.
    """CREATE TABLE IF NOT EXISTS maesn_pages (account TEXT NOT NULL, resource TEXT NOT NULL, page INTEGER NOT NULL,
    PRIMARY KEY (account, resource, page)) WITHOUT ROWID""",
)


class Wanted(NamedTuple):
    """A list that is to be synced."""

    account: str  # its name
    resource: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far a list has been read in a run."""

    walk: int  # from 1; 0: it is to be read from its first page on
    since: str | None
    stored: int  # pages
    pages: int | None  # how many there are; None: not known yet
    changed: int  # records that were new, or not as they were
    ended: bool
    skipped: bool = False  # it had ended when this run was resumed
    total: int | None = None  # the greatest number of records that the API has stated
    largest: int = 0  # how many records the largest page of the walk holds
    more: int = 0  # how many of the pages are beyond the API's last one, and are read since records are missing
    gap: bool = False  # records that were last changed before `since` are not stored: no earlier walk goes up to it
    dropped: bool = False  # what was stored of another company or environment was dropped when the run began
    error: IncompleteList | None = None  # why the list is not complete, each time it was read: the mark has not moved


@dataclass(slots=True)
class _Walk:
    """One reading of a list: its rows of maesn_parts and maesn_walks. Moments are in microseconds since the epoch."""

    run: int
    page_size: int
    since: str | None
    walk: int
    walks: int = 1  # how often the list was read in this run
    began: int | None = None  # the API's time at the first answer
    highest: int | None = None  # the newest change that was read
    total: int | None = None  # the greatest number of records that the API has stated
    pages: int | None = None  # the greatest number of pages that it has stated
    unsteady: bool = False  # the list has moved while it was read
    changed: int = 0  # records of this run that were new, or not as they were
    ended: bool = False
    mark: int | None = None  # the moment up to which all is stored
    # From here on maesn_walks, which has no row of a walk by an earlier lamella: gap is None then.
    gap: bool | None = None  # records between the mark and `since` are left out
    read: int = 0  # how many records its pages hold
    largest: int = 0  # how many records the largest page holds
    seen: int = 0  # how many different records there are
    old: int = 0  # how many of these were last changed before it began
    first: int | None = None  # the total by page 1
    more: int = 0  # how many pages beyond the last one are read, since records are missing
    repeated: int | None = None  # a page that brought no new record


_COLUMNS: Final = [field.name for field in fields(_Walk)]
_SPLIT: Final = _COLUMNS.index("gap")
_OF_PARTS: Final = ", ".join(_COLUMNS[:_SPLIT])
_OF_WALKS: Final = ", ".join(_COLUMNS[_SPLIT:])


def look(
    db: sqlite3.Connection,
    wanted: Sequence[Wanted],
    since: str | None,
    *,
    resume: bool,
    page_size: int | None = None,
    books: Mapping[str, Books] = MappingProxyType({}),
) -> tuple[int, bool, list[Position]]:
    """Return what :func:`begin` would, and write nothing. *page_size* None means the one that the pages had."""
    if not has_table(db, "maesn_parts"):
        return 1, False, [_unread(since)] * len(wanted)
    [last] = db.execute("SELECT max(run) FROM maesn_parts").fetchone()
    resumed = resume and last is not None
    run: int = (last or 0) + (0 if resumed else 1)
    others = of_other_books(db, books)
    any_record = "SELECT 1 FROM maesn_records WHERE account = ? LIMIT 1"
    dropped = {name for name in others if db.execute(any_record, (name,)).fetchone()}
    positions = [
        replace(_unread(since), dropped=each.account in dropped)
        if each.account in others
        else _start(db, each, since, run, page_size)
        for each in wanted
    ]
    return run, resumed, positions


def begin(
    db: sqlite3.Connection,
    wanted: Sequence[Wanted],
    since: str | None,
    *,
    resume: bool,
    page_size: int,
    books: Mapping[str, Books] = MappingProxyType({}),
) -> tuple[int, bool, list[Position]]:
    """Begin a run, or go on with the last one if it is to be resumed.

    Returns the run's number, whether it is resumed, and the position of each list. *since* is for a new run: None means
    that each list goes on from its own mark. What is stored of an account whose *books* are others now is dropped.
    """
    for table in (*TABLES, *_TABLES):
        db.execute(table)
    run, resumed, positions = look(db, wanted, since, resume=resume, page_size=page_size, books=books)
    others = [(name,) for name in of_other_books(db, books)]
    for name in ("maesn_records", "maesn_parts", "maesn_walks", "maesn_pages"):
        db.executemany(f"DELETE FROM {name} WHERE account = ?", others)  # noqa: S608 - our own names
    db.executemany("INSERT OR REPLACE INTO maesn_books VALUES (?, ?, ?)", [(name, *of) for name, of in books.items()])
    for number, (each, position) in enumerate(zip(wanted, positions, strict=True)):
        if not position.walk:
            last = _load(db, each)
            mark, before = (None, 0) if last is None else (last.mark, last.walk)
            walk = _Walk(run, page_size, position.since, before + 1, mark=mark, gap=position.gap)
            _forget_pages(db, each)
            _save(db, each, walk)
            positions[number] = replace(_position(db, each, walk), dropped=position.dropped)
    return run, resumed, positions


def missing(db: sqlite3.Connection, each: Wanted, position: Position) -> list[int]:
    """Return the pages that are known and not stored; where their number is not known, the next one."""
    if position.ended:
        return []
    stored = {page for [page] in db.execute("SELECT page FROM maesn_pages WHERE account = ? AND resource = ?", each)}
    return [page for page in range(1, (position.pages or len(stored) + 1) + 1) if page not in stored]


def store(db: sqlite3.Connection, each: Wanted, number: int, page: Page) -> Position:
    """Store the records of a page of the walk with this *number*.

    After the last page move the mark, or begin another walk if records are missing.
    """
    walk = _load(db, each)
    if walk is None:
        raise LookupError(f"{each} was not begun")
    if walk.walk != number or walk.ended:
        return _position(db, each, walk)  # the page is of an earlier walk, or the list is complete without it
    answered = int(page.answered * 1_000_000)
    walk.began = _lesser(walk.began, answered)
    new: set[str] = set()
    for record, text in zip(page.records, page.texts, strict=True):
        name, updated = checked_id(record, each.resource), updated_of(record)
        is_changed, is_moved, is_new = put(db, (each.account, each.resource, name), number, compact(text), updated)
        walk.changed += is_changed
        walk.unsteady |= is_moved
        # A record that does not say when it was changed counts as changed when it was read.
        walk.highest = greater(walk.highest, answered if updated is None else updated)
        if is_new or name in new:  # the API counts a record that is twice on a page twice
            new.add(name)
            walk.seen += 1
            walk.old += updated is not None and updated < walk.began
    walk.read += len(page.records)
    walk.largest = max(walk.largest, len(page.records))
    if page.number == 1 and walk.first is None:
        walk.first = page.total
    if page.records and not new and walk.repeated is None:
        walk.repeated = page.number
    _count_in(db, each, walk, page)
    error = _end(db, each, walk, may_go_on=bool(page.records))
    if error is not None:
        again = walk.walks < _MOST_WALKS
        walk = _Walk(
            *(walk.run, walk.page_size, walk.since, walk.walk + 1, walk.walks + 1 if again else 1),
            changed=walk.changed,
            mark=walk.mark,
            gap=walk.gap,
        )
        error = None if again else error  # the last one: the next run reads the list again
        _forget_pages(db, each)
    _save(db, each, walk)
    return replace(_position(db, each, walk), error=error)


def _count_in(db: sqlite3.Connection, each: Wanted, walk: _Walk, page: Page) -> None:
    """Record that a page is stored, and what its answer says about the list."""
    # When a record has gone, those after it have moved up, perhaps to a page that had been read.
    total_pages = None if page.total_pages is None else max(1, page.total_pages)
    walk.unsteady |= _is_less(page.total, walk.total) or _is_less(total_pages, walk.pages)
    if page.records or page.number <= (total_pages or 1):
        db.execute("INSERT OR IGNORE INTO maesn_pages VALUES (?, ?, ?)", (*each, page.number))
        if total_pages is not None:
            walk.pages = max(walk.pages or 1, total_pages)
        elif not page.records:
            walk.pages = 1
    else:  # beyond the end
        last = page.number - 1
        walk.unsteady |= walk.pages is not None and last < walk.pages + walk.more
        walk.pages, walk.more = _lesser(walk.pages, last), 0
    walk.total = greater(walk.total, page.total)


def _end(db: sqlite3.Connection, each: Wanted, walk: _Walk, *, may_go_on: bool) -> IncompleteList | None:
    """Move the mark if the walk has brought all records; return an error if it ends without them.

    Where it has read all pages, and fewer records than the API counts, it goes on with more pages, unless the last
    one was empty (*may_go_on* is False).
    """
    total = walk.total
    has_all = are_all(walk.seen, walk.old, walk.first, total)
    if walk.repeated is not None:
        if total is None or not has_all:
            return RepeatedPage(each.resource, walk.repeated)
    else:
        stored = _stored(db, each)
        if walk.pages is None or stored < walk.pages + walk.more:
            return None
        if may_go_on and not walk.unsteady and total is not None and not has_all and walk.read < total:
            # No more than were read: the count may be wrong.
            next_ones = min(-(-(total - walk.read) // max(walk.largest, 1)), stored)
            walk.more = max(walk.pages + walk.more, stored) + next_ones - walk.pages
            return None
    if walk.unsteady or not has_all:
        counted = None if total is None or walk.seen >= total else total
        return UnsteadyList(each.resource, walk.seen, counted, readings=walk.walks, moved=bool(walk.unsteady))
    # What changed while it was read may be on a page that had been read before: so not later than the beginning. And
    # where there is a gap before it, the mark stays.
    if walk.highest is not None and not walk.gap:
        walk.mark = _lesser(walk.began, walk.highest)
    walk.ended = True
    return None


def _start(db: sqlite3.Connection, each: Wanted, since: str | None, run: int, page_size: int | None) -> Position:
    """Return where a list stands at the beginning of *run*."""
    walk = _load(db, each)
    if walk is None:
        return _unread(since)
    if walk.run != run:
        return _unread(_text(walk.mark - OVERLAP) if since is None and walk.mark is not None else since, walk.mark)
    if walk.ended:
        return replace(_position(db, each, walk), skipped=True)
    # Pages of another size are other pages, and an earlier lamella did not count what is compared at the end.
    if walk.gap is None or page_size not in {None, walk.page_size}:
        return _unread(walk.since, walk.mark)
    return _position(db, each, walk)


def _unread(since: str | None, mark: int | None = None) -> Position:
    start = None if since is None else microseconds(since)
    return Position(0, since, 0, None, 0, ended=False, gap=start is not None and (mark is None or mark < start))


def _position(db: sqlite3.Connection, each: Wanted, walk: _Walk) -> Position:
    return Position(
        walk.walk,
        walk.since,
        _stored(db, each),
        None if walk.pages is None else walk.pages + walk.more,
        walk.changed,
        bool(walk.ended),
        total=walk.total,
        largest=walk.largest,
        more=walk.more,
        gap=bool(walk.gap),
    )


def _load(db: sqlite3.Connection, each: Wanted) -> _Walk | None:
    columns, tables = _OF_PARTS, "maesn_parts"
    if has_table(db, "maesn_walks"):
        columns, tables = f"{columns}, {_OF_WALKS}", f"{tables} LEFT JOIN maesn_walks USING (account, resource, walk)"
    sql = f"SELECT {columns} FROM {tables} WHERE account = ? AND resource = ?"  # noqa: S608 - our own names
    row = db.execute(sql, each).fetchone()
    if row is None:
        return None
    is_counted = len(row) > _SPLIT and row[_SPLIT] is not None
    return _Walk(*(row if is_counted else row[:_SPLIT]))


def _save(db: sqlite3.Connection, each: Wanted, walk: _Walk) -> None:
    values = astuple(walk)
    for table, columns, row in (
        ("maesn_parts", f"account, resource, {_OF_PARTS}", (*each, *values[:_SPLIT])),
        ("maesn_walks", f"account, resource, walk, {_OF_WALKS}", (*each, walk.walk, *values[_SPLIT:])),
    ):
        places = ", ".join("?" * len(row))
        db.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({places})", row)  # noqa: S608 - our own names


def _forget_pages(db: sqlite3.Connection, each: Wanted) -> None:
    db.execute("DELETE FROM maesn_pages WHERE account = ? AND resource = ?", each)


def _stored(db: sqlite3.Connection, each: Wanted) -> int:
    [stored] = db.execute("SELECT count(*) FROM maesn_pages WHERE account = ? AND resource = ?", each).fetchone()
    return int(stored)


def _is_less(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one < other


def _lesser(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _text(moment: int) -> str:
    return (EPOCH + moment * MICROSECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")
