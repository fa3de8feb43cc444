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
from lamella.errors import LamellaError, RateLimited, Unauthorized
from lamella.maesn.account import Account
from lamella.maesn.export import check_output, export
from lamella.maesn.pages import Query, checked_limit, checked_moment, checked_resource, read_page
from lamella.maesn.stored import Position, Wanted, begin, look, missing, store

__all__ = ["Part", "Progress", "Report", "UnsteadyList", "plan", "sync"]

_MOST_AT_ONCE: Final = 1000
"""How many pages are under way at a time, unless the caller says."""


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
    """How many there are. None: nobody knows yet."""
    records: int = 0
    """How many were new, or not as they were stored before: in all of the run, where it was resumed."""
    running: int = 0
    """How many of its pages are under way."""
    done: bool = False
    """All is stored, and the next sync goes on from here."""
    skipped: bool = False
    """It was done already when the run was resumed."""
    error: Exception | None = None
    """Why it failed: what the first page that could not be had or stored has ended in."""


class Progress:
    """How far a sync has come; always the same object, which changes as it goes."""

    __slots__ = ("_batch", "_parts", "changed", "resumed", "run")

    def __init__(self, run: int, parts: Iterable[Part], batch: Batch[_Page, Position], *, resumed: bool) -> None:
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
        """What told that the API is down, as long as it is and pages wait for that."""
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

    The records are kept in *journal*, each page's in one transaction with the fact that it is stored, and with them the
    high-water mark of each account and resource: from there, less five minutes for clocks that differ, the next sync
    goes on. It moves only when all pages up to it are stored, and never beyond the moment at which the first of them
    was read. A list that shrinks or is sorted anew while it is read is read again. What is deleted at the API stays.

    An account that is not let in (401) ends with that, and so does one whose rate limit lasts for too long
    (:class:`lamella.RateLimited`: a quota for a day, perhaps). Any other failure ends its part alone, and the other
    pages of the part are stored. In an outage the pages wait, as in :class:`lamella.batch.Batch`. Cancelled, it leaves
    stored what is stored, and *resume* goes on from there.

    Args:
        session: One made by :func:`lamella.maesn.session`, best with a ``Breaker``, or with its layers and a base URL.
        accounts: Accounts with names that differ, or names with their keys.
        resources: As in ``["contacts", "invoices"]``.
        journal: Where all is kept, for this sync and the next ones. Its ``batch`` should name the API.
        output: The file that gets all records at the end, by its suffix: see :func:`lamella.maesn.export`. None means
            none.
        since: Only what was changed since this moment, whatever the marks say (where that leaves a gap, the mark does
            not move). None means from the mark on, or everything where there is none.
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
    run, resumed, positions = await journal.commit(lambda db: begin(db, wanted, since, resume=resume, page_size=limit))
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
    wanted, _, since = _checked(accounts, resources, since, resume=resume)
    if journal is None:
        return tuple(Part(*each, since) for each in wanted)
    _, _, positions = await journal.read(lambda db: look(db, wanted, since, resume=resume))
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


class UnsteadyList(Exception):
    """A list has moved each time it was read, so that something of it may be missing."""

    def __init__(self, resource: str) -> None:
        super().__init__(
            f"{resource} shrank or were sorted anew each time they were read, so that some may be missing: "
            "what was read is stored; sync again when less is being deleted"
        )


class _List:
    """A list that is being read: a resource of an account."""

    __slots__ = ("account", "known", "part", "position", "query", "wanted")

    def __init__(self, wanted: Wanted, account: Account, limit: int, position: Position) -> None:
        self.wanted = wanted
        self.account = account
        self.position = position
        self.part = _part(wanted, position)
        self.known = 0
        """Up to which page it is being read."""
        self.query = Query(
            wanted.resource, limit, position.since, account.company_id, account.environment_name, account.key
        )


class _Page:
    """A page that is to be read."""

    __slots__ = ("begun", "list", "number", "walk")

    def __init__(self, of: _List, number: int) -> None:
        self.list = of
        self.number = number
        self.walk = of.position.walk
        self.begun = False


class _Pages:
    """The pages that are known, one of each list in turn. They end when none is under way that may tell of others."""

    def __init__(self) -> None:
        self._lists: deque[tuple[_List, Iterator[int]]] = deque()
        self._under_way = 0
        self._news = anyio.Event()

    def add(self, of: _List, numbers: Sequence[int]) -> None:
        """The pages *numbers* of a list are to be read, too."""
        if numbers:
            of.known = numbers[-1]
            self._lists.append((of, iter(numbers)))
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
                of, numbers = self._lists.popleft()
                # What is no failure of a single page would be the same on all others.
                if of.part.error is not None and not isinstance(of.part.error, LamellaError):
                    continue
                number = next(numbers, None)
                if number is not None:
                    self._lists.append((of, numbers))
                    self._under_way += 1
                    return _Page(of, number)
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

    async def read(self, page: _Page) -> Position:
        """Read a page, and store it."""
        of = page.list
        if not page.begun:
            page.begun = True
            self._change(of, replace(of.part, running=of.part.running + 1))
        found = await read_page(self._session, of.query, page.number)
        return await self._journal.commit(lambda db: store(db, of.wanted, page.walk, found))

    def ended(self, outcome: ItemOutcome[_Page, Position]) -> None:
        """Take down what became of a page, and which others are known by it."""
        page, error = outcome.item, outcome.error
        of = page.list
        if isinstance(error, AccountStopped) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if outcome.value is not None:
            self._go_on(page, outcome.value)
            if outcome.value.unsteady:
                error = UnsteadyList(of.wanted.resource)
        running = of.part.running - page.begun
        self._change(of, replace(_part(of.wanted, of.position), running=running, error=of.part.error or error))
        self.pages.ended()

    def _go_on(self, page: _Page, position: Position) -> None:
        of = page.list
        if position.walk > of.position.walk:
            of.position = position
            self.pages.add(of, [1])
        if page.walk != of.position.walk:
            return  # of an earlier walk
        # Pages are stored side by side, so that the news of one may come before the older news of another.
        if (position.ended, position.stored) > (of.position.ended, of.position.stored):
            of.position = position
        if position.ended:
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
    )
