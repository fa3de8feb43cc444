"""What is to be known of a paginated list: how its pages are asked for, and what an answer says about the list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Final

import aiohttp
from yarl import URL

from lamella.checks import check_whole
from lamella.rules import HTTP_RULES, RuleBook

_TOO_MANY: Final = 2**53
"""An upper bound for counts of records and pages: JSON cannot tell larger numbers from their neighbours."""


@dataclass(frozen=True, slots=True)
class Pagination:
    """How the pages of a list are asked for."""

    _: KW_ONLY
    page_size: int = 100
    """How many records to ask for on a page."""
    size: str | None = "limit"
    """The query parameter for that. None means that there is none."""
    parallel: ClassVar[bool] = False
    """Whether a page can be asked for without the answer to the one before."""
    linked: ClassVar[bool] = False
    """Whether the token of a page is the URL of the next one."""

    def __post_init__(self) -> None:
        check_whole("page_size", self.page_size)

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        """Return the query for a page: its *number* from 1, the records *before* it, the *token* of a chain."""
        return {} if self.size is None else {self.size: str(self.page_size)}

    def token(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        """Return what leads to the page after an answer, as :attr:`Page.token`. None: it is the last one."""
        return None


@dataclass(frozen=True, slots=True)
class Numbered(Pagination):
    """Pages with numbers: ``?page=2&limit=100``. They are read side by side once their number is known."""

    page: str = "page"
    """The query parameter for the number."""
    first: int = 1
    """The number of the first page."""
    parallel: ClassVar[bool] = True

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        return {**Pagination.query(self, number, before, token), self.page: str(number - 1 + self.first)}


@dataclass(frozen=True, slots=True)
class Offset(Pagination):
    """Pages that begin with a record: ``?offset=100&limit=100``. They are read side by side once the total is known."""

    offset: str = "offset"
    """The query parameter for the number of records to pass over."""
    parallel: ClassVar[bool] = True

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        return {**Pagination.query(self, number, before, token), self.offset: str(before)}


@dataclass(frozen=True, slots=True)
class Cursor(Pagination):
    """Pages that lead to the next one by a text in the answer: ``?cursor=…&limit=100``."""

    next: str = "next_cursor"
    """Where that text is in the answer: names with points between them. Null, empty or missing: the last page."""
    cursor: str = "cursor"
    """The query parameter for it."""

    def query(self, number: int, before: int, token: str | None) -> dict[str, str]:
        return {**Pagination.query(self, number, before, token), **({} if token is None else {self.cursor: token})}

    def token(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        found = at(answer, self.next)
        return str(found) if isinstance(found, str | int) and not isinstance(found, bool) and found != "" else None


@dataclass(frozen=True, slots=True)
class _Linked(Pagination):
    linked: ClassVar[bool] = True

    def url(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        """Return the URL of the next page, perhaps a relative one."""
        raise NotImplementedError

    def token(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        found = self.url(response, answer)
        if not found:
            return None
        url = response.url.join(URL(found))
        if url.origin() != response.url.origin():
            # The credentials of the session would go there.
            raise ValueError(
                f"the next page is at another origin: {url.origin()}, and this one at {response.url.origin()}"
            )
        return str(url)


@dataclass(frozen=True, slots=True)
class LinkHeader(_Linked):
    """Pages whose header ``Link`` has the URL of the next one (RFC 8288), as at GitHub. Only to the same origin."""

    rel: str = "next"

    def url(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        found = response.links.get(self.rel)
        return None if found is None else str(found["url"])


@dataclass(frozen=True, slots=True)
class NextUrl(_Linked):
    """Pages whose body has the URL of the next one. Only to the same origin."""

    next: str = "next"
    """Where it is in the answer: names with points between them. Null, empty or missing: the last page."""

    def url(self, response: aiohttp.ClientResponse, answer: object) -> str | None:
        found = at(answer, self.next)
        return found if isinstance(found, str) else None


Fetch = Callable[
    [aiohttp.ClientSession, URL, Mapping[str, str] | None],
    AbstractAsyncContextManager[tuple[aiohttp.ClientResponse, str | None]],
]


@asynccontextmanager
async def get(
    session: aiohttp.ClientSession, url: URL, query: Mapping[str, str] | None
) -> AsyncIterator[tuple[aiohttp.ClientResponse, str | None]]:
    """Ask for a page by GET."""
    async with session.get(url, params=query) as response:
        yield response, None


@dataclass(frozen=True, slots=True)
class Source:
    """One paginated list of an API.

    Places in an answer are names with points between them: ``"meta.pagination.total"``.

    Raises:
        ValueError: An argument is out of its range.
    """

    url: str
    """Relative to the base URL of the session, or absolute."""
    pages: Pagination = field(default_factory=Numbered)
    _: KW_ONLY
    records: str = "data"
    """Where the records are in an answer. Empty: the answer is the list of records."""
    id: str | Sequence[str | None] | None = "id"
    """The field that identifies a record. Of several fields, the first one that a record has. None, alone or as the
    last one: the content of a record without such a field identifies it. It is stored as often as the list has it, and
    each run reads the whole list."""
    changed: str | Sequence[str] | None = None
    """The field with the moment of a record's last change: ISO 8601 (UTC if it has no zone), or seconds since 1970.
    Of several the first one that a record has. None means that a record has none: each run reads the whole list."""
    since: str | None = None
    """The query parameter for records that were changed since a moment. None: each run reads the whole list."""
    total: str | None = None
    """Where an answer says how many records there are on all pages. None means nowhere."""
    total_pages: str | None = None
    """Where an answer says how many pages there are."""
    errors: str | None = None
    """Where an answer with a good status says that it failed."""
    warnings: str | None = None
    """Where an answer has warnings, which are reported."""
    params: Mapping[str, str] | Callable[[Any], Mapping[str, str | None]] = field(default_factory=dict)
    """More of the query, or a function that returns it for an account. None and empty values are left out."""
    within: Callable[[Any], AbstractContextManager[object]] = field(default=lambda _: nullcontext())
    """Called with an account; each of its requests is made inside of what it returns, which chooses the credentials."""
    variant: Callable[[Any], str] = field(default=lambda _: "", repr=False)
    """Returns for an account what else tells the list from others at its URL, such as a filter among `params`. If it
    differs from that of the run before, what is stored of the list is dropped, and it is read from the beginning."""
    fetch: Fetch = field(default=get, repr=False)
    """Asks for a page. It is a function of the session, the URL and the query, which returns a context of the answer
    and of the place of its records (None: `records`), for an API whose first answer leads to another one."""
    rules: RuleBook = field(default=HTTP_RULES, repr=False)
    """What an error status means, for a session whose layers do not raise."""
    name: str = ""
    """What messages call it. Empty: the end of its URL."""

    def __post_init__(self) -> None:
        if not self.url:
            raise ValueError("url must not be empty")
        if "" in self.ids or not (self.ids or self.may_lack_id):
            raise ValueError(f"id must name a field, or several, not {self.id!r}")
        if not self.name:
            object.__setattr__(self, "name", URL(self.url).name or self.url)

    @property
    def ids(self) -> tuple[str, ...]:
        """The fields that may identify a record."""
        return (self.id,) if isinstance(self.id, str) else tuple(name for name in self.id or () if name is not None)

    @property
    def may_lack_id(self) -> bool:
        """Whether a record may have none of them."""
        return self.id is None or (not isinstance(self.id, str) and None in self.id)

    @property
    def dates(self) -> tuple[str, ...]:
        """The fields that may say when a record was last changed."""
        return () if self.changed is None else (self.changed,) if isinstance(self.changed, str) else tuple(self.changed)

    @property
    def identity(self) -> str:
        """What its stored records depend on: a journal's records of another identity are of another list."""
        return repr((self.url, self.records, self.ids, self.dates))

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
    """Return what is at a place in an answer; None where there is nothing."""
    for name in place.split(".") if place else ():
        if not isinstance(answer, Mapping):
            return None
        answer = answer.get(name)
    return answer


def count_at(answer: object, place: str | None) -> int | None:
    """Return the number at a place in an answer, or None where there is no number that may be a count."""
    value = None if place is None else at(answer, place)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOO_MANY else None
