"""Choose the pages of a sync, read and store them, and complete their lists."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import aiohttp
import anyio
from yarl import URL

from lamella.batch import AccountStopped, ItemOutcome, Journal
from lamella.errors import BadRequest, Forbidden, LamellaError, MethodNotAllowed, NotFound, summary_of
from lamella.sync.contact import Contact
from lamella.sync.decode import Records
from lamella.sync.errors import AnswerFailed, BadRecord, EmptyPage
from lamella.sync.lists import MOST_EMPTY
from lamella.sync.marks import Position, Wanted, store
from lamella.sync.page import List, Page, Place, honours_number, read_filled
from lamella.sync.progress import Part, Progress, part_of
from lamella.sync.room import PATIENCE, Room
from lamella.sync.source import Source

_OF_ONE_PAGE: Final = (LamellaError, EmptyPage, AnswerFailed, BadRecord)
"""Errors that may affect only one page of a list."""
_OF_THE_LIST: Final = (Forbidden, NotFound, MethodNotAllowed)
"""Errors among them that affect the whole list. Each further page would fail too, and some systems then block a key."""

_OF_A_FALSE_COUNT: Final = (EmptyPage, BadRequest)
"""Errors of each page after the end of a list, if the API counts too many pages."""

_MOST_TOLD: Final = 10
"""Maximum number of reported warnings, bad records and ids of a list."""
_MOST_WHOLE: Final = 10
"""Maximum number of parts whose error keeps its traceback and the response: all of them would take much memory."""
_LISTS: Final = 64
"""Lists that begin before the further pages of the first ones are read, also if fewer pages are in flight."""
_TOLD: Final = ("warnings", "bad", "missing_ids", "deleted_ids")
"""Fields of a position with texts of a page, and of a part with the first texts of the list."""


class ListToRead:
    """A list that is being read: a resource of an account."""

    __slots__ = ("beyond", "is_over", "known", "list", "part", "position", "told", "wanted")

    def __init__(
        self, wanted: Wanted, source: Source, account: Any, position: Position, part: Part | None = None
    ) -> None:
        self.wanted: Wanted = wanted
        self.position: Position = position
        self.part: Part = part_of(wanted, position) if part is None else part
        self.told: dict[str, dict[str, None]] = {}
        """Warnings, bad records and ids, by the field of Part that contains the first ones."""
        self.known: int = 0
        """The last page to read, as far as known."""
        self.beyond: int = 0
        """Consecutive pages that failed as if they were after the end."""
        self.is_over: bool = False
        """Whether the list needs no more pages."""
        self.list: List = List(source, account, position.since, raw=True)

    @property
    def origin(self) -> str:
        """The origin of its URL. Empty: the origin of the session's base URL."""
        url = URL(self.list.source.url)
        return str(url.origin()) if url.absolute else ""


NewList = tuple[ListToRead, Sequence[int], str | None]
"""A list, its known pages that are not stored, and the token that leads to the first one of a chain."""


@dataclass(slots=True, eq=False)
class PageToRead:
    """A page to read, in one of the walks of its list."""

    of: ListToRead
    place: Place
    walk: int = 1
    begun: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether the page must still be read."""
        return not self.of.is_over and self.walk == self.of.position.walk


class PageSource:
    """Yields the known pages, one of each list in turn, of as many lists as pages may be in flight.

    It ends when no page is being read that may lead to others.

    Args:
        at_once: Maximum number of pages in flight. More may be taken ahead.
    """

    def __init__(self, at_once: int) -> None:
        self.more: Callable[[], Awaitable[Sequence[NewList]]] = _no_more
        """Returns the next lists to read; none at the end. They are created in small groups, just before their first
        pages: with many accounts, all take much memory."""
        self._new: deque[NewList] = deque()
        self._lists: deque[tuple[ListToRead, int, Sequence[int], int, str | None]] = deque()
        """The lists with pages to read: list, walk, page numbers, the index of the next one, token."""
        self._running = 0
        self._room = Room(at_once)
        self._changed = anyio.Event()

    def add(self, of: ListToRead, numbers: Sequence[int], token: str | None = None) -> None:
        """Add the pages *numbers* of a list. In a chain, there is one page, and *token* leads to it."""
        if numbers:
            of.known = numbers[-1]
            self._lists.append((of, of.position.walk, numbers, 0, token))
            self._changed.set()

    def holding(self, size: int) -> AbstractContextManager[None]:
        """Hold a page that has arrived, with records of *size*, until it is stored. Then fewer others begin."""
        return self._room.holding(size, self._running)

    def ended(self) -> None:
        """Record that one of the pages has ended."""
        self._running -= 1
        self._changed.set()

    def __aiter__(self) -> PageSource:
        return self

    @property
    def _open(self) -> int:
        """The number of lists with pages to read from which no other list begins: each takes memory."""
        return max(self._room.number, _LISTS)

    async def _take_new(self) -> bool:
        """Put the next new list before the others. Return False if there is none."""
        while True:
            if not self._new:
                self._new.extend(await self.more())
            if not self._new:
                return False
            of, numbers, token = self._new.popleft()
            if numbers:
                self.add(of, numbers, token)
                self._lists.rotate()
                return True

    async def __anext__(self) -> PageToRead:
        while True:
            while not self._room.admits(self._running):
                with anyio.move_on_after(PATIENCE):
                    await self._wait()
                self._room.grow_if_idle()
            while (len(self._lists) < self._open and await self._take_new()) or self._lists:
                of, walk, numbers, index, token = self._lists.popleft()
                place = Place(numbers[index], _records_before(of.position, numbers[index]), token)
                page = PageToRead(of, place, walk)
                if page.is_needed:
                    # A list without further pages must not stay in memory until all others have begun.
                    if index + 1 < len(numbers):
                        self._lists.append((of, walk, numbers, index + 1, token))
                    self._running += 1
                    return page
            if not self._running:
                raise StopAsyncIteration
            await self._wait()

    async def _wait(self) -> None:
        self._changed = anyio.Event()
        await self._changed.wait()


async def _no_more() -> Sequence[NewList]:
    return ()


class Reading:
    """Reads and stores pages, and updates the progress of each part."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        journal: Journal,
        on_progress: Callable[[Progress], object] | None,
        at_once: int,
    ) -> None:
        self._session = session
        self._journal = journal
        self._on_progress = on_progress
        self._contacts: defaultdict[str, Contact] = defaultdict(Contact)
        self._failed = 0
        """The number of parts that have an error."""
        self.pages: PageSource = PageSource(at_once)

    def begin(self, progress: Progress) -> None:
        """Start to report *progress*."""
        self._progress = progress
        self._report()

    async def read(self, page: PageToRead) -> Position | None:
        """Read a page and store it. None: the page was no longer needed."""
        of, position = page.of, page.of.position
        if not page.is_needed:
            return None
        if not page.begun:
            page.begun = True
            self._change(of, replace(of.part, running=of.part.running + 1))
        read = partial(
            read_filled,
            self._session,
            of.list,
            page.place,
            before=_records_before(position, page.place.number) if of.list.source.pages.parallel else None,
            largest=position.largest,
            total_pages=None if position.pages is None else position.pages - position.more,
            total=position.total,
        )
        found = await self._contacts[of.origin].read(read)
        with self.pages.holding(Records.of(found.records).size):
            position = await self._store(page, found)
            if position.doubtful:
                position = await self._store(page, found, await honours_number(self._session, of.list))
        return position

    async def _store(self, page: PageToRead, found: Page, honours: bool | None = None) -> Position:
        of = page.of
        return await self._journal.commit(
            lambda db: store(db, of.wanted, page.walk, found, of.list.source, honours=honours)
        )

    def ended(self, outcome: ItemOutcome[PageToRead, Position | None]) -> None:
        """Update the part of an ended page, and add the pages that it revealed."""
        page, error = outcome.item, outcome.error
        of = page.of
        if isinstance(error, AccountStopped) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        if not page.is_needed:
            error = None  # the page belongs to an earlier walk
        if outcome.value is not None:
            error = error or outcome.value.error or next(iter(outcome.value.bad), None)
            for name in _TOLD:
                if texts := getattr(outcome.value, name):
                    of.told.setdefault(name, {}).update(dict.fromkeys(map(str, texts[:_MOST_TOLD])))
            self._go_on(page, outcome.value)
        if error is not None and (not isinstance(error, _OF_ONE_PAGE) or isinstance(error, _OF_THE_LIST)):
            of.is_over = True
        of.beyond = of.beyond + 1 if isinstance(error, _OF_A_FALSE_COUNT) else 0
        if of.beyond > MOST_EMPTY:
            of.is_over = True
        if error is not None and of.part.error is None:
            self._failed += 1
            if self._failed > _MOST_WHOLE:
                error = _summary_of(error)
        part = part_of(of.wanted, of.position)
        self._change(
            of,
            replace(
                part,
                running=of.part.running - page.begun,
                error=of.part.error or error,
                **{name: tuple(texts)[:_MOST_TOLD] for name, texts in of.told.items()},  # type: ignore[arg-type]
            ),
        )
        self.pages.ended()

    def _go_on(self, page: PageToRead, position: Position) -> None:
        """Continue the list from its new *position*."""
        of = page.of
        if of.position.dropped:
            position = replace(position, dropped=True)
        if position.walk > of.position.walk:
            of.position = position
            if position.error is None:
                self.pages.add(of, [1])
        if page.walk != of.position.walk:
            return  # the page belongs to an earlier walk
        # Pages are stored concurrently, so a newer position may arrive before an older one.
        if (position.ended, position.stored) > (of.position.ended, of.position.stored):
            of.position = position
        if position.ended:
            of.is_over = True
            return
        number = page.place.number
        next_ones = [number + 1] if position.pages is None else range(of.known + 1, position.pages + 1)
        self.pages.add(of, next_ones, position.token)

    def _change(self, of: ListToRead, part: Part) -> None:
        of.part = part
        self._progress.take(part)
        self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._progress)


def _summary_of(error: Exception) -> Exception:
    summary = summary_of(error)
    summary.__cause__ = summary.__context__ = None
    return summary.with_traceback(None)


def _records_before(position: Position, number: int) -> int:
    """Return the number of records on the pages before a page of a list that is not a chain."""
    # If the number of pages is unknown, they are read one by one, and all before this one are stored.
    return position.read if position.pages is None else (number - 1) * position.largest
