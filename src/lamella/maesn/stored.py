"""What a sync keeps in its journal: the records, how far each list has been read, and from where on it is read next.

All of it is changed in transactions of the journal's (``Journal.commit``): the records of a page together with the fact
that it is stored, and the high-water mark together with the last page.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from lamella.maesn.list_errors import IncompleteList, RepeatedPage, UnsteadyList
from lamella.maesn.pages import Page, are_all
from lamella.maesn.record import EPOCH, MICROSECOND, OVERLAP, id_names, id_of, microseconds, updated_of

__all__ = ["Books", "Position", "Wanted", "begin", "look", "missing", "store"]

_MOST_WALKS: Final = 3
"""How often a list is read that changes while it is read, or is incomplete."""
_BETWEEN_SPACE: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^" \t\n\r]++')
"""What is left of JSON without the white space between its tokens: strings, and whatever is neither."""

# `walk` is the one in which it was read last, `updated` what the record itself says, in microseconds since the epoch.
_RECORDS: Final = """
    CREATE TABLE IF NOT EXISTS maesn_records (
        account TEXT NOT NULL,
        resource TEXT NOT NULL,
        id TEXT NOT NULL,
        updated INTEGER,
        record TEXT NOT NULL,
        walk INTEGER NOT NULL,
        PRIMARY KEY (account, resource, id)
    )"""
# A part is one list: a resource of an account. A walk reads it once: from `since` on, or from the beginning. `began` is
# the API's time at the first answer, `highest` the newest that was read; `total` and `pages` are the most that there
# were said to be; `unsteady` is whether the list has moved meanwhile, and `walks` how often it was read therefore.
# `mark` is the moment up to which all is stored. Moments are in microseconds since the epoch.
_PARTS: Final = """
    CREATE TABLE IF NOT EXISTS maesn_parts (
        account TEXT NOT NULL,
        resource TEXT NOT NULL,
        run INTEGER NOT NULL,
        page_size INTEGER NOT NULL,
        since TEXT,
        walk INTEGER NOT NULL,
        walks INTEGER NOT NULL,
        began INTEGER,
        highest INTEGER,
        total INTEGER,
        pages INTEGER,
        unsteady INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        mark INTEGER,
        PRIMARY KEY (account, resource)
    )"""
# What the walk has come to: `read` is how many records its pages hold, `largest` how many the largest of them has,
# `seen` how many are different, `old` how many of these were last changed before it `began`. `first` is the total by
# page 1, `more` the number of pages beyond the last one that are read since records are missing, `repeated` a page that
# brought no new record. `gap` is whether records between the mark and `since` are left out. Where there is no row, or
# one of another walk, an earlier lamella has begun the walk.
_WALKS: Final = """
    CREATE TABLE IF NOT EXISTS maesn_walks (
        account TEXT NOT NULL,
        resource TEXT NOT NULL,
        walk INTEGER NOT NULL,
        gap INTEGER NOT NULL,
        read INTEGER NOT NULL,
        largest INTEGER NOT NULL,
        seen INTEGER NOT NULL,
        old INTEGER NOT NULL,
        first INTEGER,
        more INTEGER NOT NULL,
        repeated INTEGER,
        PRIMARY KEY (account, resource)
    )"""
# Whose books an account's records are.
_BOOKS: Final = """
    CREATE TABLE IF NOT EXISTS maesn_books (
        account TEXT PRIMARY KEY,
        company TEXT,
        environment TEXT
    )"""
# The pages of the walk that are stored.
_PAGES: Final = """
    CREATE TABLE IF NOT EXISTS maesn_pages (
        account TEXT NOT NULL,
        resource TEXT NOT NULL,
        page INTEGER NOT NULL,
        PRIMARY KEY (account, resource, page)
    ) WITHOUT ROWID"""


_ANY_RECORD: Final = "SELECT 1 FROM maesn_records WHERE account = ? LIMIT 1"
_ANY_WALK: Final = (
    "SELECT 1 FROM maesn_walks JOIN maesn_parts USING (account, resource, walk) WHERE account = ? AND resource = ?"
)


class Wanted(NamedTuple):
    """A list that is to be synced."""

    account: str
    """Its name."""
    resource: str


class Books(NamedTuple):
    """Whose books an account's records are. None means that the API is not asked for any in particular."""

    company_id: str | None
    environment_name: str | None


@dataclass(frozen=True, slots=True)
class Position:
    """How far a list has been read in a run."""

    walk: int
    """From 1. 0: it is to be read from its first page on."""
    since: str | None
    stored: int
    """Pages."""
    pages: int | None
    """How many there are. None: not known yet."""
    changed: int
    """Records that were new, or not as they were."""
    ended: bool
    skipped: bool = False
    """It had ended when this run was resumed."""
    total: int | None = None
    """How many records there are: the most that the API has said. None: it did not say."""
    largest: int = 0
    """How many records the largest page of the walk holds."""
    more: int = 0
    """How many of the pages are beyond the last one by the API's count, and are read since records are missing."""
    gap: bool = False
    """Records that were last changed before `since` are not stored: no earlier walk goes on up to it."""
    dropped: bool = False
    """What was stored of another company or environment was dropped when the run began."""
    error: IncompleteList | None = None
    """Why the list is not complete, each time it was read: the mark has not moved."""


def look(
    db: sqlite3.Connection,
    wanted: Sequence[Wanted],
    since: str | None,
    *,
    resume: bool,
    page_size: int | None = None,
    books: Mapping[str, Books] = MappingProxyType({}),
) -> tuple[int, bool, list[Position]]:
    """What :func:`begin` would return. It writes nothing. *page_size* None means the one that the pages had."""
    if not _has(db, "maesn_parts"):
        return 1, False, [_unread(since)] * len(wanted)
    [last] = db.execute("SELECT max(run) FROM maesn_parts").fetchone()
    resumed = resume and last is not None
    run = last if resumed else (last or 0) + 1
    others = _of_other_books(db, books)
    dropped = {name for name in others if db.execute(_ANY_RECORD, (name,)).fetchone()}
    has_walks = _has(db, "maesn_walks")
    return (
        run,
        resumed,
        [
            replace(_unread(since), dropped=each.account in dropped)
            if each.account in others
            else _position(db, each, since, run, page_size, has_walks=has_walks)
            for each in wanted
        ],
    )


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

    Returns the run's number, whether it is resumed, and where each list stands. *since* is for a new run: None means
    that each list goes on from its own mark. What is stored of an account whose *books* are others now is dropped.
    """
    for table in (_RECORDS, _PARTS, _WALKS, _BOOKS, _PAGES):
        db.execute(table)
    run, resumed, positions = look(db, wanted, since, resume=resume, page_size=page_size, books=books)
    _drop(db, _of_other_books(db, books))
    db.executemany("INSERT OR REPLACE INTO maesn_books VALUES (?, ?, ?)", [(name, *of) for name, of in books.items()])
    for number, (each, position) in enumerate(zip(wanted, positions, strict=True)):
        if not position.walk:
            _begin_anew(db, each, run, page_size, position)
            positions[number] = replace(_read(db, each), dropped=position.dropped)
    return run, resumed, positions


def missing(db: sqlite3.Connection, each: Wanted, position: Position) -> list[int]:
    """The pages that are known and not stored; where it is not known how many there are, the next one."""
    if position.ended:
        return []
    stored = {page for [page] in db.execute("SELECT page FROM maesn_pages WHERE account = ? AND resource = ?", each)}
    return [page for page in range(1, (position.pages or len(stored) + 1) + 1) if page not in stored]


def store(db: sqlite3.Connection, each: Wanted, walk: int, page: Page) -> Position:
    """Store the records of a page. After the last one move the mark, or begin another walk if records are missing."""
    position = _read(db, each)
    if position.walk != walk or position.ended:
        return position  # it answers to an earlier walk, or what it belongs to is complete without it
    [began] = db.execute("SELECT began FROM maesn_parts WHERE account = ? AND resource = ?", each).fetchone()
    began = _of_both(min, began, _answered(page))
    newest, moved = None, False
    changed = seen = old = 0
    new: set[str] = set()
    for record, text in zip(page.records, page.texts, strict=True):
        name, updated = _id_of(record, each.resource), updated_of(record)
        is_changed, again, is_new = _put(db, (*each, name), walk, _compact(text), updated)
        changed += is_changed
        moved = moved or again
        # What does not say when it was changed was so when it was read.
        newest = _of_both(max, newest, _answered(page) if updated is None else updated)
        if is_new or name in new:  # one that is twice on a page is so in the API's count as well
            new.add(name)
            seen += 1
            old += updated is not None and _is_less(updated, began)
    db.execute("UPDATE maesn_parts SET changed = changed + ? WHERE account = ? AND resource = ?", (changed, *each))
    _count_in(db, each, page, newest, moved=moved)
    db.execute(
        "UPDATE maesn_walks SET read = read + ?, largest = max(largest, ?), seen = seen + ?, old = old + ?,"
        " first = coalesce(first, ?), repeated = coalesce(repeated, ?) WHERE account = ? AND resource = ?",
        (
            len(page.records),
            len(page.records),
            seen,
            old,
            page.total if page.number == 1 else None,
            page.number if page.records and not new else None,
            *each,
        ),
    )
    return _end_if_all_is_stored(db, each, may_go_on=bool(page.records))


def _unread(since: str | None, mark: int | None = None) -> Position:
    start = None if since is None else microseconds(since)
    return Position(0, since, 0, None, 0, ended=False, gap=start is not None and (mark is None or mark < start))


def _has(db: sqlite3.Connection, table: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None


def _of_other_books(db: sqlite3.Connection, books: Mapping[str, Books]) -> set[str]:
    """The accounts whose records are of other books. Where it is not known whose they are, they are of the same."""
    if not _has(db, "maesn_books"):
        return set()
    before = {name: Books(*of) for name, *of in db.execute("SELECT account, company, environment FROM maesn_books")}
    return {name for name, of in books.items() if before.get(name, of) != of}


def _drop(db: sqlite3.Connection, accounts: Collection[str]) -> None:
    for table in ("maesn_records", "maesn_parts", "maesn_walks", "maesn_pages"):
        db.executemany(f"DELETE FROM {table} WHERE account = ?", [(name,) for name in accounts])  # noqa: S608 - our own


def _position(
    db: sqlite3.Connection, each: Wanted, since: str | None, run: int, page_size: int | None, *, has_walks: bool
) -> Position:
    found = db.execute(
        "SELECT run, page_size, since, mark FROM maesn_parts WHERE account = ? AND resource = ?", each
    ).fetchone()
    if found is None:
        return _unread(since)
    last, size, before, mark = found
    if last != run:
        return _unread(_text(mark - OVERLAP) if since is None and mark is not None else since, mark)
    if not has_walks or not db.execute(_ANY_WALK, each).fetchone():
        # An earlier lamella has read it, which did not count what is compared at the end of a walk.
        [ended] = db.execute("SELECT ended FROM maesn_parts WHERE account = ? AND resource = ?", each).fetchone()
        return replace(_read_old(db, each), skipped=True) if ended else _unread(before, mark)
    position = _read(db, each)
    if position.ended:
        return replace(position, skipped=True)
    # Pages of another size are other pages.
    return position if page_size in {None, size} else _unread(before, mark)


def _read(db: sqlite3.Connection, each: Wanted) -> Position:
    largest, more, gap = db.execute(
        "SELECT largest, more, gap FROM maesn_walks WHERE account = ? AND resource = ?", each
    ).fetchone()
    position = _read_old(db, each)
    pages = None if position.pages is None else position.pages + more
    return replace(position, pages=pages, largest=largest, more=more, gap=bool(gap))


def _read_old(db: sqlite3.Connection, each: Wanted) -> Position:
    """Where a list stands by the tables that each journal has."""
    walk, since, pages, changed, ended, total = db.execute(
        "SELECT walk, since, pages, changed, ended, total FROM maesn_parts WHERE account = ? AND resource = ?", each
    ).fetchone()
    [stored] = db.execute("SELECT count(*) FROM maesn_pages WHERE account = ? AND resource = ?", each).fetchone()
    return Position(walk, since, stored, pages, changed, bool(ended), total=total)


def _begin_anew(db: sqlite3.Connection, each: Wanted, run: int, page_size: int, position: Position) -> None:
    """Begin a walk, the first one of a run."""
    db.execute("DELETE FROM maesn_pages WHERE account = ? AND resource = ?", each)
    db.execute(
        "INSERT INTO maesn_parts (account, resource, run, page_size, since, walk, walks, unsteady, changed, ended)"
        " VALUES (?, ?, ?, ?, ?, 1, 1, 0, 0, 0) ON CONFLICT (account, resource) DO UPDATE SET run = excluded.run,"
        " page_size = excluded.page_size, since = excluded.since, walk = maesn_parts.walk + 1, walks = 1, began = NULL,"
        " highest = NULL, total = NULL, pages = NULL, unsteady = 0, changed = 0, ended = 0",
        (*each, run, page_size, position.since),
    )
    _begin_counting(db, each, gap=position.gap)


def _begin_counting(db: sqlite3.Connection, each: Wanted, *, gap: bool) -> None:
    """Count what the walk brings that has just begun."""
    db.execute(
        "INSERT OR REPLACE INTO maesn_walks SELECT account, resource, walk, ?, 0, 0, 0, 0, NULL, 0, NULL"
        " FROM maesn_parts WHERE account = ? AND resource = ?",
        (gap, *each),
    )


def _put(
    db: sqlite3.Connection, key: tuple[str, str, str], walk: int, text: str, updated: int | None
) -> tuple[bool, bool, bool]:
    """Store a record.

    Returns whether it is new or has changed, whether it has changed since this walk read it, and whether this walk
    had not read it before.
    """
    found = db.execute(
        "SELECT updated, record, walk FROM maesn_records WHERE account = ? AND resource = ? AND id = ?", key
    ).fetchone()
    if found is None:
        db.execute("INSERT INTO maesn_records VALUES (?, ?, ?, ?, ?, ?)", (*key, updated, text, walk))
        return True, False, True
    before, kept, last = found
    if last == walk and updated is not None and before is not None and updated < before:
        return False, False, False  # pages are read side by side: this one is the older
    db.execute(
        "UPDATE maesn_records SET updated = ?, record = ?, walk = ? WHERE account = ? AND resource = ? AND id = ?",
        (updated, text, walk, *key),
    )
    return text != kept, text != kept and last == walk, last != walk


def _count_in(db: sqlite3.Connection, each: Wanted, page: Page, newest: int | None, *, moved: bool) -> None:
    """Take down that a page is stored, and what its answer tells of the list."""
    began, highest, total, pages, more = db.execute(
        "SELECT began, highest, total, pages, more FROM maesn_parts JOIN maesn_walks USING (account, resource)"
        " WHERE account = ? AND resource = ?",
        each,
    ).fetchone()
    # When a record has gone, those after it have moved up, perhaps to a page that had been read.
    total_pages = None if page.total_pages is None else max(1, page.total_pages)
    shrank = _is_less(page.total, total) or _is_less(total_pages, pages)
    if page.records or page.number <= (total_pages or 1):
        db.execute("INSERT OR IGNORE INTO maesn_pages VALUES (?, ?, ?)", (*each, page.number))
        if total_pages is not None:
            pages = max(pages or 1, total_pages)
        elif not page.records:
            pages = 1
    else:  # beyond the end
        shrank = shrank or (pages is not None and page.number - 1 < pages + more)
        pages = page.number - 1 if pages is None else min(pages, page.number - 1)
        db.execute("UPDATE maesn_walks SET more = 0 WHERE account = ? AND resource = ?", each)
    db.execute(
        "UPDATE maesn_parts SET began = ?, highest = ?, total = ?, pages = ?, unsteady = unsteady OR ?"
        " WHERE account = ? AND resource = ?",
        (
            _of_both(min, began, _answered(page)),
            _of_both(max, highest, newest),
            _of_both(max, total, page.total),
            pages,
            moved or shrank,
            *each,
        ),
    )


def _end_if_all_is_stored(db: sqlite3.Connection, each: Wanted, *, may_go_on: bool) -> Position:
    """Move the mark if the walk has brought all records, or begin another one if it ends without them.

    Where it has read all pages, and fewer records than the API counts, it goes on with more pages, unless the last
    one was empty (*may_go_on* is False).
    """
    position = _read(db, each)
    total, began, highest, unsteady, walks, mark, read, seen, old, first, repeated = db.execute(
        "SELECT total, began, highest, unsteady, walks, mark, read, seen, old, first, repeated"
        " FROM maesn_parts JOIN maesn_walks USING (account, resource) WHERE account = ? AND resource = ?",
        each,
    ).fetchone()
    has_all = are_all(seen, old, first, total)
    if repeated is not None and (total is None or not has_all):
        return _walk_again(db, each, position, walks, RepeatedPage(each.resource, repeated))
    if repeated is None:
        if position.pages is None or position.stored < position.pages:
            return position
        if may_go_on and not unsteady and not has_all and read < total:
            # No more than were read: the count may be wrong.
            next_ones = min(-(-(total - read) // max(position.largest, 1)), position.stored)
            more = max(position.pages, position.stored) + next_ones - (position.pages - position.more)
            db.execute("UPDATE maesn_walks SET more = ? WHERE account = ? AND resource = ?", (more, *each))
            return _read(db, each)
    if unsteady or not has_all:
        counted = None if total is None or seen >= total else total
        error = UnsteadyList(each.resource, seen, counted, readings=walks, moved=bool(unsteady))
        return _walk_again(db, each, position, walks, error)
    # What changed while it was read may be on a page that had been read before: so not later than the beginning. And
    # where there is a gap before it, the mark stays.
    if highest is not None and not position.gap:
        mark = min(began, highest)
    db.execute("UPDATE maesn_parts SET ended = 1, mark = ? WHERE account = ? AND resource = ?", (mark, *each))
    return replace(position, ended=True)


def _walk_again(
    db: sqlite3.Connection, each: Wanted, position: Position, walks: int, error: IncompleteList
) -> Position:
    """Begin another walk after one that ended in *error*: at once, or in another run if there were enough."""
    again = walks < _MOST_WALKS
    db.execute("DELETE FROM maesn_pages WHERE account = ? AND resource = ?", each)
    db.execute(
        "UPDATE maesn_parts SET walk = walk + 1, walks = ?, began = NULL, highest = NULL, total = NULL,"
        " pages = NULL, unsteady = 0 WHERE account = ? AND resource = ?",
        (walks + 1 if again else 1, *each),
    )
    _begin_counting(db, each, gap=position.gap)
    return replace(_read(db, each), error=None if again else error)


def _id_of(record: Any, resource: str) -> str:
    name = id_of(record, resource)
    if name is None:
        names = id_names(resource)
        raise ValueError(
            f"a record of {resource} has neither {names[0]!r} nor {names[1]!r}, so that it cannot be told apart"
        )
    return name


def _compact(text: str) -> str:
    """Return the JSON *text* without the white space between its tokens; every other character stays."""
    # SQLite cannot hold half of a surrogate pair, unless it is escaped.
    return "".join(_BETWEEN_SPACE.findall(text)).encode("utf-8", "backslashreplace").decode()


def _is_less(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one < other


def _of_both(choose: Callable[[int, int], int], one: int | None, other: int | None) -> int | None:
    """*choose* of both, or the one that there is."""
    if one is None or other is None:
        return other if one is None else one
    return choose(one, other)


def _answered(page: Page) -> int:
    return int(page.answered * 1_000_000)


def _text(moment: int) -> str:
    return (EPOCH + moment * MICROSECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")
