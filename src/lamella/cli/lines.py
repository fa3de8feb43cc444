"""A sync where there is no terminal, as in a cron job's mail: a line where something has happened, and not too many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final

from lamella.cli.causes import reason_of
from lamella.cli.overview import AccountView, Overview, State
from lamella.cli.words import count, duration, plain

__all__ = ["Lines"]

_EVERY: Final = 30.0
"""Seconds between two lines of totals, in the first minutes; later it is a quarter of the time that it has taken."""
_FEW: Final = 20
"""Up to so many accounts each has a line when it is done; failures always have one."""
_MOST: Final = 40
"""So many lines tell of single accounts and outages. Who wants them all has the report."""
_LONG: Final = 300.0
"""Seconds for which an account has to be queued to be worth a line."""


class Lines:
    """Writes them: a ``Display``.

    Args:
        look: How the sync stands. None: it has not begun.
        write: Takes a line.
        clock: The time of day.
    """

    every = 1.0

    def __init__(
        self,
        look: Callable[[], Overview | None],
        write: Callable[[str], object],
        clock: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._look = look
        self._write = write
        self._clock = clock
        self._told = 0
        self._next = _EVERY
        """After how many seconds there is a line of totals again."""
        self._ended: set[str] = set()
        self._failed: set[str] = set()
        self._queued: set[str] = set()
        self._down: float | None = None
        """How long the outage had lasted that goes on. None: there is none."""
        self._has_begun = False

    def draw(self) -> None:
        """Write what has happened since the last time."""
        overview = self._look()
        if overview is None:
            return
        if not self._has_begun:
            self._has_begun = True
            self._line(_beginning(overview))
        for event in self._events(overview):
            self._told += 1
            if self._told <= _MOST:
                self._line(event)
            elif self._told == _MOST + 1:
                self._line("From here on the totals alone; the failures are at the end.")
        if overview.elapsed >= self._next and not overview.ended:
            self._line(_totals(overview))
            self._next = overview.elapsed + max(_EVERY, overview.elapsed / 4)

    def note(self, text: str) -> None:
        """Write a line about something else."""
        self._line(text)

    def _line(self, text: str) -> None:
        self._write(f"{self._clock():%H:%M:%S}  {plain(text)}")

    def _events(self, overview: Overview) -> Iterator[str]:
        yield from self._outage(overview)
        few = len(overview.accounts) <= _FEW
        for account in overview.accounts:
            if account.failed and account.name not in self._failed:
                self._failed.add(account.name)
                yield _failure(account)
            if account.state is State.DONE and account.name not in self._ended:
                self._ended.add(account.name)
                if few:
                    yield f"{account.name}: done, {count(account.pages, 'page')}, {count(account.records, 'record')}"
            if account.closed_for < _LONG:
                self._queued.discard(account.name)
            elif account.name not in self._queued:
                self._queued.add(account.name)
                until = self._clock() + timedelta(seconds=account.closed_for)
                yield f"{account.name}: queued until {until:%H:%M:%S} by its rate limit"

    def _outage(self, overview: Overview) -> Iterator[str]:
        if overview.outage is not None:
            if self._down is None:
                yield f"the API is down: {reason_of(overview.outage).full}; the pages wait until it is back"
            self._down = overview.outage_for
        elif self._down is not None:
            yield f"the API is back after {duration(round(self._down) or 1)}"
            self._down = None


def _beginning(overview: Overview) -> str:
    again = "resumed: " if overview.resumed else ""
    return (
        f"run {overview.run}, {again}{count(len(overview.accounts), 'account')}, "
        f"{count(overview.parts - overview.skipped, 'part')} to read"
    )


def _failure(account: AccountView) -> str:
    first = account.failed[0]
    resource = "" if len(account.failed) == account.parts else f" ({first.resource})"
    why = "" if first.error is None else f": {reason_of(first.error, of_account=True).short}"
    return f"{account.name}: failed{resource}{why}"


def _totals(overview: Overview) -> str:
    expected = "" if overview.expected is None else f" of {'~' if overview.guessed else ''}{overview.expected:,}"
    rate = "" if overview.rate is None else f", {overview.rate:.1f} pages/s"
    left = "" if overview.left is None else f", {duration(max(round(overview.left), 1))} to go"
    return (
        f"{overview.pages:,}{expected} pages, {overview.done:,} of {overview.parts:,} parts done, "
        f"{overview.failed:,} failed{rate}{left}"
    )
