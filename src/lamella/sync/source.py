"""Describe a paginated list: how to request its pages, and where a response has the records and counts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Final

import aiohttp
from yarl import URL

from lamella.checks import check_whole
from lamella.rules import HTTP_RULES, RuleBook
from lamella.secret_names import tells
from lamella.sync.stated import failure_in

_COUNT: Final = re.compile(r"\s*\+?([0-9]{1,16})(?:\.0*)?\s*")
_TOO_MANY: Final = 2**53
"""An upper bound for counts of records and pages: JSON cannot distinguish larger numbers from their neighbours."""


@dataclass(frozen=True, slots=True)
class Pagination:
    """How to request the pages of a list."""

    _: KW_ONLY
    page_size: int = 100
    """The number of records to request per page."""
    size: str | None = "limit"
    """The query parameter for the page size. None means that there is no such parameter."""
    parallel: ClassVar[bool] = False
    """Whether a page can be requested without the answer to the previous one."""
    linked: ClassVar[bool] = False
    """Whether the token of a page is the URL of the next page."""
    by_offset: ClassVar[bool] = False
    """Whether the place of a page depends on the number of records before it."""

    def __post_init__(self) -> None:
        check_whole("page_size", self.page_size)

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        """Return the query for a page, by its *number* from 1, the records *before* it, or the *token* of a chain."""
        return {} if self.size is None else {self.size: str(self.page_size)}

    def token(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        """Return the :attr:`Page.token` of the page after an answer. None: it is the last page."""
        return None

    def is_stated(self, response: aiohttp.ClientResponse, answer: object) -> bool:
        """Return whether an answer says if another page follows. A cursor that is null says that none does."""
        return True


@dataclass(frozen=True, slots=True)
class Numbered(Pagination):
    """Numbered pages: ``?page=2&limit=100``. They are read concurrently once their count is known."""

    page: str = "page"
    """The query parameter for the page number."""
    first: int = 1
    """The number of the first page."""
    parallel: ClassVar[bool] = True

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        return {**Pagination.query(self, number, before, token), self.page: str(number - 1 + self.first)}


@dataclass(frozen=True, slots=True)
class Offset(Pagination):
    """Pages that begin at an offset: ``?offset=100&limit=100``. They are read concurrently once the total is known."""

    offset: str = "offset"
    """The query parameter for the number of records to skip."""
    parallel: ClassVar[bool] = True
    by_offset: ClassVar[bool] = True

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        return {**Pagination.query(self, number, before, token), self.offset: str(before)}


@dataclass(frozen=True, slots=True)
class Cursor(Pagination):
    """Pages with a cursor for the next page in the answer: ``?cursor=…&limit=100``."""

    next: str = "next_cursor"
    """The place of the cursor in the answer: names separated by points. Null, false, empty or missing: the last
    page. So is an empty page with the cursor of its request."""
    cursor: str = "cursor"
    """The query parameter for the cursor."""

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        return {**Pagination.query(self, number, before, token), **({} if token is None else {self.cursor: token})}

    def token(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        found = at(answer, self.next)
        if found is None or found is False:
            return None
        if not isinstance(found, str | int) or found is True:
            raise ValueError(f"the cursor at {self.next!r} must be text or a whole number, got {type(found).__name__}")
        return str(found) or None

    def is_stated(self, response: aiohttp.ClientResponse, answer: object) -> bool:
        """Return whether an answer has the place, even if it is null."""
        return _has(answer, self.next)


@dataclass(frozen=True, slots=True)
class _Linked(Pagination):
    linked: ClassVar[bool] = True

    def url(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        """Return the URL of the next page, which may be relative."""
        raise NotImplementedError

    def token(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        found = self.url(response, answer)
        if not found:
            return None
        try:
            url = response.url.join(URL(found))
            scheme = url.scheme if url.host else f"{url.scheme}, without a host"
        except ValueError:  # its message may show a credential in the URL
            raise ValueError("the URL of the next page is not a valid one") from None
        if scheme not in {"http", "https"}:
            raise ValueError(f"the next page must have an http or https URL, got one with {scheme}")
        # Of the request itself, since a redirect may lead to another origin. Otherwise the credentials of the session
        # would be sent there.
        asked = (response.history or (response,))[0].url.origin()
        if url.origin() != asked:
            raise ValueError(f"the next page is at another origin: {url.origin()}, and this one at {asked}")
        return str(url)


@dataclass(frozen=True, slots=True)
class LinkHeader(_Linked):
    """Pages with the URL of the next page, of the same origin, in the header ``Link`` (RFC 8288), as at GitHub."""

    rel: str = "next"

    def url(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        # A link may have several relations, separated by spaces. Names and relations may be in any case.
        try:
            links = response.links
        except ValueError:
            raise ValueError("the header Link has a URL that is not a valid one") from None
        for link in links.values():
            relations = [str(value) for name, value in link.items() if name.lower() == "rel"]
            if self.rel.lower() in " ".join(relations).lower().split():
                return str(link["url"])
        header = ", ".join(response.headers.getall("Link", ()))
        if re.search(rf"""rel\s*=\s*["']?([^"',;]*\s)?{re.escape(self.rel)}\b""", header, re.IGNORECASE):
            raise ValueError(f"the header Link has a relation {self.rel!r} that cannot be read")
        return None

    def is_stated(self, response: aiohttp.ClientResponse, answer: object) -> bool:
        """Return whether an answer has the header."""
        return "Link" in response.headers


@dataclass(frozen=True, slots=True)
class NextUrl(_Linked):
    """Pages with the URL of the next page in the body. It must have the same origin."""

    next: str = "next"
    """The place of the URL in the answer: names separated by points. Null, false, empty or missing: the last page."""

    def url(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        found = at(answer, self.next)
        if found is None or found is False or isinstance(found, str):
            return found or None
        raise ValueError(f"the next URL at {self.next!r} must be text, got {type(found).__name__}")

    def is_stated(self, response: aiohttp.ClientResponse, answer: object) -> bool:
        """Return whether an answer has the place, even if it is null."""
        return _has(answer, self.next)


Fetch = Callable[
    [aiohttp.ClientSession, URL, Mapping[str, str] | None],
    AbstractAsyncContextManager[tuple[aiohttp.ClientResponse, str | None]],
]


@asynccontextmanager
async def get(
    session: aiohttp.ClientSession, url: URL, query: Mapping[str, str] | None
) -> AsyncIterator[tuple[aiohttp.ClientResponse, str | None]]:
    """Request a page by GET."""
    async with session.get(url, params=query) as response:
        yield response, None


@dataclass(frozen=True, slots=True)
class Source:
    """One paginated list of an API.

    Places in an answer are names separated by points: ``"meta.pagination.total"``.

    Raises:
        ValueError: An argument is out of its range.
    """

    url: str
    """Relative to the base URL of the session, or absolute."""
    pages: Pagination = field(default_factory=Numbered)
    _: KW_ONLY
    records: str = "data"
    """The place of the records in an answer. Empty: the answer is the list of records."""
    id: str | Sequence[str | None] | None = "id"
    """The field that identifies a record. With several fields, the first one in the record counts. None, alone or as
    the last one: the content identifies a record without such a field. The record is stored as many times as it occurs
    in the list, and each run reads the whole list."""
    changed: str | Sequence[str] | None = None
    """The field with the moment of a record's last change: ISO 8601 (UTC if it has no zone), or seconds since 1970.
    With several fields, the first one in the record counts. None means that records have no such field. Then each run
    reads the whole list."""
    since: str | None = None
    """The query parameter that selects records changed since a given time. None: each run reads the whole list."""
    total: str | None = None
    """The place of the number of records on all pages. None means that no answer has it."""
    total_pages: str | None = None
    """The place of the number of pages. It is not used at offsets, where pages may have any length."""
    errors: str | Sequence[str] | None = ("errors", "error", "meta.errors", "meta.error")
    """The place of the errors in an answer with a successful status. With several places, each one may hold them."""
    failure: Callable[[Mapping[str, Any]], str | None] = field(default=failure_in, repr=False)
    """Returns the statement of failure in an answer with a successful status, such as ``"success": false``, and None if
    there is none. Called with the answer, and with each object in it that contains the records, without the records.
    The default is :func:`lamella.sync.failure_in`."""
    warnings: str | None = None
    """The place of warnings, which are reported."""
    params: Mapping[str, str] | Callable[[Any], Mapping[str, str | None]] = field(default_factory=dict)
    """Further query parameters, or a function that returns them for an account. None and empty values are left out. If
    a mapping differs from that of the previous run, it selects another list: the stored records are dropped, as by
    *variant*. Parameters whose name is that of a secret, such as ``api_key``, do not count."""
    within: Callable[[Any], AbstractContextManager[object]] = field(default=lambda _: nullcontext())
    """Called with an account. Returns a context manager that is entered for each request and selects the
    credentials."""
    variant: Callable[[Any], str] = field(default=lambda _: "", repr=False)
    """Returns a text for an account that distinguishes the list from other lists at its URL, such as a filter that
    `params` returns. If the text differs from that of the previous run, the stored records of the list are dropped, and
    it is read from the beginning."""
    fetch: Fetch = field(default=get, repr=False)
    """Requests a page, for an API whose first answer leads to another one. Called with the session, the URL and the
    query. Returns a context manager of the answer and the place of its records (None: `records`)."""
    rules: RuleBook = field(default=HTTP_RULES, repr=False)
    """The meaning of error statuses, for a session whose layers do not raise."""
    name: str = ""
    """Its name in messages. Empty: the end of its URL."""

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError("url must not be empty")
        if "" in self.ids or not (self.ids or self.may_lack_id):
            raise ValueError(f"id must name at least one field, not {self.id!r}")
        if not self.name:
            object.__setattr__(self, "name", URL(self.url).name or self.url)

    @property
    def ids(self) -> tuple[str, ...]:
        """The fields that may identify a record."""
        return (self.id,) if isinstance(self.id, str) else tuple(name for name in self.id or () if name is not None)

    @property
    def may_lack_id(self) -> bool:
        """Whether a record may have none of the id fields."""
        return self.id is None or (not isinstance(self.id, str) and None in self.id)

    @property
    def dates(self) -> tuple[str, ...]:
        """The fields that may contain the time of the last change."""
        return () if self.changed is None else (self.changed,) if isinstance(self.changed, str) else tuple(self.changed)

    @property
    def errors_at(self) -> tuple[str, ...]:
        """The places that may hold errors. The records are not errors."""
        places = (self.errors,) if isinstance(self.errors, str) else self.errors or ()
        return tuple(place for place in places if not f"{self.records}.".startswith(f"{place}."))

    @property
    def identity(self) -> str:
        """The identity of its stored records: records of another identity belong to another list."""
        return repr((self.url, self.records, self.ids, self.dates, *self._selection))

    @property
    def _selection(self) -> tuple[str, ...]:
        """A hash of the parameters that are the same for all accounts, if there are any."""
        if callable(self.params):
            return ()
        chosen = sorted((name, value) for name, value in self.params.items() if value and not tells(name))
        return (hashlib.sha256(repr(chosen).encode()).hexdigest()[:16],) if chosen else ()

    def request(
        self, account: object, since: str | None, number: int, before: int, token: str | None
    ) -> tuple[URL, dict[str, str] | None]:
        """Return the URL and the query of a page. An empty value is not sent."""
        if token is not None and self.pages.linked:
            return URL(token, encoded=True), None
        more = self.params(account) if callable(self.params) else self.params
        given = {**more, **({} if self.since is None else {self.since: since})}
        query = self.pages.query(number, before, token)
        return URL(self.url), query | {name: value for name, value in given.items() if value}


def at(answer: object, place: str) -> Any:
    """Return the value at a place in an answer. None: there is no value."""
    for name in place.split(".") if place else ():
        if not isinstance(answer, Mapping):
            return None
        answer = answer.get(name)
    return answer


def _has(answer: object, place: str) -> bool:
    """Return whether there is a value at a place in an answer, even if it is null."""
    within, _, name = place.rpartition(".")
    found = at(answer, within)
    return isinstance(found, Mapping) and name in found


def count_at(answer: object, place: str | None) -> int | None:
    """Return the number at a place in an answer. None: there is no number that may be a count."""
    value = None if place is None else at(answer, place)
    if isinstance(value, str) and (found := _COUNT.fullmatch(value)):
        value = int(found[1])
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not 0 <= value < _TOO_MANY:
        return None
    return int(value) if value == int(value) else None
