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

from lamella.sync.decode import EPOCH, MICROSECOND, microseconds
from lamella.sync.errors import BadRecord, EmptyPage, IncompleteList, RepeatedPage, UnsteadyList
from lamella.sync.lists import MOST_EMPTY
from lamella.sync.page import Page, greater
from lamella.sync.source import Source
from lamella.sync.stored import TABLES, adopt, count_change, has_table, of_others, put

_MOST_WALKS: Final = 3
"""How often a list is read that changes while it is read, or is incomplete."""
_MOST_PAGES: Final = 1_000_000
OVERLAP: Final = 300.0
"""Seconds by which a sync begins before the high-water mark, for clocks that differ and slow answers."""


class Wanted(NamedTuple):
    """A list that is to be synced."""

    account: str  # its name
    resource: str


class Ask(NamedTuple):
    """What a run is asked for."""

    sources: Mapping[str, Source]  # by the resource
    since: str | None = None  # for a new run; None: from the mark of each list on
    resume: bool = False
    lookback: float = OVERLAP
    made: Mapping[tuple[str, str], str] = MappingProxyType({})
    """What the records are made of, by account and resource; of a whole account, where the resource is empty."""


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
    dropped: bool = False  # what was stored of another company or list was dropped when the run began
    token: str | None = None  # what leads to the page after the one that was stored
    error: IncompleteList | None = None  # why the list is not complete: the mark has not moved
    bad: tuple[BadRecord, ...] = ()  # records of the page that could not be stored
    warnings: tuple[str, ...] = ()  # of the page


@dataclass(slots=True)
class _Walk:
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


_COLUMNS: Final = [field.name for field in fields(_Walk)]
_TABLES: Final = (
    f"""CREATE TABLE IF NOT EXISTS sync_parts (account TEXT NOT NULL, resource TEXT NOT NULL,
    {", ".join(_COLUMNS)}, PRIMARY KEY (account, resource))""",
    # The pages of the walk that are stored; `token` leads to the next one.
    """CREATE TABLE IF NOT EXISTS sync_pages (account TEXT NOT NULL, resource TEXT NOT NULL, page INTEGER NOT NULL,
    token TEXT, PRIMARY KEY (account, resource, page)) WITHOUT ROWID""",
)


def look(db: sqlite3.Connection, wanted: Sequence[Wanted], ask: Ask) -> tuple[int, bool, list[Position]]:
    """Return what :func:`begin` would, and write nothing."""
    if not has_table(db, "sync_parts"):
        return 1, False, [_unread(ask.since)] * len(wanted)
    [last] = db.execute("SELECT max(run) FROM sync_parts").fetchone()
    resumed = ask.resume and last is not None
    run: int = (last or 0) + (0 if resumed else 1)
    others = of_others(db, ask.made)
    has_any = "SELECT 1 FROM sync_records WHERE account = ? AND ? IN ('', resource) LIMIT 1"
    dropped = {key for key in others if db.execute(has_any, key).fetchone()}
    return (
        run,
        resumed,
        [
            replace(_unread(ask.since), dropped=bool(dropped & {each, (each.account, "")}))
            if others & {each, (each.account, "")}
            else _start(db, each, ask, run)
            for each in wanted
        ],
    )


def begin(db: sqlite3.Connection, wanted: Sequence[Wanted], ask: Ask) -> tuple[int, bool, list[Position]]:
    """Begin a run, or go on with the last one if it is to be resumed.

    Returns the run's number, whether it is resumed, and the position of each list. What is stored of an account or
    list that is made of something else now is dropped.
    """
    adopt(db)
    for table in (*TABLES, *_TABLES):
        db.execute(table)
    run, resumed, positions = look(db, wanted, ask)
    others = of_others(db, ask.made)
    for name in ("sync_records", "sync_parts", "sync_pages"):
        sql = f"DELETE FROM {name} WHERE account = ? AND ? IN ('', resource)"  # noqa: S608 - our own names
        db.executemany(sql, others)
    if others:
        count_change(db)
    db.executemany(
        "INSERT OR REPLACE INTO sync_made VALUES (?, ?, ?)", [(*key, made) for key, made in ask.made.items()]
    )
    for number, (each, position) in enumerate(zip(wanted, positions, strict=True)):
        if not position.walk:
            last = _load(db, each)
            mark, before = (None, 0) if last is None else (last.mark, last.walk)
            page_size = ask.sources[each.resource].pages.page_size
            walk = _Walk(run, page_size, position.since, before + 1, mark=mark, gap=position.gap)
            _forget_pages(db, each)
            _save(db, each, walk)
            positions[number] = replace(_position(db, each, walk), dropped=position.dropped)
    return run, resumed, positions


def missing(
    db: sqlite3.Connection, each: Wanted, position: Position, source: Source
) -> tuple[Sequence[int], str | None]:
    """Return the pages that are known and not stored; of a chain the next one, and what leads to it."""
    if position.ended:
        return [], None
    rows = "SELECT page, token FROM sync_pages WHERE account = ? AND resource = ?"
    stored = dict(db.execute(rows, each).fetchall())
    if not source.pages.parallel:
        last = max(stored, default=0)
        return [last + 1], stored.get(last)
    return [page for page in range(1, (position.pages or len(stored) + 1) + 1) if page not in stored], None


def store(db: sqlite3.Connection, each: Wanted, number: int, page: Page, source: Source) -> Position:
    """Store the records of a page of the walk with this *number*.

    After the last page move the mark, or begin another walk if records are missing.
    """
    walk = _load(db, each)
    if walk is None:
        raise LookupError(f"{each} was not begun")
    if walk.walk != number or walk.ended:
        return _position(db, each, walk)  # the page is of an earlier walk, or the list is complete without it
    answered, what = int(page.answered * 1_000_000), f"page {page.number} of {source.name}"
    walk.began = _lesser(walk.began, answered)
    result = put(db, each, page.records, walk=number, page=what, began=walk.began)
    walk.changed += result.changed
    # A record that does not say when it was changed counts as changed when it was read.
    for record in page.records:
        walk.dated = walk.dated or record.updated is not None
        walk.highest = greater(walk.highest, answered if record.updated is None else record.updated)
    many = len(page.records) + len(page.bad)
    walk.seen, walk.old, walk.undated = walk.seen + result.seen, walk.old + result.old, walk.undated + result.undated
    walk.read += many
    walk.largest = max(walk.largest, many)
    bad = (*page.bad, *result.bad)
    walk.bad = walk.bad or (str(bad[0]) if bad else None)
    if result.moved is not None:
        walk.unsteady = f"record {result.moved.position} on {what} (id {result.moved.id!r}) was on another page before"
    for record in result.doubtful:  # unless this walk ends well, the next run has to read it again
        walk.mark = None if walk.mark is None or record.updated is None else min(walk.mark, record.updated)
    if page.number == 1 and walk.first is None:
        walk.first = page.total
    walk.empty = 0 if many else walk.empty + 1
    if many and not result.seen and not page.bad and walk.repeated is None:
        walk.repeated = page.number
    _count_in(db, each, walk, page, source)
    error = _end(db, each, walk, source, may_go_on=bool(many))
    if error is not None:
        again = walk.walks < _MOST_WALKS and not isinstance(error, BadRecord)
        walk = _Walk(
            *(walk.run, walk.page_size, walk.since, walk.walk + 1, walk.walks + 1 if again else 1),
            changed=walk.changed,
            mark=walk.mark,
            gap=walk.gap,
        )
        error = None if again else error  # the last one: the next run reads the list again
        _forget_pages(db, each)
    _save(db, each, walk)
    return replace(_position(db, each, walk), error=error, bad=bad, warnings=page.warnings, token=page.token)


def _count_in(db: sqlite3.Connection, each: Wanted, walk: _Walk, page: Page, source: Source) -> None:
    """Record that a page is stored, and what its answer says about the list."""
    many = len(page.records) + len(page.bad)
    total_pages = None if page.total_pages is None else max(1, page.total_pages)
    if _is_less(page.total, walk.total) or _is_less(total_pages, walk.pages if source.pages.parallel else None):
        # When a record has gone, those after it have moved up, perhaps to a page that had been read.
        walk.unsteady = walk.unsteady or f"page {page.number} counts less than a page before"
    walk.total = greater(walk.total, page.total)
    is_stored = True
    if not source.pages.parallel:
        walk.pages = page.number if page.token is None else None
    elif many or page.number <= (total_pages or 1):
        if total_pages is None and page.number == 1 and page.total and many:
            total_pages = -(-page.total // many)
            total_pages = None if total_pages > _MOST_PAGES else total_pages
        if total_pages is not None:
            walk.pages = max(walk.pages or 1, total_pages)
        elif not many:
            walk.pages = 1
    else:  # beyond the end
        last = page.number - 1
        if walk.pages is not None and last < walk.pages:
            walk.unsteady = walk.unsteady or f"page {page.number} is empty, and there were {walk.pages}"
        walk.pages, walk.more, is_stored = _lesser(walk.pages, last), 0, False
    if is_stored:
        db.execute("INSERT OR IGNORE INTO sync_pages VALUES (?, ?, ?, ?)", (*each, page.number, page.token))


def _end(
    db: sqlite3.Connection, each: Wanted, walk: _Walk, source: Source, *, may_go_on: bool
) -> IncompleteList | None:
    """Move the mark if the walk has brought all records; return an error if it ends without them.

    Where it has read all pages, and fewer records than the API counts, or more, so that the count is wrong, it goes on
    with more pages, unless the last one was empty (*may_go_on* is False).
    """
    total, name = walk.total, source.name
    has_all = _has_all(walk)
    if walk.repeated is not None:
        if total is None or not has_all:
            return RepeatedPage(name, walk.repeated)
    elif walk.empty > MOST_EMPTY:
        return EmptyPage(name, _stored(db, each), None, None)
    else:
        stored = _stored(db, each)
        if walk.pages is None or stored < walk.pages + walk.more:
            return None
        if may_go_on and source.pages.parallel and not walk.unsteady and total is not None:
            left = total - walk.read if not has_all else 1 if walk.seen > total else 0
            if left > 0:
                # No more than were read: the count may be wrong.
                next_ones = min(-(-left // max(walk.largest, 1)), stored)
                walk.more = max(walk.pages + walk.more, stored) + next_ones - walk.pages
                return None
    if walk.bad is not None:
        return BadRecord(walk.bad)
    if walk.unsteady or not has_all:
        counted = None if total is None or walk.seen >= total else total
        return UnsteadyList(name, walk.seen, counted, readings=walk.walks, how=walk.unsteady)
    # What changed while it was read may be on a page that had been read before: so not later than the beginning. And
    # where there is a gap before it, the mark stays.
    if walk.highest is not None and not walk.gap:
        walk.mark = _lesser(walk.began, walk.highest)
    walk.ended = True
    return None


def _has_all(walk: _Walk) -> bool:
    """Return whether the walk has read as many records as were there when it began, as far as the API counts.

    Records that are new since then do not stand in for others; where none has a date, they cannot be told apart. Where
    more old ones were read than page 1 counted, its count is wrong.
    """
    if walk.total is None:
        return True
    old = walk.old + (0 if walk.dated else walk.undated)
    return walk.seen >= walk.total if walk.first is None or old > walk.first else old == walk.first


def _start(db: sqlite3.Connection, each: Wanted, ask: Ask, run: int) -> Position:
    """Return where a list stands at the beginning of *run*."""
    walk, source = _load(db, each), ask.sources[each.resource]
    if walk is None:
        return _unread(ask.since)
    if walk.run != run:
        since = ask.since
        if since is None and walk.mark is not None and source.since is not None and source.dates:
            since = _text(walk.mark - int(ask.lookback * 1_000_000))
        return _unread(since, walk.mark)
    if walk.ended:
        return replace(_position(db, each, walk), skipped=True)
    if source.pages.page_size != walk.page_size:  # pages of another size are other pages
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
    sql = f"SELECT {', '.join(_COLUMNS)} FROM sync_parts WHERE account = ? AND resource = ?"  # noqa: S608 - our own names
    row = db.execute(sql, each).fetchone()
    return None if row is None else _Walk(*row)


def _save(db: sqlite3.Connection, each: Wanted, walk: _Walk) -> None:
    places = ", ".join("?" * (2 + len(_COLUMNS)))
    db.execute(f"INSERT OR REPLACE INTO sync_parts VALUES ({places})", (*each, *astuple(walk)))  # noqa: S608 - as above


def _forget_pages(db: sqlite3.Connection, each: Wanted) -> None:
    db.execute("DELETE FROM sync_pages WHERE account = ? AND resource = ?", each)


def _stored(db: sqlite3.Connection, each: Wanted) -> int:
    [stored] = db.execute("SELECT count(*) FROM sync_pages WHERE account = ? AND resource = ?", each).fetchone()
    return int(stored)


def _is_less(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one < other


def _lesser(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _text(moment: int) -> str:
    return (EPOCH + moment * MICROSECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")
