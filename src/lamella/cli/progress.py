"""A sync at one moment: what is done, how fast it goes, and what each account is doing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lamella.cli.causes import state_of
from lamella.errors import LamellaError
from lamella.sync import Part, Progress

_RECENT: Final = 10.0  # seconds that the rate is measured over
_LONG: Final = 120.0  # seconds that the rate for the time to go is measured over: limits let pages through in bursts
_SOON: Final = 1.0  # seconds before which there is no rate


class State(StrEnum):
    """What an account is doing; the state that needs most attention first."""

    FAILED = "failed"
    QUEUED = "queued"  # it waits for its rate limit
    RUNNING = "running"
    WAITING = "waiting"  # none of its pages is under way
    DONE = "done"


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account at one moment."""

    name: str
    state: State
    pages: int  # stored
    expected: int | None  # in all; None: unknown
    records: int
    running: int  # pages under way
    closed_for: float  # seconds that its rate limit keeps it waiting
    parts: int
    failed: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole sync at one moment. Times are in seconds."""

    run: int
    resumed: bool
    accounts: tuple[AccountView, ...]  # in the order in which they were given
    pages: int  # stored
    expected: int | None  # pages in all; None: unknown
    guessed: bool  # whether that includes lists of unknown length, taken to be as long as the others
    records: int
    parts: int
    done: int  # parts
    skipped: int  # parts that were done before the run was resumed
    failed: int  # parts
    elapsed: float
    rate: float | None  # pages a second in the last seconds; None: too early
    left: float | None  # estimated time to go; None: unknown
    outage: LamellaError | None  # the failure that shows that the API is down; None: it is up
    outage_for: float

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be read."""
        return self.done + self.failed == self.parts and not any(account.running for account in self.accounts)


class Watch:
    """Looks at a sync from time to time.

    Args:
        closed_for: Returns the seconds for which the rate limit keeps the account of this name waiting.
        clock: Monotonic seconds. None means those of this machine.
    """

    def __init__(self, closed_for: Callable[[str], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.progress: Progress | None = None  # None: the sync has not begun
        self._closed_for = closed_for
        self._clock = clock
        self._began = clock()
        self._pages: deque[tuple[float, int]] = deque()  # the number of stored pages at each look
        self._first: dict[str, tuple[float, int]] = {}
        """When each account was seen at work first, and its number of stored pages then."""
        self._down_since: float | None = None

    def begun(self, progress: Progress) -> None:
        """Take the progress of the sync: its ``on_progress``."""
        self.progress = progress

    def look(self) -> Overview | None:
        """Return the sync at this moment. None: it has not begun."""
        progress = self.progress
        if progress is None:
            return None
        now = self._clock()
        parts = progress.parts.values()
        pages = sum(part.pages for part in parts)
        expected, guessed = _expected(parts)
        outage = progress.outage
        self._down_since = None if outage is None else now if self._down_since is None else self._down_since
        recent, long = self._rates(now, pages)
        accounts = tuple(self._accounts(progress.parts))
        for account in accounts:
            if account.running:
                self._first.setdefault(account.name, (now, account.pages))
        left = None
        if expected is not None and long:
            # Until all together are through, and until the slowest account is: each has a limit of its own.
            left = max([(expected - pages) / long, *(self._left_of(account, now) for account in accounts)])
        return Overview(
            run=progress.run,
            resumed=progress.resumed,
            accounts=accounts,
            pages=pages,
            expected=expected,
            guessed=guessed,
            records=sum(part.records for part in parts),
            parts=len(parts),
            done=sum(part.done for part in parts),
            skipped=sum(part.skipped for part in parts),
            failed=sum(state_of(part) == "failed" for part in parts),
            elapsed=now - self._began,
            rate=recent,
            left=left,
            outage=outage,
            outage_for=0.0 if self._down_since is None else now - self._down_since,
        )

    def _accounts(self, parts: Mapping[tuple[str, str], Part]) -> Iterator[AccountView]:
        of_account: dict[str, list[Part]] = {}
        for part in parts.values():
            of_account.setdefault(part.account, []).append(part)
        for name, own in of_account.items():
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
        """Return the pages a second of the last seconds, and of the last minutes."""
        seen = self._pages
        seen.append((now, pages))
        while len(seen) > 1 and seen[1][0] <= now - _LONG:
            seen.popleft()
        lately = next((each for each in seen if each[0] >= now - _RECENT), seen[-1])
        return _rate(lately, seen[-1]), _rate(seen[0], seen[-1])

    def _left_of(self, account: AccountView, now: float) -> float:
        """Return the time to go of an account by its own rate, and at least until its limit lets it go on."""
        first = self._first.get(account.name)
        own = None if first is None else _rate(first, (now, account.pages))
        if not own or account.expected is None:
            return account.closed_for
        return max((account.expected - account.pages) / own, account.closed_for)


def _rate(one: tuple[float, int], other: tuple[float, int]) -> float | None:
    seconds = other[0] - one[0]
    return (other[1] - one[1]) / seconds if seconds >= _SOON else None


def _expected_of(part: Part) -> int | None:
    """Return the number of pages that a part will have. None: unknown."""
    if part.done or (part.error is not None and not part.running):
        return part.pages
    return None if part.total_pages is None else max(part.total_pages, part.pages)


def _expected(parts: Iterable[Part]) -> tuple[int | None, bool]:
    """Return the number of pages that there will be, and whether it is a guess for lists of unknown length."""
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
