"""Lists of the Maesn API, page by page and record by record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypedDict, Unpack

import aiohttp

from lamella.maesn.list_errors import EmptyPage
from lamella.maesn.page import Page, ParseNumber, Query, read_filled
from lamella.maesn.walk import Walk

__all__ = ["ListOptions", "pages", "records"]


class ListOptions(TypedDict, total=False):
    """Options of :func:`pages`, which explains them, and of :func:`records`."""

    account: str | None
    company_id: str | None
    environment_name: str | None
    parse_float: ParseNumber


def pages(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    *,
    first: int = 1,
    **options: Unpack[ListOptions],
) -> AsyncIterator[Page]:
    """Yield the pages of a list, in order, each read when it is asked for.

    The list ends with the last page by the count that the API gave most recently, and not before as many records were
    read as the API counts; where it counts neither pages nor records, it ends with an empty page. An empty page before
    the end is read again.

    Args:
        session: One made by :func:`lamella.maesn.session`, or with its layers and the same base URL.
        resource: For example ``"invoices"``.
        limit: How many records a page holds: 5, 10, 20, 50 or 100.
        since: Only what was changed since this moment: a datetime with a time zone, or ISO 8601. None means all.
        first: The page to begin with, from 1.
        account: The account's key. None means the one of :func:`lamella.maesn.account` or of the session.
        company_id: For the target systems that have several companies in one account.
        environment_name: For the target systems that have environments.
        parse_float: Called with the text of each number that has a point or an exponent, as by ``json.loads``.
            ``decimal.Decimal`` keeps every digit of an amount. None means float, which keeps about 16.

    Raises:
        ValueError: An argument is one that the API does not accept; at the call, before anything is sent.
        lamella.LamellaError: A page could not be read; while iterating.
        IncompleteList: Records are missing by the API's own count (:class:`UnsteadyList`, after the last page), a page
            is empty that should not be (:class:`EmptyPage`), or brings no new record (:class:`RepeatedPage`). It is a
            ValueError, as is what follows.
        AnswerFailed: An answer has a good status and ``errors``.
        ValueError: An answer holds no list.
    """
    if first < 1:
        raise ValueError(f"first must be at least 1, not {first!r}")
    return _pages(session, Query(resource, limit, since, **options), first)


def records(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    **options: Unpack[ListOptions],
) -> AsyncIterator[dict[str, Any]]:
    """Yield the records of a list, one by one, with the arguments of :func:`pages`."""
    return _records(pages(session, resource, limit, since, **options))


async def _records(found: AsyncIterator[Page]) -> AsyncIterator[dict[str, Any]]:
    async for page in found:
        for record in page.records:
            yield record


async def _pages(session: aiohttp.ClientSession, query: Query, number: int) -> AsyncIterator[Page]:
    walk = Walk(query.resource, number)
    while True:
        page = await read_filled(
            session, query, number, before=walk.before, total_pages=walk.total_pages, total=walk.total
        )
        says_nothing = not page.records and page.total_pages is None and page.total is None
        if says_nothing and number < (walk.total_pages or 0):
            raise EmptyPage(query.resource, number, walk.total_pages, walk.total)
        if (not page.records and number > 1) or not walk.take(page):
            break
        yield page
        if not page.records or walk.ends_with(page):
            break
        number += 1
    walk.check()
