"""A snapshot of a sync: what is done, how fast, and what each account is doing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from operator import attrgetter
from typing import Final

from lamella.cli.causes import state_of
from lamella.errors import LamellaError
from lamella.sync import Part, Progress

_RECENT: Final = 10.0  # window in seconds of the displayed rate
_LONG: Final = 120.0  # window in seconds of the rate for the remaining time; longer, because limits cause bursts
_SOON: Final = 1.0  # seconds before the first rate is shown


class State(StrEnum):
    """What an account is doing, with the state that needs most attention first."""

    FAILED = "failed"
    QUEUED = "queued"  # waiting for its rate limit
    RUNNING = "running"
    WAITING = "waiting"  # no page in flight
    DONE = "done"


@dataclass(frozen=True, slots=True)
class AccountView:
    """A snapshot of an account."""

    name: str
    state: State
    pages: int  # stored
    expected: int | None  # total; None: unknown
    records: int
    running: int  # pages in flight
    closed_for: float  # seconds until its rate limit lets it continue
    parts: int
    failed: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """A snapshot of the whole sync. Times are in seconds."""

    run: int
    resumed: bool
    accounts: tuple[AccountView, ...]  # in the given order
    pages: int  # stored
    expected: int | None  # total pages; None: unknown
    guessed: bool  # whether the total includes lists of unknown length, estimated from the others
    records: int
    parts: int
    done: int  # parts
    skipped: int  # parts done before the run was resumed
    failed: int  # parts
    elapsed: float
    rate: float | None  # current pages per second; None: too early
    left: float | None  # estimated remaining time; None: unknown
    outage: LamellaError | None  # the failure that shows that the API is down; None: the API is up
    outage_for: float

    @property
    def ended(self) -> bool:
        """Whether everything has been read."""
        return self.done + self.failed == self.parts and not any(account.running for account in self.accounts)


class Watch:
    """Take snapshots of a sync.

    Args:
        closed_for: Returns for how many seconds the rate limit keeps the account with this name waiting.
        clock: Returns monotonic seconds. None means the system clock.
    """

    def __init__(self, closed_for: Callable[[str], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.progress: Progress | None = None  # None: the sync has not begun
        self._closed_for = closed_for
        self._clock = clock
        self._began = clock()
        self._pages: deque[tuple[float, int]] = deque()  # the number of stored pages at each snapshot
        self._first: dict[str, tuple[float, int]] = {}
        """When each account was first seen active, and its number of stored pages then."""
        self._down_since: float | None = None

    def begun(self, progress: Progress) -> None:
        """Start with the progress of the sync; passed as ``on_progress``."""
        self.progress = progress

    def look(self) -> Overview | None:
        """Return a snapshot of the sync; None before it begins."""
        progress = self.progress
        if progress is None:
            return None
        now = self._clock()
        parts = progress.parts.values()
        accounts = tuple(self._accounts(progress.parts))
        pages = sum(account.pages for account in accounts)
        expected, guessed = _expected(parts)
        outage = progress.outage
        self._down_since = None if outage is None else now if self._down_since is None else self._down_since
        recent, long = self._rates(now, pages)
        for account in accounts:
            if account.running:
                self._first.setdefault(account.name, (now, account.pages))
            elif account.state is State.DONE:
                self._first.pop(account.name, None)
        left = None
        if expected is not None and long:
            # The later of the ends of all accounts together and of the slowest one, since each account has its own
            # limit.
            left = max([(expected - pages) / long, *(self._left_of(account, now) for account in accounts)])
        return Overview(
            run=progress.run,
            resumed=progress.resumed,
            accounts=accounts,
            pages=pages,
            expected=expected,
            guessed=guessed,
            records=sum(account.records for account in accounts),
            parts=len(parts),
            done=sum(part.done for part in parts),
            skipped=sum(part.skipped for part in parts),
            failed=sum(len(account.failed) for account in accounts),
            elapsed=now - self._began,
            rate=recent,
            left=left,
            outage=outage,
            outage_for=0.0 if self._down_since is None else now - self._down_since,
        )

    def _accounts(self, parts: Mapping[tuple[str, str], Part]) -> Iterator[AccountView]:
        # The parts of an account are in a row.
        for name, of_account in groupby(parts.values(), attrgetter("account")):
            own = tuple(of_account)
            failed = tuple(part for part in own if state_of(part) == "failed")
            running = sum(part.running for part in own)
            ended = not running and all(part.done or part.error is not None for part in own)
            closed_for = 0.0 if ended else self._closed_for(name)
            if failed:
                state = State.FAILED
            elif ended:
                state = State.DONE
            elif closed_for > 0:
                state = State.QUEUED
            else:
                state = State.RUNNING if running else State.WAITING
            known = [expected for part in own if (expected := _expected_of(part)) is not None]
            yield AccountView(
                name=name,
                state=state,
                pages=sum(part.pages for part in own),
                expected=sum(known) if len(known) == len(own) else None,
                records=sum(part.records for part in own),
                running=running,
                closed_for=closed_for,
                parts=len(own),
                failed=failed,
            )

    def _rates(self, now: float, pages: int) -> tuple[float | None, float | None]:
        """Return the pages per second over the last seconds and over the last minutes."""
        seen = self._pages
        seen.append((now, pages))
        while len(seen) > 1 and seen[1][0] <= now - _LONG:
            seen.popleft()
        lately = next((each for each in seen if each[0] >= now - _RECENT), seen[-1])
        return _rate(lately, seen[-1]), _rate(seen[0], seen[-1])

    def _left_of(self, account: AccountView, now: float) -> float:
        """Return the remaining time of an account by its own rate, at least until its limit lets it continue."""
        first = self._first.get(account.name)
        own = None if first is None else _rate(first, (now, account.pages))
        if not own or account.expected is None:
            return account.closed_for
        return max((account.expected - account.pages) / own, account.closed_for)


def _rate(one: tuple[float, int], other: tuple[float, int]) -> float | None:
    seconds = other[0] - one[0]
    return (other[1] - one[1]) / seconds if seconds >= _SOON else None


def _expected_of(part: Part) -> int | None:
    """Return the expected number of pages of a part; None if unknown."""
    if part.done or (part.error is not None and not part.running):
        return part.pages
    return None if part.total_pages is None else max(part.total_pages, part.pages)


def _expected(parts: Iterable[Part]) -> tuple[int | None, bool]:
    """Return the expected total of pages, and whether it includes guesses for lists of unknown length."""
    known: dict[str, list[int]] = {}
    unknown: list[str] = []
    total = 0
    for part in parts:
        expected = _expected_of(part)
        if expected is None:
            unknown.append(part.resource)
            continue
        total += expected
        if part.error is None:
            known.setdefault(part.resource, []).append(expected)
    every = [expected for some in known.values() for expected in some]
    if unknown and not every:
        return None, True
    means = {resource: sum(some) / len(some) for resource, some in known.items()}
    return total + round(sum(means.get(resource, sum(every) / len(every)) for resource in unknown)), bool(unknown)
