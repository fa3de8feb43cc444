"""Lists of the Maesn API, page by page and record by record."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import aiohttp

from lamella.classification import ERROR_STATUS, api_error
from lamella.maesn.account import account as account_context
from lamella.maesn.rules import RULES

__all__ = ["PAGE_LIMITS", "Page", "pages", "records"]

PAGE_LIMITS: Final = (5, 10, 20, 50, 100)
"""The page sizes that the API takes."""

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

    It ends with the last page by the count that the API gave most recently, so that a list which grows or shrinks
    on the way is read to its end; a page beyond it, or an empty one, ends it too.

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
    """
    if limit not in PAGE_LIMITS:
        raise ValueError(f"limit must be one of {', '.join(map(str, PAGE_LIMITS))}, not {limit!r}")
    if first < 1:
        raise ValueError(f"first must be at least 1, not {first!r}")
    if not _RESOURCE.fullmatch(resource):
        raise ValueError(f"resource must be a name such as 'invoices', not {resource!r}")
    params = {
        "limit": str(limit),
        "lastModifiedAt": None if since is None else _moment(since),
        "companyId": company_id,
        "environmentName": environment_name,
    }
    return _pages(session, resource, {key: value for key, value in params.items() if value}, account, first)


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


def _moment(since: datetime | str) -> str:
    try:
        moment = datetime.fromisoformat(since) if isinstance(since, str) else since
    except ValueError:
        raise ValueError(f"since must be ISO 8601, as in 2026-01-31T00:00:00Z, not {since!r}") from None
    if isinstance(since, datetime) and moment.tzinfo is None:
        raise ValueError(f"since must have a time zone, as in datetime.now(UTC), not {since!r}")
    return since if isinstance(since, str) else moment.isoformat()


async def _pages(
    session: aiohttp.ClientSession, resource: str, params: dict[str, str], account: str | None, number: int
) -> AsyncIterator[Page]:
    while True:
        # Around the request alone: a generator's context is its caller's between two pages.
        with nullcontext() if account is None else account_context(account):
            page = await _page(session, resource, params, number)
        if not page.records and number > 1:
            return
        yield page
        if not page.records or (page.total_pages is not None and number >= page.total_pages):
            return
        number += 1


async def _page(session: aiohttp.ClientSession, resource: str, params: dict[str, str], number: int) -> Page:
    async with session.get(f"accounting/{resource}", params={**params, "page": str(number)}) as response:
        if response.status >= ERROR_STATUS:
            # A session that does not raise must not make an error look like an empty list.
            raise await api_error(response, RULES)
        answer = await response.json()
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise ValueError(  # noqa: TRY004 - it is the answer that is wrong, not an argument
            f"page {number} of {resource} holds no list of records, but {type(data).__name__}"
        )
    meta = answer.get("meta") or {}
    pagination = meta.get("pagination") or {}
    total = pagination.get("totalPages")
    return Page(number, total if isinstance(total, int) else None, data, meta)
