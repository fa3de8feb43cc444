"""One page of a list: the query for it, and how it is read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, NoReturn

import aiohttp
import anyio

from lamella.body.answer import wait_for_body, whole_bodies
from lamella.classify.failures import ERROR_STATUS, error_messages
from lamella.classify.judge import api_error
from lamella.credentials import noting_secrets
from lamella.errors import BadRequest, NotFound
from lamella.maesn.account import account as account_context
from lamella.maesn.json_texts import decode
from lamella.maesn.list_errors import AnswerFailed, EmptyPage
from lamella.maesn.rules import RULES
from lamella.rules.retry_after import parse_http_date

__all__ = ["PAGE_LIMITS", "Page", "ParseNumber", "Query", "exact_int", "greater", "read_filled"]

PAGE_LIMITS: Final = (5, 10, 20, 50, 100)
"""The page sizes that the API accepts."""

_TOO_MANY: Final = 2**53
"""An upper bound for counts of records and pages: JSON cannot tell larger numbers from their neighbours."""
_MOST_PAGES: Final = 1_000_000
"""A larger count of pages is ignored: we would have to keep a list of them."""
_LONGEST: Final = 64 * 2**20
"""Bytes of a page that are read, inside the attempt. A page has 100 records at most."""
_PAUSES: Final = (0.2, 1.0)
"""Seconds before a page is read again that is empty and should not be."""
_RESOURCE = re.compile(r"[A-Za-z][A-Za-z0-9]*")

ParseNumber = Callable[[str], Any] | None
"""Makes a value of a number's text. None means int or float."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    number: int
    """From 1."""
    total_pages: int | None
    """How many there were when this one was read. None where the API did not say."""
    records: list[dict[str, Any]]
    """As ``json.loads`` reads them: a float may differ from the number that was sent, see *texts* and *parse_float*."""
    meta: dict[str, Any]
    total: int | None = None
    """How many records there were on all pages. None where the API did not say."""
    answered: float = 0.0
    """When the API answered, in seconds since the epoch: by its own clock, or by ours where it did not say."""
    texts: Sequence[str] = field(default=(), repr=False)
    """The JSON text of each record, character by character as the API sent it."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which list is read. Its arguments are checked.

    Raises:
        ValueError: An argument is one that the API does not accept.
    """

    resource: str
    limit: int
    since: datetime | str | None = None
    company_id: str | None = None
    environment_name: str | None = None
    account: str | None = field(default=None, repr=False)
    """The account's key: here, and in no local variable that a traceback might show. None: that of the context."""
    parse_float: ParseNumber = None
    parse_int: ParseNumber = None

    def __post_init__(self) -> None:
        checked_resource(self.resource)
        checked_limit(self.limit)
        if self.since is not None:
            checked_moment(self.since)

    def params(self, number: int) -> dict[str, str]:
        """Return the query string of the page with this *number*."""
        params = {
            "limit": str(self.limit),
            "page": str(number),
            "lastModifiedAt": None if self.since is None else checked_moment(self.since),
            "companyId": self.company_id,
            "environmentName": self.environment_name,
        }
        return {name: value for name, value in params.items() if value}


def checked_limit(limit: int) -> int:
    """Return *limit*, or raise ValueError."""
    if limit not in PAGE_LIMITS:
        raise ValueError(f"limit must be one of {', '.join(map(str, PAGE_LIMITS))}, not {limit!r}")
    return limit


def checked_resource(resource: str) -> str:
    """Return *resource*, or raise ValueError."""
    if not _RESOURCE.fullmatch(resource):
        raise ValueError(f"resource must be a name such as 'invoices', not {resource!r}")
    return resource


def checked_moment(since: datetime | str) -> str:
    """Return *since* as the API accepts it, or raise ValueError."""
    try:
        moment = datetime.fromisoformat(since) if isinstance(since, str) else since
    except ValueError:
        raise ValueError(f"since must be ISO 8601, as in 2026-01-31T00:00:00Z, not {since!r}") from None
    if isinstance(since, datetime) and moment.tzinfo is None:
        raise ValueError(f"since must have a time zone, as in datetime.now(UTC), not {since!r}")
    return since if isinstance(since, str) else moment.isoformat()


def greater(one: int | None, other: int | None) -> int | None:
    """Return the greater number, or the one that is known."""
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
        session: As for :func:`lamella.maesn.pages`.
        query: Which list.
        number: Which page.
        before: How many records the pages before it hold. None means unknown.
        total_pages: How many pages the API counts. Beyond them, 400 and 404 mean an empty page. None means unknown.
        total: How many records the API counts. None means unknown.

    Raises:
        EmptyPage: It stayed empty, and by its own answer it should not be.
        lamella.LamellaError: It could not be read.
        ValueError: The answer holds no list, or errors.
    """

    def is_due(pages: int | None, records: int | None) -> bool:
        """Return whether the page should hold records."""
        if records is not None and before is not None:
            return before < records
        return pages is not None and number < pages

    try:
        page = await _read_page(session, query, number)
        for pause in _PAUSES:
            if page.records or not is_due(greater(page.total_pages, total_pages), greater(page.total, total)):
                return page
            await anyio.sleep(pause)
            page = await _read_page(session, query, number)
    except (BadRequest, NotFound):
        if total_pages is None or number <= total_pages:
            raise
        return Page(number, None, [], {}, answered=time.time())
    # An empty page beyond the last one only means that records are missing, which UnsteadyList reports.
    is_counted = page.total_pages is not None and number <= page.total_pages
    if not page.records and is_counted and is_due(page.total_pages, page.total):
        raise EmptyPage(query.resource, number, page.total_pages, page.total)
    return page


async def _read_page(session: aiohttp.ClientSession, query: Query, number: int) -> Page:
    what = f"page {number} of {query.resource}"
    account = nullcontext() if query.account is None else account_context(query.account)
    with account, whole_bodies(_LONGEST), noting_secrets():
        async with session.get(f"accounting/{query.resource}", params=query.params(number)) as response:
            if response.status >= ERROR_STATUS:
                # A session that does not raise must not make an error look like an empty list.
                raise await api_error(response, RULES)
            answer, texts = await _json(response, query, what)
            now = time.time()
            answered = parse_http_date(response.headers.get("Date"), now)
            failed = error_messages(response, answer.get("errors")) if isinstance(answer, dict) else None
    if failed is not None:
        del answer, texts  # a server may repeat a credential, and some tools show the locals of a traceback
        raise AnswerFailed(what, response.status, failed)
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise ValueError(  # noqa: TRY004 - the answer is wrong, not an argument
            f"{what} holds no list of records, but {type(data).__name__}"
        )
    meta = _object(answer.get("meta"))
    pagination = _object(meta.get("pagination"))
    total_pages = _whole(pagination.get("totalPages"))
    if total_pages is not None and total_pages > _MOST_PAGES:
        total_pages = None  # as if it had not said: the list ends with an empty page, too
    return Page(number, total_pages, data, meta, _whole(pagination.get("total")), answered or now, texts)


async def _json(response: aiohttp.ClientResponse, query: Query, what: str) -> tuple[Any, list[str]]:
    # Buffer has read the body, up to its limit. In a session without Buffer it is still to be read.
    if not response.content.is_eof() and (
        (response.content_length or 0) > _LONGEST or not await wait_for_body(response, _LONGEST)
    ):
        response.close()
        raise ValueError(f"{what} is longer than {_LONGEST // 2**20} MiB: a smaller limit makes smaller pages")
    try:
        decoder = json.JSONDecoder(
            parse_float=query.parse_float, parse_int=query.parse_int, parse_constant=_refuse_constant
        )
        return decode(await _text(response), decoder)
    except _ConstantError as exc:
        problem = str(exc)
    except (ValueError, ArithmeticError, RecursionError) as exc:  # decimal's errors are arithmetic ones
        problem = type(exc).__name__
    # Outside of the except clause: the error there holds the body.
    raise ValueError(f"{what} is no JSON that can be read ({problem})")


async def _text(response: aiohttp.ClientResponse) -> str:
    """Return the text of *response*, and release its bytes, since a page may be large.

    Raises:
        ValueError: It is not in the character set that it states.
    """
    if response.content.at_eof():
        return await response.text()  # a middleware has read it, or it is empty
    body = await response.content.read()
    try:
        return body.decode(response.charset or "utf-8")
    except LookupError:  # an unknown character set
        return body.decode()


def exact_int(literal: str) -> int | Decimal:
    """Return the value of an integer's text, as a Decimal where it has more digits than Python lets an int have."""
    try:
        return int(literal)
    except ValueError:
        return Decimal(literal)


class _ConstantError(ValueError):
    pass


def _refuse_constant(name: str) -> NoReturn:
    """Raise for NaN and the infinities, which Python's decoder accepts."""
    raise _ConstantError(f"{name} is not JSON compliant")


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _TOO_MANY else None
