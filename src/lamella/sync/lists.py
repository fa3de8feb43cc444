"""``lamella.pages`` and ``lamella.records``: read a list page by page, without a sync."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

import aiohttp

from lamella.sync.decode import ParseNumber, id_of, updated_of
from lamella.sync.errors import EmptyPage, RepeatedPage, UnsteadyList
from lamella.sync.page import (
    MOST_PAGES,
    List,
    Page,
    Place,
    checked_moment,
    ends_early,
    greater,
    honours_number,
    is_to_ask,
    may_be_endless,
    read_filled,
)
from lamella.sync.source import Source

MOST_EMPTY: Final = 20
"""Maximum number of consecutive empty pages, if each page leads to the next one."""


def pages(
    session: aiohttp.ClientSession,
    source: Source,
    *,
    account: object = None,
    since: datetime | str | None = None,
    first: int = 1,
    parse_float: ParseNumber = None,
) -> AsyncIterator[Page]:
    """Yield the pages of a list in order. Each page is read when it is needed.

    The list ends with a page that leads to no other page, with the last page by the newest counts of the API if as many
    records were read as it counts, or with an empty page after the last one. An empty page before the end is read
    again.

    Args:
        session: The URL of *source* is relative to its base URL. Its layers add credentials and retry.
        source: The list.
        account: The argument of ``within`` and ``params`` of *source*. None means that ``within`` is not called.
        since: Yield only records changed since this time, a datetime with a time zone or ISO 8601. None means all
            records.
        first: The page to begin with, from 1. It must be 1 if each page leads to the next one.
        parse_float: Called with the text of each number that has a point or an exponent, as in ``json.loads``.
            ``decimal.Decimal`` keeps every digit of an amount. None means float, which keeps about 16 digits.

    Raises:
        ValueError: An argument is out of range. Raised by the call, before anything is sent.
        lamella.LamellaError: A page could not be read. Raised while iterating.
        IncompleteList: Records are missing by the API's own count (:class:`UnsteadyList`, after the last page), a page
            is unexpectedly empty (:class:`EmptyPage`), or a page brings no new record (:class:`RepeatedPage`). It is a
            ValueError, like the errors below.
        AnswerFailed: An answer has a successful status and errors.
        ValueError: An answer contains no list.
    """
    if first < 1 or (first > 1 and not source.pages.parallel):
        raise ValueError(f"first must be at least 1, and 1 if each page leads to the next one, got {first!r}")
    if since is not None and source.since is None:
        raise ValueError(f"{source.name} has no parameter for since: set Source.since")
    moment = None if since is None else checked_moment(since)
    return _pages(session, List(source, account, moment, parse_float=parse_float), first)


def records(
    session: aiohttp.ClientSession,
    source: Source,
    *,
    account: object = None,
    since: datetime | str | None = None,
    parse_float: ParseNumber = None,
) -> AsyncIterator[Any]:
    """Yield the records of a list one by one. The arguments are those of :func:`pages`."""
    return _records(pages(session, source, account=account, since=since, parse_float=parse_float))


async def _records(found: AsyncIterator[Page]) -> AsyncIterator[Any]:
    async for page in found:
        for record in page.records:
            yield record


async def _pages(session: aiohttp.ClientSession, of: List, number: int) -> AsyncIterator[Page]:
    walk, token, empty = _Walk(of.source, number), None, 0
    while True:
        before = (number - 1) * of.source.pages.page_size if walk.before is None else walk.before
        page = await read_filled(
            session,
            of,
            Place(number, before, token),
            before=walk.before,
            largest=walk.largest,
            total_pages=walk.known_pages(number),
            total=walk.total,
        )
        token, empty = page.token, 0 if page.records else empty + 1
        says_nothing = not page.records and page.total_pages is None and page.total is None
        if (says_nothing and number < (walk.total_pages or 0)) or empty > MOST_EMPTY:
            raise EmptyPage(of.source.name, number, walk.total_pages, walk.total)
        if not page.records and token is not None:
            number += 1
            continue
        if await _is_endless(session, of, walk, page):
            if walk.total is not None and walk.seen == walk.total:
                break
            raise RepeatedPage(of.source.name, number, MOST_PAGES)
        if (not page.records and number > 1) or not walk.take(page):
            break
        yield page
        if not page.records or walk.ends_with(page):
            break
        number += 1
    walk.check()


async def _is_endless(session: aiohttp.ClientSession, of: List, walk: _Walk, page: Page) -> bool:
    """Return whether a page seems to have no end after it, because the API ignores its number."""
    is_open = of.source.pages.parallel and is_to_ask(walk.honours, page.number)
    if not is_open or not walk.is_doubtful(page):
        return False
    walk.honours = page.number * await honours_number(session, of)
    return not walk.honours


class _Walk:
    """The content of the pages read so far, and the counts that the API states."""

    def __init__(self, source: Source, first: int) -> None:
        self._source = source
        self._first = first
        self._ids: set[str] = set()
        self._contents: set[bytes] = set()
        """Digests of the pages that contain records without an id."""
        self._tokens: set[str] = set()
        """The tokens of these pages."""
        self._equals = 0
        """The number of consecutive pages that were equal to an earlier one."""
        self.honours: int | None = None
        """As for is_to_ask()."""
        self.seen = 0
        """The number of distinct records, by id. Each record without an id counts."""
        self._old = 0
        """The number of these records that were last changed before the first page was read."""
        self._began = 0
        self._first_total: int | None = None
        self.before: int | None = 0 if first == 1 else None
        """The number of records on the pages so far. None: unknown, since the reading began in the middle."""
        self.largest = 0
        """The number of records on the largest page."""
        self.total: int | None = None
        """The greatest number of records that the API has stated."""
        self.total_pages: int | None = None
        """The greatest number of pages that the API has stated."""

    def take(self, page: Page) -> bool:
        """Count a page. Return False if it only repeats known records, and no record is missing by the API's count.

        Raises RepeatedPage if it brings no new record, so that the list might never end.
        """
        if page.number == self._first:
            self._began, self._first_total = int(page.answered * 1_000_000), page.total
        self.total = greater(self.total, page.total)
        self.total_pages = greater(self.total_pages, page.total_pages)
        if not page.records:
            return True
        if self._repeats(page):
            is_after = self.total is None and page.number > (self.total_pages or page.number)
            if is_after or (self.total is not None and self.has_all()):
                return False
            raise RepeatedPage(self._source.name, page.number)
        if self.before is None:
            self.before = (self._first - 1) * len(page.records)
        self.before += len(page.records)
        self.largest = max(self.largest, len(page.records))
        return True

    def _repeats(self, page: Page) -> bool:
        """Count the records of a page. Return whether none of them is new."""
        ids = [id_of(record, self._source) for record in page.records]
        known = self._ids.intersection(name for name in ids if name is not None)
        for record, name in zip(page.records, ids, strict=True):
            if name is None or name not in known:
                self.seen += 1
                updated = updated_of(record, self._source)
                self._old += updated is not None and updated < self._began
        self._ids.update(name for name in ids if name is not None)
        if None not in ids:
            return len(known) == len(set(ids))
        # Several records without an id may be equal, and whole pages of them.
        content = _digest(page)
        self._equals = self._equals + 1 if content in self._contents else 0
        is_loop = bool(self._equals) and page.token in self._tokens
        self._contents.add(content)
        if page.token is not None:
            self._tokens.add(page.token)
        is_stuck = self._equals > MOST_EMPTY and (self.before or 0) >= (self.total or 0)
        return page.number >= MOST_PAGES or (not self._source.pages.parallel and (is_loop or is_stuck))

    def is_doubtful(self, page: Page) -> bool:
        """Return whether a page of a list without an end would look the same."""
        counts = (self.before or 0, self.total_pages, self.total)
        if not self._contents and not may_be_endless(page, *counts, is_nameless=True):
            return False  # the usual case, without a look at the records
        is_nameless = any(id_of(record, self._source) is None for record in page.records)
        if is_nameless and _digest(page) in self._contents:
            return True
        return may_be_endless(page, *counts, is_nameless=is_nameless)

    def ends_with(self, page: Page) -> bool:
        """Return whether a page is the last one, by its number and by the number of records."""
        if not self._source.pages.parallel:
            if (how := ends_early(page, self.total, self.total_pages)) is not None:
                raise UnsteadyList(self._source.name, self.seen, how=how)
            return page.token is None
        total = self.total if page.total is None else page.total
        stated = page.total_pages if page.total_pages or not page.records else None  # a list with records has a page
        if page.number < (stated or 0) or (total is None and stated is None and not self.total_pages):
            return False
        # If more records were read than the API counts, its count is wrong. Then the list ends with an empty page.
        # After full pages, a count may be that of each page, of the pages so far, or of larger pages.
        size = self._source.pages.page_size
        is_doubtful = total is None or self._first_total == size
        full = self.largest if total is None and page.number > 1 else size
        if is_doubtful and self.before is not None and self.before >= page.number * full:
            return False
        return total is None or self.before is None or self.before == total

    def known_pages(self, number: int) -> int | None:
        """Return the API's count of pages before page *number* is read. None means unknown."""
        if self.total_pages is None and self.total is not None and (self.before or 0) >= self.total:
            return number - 1
        return self.total_pages

    def has_all(self) -> bool:
        """Return whether no record is missing by the API's count."""
        if self._first > 1:
            return self.total is None or (self.before or 0) >= self.total
        enough = self._first_total is not None and self._old >= self._first_total
        return self.total is None or self.seen >= self.total or enough

    def check(self) -> None:
        """Raise UnsteadyList if fewer records were read than the API counts."""
        if self._first == 1 and not self.has_all():
            raise UnsteadyList(self._source.name, self.seen, self.total)


def _digest(page: Page) -> bytes:
    """Return a digest of the records of a page."""
    text = json.dumps(page.records, sort_keys=True, default=str)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
