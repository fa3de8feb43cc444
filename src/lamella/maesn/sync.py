"""``maesn.sync``: all records of many accounts, from where the last sync has ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from os import PathLike
from types import MappingProxyType
from typing import Final

import aiohttp
import anyio

from lamella.batch import AccountStopped, Batch, ItemOutcome, Journal, JournalError
from lamella.errors import BadRequest, LamellaError, NotFound, RateLimited, Unauthorized
from lamella.maesn.account import Account
from lamella.maesn.export import check_output, export
from lamella.maesn.list_errors import AnswerFailed, EmptyPage
from lamella.maesn.pages import Page, Query, checked_limit, checked_moment, checked_resource, exact_int, read_filled
from lamella.maesn.stored import Books, Position, Wanted, begin, look, missing, store

__all__ = ["Part", "Progress", "Report", "plan", "sync"]

_MOST_AT_ONCE: Final = 1000
"""How many pages are under way at a time, unless the caller says."""
_OF_ONE_PAGE: Final = (LamellaError, EmptyPage, AnswerFailed)
"""Failures that need not be those of the list's other pages."""


@dataclass(frozen=True, slots=True)
class Part:
    """One resource of one account, and how far a sync has come with it."""

    account: str
    """The account's name."""
    resource: str
    since: str | None
    """Only what was changed since then is read (ISO 8601). None means everything."""
    pages: int = 0
    """How many are stored."""
    total_pages: int | None = None
    """How many there are. None: not known yet."""
    records: int = 0
    """How many were new, or not as they were stored before: in all of the run, where it was resumed."""
    running: int = 0
    """How many of its pages are under way."""
    done: bool = False
    """All is stored, and the next sync goes on from here."""
    skipped: bool = False
    """It was done already when the run was resumed."""
    error: Exception | None = None
    """Why it failed: what the first page that could not be had or stored has ended in, or what the list lacks."""
    gap: bool = False
    """It is done, but records that were last changed before `since` may be missing, since no run has read the list up
    to it. The mark does not move, so that a run without *since* reads them."""
    dropped: bool = False
    """What was stored for the account was of another `company_id` or `environment_name`: it was dropped when the run
    began, or is to be dropped, and is read anew."""


class Progress:
    """How far a sync has come; always the same object, which changes as it goes."""

    __slots__ = ("_batch", "_parts", "changed", "resumed", "run")

    def __init__(self, run: int, parts: Iterable[Part], batch: Batch[_Page, Position | None], *, resumed: bool) -> None:
        self.run = run
        """The run's number in its journal, from 1."""
        self.resumed = resumed
        self.changed: Part | None = None
        """What has changed just now. None at the beginning."""
        self._parts = {(part.account, part.resource): part for part in parts}
        self._batch = batch

    def take(self, part: Part) -> None:
        """*part* has changed."""
        self._parts[part.account, part.resource] = self.changed = part

    @property
    def parts(self) -> Mapping[tuple[str, str], Part]:
        """By the account's name and the resource, in the order in which they were given."""
        return MappingProxyType(self._parts)

    @property
    def outage(self) -> LamellaError | None:
        """The last failure of the API, as long as it is down and pages wait for that."""
        return self._batch.outage


@dataclass(frozen=True, slots=True)
class Report:
    """What a sync has come to."""

    run: int
    """Its number in the journal, from 1."""
    resumed: bool
    parts: tuple[Part, ...]
    took: float
    """Seconds."""

    @property
    def done(self) -> bool:
        """Whether every part is."""
        return all(part.done for part in self.parts)

    @property
    def failed(self) -> tuple[Part, ...]:
        """The parts that are not done, each with its error."""
        return tuple(part for part in self.parts if not part.done)

    @property
    def pages(self) -> int:
        """How many are stored."""
        return sum(part.pages for part in self.parts)

    @property
    def records(self) -> int:
        """How many were new or changed."""
        return sum(part.records for part in self.parts)


async def sync(
    session: aiohttp.ClientSession,
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal,
    output: str | PathLike[str] | None = None,
    since: datetime | str | None = None,
    resume: bool = False,
    limit: int = 100,
    at_once: int | None = None,
    at_once_per_account: int = 4,
    patience: float | None = 3600.0,
    on_progress: Callable[[Progress], object] | None = None,
) -> Report:
    """Bring the records of all *accounts* up to date, page by page, and say what could not be had.

    The records are kept in *journal*, each as the JSON text that the API sent without the white space between its
    tokens. Each page's are stored in one transaction with the fact that the page is stored, and with them the
    high-water mark of each account and resource: from there, less five minutes for clocks that differ, the next sync
    goes on. It moves only when all pages up to it are stored, and as many different records as the API counts, and
    never beyond the moment at which the first of them was read. A list that changes while it is read so that records
    may be missing, that holds fewer records than the API counts, or of which a page brings no new record, is read up
    to three times; then its part fails with an :class:`IncompleteList`. What is deleted at the API stays.

    An account that is not let in (401) ends with that, and so does one whose rate limit lasts for too long
    (:class:`lamella.RateLimited`: a quota for a day, perhaps). Any other failure ends its part alone, and the other
    pages of the part are stored. In an outage the pages wait, as in :class:`lamella.batch.Batch`. Cancelled, it leaves
    stored what is stored, and *resume* goes on from there.

    The journal knows the `company_id` and `environment_name` of each account. Where they are others than in the run
    before, all that is stored for the account is dropped, and it is read from the beginning.

    Args:
        session: One made by :func:`lamella.maesn.session`, best with a ``Breaker``, or with its layers and a base URL.
        accounts: Accounts with names that differ, or names with their keys.
        resources: As in ``["contacts", "invoices"]``.
        journal: Where all is kept, for this sync and the next ones. Its ``batch`` should name the API.
        output: The file that gets all records at the end, by its suffix: see :func:`lamella.maesn.export`. None means
            none.
        since: Only what was changed since this moment, whatever the marks say. Where that leaves a gap, because no run
            has read the list up to it, the mark does not move: see :attr:`Part.gap`. None means from the mark on, or
            everything where there is none.
        resume: Whether to go on with the last run: only what it has not done is read. Where there is no last run it
            is the first.
        limit: How many records a page holds: 5, 10, 20, 50 or 100.
        at_once: How many pages may be under way at a time. None means as many as the accounts may have, up to 1,000.
        at_once_per_account: How many pages of one account may be.
        patience: How many seconds a page may wait for outages to end, in sum. None means as long as it takes.
        on_progress: Called at the beginning, and whenever a part has changed.

    Raises:
        ValueError: An argument is out of its range; before anything is sent.
        lamella.batch.JournalError: The journal cannot be written.
        OSError: The output cannot be written.
    """
    wanted, chosen, since = _checked(accounts, resources, since, resume=resume)
    checked_limit(limit)
    if output is not None:
        check_output(output)
    if at_once is None:
        at_once = max(1, min(len(chosen) * at_once_per_account, _MOST_AT_ONCE))
    reading = _Reading(session, journal, on_progress)
    batch = Batch(
        reading.read,
        reading.pages,
        at_once=at_once,
        account=lambda page: page.list.account.name,
        at_once_per_account=at_once_per_account,
        stop_on=(Unauthorized, RateLimited),
        patience=patience,
    )
    began = time.monotonic()
    books = _books(chosen)
    run, resumed, positions = await journal.commit(
        lambda db: begin(db, wanted, since, resume=resume, page_size=limit, books=books)
    )
    standing = list(zip(wanted, positions, strict=True))
    gaps = await journal.read(lambda db: [missing(db, *each) for each in standing])
    lists = [_List(each, chosen[each.account], limit, position) for each, position in standing]
    for each, numbers in zip(lists, gaps, strict=True):
        reading.pages.add(each, numbers)
    progress = Progress(run, [each.part for each in lists], batch, resumed=resumed)
    async with batch:
        reading.begin(progress)
        async for outcome in batch:
            if isinstance(outcome.error, JournalError):
                raise outcome.error
            reading.ended(outcome)
    if output is not None:
        await export(journal, output)
    return Report(run, resumed, tuple(progress.parts.values()), time.monotonic() - began)


async def plan(
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal | None,
    since: datetime | str | None = None,
    resume: bool = False,
) -> tuple[Part, ...]:
    """The parts that :func:`sync` would begin with. Nothing is sent, and nothing written.

    Args:
        accounts: As for :func:`sync`; so are *resources*, *since* and *resume*.
        journal: None means that there is none yet.

    Raises:
        ValueError: An argument is out of its range.
    """
    wanted, chosen, since = _checked(accounts, resources, since, resume=resume)
    if journal is None:
        return tuple(Part(*each, since) for each in wanted)
    books = _books(chosen)
    _, _, positions = await journal.read(lambda db: look(db, wanted, since, resume=resume, books=books))
    return tuple(_part(each, position) for each, position in zip(wanted, positions, strict=True))


def _checked(
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    since: datetime | str | None,
    *,
    resume: bool,
) -> tuple[list[Wanted], dict[str, Account], str | None]:
    if isinstance(accounts, Mapping):
        accounts = [Account(name, key) for name, key in accounts.items()]
    many, kinds = list(accounts), [checked_resource(resource) for resource in resources]
    for what, names in (("accounts", [account.name for account in many]), ("resources", kinds)):
        if not names:
            raise ValueError(f"{what} must not be empty")
        [(most, times)] = Counter(names).most_common(1)
        if times > 1:
            raise ValueError(f"{what} must differ by name, and {most!r} is there {times} times")
    if since is not None and resume:
        raise ValueError("since begins a new run, and resume goes on with the last one: give one of them")
    wanted = [Wanted(account.name, kind) for account in many for kind in kinds]
    return wanted, {account.name: account for account in many}, None if since is None else checked_moment(since)


def _books(accounts: Mapping[str, Account]) -> dict[str, Books]:
    # What is empty is not sent, just as None.
    return {name: Books(of.company_id or None, of.environment_name or None) for name, of in accounts.items()}


class _List:
    """A list that is being read: a resource of an account."""

    __slots__ = ("account", "is_over", "known", "part", "position", "query", "wanted")

    def __init__(self, wanted: Wanted, account: Account, limit: int, position: Position) -> None:
        self.wanted = wanted
        self.account = account
        self.position = position
        self.part = _part(wanted, position)
        self.known = 0
        """Up to which page it is being read."""
        self.is_over = False
        """Whether no more of its pages are to be read."""
        self.query = Query(
            wanted.resource,
            limit,
            position.since,
            account.company_id,
            account.environment_name,
            account.key,
            parse_int=exact_int,
        )


class _Page:
    """A page that is to be read."""

    __slots__ = ("begun", "list", "number", "walk")

    def __init__(self, of: _List, number: int, walk: int = 1) -> None:
        self.list = of
        self.number = number
        self.walk = walk
        self.begun = False

    @property
    def is_needed(self) -> bool:
        return not self.list.is_over and self.walk == self.list.position.walk


class _Pages:
    """The pages that are known, one of each list in turn. They end when none is under way that may tell of others."""

    def __init__(self) -> None:
        self._lists: deque[tuple[_List, Iterator[_Page]]] = deque()
        self._under_way = 0
        self._news = anyio.Event()

    def add(self, of: _List, numbers: Sequence[int]) -> None:
        """The pages *numbers* of a list are to be read, too."""
        if numbers:
            of.known = numbers[-1]
            walk = of.position.walk
            self._lists.append((of, (_Page(of, number, walk) for number in numbers)))
            self._tell()

    def ended(self) -> None:
        """One that was under way no longer is."""
        self._under_way -= 1
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def __aiter__(self) -> _Pages:
        return self

    async def __anext__(self) -> _Page:
        while True:
            while self._lists:
                of, pages = self._lists.popleft()
                page = next(pages, None)
                if page is not None and page.is_needed:
                    self._lists.append((of, pages))
                    self._under_way += 1
                    return page
            if not self._under_way:
                raise StopAsyncIteration
            await self._news.wait()


class _Reading:
    """Reads and stores pages, and takes down how far each part has come."""

    def __init__(
        self, session: aiohttp.ClientSession, journal: Journal, on_progress: Callable[[Progress], object] | None
    ) -> None:
        self._session = session
        self._journal = journal
        self._on_progress = on_progress
        self.pages = _Pages()

    def begin(self, progress: Progress) -> None:
        """What becomes of the parts is taken down in *progress*."""
        self._progress = progress
        self._tell()

    async def read(self, page: _Page) -> Position | None:
        """Read a page, and store it. None: it was not needed any more."""
        of = page.list
        if not page.is_needed:
            return None
        if not page.begun:
            page.begun = True
            self._change(of, replace(of.part, running=of.part.running + 1))
        found = await self._found(page, of.position)
        return await self._journal.commit(lambda db: store(db, of.wanted, page.walk, found))

    async def _found(self, page: _Page, position: Position) -> Page:
        try:
            return await read_filled(
                self._session,
                page.list.query,
                page.number,
                before=(page.number - 1) * position.largest,
                total_pages=position.pages,
                total=position.total,
            )
        except (BadRequest, NotFound):
            # Some APIs answer so beyond their last page, where only the number of records has led us.
            if not position.more or page.number <= (position.pages or 0) - position.more:
                raise
            return Page(page.number, None, [], {}, answered=time.time())

    def ended(self, outcome: ItemOutcome[_Page, Position | None]) -> None:
        """Take down what became of a page, and which others are known by it."""
        page, error = outcome.item, outcome.error
        of = page.list
        if isinstance(error, AccountStopped) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if not page.is_needed:
            error = None  # of a page of an earlier walk
        if outcome.value is not None:
            error = error or outcome.value.error
            self._go_on(page, outcome.value)
        if error is not None and not isinstance(error, _OF_ONE_PAGE):
            of.is_over = True
        running = of.part.running - page.begun
        self._change(of, replace(_part(of.wanted, of.position), running=running, error=of.part.error or error))
        self.pages.ended()

    def _go_on(self, page: _Page, position: Position) -> None:
        of = page.list
        if position.walk > of.position.walk:
            of.position = replace(position, dropped=of.position.dropped)
            if position.error is None:
                self.pages.add(of, [1])
        if page.walk != of.position.walk:
            return  # of an earlier walk
        # Pages are stored side by side, so that the news of one may come before the older news of another.
        if (position.ended, position.stored) > (of.position.ended, of.position.stored):
            of.position = replace(position, dropped=of.position.dropped)
        if position.ended:
            of.is_over = True
            return
        self.pages.add(of, [page.number + 1] if position.pages is None else range(of.known + 1, position.pages + 1))

    def _change(self, of: _List, part: Part) -> None:
        of.part = part
        self._progress.take(part)
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._progress)


def _part(wanted: Wanted, position: Position) -> Part:
    return Part(
        *wanted,
        since=position.since,
        pages=position.stored,
        total_pages=position.pages,
        records=position.changed,
        done=position.ended,
        skipped=position.skipped,
        gap=position.ended and position.gap,
        dropped=position.dropped,
    )
