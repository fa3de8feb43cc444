"""What a sync keeps in its journal: the records, how far each list has been read, and from where on it is read next.

All of it is changed in transactions of the journal's (``Journal.commit``): the records of a page together with the fact
that it is stored, and the high-water mark together with the last page.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

from lamella.maesn.pages import Page

__all__ = ["Position", "Wanted", "begin", "look", "missing", "store"]

_OVERLAP: Final = 300 * 1_000_000
"""Microseconds by which a sync begins before the high-water mark: for clocks that differ, and slow answers."""
_MOST_WALKS: Final = 3
"""How often a list is read that shrinks or is sorted anew while it is read."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
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
# The pages of the walk that are stored.
_PAGES: Final = """
    CREATE TABLE IF NOT EXISTS maesn_pages (
        account TEXT NOT NULL,
        resource TEXT NOT NULL,
        page INTEGER NOT NULL,
        PRIMARY KEY (account, resource, page)
    ) WITHOUT ROWID"""


class Wanted(NamedTuple):
    """A list that is to be synced."""

    account: str
    """Its name."""
    resource: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far a list has been read in a run."""

    walk: int
    """From 1. 0: it is to be read from its first page on."""
    since: str | None
    stored: int
    """Pages."""
    pages: int | None
    """How many there are. None: nobody knows yet."""
    changed: int
    """Records that were new, or not as they were."""
    ended: bool
    skipped: bool = False
    """It had ended when this run was resumed."""
    unsteady: bool = False
    """It has moved each time it was read, so that something may be missing: nothing is lost but time."""


def look(
    db: sqlite3.Connection, wanted: Sequence[Wanted], since: str | None, *, resume: bool, page_size: int | None = None
) -> tuple[int, bool, list[Position]]:
    """What :func:`begin` would return. It writes nothing. *page_size* None means the one that the pages had."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'maesn_parts'").fetchone():
        return 1, False, [_unread(since)] * len(wanted)
    [last] = db.execute("SELECT max(run) FROM maesn_parts").fetchone()
    resumed = resume and last is not None
    run = last if resumed else (last or 0) + 1
    return run, resumed, [_position(db, each, since, run, page_size) for each in wanted]


def begin(
    db: sqlite3.Connection, wanted: Sequence[Wanted], since: str | None, *, resume: bool, page_size: int
) -> tuple[int, bool, list[Position]]:
    """Begin a run, or go on with the last one if it is to be resumed.

    Returns the run's number, whether it is resumed, and where each list stands. *since* is for a new run: None means
    that each list goes on from its own mark.
    """
    for table in (_RECORDS, _PARTS, _PAGES):
        db.execute(table)
    run, resumed, positions = look(db, wanted, since, resume=resume, page_size=page_size)
    for number, (each, position) in enumerate(zip(wanted, positions, strict=True)):
        if not position.walk:
            _begin_anew(db, each, run, page_size, position.since)
            positions[number] = _read(db, each)
    return run, resumed, positions


def missing(db: sqlite3.Connection, each: Wanted, position: Position) -> list[int]:
    """The pages that are known and not stored; where nobody knows how many there are, the next one."""
    if position.ended:
        return []
    stored = {page for [page] in db.execute("SELECT page FROM maesn_pages WHERE account = ? AND resource = ?", each)}
    return [page for page in range(1, (position.pages or len(stored) + 1) + 1) if page not in stored]


def store(db: sqlite3.Connection, each: Wanted, walk: int, page: Page) -> Position:
    """Store the records of a page; after the last one move the mark, or begin another walk if the list has moved."""
    changed, newest, moved = 0, None, False
    for record, text in zip(page.records, page.texts, strict=True):
        updated = _updated(record)
        key = (*each, _id_of(record, each.resource))
        is_new, again = _put(db, key, walk, _compact(text), updated)
        changed += is_new
        moved = moved or again
        # What does not say when it was changed was so when it was read.
        newest = _of_both(max, newest, _answered(page) if updated is None else updated)
    db.execute("UPDATE maesn_parts SET changed = changed + ? WHERE account = ? AND resource = ?", (changed, *each))
    [current] = db.execute("SELECT walk FROM maesn_parts WHERE account = ? AND resource = ?", each).fetchone()
    if current != walk:
        return _read(db, each)  # it answers to an earlier walk
    _count_in(db, each, page, newest, moved=moved)
    return _end_if_all_is_stored(db, each)


def _unread(since: str | None) -> Position:
    return Position(0, since, 0, None, 0, ended=False)


def _position(db: sqlite3.Connection, each: Wanted, since: str | None, run: int, page_size: int | None) -> Position:
    found = db.execute(
        "SELECT run, page_size, since, mark FROM maesn_parts WHERE account = ? AND resource = ?", each
    ).fetchone()
    if found is None:
        return _unread(since)
    last, size, before, mark = found
    if last != run:
        return _unread(_text(mark - _OVERLAP) if since is None and mark is not None else since)
    position = _read(db, each)
    if position.ended:
        return replace(position, skipped=True)
    # Pages of another size are other pages.
    return position if page_size in {None, size} else _unread(before)


def _read(db: sqlite3.Connection, each: Wanted) -> Position:
    walk, since, pages, changed, ended = db.execute(
        "SELECT walk, since, pages, changed, ended FROM maesn_parts WHERE account = ? AND resource = ?", each
    ).fetchone()
    [stored] = db.execute("SELECT count(*) FROM maesn_pages WHERE account = ? AND resource = ?", each).fetchone()
    return Position(walk, since, stored, pages, changed, bool(ended))


def _begin_anew(db: sqlite3.Connection, each: Wanted, run: int, page_size: int, since: str | None) -> None:
    """Begin a walk, the first one of a run."""
    db.execute("DELETE FROM maesn_pages WHERE account = ? AND resource = ?", each)
    db.execute(
        "INSERT INTO maesn_parts (account, resource, run, page_size, since, walk, walks, unsteady, changed, ended)"
        " VALUES (?, ?, ?, ?, ?, 1, 1, 0, 0, 0) ON CONFLICT (account, resource) DO UPDATE SET run = excluded.run,"
        " page_size = excluded.page_size, since = excluded.since, walk = maesn_parts.walk + 1, walks = 1, began = NULL,"
        " highest = NULL, total = NULL, pages = NULL, unsteady = 0, changed = 0, ended = 0",
        (*each, run, page_size, since),
    )


def _put(
    db: sqlite3.Connection, key: tuple[str, str, str], walk: int, text: str, updated: int | None
) -> tuple[bool, bool]:
    """Store a record. Returns whether it is new or has changed, and whether it has changed since this walk read it."""
    found = db.execute(
        "SELECT updated, record, walk FROM maesn_records WHERE account = ? AND resource = ? AND id = ?", key
    ).fetchone()
    if found is None:
        db.execute("INSERT INTO maesn_records VALUES (?, ?, ?, ?, ?, ?)", (*key, updated, text, walk))
        return True, False
    before, kept, seen = found
    if seen == walk and updated is not None and before is not None and updated < before:
        return False, False  # pages are read side by side: this one is the older
    db.execute(
        "UPDATE maesn_records SET updated = ?, record = ?, walk = ? WHERE account = ? AND resource = ? AND id = ?",
        (updated, text, walk, *key),
    )
    return text != kept, text != kept and seen == walk


def _count_in(db: sqlite3.Connection, each: Wanted, page: Page, newest: int | None, *, moved: bool) -> None:
    """Take down that a page is stored, and what its answer tells of the list."""
    began, highest, total, pages = db.execute(
        "SELECT began, highest, total, pages FROM maesn_parts WHERE account = ? AND resource = ?", each
    ).fetchone()
    # When a record has gone, those after it have moved up, perhaps to a page that had been read.
    shrank = _is_less(page.total, total) or _is_less(page.total_pages, pages)
    if page.records or page.number <= max(1, page.total_pages or 1):
        db.execute("INSERT OR IGNORE INTO maesn_pages VALUES (?, ?, ?)", (*each, page.number))
        if page.total_pages is not None:
            pages = max(pages or 1, page.total_pages)
        elif not page.records:
            pages = 1
    else:  # beyond the end
        shrank = shrank or _is_less(page.number - 1, pages)
        pages = page.number - 1 if pages is None else min(pages, page.number - 1)
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


def _end_if_all_is_stored(db: sqlite3.Connection, each: Wanted) -> Position:
    position = _read(db, each)
    if position.pages is None or position.stored < position.pages:
        return position
    began, highest, unsteady, walks, mark = db.execute(
        "SELECT began, highest, unsteady, walks, mark FROM maesn_parts WHERE account = ? AND resource = ?", each
    ).fetchone()
    if unsteady:
        again = walks < _MOST_WALKS
        db.execute("DELETE FROM maesn_pages WHERE account = ? AND resource = ?", each)
        db.execute(
            "UPDATE maesn_parts SET walk = walk + 1, walks = ?, began = NULL, highest = NULL, total = NULL,"
            " pages = NULL, unsteady = 0 WHERE account = ? AND resource = ?",
            (walks + 1 if again else 1, *each),
        )
        return replace(_read(db, each), unsteady=not again)
    since = None if position.since is None else _microseconds(position.since)
    # What changed while it was read may be on a page that had been read before: so not later than the beginning. And
    # where there is a gap after the last mark, that stays.
    if highest is not None and (mark is None or since is None or since <= mark):
        mark = min(began, highest)
    db.execute("UPDATE maesn_parts SET ended = 1, mark = ? WHERE account = ? AND resource = ?", (mark, *each))
    return replace(position, ended=True)


def _id_of(record: Any, resource: str) -> str:
    singular = f"{resource[:-3]}y" if resource.endswith("ies") else resource.removesuffix("s")
    names = f"{singular}Id", "id"
    for name in names:
        value = record.get(name) if isinstance(record, dict) else None
        if isinstance(value, str | int | Decimal) and not isinstance(value, bool) and value != "":
            return str(value).encode("utf-8", "backslashreplace").decode()
    raise ValueError(
        f"a record of {resource} has neither {names[0]!r} nor {names[1]!r}, so that it cannot be told apart"
    )


def _updated(record: Any) -> int | None:
    updated = _microseconds(record.get("updatedDate")) if isinstance(record, dict) else None
    # Where there is no date some systems say 0001-01-01.
    return None if updated is None or updated < _OVERLAP else updated


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


def _microseconds(text: object) -> int | None:
    """A moment by ISO 8601 (in UTC, if it names no zone) in microseconds since the epoch, or None."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def _text(microseconds: int) -> str:
    return (_EPOCH + microseconds * _MICROSECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")
