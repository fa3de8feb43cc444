"""Read one page of a list, with the counts that its answer states."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast

import aiohttp
import anyio

from lamella.body.answer import wait_for_body, whole_bodies
from lamella.classify.failures import ERROR_STATUS, error_messages
from lamella.classify.judge import api_error
from lamella.credentials import noting_secrets
from lamella.errors import ApiError, AttemptTimeout, BadRequest, NotFound, TooManyRequests, Unauthorized
from lamella.rules.retry_after import parse_http_date
from lamella.sync.decode import Cut, ParseNumber, Records, loads, records_of, split
from lamella.sync.errors import AnswerFailed, BadRecord, EmptyPage
from lamella.sync.source import Source, at, count_at
from lamella.sync.stated import messages_of, says_more

MOST_PAGES: Final = 1_000_000
"""A larger page count is ignored: the pages would need too much memory."""
_LONG: Final = 1_000
"""Pages after which a list may have no end if the API does not count them."""
_LONG_NAMELESS: Final = 20
"""The same for records without an id, which are always new if their content changes."""
_LONGEST: Final = 64 * 2**20
"""Maximum bytes of a page that are read within the attempt."""
_SUCCESSES: Final = frozenset(range(200, 300)) - {202}
"""Statuses of an answer with records. With 202, the API has only accepted the request."""
_PAUSES: Final = (0.2, 1.0)
"""Seconds before an unexpectedly empty page is read again."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    number: int
    """From 1."""
    total_pages: int | None
    """The number of pages when this one was read. None: the API did not state it."""
    records: list[Any]
    """The values as ``json.loads`` returns them. A float may differ from the number that was sent, see *texts* and
    *parse_float*."""
    answer: Any = None
    """The content of the answer."""
    total: int | None = None
    """The number of records on all pages. None: the API did not state it."""
    answered: float = 0.0
    """When the API answered, in seconds since the epoch, by its own clock or, without a ``Date`` header, by ours."""
    token: str | None = None
    """The cursor or the URL of the next page. None on the last page, and if pages have numbers."""
    warnings: tuple[str, ...] = ()
    """The warnings in the answer. They contain no credential."""
    bad: tuple[BadRecord, ...] = ()
    """Records that cannot be stored. Only a sync checks this."""
    body: bytes = field(default=b"", repr=False)
    """The answer as it was sent, as UTF-8."""
    place: str = field(default="", repr=False)

    @property
    def texts(self) -> list[str]:
        """The JSON text of each record, exactly as the API sent it. It needs the extra ``sync``."""
        return [record.decode() for record in split(self.body, self.place).records or ()]


@dataclass(frozen=True, slots=True)
class List:
    """A list to read: its source, its account and the start time."""

    source: Source
    account: Any = field(default=None, repr=False)
    """The argument of :attr:`Source.within` and ``params``. It may contain a credential. None: there is no account."""
    since: str | None = None
    raw: bool = False
    """Whether to keep records as they were sent, for a sync. Otherwise they are decoded."""
    parse_float: ParseNumber = None


class Place(NamedTuple):
    """The place of a page in a list."""

    number: int
    before: int = 0
    """The number of records on the pages before it."""
    token: str | None = None
    """The :attr:`Page.token` of the page before it."""


def ends_early(page: Page, total: int | None, total_pages: int | None) -> str | None:
    """Return how a page without a next one contradicts the count of pages. None: it does not, or *total* is known."""
    if page.token is not None or total is not None or page.number >= (total_pages or 0):
        return None
    return f"page {page.number} leads to no other page, but the API counts {total_pages} pages"


def checked_moment(since: datetime | str) -> str:
    """Return *since* as text, or raise ValueError."""
    try:
        moment = datetime.fromisoformat(since) if isinstance(since, str) else since
    except ValueError:
        raise ValueError(f"since must be ISO 8601, as in 2026-01-31T00:00:00Z, not {since!r}") from None
    if isinstance(since, datetime) and moment.tzinfo is None:
        raise ValueError(f"since must have a time zone, as in datetime.now(UTC), not {since!r}")
    return since if isinstance(since, str) else moment.isoformat()


def greater(one: int | None, other: int | None) -> int | None:
    """Return the greater number. None stands for unknown."""
    return other if one is None else one if other is None else max(one, other)


def lesser(one: int | None, other: int) -> int:
    """Return the lesser number. None stands for unknown."""
    return other if one is None else min(one, other)


async def read_filled(
    session: aiohttp.ClientSession,
    of: List,
    place: Place,
    *,
    before: int | None,
    largest: int,
    total_pages: int | None,
    total: int | None,
) -> Page:
    """Read one page of a list. If it is unexpectedly empty, read it again after a pause.

    Args:
        session: As for :func:`lamella.pages`.
        of: The list.
        place: The place of the page.
        before: The number of records on the pages before it. None means unknown.
        largest: The number of records on the largest page so far. 0 means unknown.
        total_pages: The API's count of pages. After these, 400 and 404 mean an empty page. None means unknown.
        total: The API's count of records. None means unknown.

    Raises:
        EmptyPage: The page stayed empty, although the list continues by its own answer.
        lamella.LamellaError: The page could not be read.
        ValueError: The answer contains no list, or contains errors.
    """
    number = place.number

    def is_due(pages: int | None, records: int | None) -> bool:
        """Return whether the page should hold records, or whether it is doubtful that the list has ended."""
        if pages is None and records is None:
            return is_doubtful or page.token is not None
        if records is not None and before is not None:
            return before < records
        return pages is not None and number < pages

    is_doubtful = _is_doubtful(of, number, before, largest)
    try:
        page = await _read_page(session, of, place)
        for pause in _PAUSES if any((page.total_pages, page.total, total_pages, total)) else _PAUSES[:1]:
            known = greater(page.total_pages, total_pages), greater(page.total, total)
            if page.records or page.bad or (page.token and any(known)) or not is_due(*known):
                return page
            await anyio.sleep(pause)
            page = await _read_page(session, of, place)
    except (BadRequest, NotFound):
        if total_pages is None or number <= total_pages:
            raise
        return Page(number, None, [], answered=time.time())
    counts = (page.total_pages, page.total, total_pages, total)
    is_empty = not page.records and not page.bad
    is_middle = is_doubtful and number > 1 and of.source.pages.parallel and not any(counts)
    if is_empty and is_middle and await _has_records_after(session, of, place):
        raise EmptyPage(of.source.name, number, None, None, in_middle=True)
    # An empty page after the last one only means that records are missing, which UnsteadyList reports.
    is_counted = page.total_pages is not None and number <= page.total_pages
    if is_empty and is_counted and is_due(page.total_pages, page.total):
        raise EmptyPage(of.source.name, number, page.total_pages, page.total)
    return page


def _is_doubtful(of: List, number: int, before: int | None, largest: int) -> bool:
    """Return whether an empty page does not show the end of a list without counts.

    All pages before it were full, or as large as one another, or another page led to it, or it is the first page of the
    whole list. *before* is the number of records on the pages before it. None means unknown.
    """
    if number == 1:
        return of.since is None
    if not of.source.pages.parallel:
        return True
    size = of.source.pages.page_size
    full = min(largest or size, size) if number > 2 else size  # a single short page is the usual end
    return (before or 0) >= (number - 1) * full


def may_be_endless(page: Page, before: int, total_pages: int | None, total: int | None, *, is_nameless: bool) -> bool:
    """Return whether a list may have no end: *page* still has records after many pages, and no count includes it.

    Args:
        page: The page.
        before: The number of records on the pages before it.
        total_pages: The API's count of pages so far. None means unknown.
        total: The API's count of records so far. None means unknown.
        is_nameless: Whether the page has records without an id.
    """
    if not page.records or page.number < (_LONG_NAMELESS if is_nameless else _LONG):
        return False
    pages, records = greater(page.total_pages, total_pages) or 0, greater(page.total, total) or 0
    return pages < page.number and records <= before


def is_to_ask(honours: int | None, number: int) -> bool:
    """Return whether to ask, after page *number*, whether the API honours the number of a page.

    A failure far after the end may also be a temporary one, so each answer holds for as many pages again.

    Args:
        honours: The page after which the API last seemed to honour the number. 0: it does not. None: not asked.
        number: The number of the page.
    """
    return honours is None or 0 < honours * 2 <= number


async def honours_number(session: aiohttp.ClientSession, of: List) -> bool:
    """Return whether the API seems to honour the number of a page: far after the end, it returns no records.

    Raises:
        lamella.LamellaError: The API was not reached, or has rejected the account.
    """
    try:
        page = await _read_page(session, of, Place(MOST_PAGES, MOST_PAGES * of.source.pages.page_size))
    except (Unauthorized, TooManyRequests):
        raise
    except (ApiError, AttemptTimeout, ValueError):
        return True  # some APIs fail or take too long at a large offset
    return not (page.records or page.bad)


async def _has_records_after(session: aiohttp.ClientSession, of: List, place: Place) -> bool:
    """Return whether the page after an empty one has records."""
    after = Place(place.number + 1, place.before + of.source.pages.page_size)
    try:
        page = await _read_page(session, of, after)
    except (BadRequest, NotFound):
        return False
    return bool(page.records or page.bad)


async def _read_page(session: aiohttp.ClientSession, of: List, place: Place) -> Page:
    source, what = of.source, f"page {place.number} of {of.source.name}"
    url, params = source.request(of.account, of.since, *place)
    within = nullcontext() if of.account is None else source.within(of.account)
    with within, whole_bodies(_LONGEST), noting_secrets():
        async with source.fetch(session, url, params) as (response, place_of_records):
            records_at = source.records if place_of_records is None else place_of_records
            if response.status >= ERROR_STATUS:
                # A session that does not raise must not make an error look like an empty list.
                raise await api_error(response, source.rules)
            body = await _body(response, what)
            now = time.time()
            answered = parse_http_date(response.headers.get("Date"), now) or now
            if response.status not in _SUCCESSES:
                raise AnswerFailed(what, response.status, ("the status does not mean that the answer is complete",))
            if response.status == HTTPStatus.NO_CONTENT and not body and place.token is None:
                body = _without_records(records_at)  # a chain that ends so would not say that it ends
            answer, records, cut, problem = _parsed(body, of, records_at)
            failed = warnings = token = None
            is_stated = True
            said: tuple[str, ...] = ()
            if problem is None:
                found = (error_messages(response, errors) for errors in _errors(source, answer, records_at))
                failed = next((messages for messages in found if messages is not None), None)
                warnings = None if source.warnings is None else error_messages(response, at(answer, source.warnings))
                token = source.pages.token(response, answer) if failed is None else None
                if not records and token == place.token:
                    token = None  # an empty page that leads to itself is the end: the cursor is for a later run
                is_stated = failed is None and source.pages.is_stated(response, answer)
                if failed is None and not isinstance(records, list):
                    said = error_messages(response, messages_of(answer)) or ()
    # A server may repeat a credential, and some tools show the locals of a traceback.
    if problem is not None or failed is not None or not isinstance(records, list):
        held = type(at(answer, records_at)).__name__
        del answer, body, records, cut
        if problem is not None:
            raise ValueError(f"{what} is not readable JSON ({problem})")
        if failed is not None:
            raise AnswerFailed(what, response.status, failed)
        raise ValueError(f"{what} holds no list of records, but {': '.join([held, *said])}")
    # Offsets depend on the number of records: if pages are shorter than requested, there are more of them.
    total_pages = None if source.pages.by_offset else count_at(answer, source.total_pages)
    bad: list[BadRecord] = []
    total = count_at(answer, source.total)
    is_last = token is None and not (source.pages.parallel and (total_pages is None or place.number < total_pages))
    if total is None and is_last and (more := says_more(answer)) is not None:
        raise AnswerFailed(what, response.status, (f"{more} says that more records follow, but no page does",))
    if cut is not None:
        records, bad = _checked(cut, source, what)
        answer, body = None, b""
    if is_last and not is_stated and total is None and _is_full_first(source, place, len(records) + len(bad)):
        odd = "is full, but its answer has no cursor, next URL or Link header: check the pagination if there are more"
        warnings = (*(warnings or ()), f"{what} {odd}")
    return Page(
        place.number,
        # Ignore the count: the list also ends with an empty page.
        None if total_pages is None or total_pages > MOST_PAGES else total_pages,
        cast("list[Any]", records),  # for a sync (raw), it is a Records object
        answer,
        total,
        answered,
        token,
        warnings or (),
        tuple(bad),
        body,
        records_at,
    )


def _without_records(place: str) -> bytes:
    """Return an answer with an empty list of records."""
    body = "[]"
    for name in reversed(place.split(".") if place else []):
        body = f"{{{json.dumps(name)}:{body}}}"
    return body.encode()


def _is_full_first(source: Source, place: Place, many: int) -> bool:
    return place.number == 1 and source.pages.size is not None and many >= source.pages.page_size


def _errors(source: Source, answer: object, place: str) -> Iterator[object]:
    """Yield what may be the errors of an answer."""
    for each in source.errors_at:
        yield at(answer, each)
    for name in place.split("."):
        if not isinstance(answer, Mapping):
            return
        yield source.failure({key: value for key, value in answer.items() if key != name})
        answer = answer.get(name)


def _parsed(body: bytes, of: List, place: str) -> tuple[Any, Any, Cut | None, str | None]:
    """Return the answer, its records, its division into records for a sync, and the error in it.

    Raise without the body, which the cause would contain.
    """
    try:
        if of.raw:
            try:
                cut = split(body, place, compact=True)
            except ValueError:
                loads(body)  # raises the errors that callers of pages() expect
                raise
            return cut.answer, cut.records, cut, "a name occurs twice" if cut.repeats else None
        answer = loads(body, of.parse_float)
        return answer, at(answer, place), None, None
    except (ValueError, ArithmeticError, RecursionError) as exc:  # decimal's errors are arithmetic ones
        ours = type(exc) is ValueError and str(exc).endswith("JSON compliant")
        return None, None, None, str(exc) if ours else type(exc).__name__


def _checked(cut: Cut, source: Source, what: str) -> tuple[Records, list[BadRecord]]:
    """Return the records to be stored, and those that cannot be stored."""
    found, failed = records_of(cut, source)
    bad = []
    for position, exc in failed:
        why = "is not UTF-8" if isinstance(exc, UnicodeDecodeError) else str(exc)
        bad.append(BadRecord(f"record {position} on {what} {why}"))
    return found, bad


async def _body(response: aiohttp.ClientResponse, what: str) -> bytes:
    """Return the body as UTF-8. A lone surrogate, which other encodings may contain, is escaped."""
    # Buffer has read the body up to its limit. In a session without Buffer, it must be read here.
    if not response.content.is_eof() and (
        (response.content_length or 0) > _LONGEST or not await wait_for_body(response, _LONGEST)
    ):
        response.close()
        raise ValueError(f"{what} is longer than {_LONGEST // 2**20} MiB: smaller pages can be read")
    body = await response.read() if response.content.at_eof() else await response.content.read()
    charset = (response.charset or "utf-8").lower()
    if charset in {"utf-8", "utf8", "us-ascii"}:
        charset = json.detect_encoding(body)  # JSON in UTF-16 and UTF-32 need not state its encoding
    if charset in {"utf-8", "utf-8-sig"}:
        return body.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode(charset).removeprefix("\ufeff").encode("utf-8", "backslashreplace")
    except LookupError:  # unknown character set
        return body
    except ValueError as exc:
        problem = type(exc).__name__
    del body
    raise ValueError(f"{what} is not readable JSON ({problem})")
