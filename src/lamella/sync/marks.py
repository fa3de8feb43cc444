"""The progress of each list in the journal of a sync, and where the next reading begins.

Changes are transactions (``Journal.commit``). The records of a page are stored together with the fact that the page is
stored, and the high-water mark together with the last page.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeVar

from lamella.sync import nameless
from lamella.sync.compare import compare
from lamella.sync.decode import Records, microseconds, text_of
from lamella.sync.endless import is_endless, is_stuck
from lamella.sync.errors import BadRecord, EmptyPage, IncompleteList, RepeatedPage, UnsteadyList
from lamella.sync.lists import MOST_EMPTY
from lamella.sync.page import MOST_PAGES, Page, ends_early, greater, is_to_ask, lesser
from lamella.sync.source import Source
from lamella.sync.stored import (
    Departed,
    Put,
    adopt,
    check_departed,
    drop,
    has_table,
    of_others,
    put,
    settle_departed,
)
from lamella.sync.walk import MOST_WALKS, Walk, begun, count_pages, forget_pages, load, prepare, save

_T = TypeVar("_T")

OVERLAP: Final = 300.0
"""Seconds before the high-water mark at which a sync begins, to allow for clock differences and slow answers."""


class Wanted(NamedTuple):
    """A list to sync."""

    account: str  # the name of the account
    resource: str


class Ask(NamedTuple):
    """The arguments of a run."""

    sources: Mapping[str, Source]  # by resource
    accounts: Collection[str]  # all of the run, also those without a list
    since: str | None = None  # for a new run. None: each list begins at its mark
    resume: bool = False
    lookback: float = OVERLAP
    full_before: int | None = None  # a list is read from its beginning if this was last done before this time
    latest: int = 2**62  # a later time in the journal is that of a wrong clock: then a list is read from its beginning
    departed: Departed = "keep"
    made: Callable[[], Iterable[tuple[str, str, str]]] = tuple
    """Returns the identities of the records: account, resource and text. An empty resource stands for a whole account.
    All of them at once would take much memory."""


@dataclass(frozen=True, slots=True)
class Position:
    """The progress of a list in a run."""

    walk: int  # from 1. 0: read from the first page
    since: str | None
    stored: int  # the number of stored pages
    pages: int | None  # the total number of pages. None: not known yet
    changed: int  # records that were new or changed
    ended: bool
    skipped: bool = False  # it was complete when this run was resumed
    total: int | None = None  # the greatest number of records that the API has stated
    largest: int = 0  # the number of records on the largest page of the walk
    read: int = 0  # the number of records on the pages of the walk
    more: int = 0  # pages after the API's last one that are read because records are missing
    gap: bool = False  # records last changed before `since` may be missing: no earlier walk reached this time
    dropped: bool = False  # records of another company or list were dropped when the run began
    token: str | None = None  # the token of the page after the stored one
    error: IncompleteList | None = None  # why the list is incomplete. Then the mark has not moved
    bad: tuple[BadRecord, ...] = ()  # records of the page that could not be stored
    warnings: tuple[str, ...] = ()  # warnings of the page
    compared: bool = False  # the walk proved which stored records the API still has
    missing: int = 0  # records that an earlier run should have stored
    deleted: int = 0  # records that were marked as deleted
    unmet: int = 0  # stored records that were not read and not proved to be deleted
    nameless: int = 0  # records without an id
    missing_ids: tuple[str, ...] = ()  # of records on the page
    deleted_ids: tuple[str, ...] = ()  # of records found deleted with the page
    doubtful: bool = False  # the page was not stored: the API may ignore its number, so that the list has no end


def look(
    db: sqlite3.Connection, wanted: Sequence[Wanted], ask: Ask, others: Collection[tuple[str, str]]
) -> tuple[int, bool, Iterator[Position]]:
    """Return the run, whether it is resumed, and where each list begins; *others* have another identity. Only read."""
    if not has_table(db, "sync_parts"):
        return 1, False, (_unread(asked(ask, each)) for each in wanted)
    [last] = db.execute("SELECT max(run) FROM sync_parts").fetchone()
    resumed = ask.resume and last is not None
    run: int = (last or 0) + (0 if resumed else 1)
    has_any = "SELECT 1 FROM sync_records WHERE account = ? AND ? IN ('', resource) LIMIT 1"
    dropped = {key for key in others if db.execute(has_any, key).fetchone()}
    return (
        run,
        resumed,
        (
            replace(_unread(asked(ask, each)), dropped=bool(dropped & {each, (each.account, "")}))
            if each in others or (each.account, "") in others
            else _start(db, each, ask, run)
            for each in wanted
        ),
    )


def begin(
    db: sqlite3.Connection, wanted: Sequence[Wanted], ask: Ask, made: Callable[[Wanted, Position], _T]
) -> tuple[int, bool, dict[tuple[str, str], _T]]:
    """Begin a run, or continue the last one if it should be resumed.

    Return the run's number, whether it is resumed, and for each list what *made* returns for its position. Drop the
    stored records of each account and list whose identity has changed.
    """
    check_departed(db, ask.accounts, ask.departed)
    adopt(db)
    prepare(db)
    others = of_others(db, ask.made())
    run, resumed, positions = look(db, wanted, ask, others)
    drop(db, others)
    settle_departed(db, ask.accounts, ask.departed, int(time.time() * 1_000_000))
    db.executemany("INSERT OR REPLACE INTO sync_made VALUES (?, ?, ?)", ask.made())
    found: dict[tuple[str, str], _T] = {}
    for each, start in zip(wanted, positions, strict=True):
        position = start
        if not start.walk:
            last = load(db, each)
            page_size = ask.sources[each.resource].pages.page_size
            walk = Walk(run, page_size, start.since, 1, gap=start.gap, verify=_is_due(last, ask))
            if last is not None:
                walk.walk, walk.mark, walk.full, walk.exact = last.walk + 1, last.mark, last.full, last.exact
            forget_pages(db, each)
            save(db, each, walk)
            position = replace(_position(db, each, walk), dropped=start.dropped)
        found[each] = made(each, position)
    return run, resumed, found


def opened(db: sqlite3.Connection, each: Wanted, source: Source) -> tuple[Position, Sequence[int], str | None]:
    """Return the position of a list that was begun and the known pages that are not stored.

    For a chain, return the next page and its token.
    """
    position = _position(db, each, begun(db, each))
    rows = "SELECT page, token FROM sync_pages WHERE account = ? AND resource = ?"
    stored = dict(db.execute(rows, each).fetchall())
    if not source.pages.parallel:
        last = max(stored, default=0)
        return position, [last + 1], stored.get(last)
    return position, [page for page in range(1, (position.pages or len(stored) + 1) + 1) if page not in stored], None


def store(
    db: sqlite3.Connection, each: Wanted, number: int, page: Page, source: Source, *, honours: bool | None = None
) -> Position:
    """Store the records of a page of walk *number*.

    After the last page, move the mark, or begin another walk if records are missing.

    Args:
        db: The journal.
        each: The list.
        number: The walk.
        page: The page.
        source: The source of the list.
        honours: Whether the API honours the number of a page, as far as it was asked after this page.
    """
    walk = begun(db, each)
    if walk.walk != number or walk.ended:
        return _position(db, each, walk)  # the page belongs to an earlier walk, or the list is complete without it
    answered, what = int(page.answered * 1_000_000), f"page {page.number} of {source.name}"
    walk.began = lesser(walk.began, answered)
    if walk.since is not None and walk.mark is not None and answered < walk.mark - OVERLAP * 1_000_000:
        # The clock was ahead when the mark was set, so changes before it may be missing: the next run reads everything.
        walk.mark, walk.gap = None, True
    mark = walk.mark if walk.since is None else None
    records = Records.of(page.records)
    walk.honours = walk.honours if honours is None else honours * page.number
    is_open = source.pages.parallel and is_to_ask(walk.honours, page.number)
    endless = is_endless(walk, page, records)
    if is_open and endless:
        return replace(_position(db, each, walk), doubtful=True)
    repeats = nameless.repeats(db, each, records, number)
    if is_open and repeats:
        return replace(_position(db, each, walk), doubtful=True)
    walk.equals = walk.equals + 1 if repeats else 0
    if (endless or repeats) and is_stuck(db, each, walk, page, source):
        result, walk.repeated = Put(), walk.repeated or page.number
    else:
        numbered, is_again = nameless.numbered(db, each, records, number)
        walk.equal = bool(walk.equal or is_again)
        result = put(db, each, numbered, walk=number, page=what, began=walk.began, mark=mark)
        walk.nameless += sum(numbered.nameless)
    walk.changed += result.changed
    walk.missing += len(result.missing)
    walk.fresh += result.fresh
    # A record that does not say when it was changed counts as changed when it was read.
    dates = set(records.updated)
    walk.dated = bool(walk.dated or dates - {None})
    newest = max((answered if date is None else date for date in dates), default=None)
    walk.highest = greater(walk.highest, newest)
    many = len(page.records) + len(page.bad)
    walk.seen, walk.old, walk.undated = walk.seen + result.seen, walk.old + result.old, walk.undated + result.undated
    walk.read += many
    walk.largest = max(walk.largest, many)
    bad = (*page.bad, *result.bad)
    walk.bad = walk.bad or (str(bad[0]) if bad else None)
    if result.moved is not None:
        walk.unsteady = f"record {result.moved.position} on {what} (id {result.moved.id!r}) was already on another page"
    for record in result.doubtful:  # the next run must read them again unless this walk succeeds
        walk.mark = None if walk.mark is None or record.updated is None else min(walk.mark, record.updated)
    if page.number == 1 and walk.first is None:
        walk.first = page.total
    walk.empty = 0 if many and (result.seen or not page.bad) else walk.empty + 1
    if many and not result.seen and not page.bad and walk.repeated is None:
        walk.repeated = page.number
    _count_in(db, each, walk, page, source)
    error = _end(db, each, walk, source, may_go_on=bool(many))
    gone: tuple[str, ...] = ()
    if error is None and walk.since is None and walk.has_ended:
        error, gone = compare(db, each, walk, source, may_go_on=bool(many))
    if error is not None:
        again = walk.walks < MOST_WALKS and not isinstance(error, BadRecord)
        walk = walk.again(walks=walk.walks + 1 if again else 1)
        error = None if again else error  # no error while another reading follows
        forget_pages(db, each)
    save(db, each, walk)
    return replace(
        _position(db, each, walk),
        error=error,
        bad=bad,
        warnings=page.warnings,
        token=page.token,
        missing_ids=tuple(result.missing),
        deleted_ids=gone,
    )


def _count_in(db: sqlite3.Connection, each: Wanted, walk: Walk, page: Page, source: Source) -> None:
    """Record that a page is stored, and the counts that its answer states."""
    many = len(page.records) + len(page.bad)
    total_pages = page.total_pages
    if total_pages is not None and (total_pages < page.number if many else total_pages < 1):
        total_pages = None if many else 1  # the count is wrong, since this page has records
    one_by_one = source.pages.by_offset and walk.walks > 1  # a page may have had fewer records than its place assumes
    if _is_less(page.total, walk.total) or _is_less(total_pages, walk.pages if source.pages.parallel else None):
        # After a deletion the following records move up, perhaps to a page that was already read.
        walk.unsteady = walk.unsteady or f"page {page.number} states a smaller count than an earlier page"
    walk.total = greater(walk.total, page.total)
    walk.least = walk.least if page.total is None else lesser(walk.least, page.total)
    is_stored = True
    if not source.pages.parallel:
        walk.pages = page.number if page.token is None else None
        walk.unsteady = ends_early(page, walk.total, total_pages) or walk.unsteady
    elif many or page.number <= (total_pages or 1):
        if total_pages is None and page.number == 1 and page.total and many and not one_by_one:
            total_pages = -(-page.total // many)
            total_pages = None if total_pages > MOST_PAGES else total_pages
        if total_pages is not None:
            walk.pages = max(walk.pages or 1, total_pages)
        elif not many:
            walk.pages = 1
    else:  # a page after the end
        last = page.number - 1
        if walk.pages is not None and last < walk.pages:
            walk.unsteady = walk.unsteady or f"page {page.number} is empty, but the API counted {walk.pages} pages"
        walk.pages, walk.more, is_stored = lesser(walk.pages, last), 0, False
    if is_stored:
        db.execute("INSERT OR IGNORE INTO sync_pages VALUES (?, ?, ?, ?)", (*each, page.number, page.token))


def _end(db: sqlite3.Connection, each: Wanted, walk: Walk, source: Source, *, may_go_on: bool) -> IncompleteList | None:
    """Move the mark if the walk has read all records. Return an error if it ends without some of them.

    The walk may have read all pages, but fewer records than the API counts, or more (then the count is wrong). In both
    cases it continues with more pages, unless the last one was empty (*may_go_on* is False).
    """
    total, name = walk.total, source.name
    has_all = walk.has_all
    if walk.repeated is not None:
        # A list of full pages is read beyond the count. Some APIs return a page before again there.
        is_after = total is None and source.pages.parallel and walk.repeated > (walk.pages or walk.repeated)
        if not is_after and (total is None or not has_all or (walk.honours == 0 and walk.seen > total)):
            far = MOST_PAGES if walk.honours == 0 else None
            return RepeatedPage(name, walk.repeated, far)
    elif walk.empty > MOST_EMPTY and walk.pages is None:
        return EmptyPage(name, count_pages(db, each), None, None) if walk.bad is None else BadRecord(walk.bad)
    else:
        stored = count_pages(db, each)
        if walk.pages is None or stored < walk.pages + walk.more:
            return None
        if may_go_on and source.pages.parallel and not walk.unsteady:
            left = _left(walk, stored, source.pages.page_size)
            if left > 0:
                # At most as many pages as were read: the count may be wrong.
                next_ones = min(-(-left // max(walk.largest, 1)), stored)
                walk.more = max(walk.pages + walk.more, stored) + next_ones - walk.pages
                return None
    if walk.bad is not None:
        return BadRecord(walk.bad)
    if walk.unsteady or not has_all:
        counted = None if total is None or walk.seen >= total else total
        return UnsteadyList(name, walk.seen, counted, readings=walk.walks, how=walk.unsteady)
    # A record that changed during the reading may be on a page that was already read, so the mark is not later than the
    # beginning of the walk. If there is a gap before the walk, the mark stays.
    if walk.highest is not None and not walk.gap:
        walk.mark = lesser(walk.began, walk.highest)
    if walk.nameless:
        # Only a reading of the whole list shows which of them were changed.
        walk.mark = None
    walk.ended = True
    return None


def _left(walk: Walk, stored: int, page_size: int) -> int:
    """Return how many records may follow those of all pages that the API counts."""
    if walk.total is not None and not walk.has_all:
        return walk.total - walk.read
    if walk.total is not None and not walk.dated and walk.read < walk.total:
        return walk.total - walk.read  # new records may have moved old ones to further pages
    if walk.total is not None and walk.seen > walk.total:
        return 1
    # After full pages, a count may be that of each page, of the pages so far, or of larger pages.
    is_doubtful = walk.total is None or walk.first == page_size
    full = walk.largest if walk.total is None and stored > 1 else page_size
    return int(is_doubtful and walk.read >= stored * full)


def _is_due(walk: Walk | None, ask: Ask) -> bool:
    """Return whether a list must be read from its beginning and compared."""
    if ask.full_before is None or ask.since is not None:
        return False
    return walk is None or walk.full is None or not ask.full_before <= walk.full <= ask.latest


def asked(ask: Ask, each: Wanted) -> str | None:
    """Return the time from which to read a list. None: from its mark, or all of it if it has no such parameter."""
    return None if ask.sources[each.resource].since is None else ask.since


def _start(db: sqlite3.Connection, each: Wanted, ask: Ask, run: int) -> Position:
    """Return the position of a list at the beginning of *run*."""
    walk, source = load(db, each), ask.sources[each.resource]
    if walk is None:
        return _unread(asked(ask, each))
    if walk.run != run:
        since = asked(ask, each)
        can_go_on = source.since is not None and source.dates and not _is_due(walk, ask)
        if since is None and walk.mark is not None and walk.mark <= ask.latest and can_go_on:
            start = walk.mark - int(ask.lookback * 1_000_000)
            since = text_of(start) if start > 0 else None  # a datetime has no year before 1
        return _unread(since, walk.mark)
    if walk.ended:
        return replace(_position(db, each, walk), skipped=True)
    if source.pages.page_size != walk.page_size:  # page numbers are only valid for the same page size
        return _unread(walk.since, walk.mark)
    return _position(db, each, walk)


def _unread(since: str | None, mark: int | None = None) -> Position:
    start = None if since is None else microseconds(since)
    return Position(0, since, 0, None, 0, ended=False, gap=start is not None and (mark is None or mark < start))


def _position(db: sqlite3.Connection, each: Wanted, walk: Walk) -> Position:
    return Position(
        walk.walk,
        walk.since,
        count_pages(db, each),
        None if walk.pages is None else walk.pages + walk.more,
        walk.changed,
        walk.has_ended,
        total=walk.total,
        largest=walk.largest,
        read=walk.read,
        more=walk.more,
        gap=bool(walk.gap),
        compared=bool(walk.compared),
        missing=walk.missing,
        deleted=walk.deleted,
        unmet=walk.unmet,
        nameless=walk.nameless,
    )


def _is_less(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one < other
