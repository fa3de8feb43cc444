"""Lists of the Maesn API, page by page and record by record."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, NoReturn

import aiohttp
import anyio

from lamella.body.answer import wait_for_body, whole_bodies
from lamella.classify.failures import ERROR_STATUS, error_messages
from lamella.classify.judge import api_error
from lamella.credentials import noting_secrets
from lamella.errors import BadRequest, NotFound
from lamella.maesn.account import account as account_context
from lamella.maesn.list_errors import AnswerFailed, EmptyPage, RepeatedPage, UnsteadyList
from lamella.maesn.record import id_of, updated_of
from lamella.maesn.rules import RULES
from lamella.rules.retry_after import parse_http_date

__all__ = ["PAGE_LIMITS", "Page", "exact_int", "pages", "records"]

PAGE_LIMITS: Final = (5, 10, 20, 50, 100)
"""The page sizes that the API takes."""

_TOO_MANY: Final = 2**53
"""No number of records or pages: what is not below cannot be told from its neighbours in JSON."""
_MOST_PAGES: Final = 1_000_000
"""No list has more: who says so would have us keep a list of them."""
_LONGEST: Final = 64 * 2**20
"""Bytes of a page that are read, inside the attempt. A page has 100 records at most."""
_PAUSES: Final = (0.2, 1.0)
"""Seconds before a page is read again that is empty and should not be."""
_RESOURCE = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_SPACE = re.compile(r"[ \t\n\r]*")
"""What may stand between two tokens of JSON."""

ParseNumber = Callable[[str], Any] | None
"""What makes a value of a number's text. None means int or float."""


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
    parse_float: ParseNumber = None,
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
        parse_float: Called with the text of each number that has a point or an exponent, as by ``json.loads``.
            ``decimal.Decimal`` keeps every digit of an amount. None means float, which keeps about 16.

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
        parse_float,
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
    parse_float: ParseNumber = None,
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
        parse_float=parse_float,
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
    parse_float: ParseNumber = None
    parse_int: ParseNumber = None

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
        raise ValueError(  # noqa: TRY004 - it is the answer that is wrong, not an argument
            f"{what} holds no list of records, but {type(data).__name__}"
        )
    meta = _object(answer.get("meta"))
    pagination = _object(meta.get("pagination"))
    total_pages = _whole(pagination.get("totalPages"))
    if total_pages is not None and total_pages > _MOST_PAGES:
        total_pages = None  # as if it had not said: the list ends with an empty page, too
    return Page(number, total_pages, data, meta, _whole(pagination.get("total")), answered or now, texts)


async def _json(response: aiohttp.ClientResponse, query: Query, what: str) -> tuple[Any, list[str]]:
    # What Buffer has read is here, and no longer than its limit. It is not where the session has no Buffer.
    if not response.content.is_eof() and (
        (response.content_length or 0) > _LONGEST or not await wait_for_body(response, _LONGEST)
    ):
        response.close()
        raise ValueError(f"{what} is longer than {_LONGEST // 2**20} MiB: a smaller limit makes smaller pages")
    try:
        decoder = json.JSONDecoder(
            parse_float=query.parse_float, parse_int=query.parse_int, parse_constant=_refuse_constant
        )
        return _decoded(await _text(response), decoder)
    except _ConstantError as exc:
        problem = str(exc)
    except (ValueError, ArithmeticError, RecursionError) as exc:  # decimal's errors are arithmetic ones
        problem = type(exc).__name__
    # Out here, or it would hold that error, which holds the body.
    raise ValueError(f"{what} is no JSON that can be read ({problem})")


async def _text(response: aiohttp.ClientResponse) -> str:
    """Return the text of *response*, whose bytes are held no longer than that takes: a page may be large.

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


def _decoded(text: str, decoder: json.JSONDecoder) -> tuple[Any, list[str]]:
    """Return the value of a page's text as *decoder* reads it, and the text of each item of its list ``data``."""
    scanner = _Scanner(text, decoder)
    texts: list[str] = []
    if not scanner.take("{"):
        return decoder.decode(text), texts
    members: dict[str, Any] = {}
    more = not scanner.take("}")
    while more:
        name = scanner.name()
        if name == "data":
            # The last of several members with the same name counts, as for json.loads.
            members[name], texts = scanner.items() if scanner.take("[") else (scanner.value(), [])
        else:
            members[name] = scanner.value()
        more = scanner.take(",")
        if not more:
            scanner.expect("}")
    scanner.expect_end()
    return members, texts


class _Scanner:
    """Reads JSON value by value, to know where each begins and ends. Between calls it stands at a token or the end."""

    __slots__ = ("_at", "_decoder", "_text")

    def __init__(self, text: str, decoder: json.JSONDecoder) -> None:
        self._text = text
        self._decoder = decoder
        self._go_to(0)

    def take(self, char: str) -> bool:
        """Return whether the next token is *char*; if so, move past it."""
        found = self._text.startswith(char, self._at)
        if found:
            self._go_to(self._at + 1)
        return found

    def expect(self, char: str) -> None:
        if not self.take(char):
            raise json.JSONDecodeError(f"Expecting {char!r}", self._text, self._at)

    def expect_end(self) -> None:
        if self._at != len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def name(self) -> str:
        """Read the name of a member, and its colon."""
        if not self._text.startswith('"', self._at):
            raise json.JSONDecodeError("Expecting a name in double quotes", self._text, self._at)
        name: str = self.value()
        self.expect(":")
        return name

    def value(self) -> Any:
        value, end = self._decoder.raw_decode(self._text, self._at)
        self._go_to(end)
        return value

    def items(self) -> tuple[list[Any], list[str]]:
        """Read the items of an array whose bracket has been taken: their values, and their texts."""
        values: list[Any] = []
        texts: list[str] = []
        more = not self.take("]")
        while more:
            value, end = self._decoder.raw_decode(self._text, self._at)
            values.append(value)
            texts.append(self._text[self._at : end])
            self._go_to(end)
            more = self.take(",")
            if not more:
                self.expect("]")
        return values, texts

    def _go_to(self, at: int) -> None:
        space = _SPACE.match(self._text, at)
        self._at = space.end() if space else at


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _TOO_MANY else None
