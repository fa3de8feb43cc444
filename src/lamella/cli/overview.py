"""A sync seen from outside at one moment: what is done, how fast it goes, and how each account stands."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lamella.errors import LamellaError
    from lamella.maesn.progress import Part, Progress

__all__ = ["AccountView", "Overview", "State", "Watch", "has_failed"]

_RECENT: Final = 10.0
"""Of how many seconds the rate is."""
_LONG: Final = 120.0
"""Of how many seconds the rate is by which the end is foretold: limits let pages through in bursts."""
_SOON: Final = 1.0
"""Seconds before which nobody knows how fast it goes."""


class State(StrEnum):
    """How an account stands, the one that is worth most attention first."""

    FAILED = "failed"
    QUEUED = "queued"
    """Its rate limit keeps it waiting."""
    RUNNING = "running"
    WAITING = "waiting"
    """None of its pages is under way."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account."""

    name: str
    state: State
    pages: int
    """How many are stored."""
    expected: int | None
    """How many there are. None: nobody knows yet."""
    records: int
    running: int
    """How many of its pages are under way."""
    closed_for: float
    """Seconds for which its rate limit keeps it waiting. 0.0: it does not."""
    parts: int
    failed: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it. Times are in seconds."""

    run: int
    resumed: bool
    accounts: tuple[AccountView, ...]
    """In the order in which they were given."""
    pages: int
    """How many are stored."""
    expected: int | None
    """How many there are in all. None: nobody can tell yet."""
    guessed: bool
    """Whether that holds a guess: lists of which nothing is known yet, taken to be as long as the others."""
    records: int
    parts: int
    done: int
    """Parts."""
    skipped: int
    """Those of them that were done before the run was resumed."""
    failed: int
    """Parts."""
    elapsed: float
    rate: float | None
    """Pages a second, lately. None: too early to tell."""
    left: float | None
    """Until the end, at the present estimate. None: nobody can tell."""
    outage: LamellaError | None
    """What told that the API is down. None: it is up."""
    outage_for: float

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be read."""
        return self.done + self.failed == self.parts and not any(account.running for account in self.accounts)


class Watch:
    """Looks at a sync now and then.

    Args:
        closed_for: For how many seconds the rate limit keeps the account of this name waiting.
        clock: Seconds that only go forward. None means those of this machine.
    """

    def __init__(self, closed_for: Callable[[str], float], clock: Callable[[], float] = time.monotonic) -> None:
        self.progress: Progress | None = None
        """What the sync tells of itself. None: it has not begun."""
        self._closed_for = closed_for
        self._clock = clock
        self._began = clock()
        self._pages: deque[tuple[float, int]] = deque()
        """When how many pages were stored."""
        self._first: dict[str, tuple[float, int]] = {}
        """When each account was seen at work first, and how many of its pages were stored then."""
        self._down_since: float | None = None

    def begun(self, progress: Progress) -> None:
        """Take it from there: the sync's ``on_progress``."""
        self.progress = progress

    def look(self) -> Overview | None:
        """How it stands now. None: it has not begun."""
        progress = self.progress
        if progress is None:
            return None
        now = self._clock()
        parts = progress.parts
        pages = sum(part.pages for part in parts.values())
        expected, guessed = _expected(parts.values())
        outage = progress.outage
        if outage is None:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now
        recent, long = self._rates(now, pages)
        accounts = tuple(self._accounts(parts))
        for account in accounts:
            if account.running:
                self._first.setdefault(account.name, (now, account.pages))
        return Overview(
            run=progress.run,
            resumed=progress.resumed,
            accounts=accounts,
            pages=pages,
            expected=expected,
            guessed=guessed,
            records=sum(part.records for part in parts.values()),
            parts=len(parts),
            done=sum(part.done for part in parts.values()),
            skipped=sum(part.skipped for part in parts.values()),
            failed=sum(has_failed(part) for part in parts.values()),
            elapsed=now - self._began,
            rate=recent,
            left=None if expected is None or not long else self._left((expected - pages) / long, now, accounts),
            outage=outage,
            outage_for=0.0 if self._down_since is None else now - self._down_since,
        )

    def _accounts(self, parts: Mapping[tuple[str, str], Part]) -> Iterable[AccountView]:
        of_account: dict[str, list[Part]] = {}
        for part in parts.values():
            of_account.setdefault(part.account, []).append(part)
        for name, own in of_account.items():
            failed = tuple(filter(has_failed, own))
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
        """Pages a second of the last seconds, and of the last minutes."""
        seen = self._pages
        seen.append((now, pages))
        while len(seen) > 1 and seen[1][0] <= now - _LONG:
            seen.popleft()
        lately = next((each for each in seen if each[0] >= now - _RECENT), seen[-1])
        return _rate(lately, seen[-1]), _rate(seen[0], seen[-1])

    def _left(self, of_all: float, now: float, accounts: Iterable[AccountView]) -> float:
        """Seconds until the end: when all together are through, and the slowest by itself as well.

        Each account has a limit of its own, and the one with the longest lists is through last.
        """
        return max([of_all, *(self._left_of(account, now) for account in accounts)])

    def _left_of(self, account: AccountView, now: float) -> float:
        """By how fast it went so far, and not before its limit lets it go on. 0.0: nobody can tell."""
        first = self._first.get(account.name)
        own = None if first is None else _rate(first, (now, account.pages))
        if not own or account.expected is None:
            return account.closed_for
        return max((account.expected - account.pages) / own, account.closed_for)


def has_failed(part: Part) -> bool:
    """Whether it has; an error that another reading of the list has made good is none."""
    return part.error is not None and not part.done


def _rate(one: tuple[float, int], other: tuple[float, int]) -> float | None:
    seconds = other[0] - one[0]
    return (other[1] - one[1]) / seconds if seconds >= _SOON else None


def _expected_of(part: Part) -> int | None:
    """How many pages a part will have. None: nobody knows yet."""
    if part.done or (part.error is not None and not part.running):
        return part.pages
    return None if part.total_pages is None else max(part.total_pages, part.pages)


def _expected(parts: Iterable[Part]) -> tuple[int | None, bool]:
    """How many pages there will be, and whether that holds a guess."""
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
    if not unknown:
        return total, False
    every = [expected for some in known.values() for expected in some]
    if not every:
        return None, True
    means = {resource: sum(some) / len(some) for resource, some in known.items()}
    other = sum(every) / len(every)
    return total + round(sum(means.get(resource, other) for resource in unknown)), True
