"""Lists of the Maesn API, page by page and record by record."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

import aiohttp
import anyio

from lamella.answer_body import peek
from lamella.classification import ERROR_STATUS, api_error, error_messages, noting_secrets
from lamella.errors import BadRequest, NotFound
from lamella.maesn.account import account as account_context
from lamella.maesn.list_errors import AnswerFailed, EmptyPage, RepeatedPage, UnsteadyList
from lamella.maesn.record import id_of, updated_of
from lamella.maesn.rules import RULES
from lamella.policy.retry_after import parse_http_date

__all__ = ["PAGE_LIMITS", "Page", "pages", "records"]

PAGE_LIMITS: Final = (5, 10, 20, 50, 100)
"""The page sizes that the API takes."""

_TOO_MANY: Final = 2**53
"""No number of records or pages: what is not below cannot be told from its neighbours in JSON."""
_MOST_PAGES: Final = 1_000_000
"""No list has more: who says so would have us keep a list of them."""
_LONGEST: Final = 64 * 2**20
"""Bytes of a page that are read."""
_PAUSES: Final = (0.2, 1.0)
"""Seconds before a page is read again that is empty and should not be."""
_RESOURCE = re.compile(r"[A-Za-z][A-Za-z0-9]*")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    number: int
    """From 1."""
    total_pages: int | None
    """How many there were when this one was read. None where the API did not say."""
    records: list[dict[str, Any]]
    meta: dict[str, Any]
    total: int | None = None
    """How many records there were on all pages. None where the API did not say."""
    answered: float = 0.0
    """When the API answered, in seconds since the epoch: by its own clock, or by ours where it did not say."""


def pages(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    *,
    account: str | None = None,
    company_id: str | None = None,
    environment_name: str | None = None,
    first: int = 1,
) -> AsyncIterator[Page]:
    """The pages of a list, in order, each fetched when it is asked for.

    It ends with the last page by the count that the API gave most recently, and not before as many records were read
    as the API counts; where it counts neither pages nor records, it ends with an empty page. An empty page before the
    end is read again.

    Args:
        session: One made by :func:`lamella.maesn.session`, or with its layers and the same base URL.
        resource: As in ``"invoices"``.
        limit: How many records a page holds: 5, 10, 20, 50 or 100.
        since: Only what was changed since this moment: a datetime with a time zone, or ISO 8601. None means all.
        account: The account's key. None means the one of :func:`lamella.maesn.account` or of the session.
        company_id: For the target systems that have several companies in one account.
        environment_name: For the target systems that have environments.
        first: The page to begin with, from 1.

    Raises:
        ValueError: An argument is one that the API does not take; at the call, before anything is sent.
        lamella.LamellaError: A page could not be had; while iterating.
        IncompleteList: Records are missing by the API's own count (:class:`UnsteadyList`, after the last page), a page
            is empty that should not be (:class:`EmptyPage`), or brings no new record (:class:`RepeatedPage`). It is a
            ValueError, as is what follows.
        AnswerFailed: An answer has a good status and ``errors``.
        ValueError: An answer holds no list.
    """
    if first < 1:
        raise ValueError(f"first must be at least 1, not {first!r}")
    query = Query(
        checked_resource(resource),
        checked_limit(limit),
        None if since is None else checked_moment(since),
        company_id,
        environment_name,
        account,
    )
    return _pages(session, query, first)


def records(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    *,
    account: str | None = None,
    company_id: str | None = None,
    environment_name: str | None = None,
) -> AsyncIterator[dict[str, Any]]:
    """The records of a list, one by one, with the arguments of :func:`pages`."""
    found = pages(
        session,
        resource,
        limit,
        since,
        account=account,
        company_id=company_id,
        environment_name=environment_name,
    )
    return _records(found)


async def _records(found: AsyncIterator[Page]) -> AsyncIterator[dict[str, Any]]:
    async for page in found:
        for record in page.records:
            yield record


@dataclass(frozen=True, slots=True)
class Query:
    """Which list is read, in values that have been checked."""

    resource: str
    limit: int
    since: str | None = None
    company_id: str | None = None
    environment_name: str | None = None
    account: str | None = field(default=None, repr=False)
    """The account's key: here, and in no local that a traceback might show. None: the one of the context."""

    def params(self, number: int) -> dict[str, str]:
        """The query of the page with this *number*."""
        params = {
            "limit": str(self.limit),
            "page": str(number),
            "lastModifiedAt": self.since,
            "companyId": self.company_id,
            "environmentName": self.environment_name,
        }
        return {name: value for name, value in params.items() if value}


def checked_limit(limit: int) -> int:
    """*limit*, or a ValueError."""
    if limit not in PAGE_LIMITS:
        raise ValueError(f"limit must be one of {', '.join(map(str, PAGE_LIMITS))}, not {limit!r}")
    return limit


def checked_resource(resource: str) -> str:
    """*resource*, or a ValueError."""
    if not _RESOURCE.fullmatch(resource):
        raise ValueError(f"resource must be a name such as 'invoices', not {resource!r}")
    return resource


def checked_moment(since: datetime | str) -> str:
    """*since* as the API takes it, or a ValueError."""
    try:
        moment = datetime.fromisoformat(since) if isinstance(since, str) else since
    except ValueError:
        raise ValueError(f"since must be ISO 8601, as in 2026-01-31T00:00:00Z, not {since!r}") from None
    if isinstance(since, datetime) and moment.tzinfo is None:
        raise ValueError(f"since must have a time zone, as in datetime.now(UTC), not {since!r}")
    return since if isinstance(since, str) else moment.isoformat()


async def _pages(session: aiohttp.ClientSession, query: Query, first: int) -> AsyncIterator[Page]:
    walk = _Walk(query.resource, first)
    number = first
    while True:
        page = await _next_page(session, query, number, walk)
        if page is None or (not page.records and number > 1) or not walk.take(page):
            break
        yield page
        if not page.records or walk.ends_with(page):
            break
        number += 1
    walk.check()


async def _next_page(session: aiohttp.ClientSession, query: Query, number: int, walk: _Walk) -> Page | None:
    try:
        page = await read_filled(
            session, query, number, before=walk.before, total_pages=walk.total_pages, total=walk.total
        )
    except (BadRequest, NotFound):
        # Some APIs answer so beyond their last page, where only the number of records has led us.
        if walk.total_pages is None or number <= walk.total_pages:
            raise
        return None
    if not page.records and page.total_pages is None and page.total is None and number < (walk.total_pages or 0):
        raise EmptyPage(query.resource, number, walk.total_pages, walk.total)
    return page


class _Walk:
    """What the pages of one reading have brought so far, and what the API says that there is."""

    def __init__(self, resource: str, first: int) -> None:
        self._resource = resource
        self._first = first
        self._ids: set[str] = set()
        self._contents: set[bytes] = set()
        """Digests of pages with records that have no id."""
        self._seen = 0
        """Different records: by their ids, or each one where it has none."""
        self._old = 0
        """Those of them that are as they were before the first page was read."""
        self._began = 0
        self._first_total: int | None = None
        self.before: int | None = 0 if first == 1 else None
        """How many records are on the pages up to here. None: unknown, since it began in the middle."""
        self.total: int | None = None
        """The most that there were said to be; so is *total_pages*."""
        self.total_pages: int | None = None

    def take(self, page: Page) -> bool:
        """Count a page in. Returns False where it only repeats what is there, and all is there by the API's count.

        Raises:
            RepeatedPage: It brings no new record, and so might all that follow.
        """
        if page.number == self._first:
            self._began, self._first_total = int(page.answered * 1_000_000), page.total
        self.total = _greater(self.total, page.total)
        self.total_pages = _greater(self.total_pages, page.total_pages)
        if not page.records:
            return True
        if self._repeats(page):
            if self.total is not None and self._has_all():
                return False
            raise RepeatedPage(self._resource, page.number)
        if self.before is None:
            self.before = (self._first - 1) * len(page.records)
        self.before += len(page.records)
        return True

    def _repeats(self, page: Page) -> bool:
        """Count the records of a page; tells whether none of them is new."""
        ids = [id_of(record, self._resource) for record in page.records]
        known = self._ids.intersection(name for name in ids if name is not None)
        for record, name in zip(page.records, ids, strict=True):
            if name is None or name not in known:
                self._seen += 1
                updated = updated_of(record)
                self._old += updated is not None and updated < self._began
        self._ids.update(name for name in ids if name is not None)
        if None not in ids:
            return len(known) == len(set(ids))
        # A record without an id may be there several times: only a page that is the same as a whole is a repeat.
        text = json.dumps(page.records, sort_keys=True, default=str)
        content = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if content in self._contents:
            return True
        self._contents.add(content)
        return False

    def ends_with(self, page: Page) -> bool:
        """Whether a page is the last one, by its number and by how many records there are."""
        if page.total_pages is None or page.number < page.total_pages:
            return False
        total = self.total if page.total is None else page.total
        return total is None or self.before is None or self.before >= total

    def _has_all(self) -> bool:
        if self._first > 1:
            return self.total is None or (self.before or 0) >= self.total
        return are_all(self._seen, self._old, self._first_total, self.total)

    def check(self) -> None:
        """Raise where records are missing.

        Raises:
            UnsteadyList: There are fewer than the API has counted.
        """
        if self._first == 1 and not self._has_all():
            raise UnsteadyList(self._resource, self._seen, self.total, moved=False)


def are_all(seen: int, old: int, first_total: int | None, total: int | None) -> bool:
    """Whether all records of a list were read that were there when it was begun.

    Args:
        seen: How many different records were read.
        old: Those of them that were last changed before the reading began.
        first_total: How many there were, as the first page said. None means that it did not say.
        total: The most that any page said.
    """
    return total is None or seen >= total or (first_total is not None and old >= first_total)


def _greater(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


async def read_filled(
    session: aiohttp.ClientSession,
    query: Query,
    number: int,
    *,
    before: int | None,
    total_pages: int | None,
    total: int | None,
) -> Page:
    """Read one page of a list, and again after a pause while it is empty and should not be.

    Args:
        session: As for :func:`pages`.
        query: Which list.
        number: Which page.
        before: How many records the pages before it hold. None means unknown.
        total_pages: How many pages there are, as far as known; so is *total*, how many records.

    Raises:
        EmptyPage: It stayed empty, and by its own answer it should not be.
        lamella.LamellaError: It could not be had.
        ValueError: The answer holds no list, or errors.
    """
    page = await read_page(session, query, number)
    for pause in _PAUSES:
        known = _greater(page.total_pages, total_pages), _greater(page.total, total)
        if page.records or not _is_due(number, before, *known):
            return page
        await anyio.sleep(pause)
        page = await read_page(session, query, number)
    # A page beyond the last one is no more than a sign that records are missing, which is told with their number.
    in_count = page.total_pages is not None and number <= page.total_pages
    if not page.records and in_count and _is_due(number, before, page.total_pages, page.total):
        raise EmptyPage(query.resource, number, page.total_pages, page.total)
    return page


def _is_due(number: int, before: int | None, total_pages: int | None, total: int | None) -> bool:
    """Whether the page with this *number* should hold records."""
    if total is not None and before is not None:
        return before < total
    return total_pages is not None and number < total_pages


async def read_page(session: aiohttp.ClientSession, query: Query, number: int) -> Page:
    """One page of a list.

    Raises:
        lamella.LamellaError: It could not be had.
        AnswerFailed: The answer has a good status and ``errors``.
        ValueError: The answer holds no list.
    """
    what = f"page {number} of {query.resource}"
    with noting_secrets(), nullcontext() if query.account is None else account_context(query.account):
        async with session.get(f"accounting/{query.resource}", params=query.params(number)) as response:
            if response.status >= ERROR_STATUS:
                # A session that does not raise must not make an error look like an empty list.
                raise await api_error(response, RULES)
            answer = await _json(response, what)
            now = time.time()
            answered = parse_http_date(response.headers.get("Date"), now)
            failed = error_messages(response, answer.get("errors")) if isinstance(answer, dict) else None
    if failed is not None:
        del answer  # a server may repeat a credential, and some tools show the locals of a traceback
        raise AnswerFailed(what, response.status, failed)
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise ValueError(  # noqa: TRY004 - it is the answer that is wrong, not an argument
            f"{what} holds no list of records, but {type(data).__name__}"
        )
    meta = _object(answer.get("meta"))
    pagination = _object(meta.get("pagination"))
    total_pages = _whole(pagination.get("totalPages"))
    if total_pages is not None and total_pages > _MOST_PAGES:
        total_pages = None  # as if it had not said: the list ends with an empty page, too
    return Page(number, total_pages, data, meta, _whole(pagination.get("total")), answered or now)


async def _json(response: aiohttp.ClientResponse, what: str) -> Any:
    # What Buffer has waited for is here, and no longer than its limit.
    if not response.content.is_eof() and len(await peek(response, _LONGEST + 1)) > _LONGEST:
        response.close()
        raise ValueError(f"{what} is longer than {_LONGEST // 2**20} MiB")
    try:
        return json.loads(await response.text())
    except (ValueError, RecursionError) as exc:
        problem = type(exc).__name__
    # Out here, or it would hold that error, which holds the body.
    raise ValueError(f"{what} is no JSON that can be read ({problem})")


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _TOO_MANY else None
