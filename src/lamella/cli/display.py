"""Show a running sync: live on a terminal, otherwise as a limited number of lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Final

import aiohttp
import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from lamella.attempt_record import AttemptRecord
from lamella.cli.causes import reason_of
from lamella.cli.colours import FAILED, MINOR, PASSED, QUEUED, RUNNING
from lamella.cli.progress import AccountView, Overview, State
from lamella.cli.terminal import count, duration, line, warn
from lamella.errors import LamellaError, RequestRejected
from lamella.pipeline import Result
from lamella.redaction import redact_text, redact_url

Look = Callable[[], Overview | None]  # returns the current state of the sync; None before it begins

_MARKS: Final = {
    State.FAILED: ("✗", FAILED),
    State.QUEUED: ("‖", QUEUED),
    State.RUNNING: ("▸", RUNNING),
    State.WAITING: ("·", MINOR),
    State.DONE: ("✓", PASSED),
}
_WIDE: Final = 120  # width of a terminal that has room for more columns

_EVERY: Final = 30.0  # seconds between lines of totals in the first minutes; later a quarter of the elapsed time
_FEW: Final = 20  # up to this number, each account gets a line when it is done; a failed account always does
_MOST: Final = 40  # maximum of lines about single accounts and outages; the report has them all
_NAMELESS: Final = 5.0  # seconds that a line about an outage waits for its cause
_LONG: Final = 300.0  # seconds that an account must be queued to get a line


def display_on(console: Console) -> Callable[[Look], AbstractContextManager[Screen | Lines]]:
    """Return the display that suits *console*, as a context manager."""
    if console.quiet:
        return lambda look: nullcontext(Lines(look, lambda text: None))
    # Not console.is_terminal, which `FORCE_COLOR` makes true for a pipe.
    if console.file.isatty() and console.is_interactive:
        return lambda look: on_screen(console, look)
    return lambda look: nullcontext(Lines(look, lambda text: typer.echo(text, err=console.stderr)))


@contextmanager
def on_screen(console: Console, look: Look) -> Iterator[Screen]:
    """Show a sync on a terminal until the block ends."""
    screen = Screen(look)
    # No refresh thread: the sync changes its state in this thread.
    with Live(screen, console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        screen.refresh = live.refresh
        yield screen


def _time_of_day() -> datetime:
    return datetime.now().astimezone()


class Screen:
    """The live display, rebuilt on each update."""

    every: float = 0.25

    def __init__(self, look: Look, clock: Callable[[], datetime] = _time_of_day) -> None:
        self._look = look
        self._clock = clock
        self._note = ""
        self.refresh: Callable[[], None] = lambda: None

    def draw(self) -> None:
        """Show the current state of the sync."""
        self.refresh()

    def note(self, text: str) -> None:
        """Show a message."""
        self._note = text
        self.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        overview = self._look()
        if overview is None:
            yield line("Opening the journal …")
            return
        height = console.size.height - 1  # one line stays free for the cursor
        yield from self._lines(overview, options.max_width, height)[: max(height, 1)]

    def _lines(self, overview: Overview, width: int, height: int) -> list[Text]:
        lines = list(_head(overview, width))
        if overview.outage is not None:
            since = f" for {duration(round(overview.outage_for))}" if round(overview.outage_for) else ""
            outage = f"OUTAGE{since}: {reason_of(overview.outage).full}. "
            lines.append(line((outage, f"bold {FAILED}"), "Pages wait until the API is back."))
        if self._note:
            lines.append(line((self._note, "bold")))
        elif overview.ended:
            read = f"{count(overview.failed, 'part')} failed" if overview.failed else "All pages are read"
            lines.append(line((f"{read}; writing the output …", "bold")))
        lines.append(Text())
        shown = _chosen(overview.accounts, max(height - len(lines), 0))
        lines += _rows(shown, width, self._clock())
        rest = Counter(account.state for account in overview.accounts)
        rest.subtract(account.state for account in shown)
        if rest.total():
            states = ", ".join(f"{many:,} {state}" for state in State if (many := rest[state]))
            lines.append(line((f"… and {rest.total():,} more: {states}" if shown else states, MINOR)))
        return lines


def _head(overview: Overview, width: int) -> Iterator[Text]:
    expected = overview.expected
    failed = f"{overview.failed:,} failed"
    yield line(
        f"{_pages(overview)} pages   {overview.done:,} of {overview.parts:,} parts done   ",
        (failed, f"bold {FAILED}") if overview.failed else (failed, MINOR),
        f"   {overview.records:,} records",
    )
    rate = "–" if overview.rate is None else f"{overview.rate:.1f}"
    left = "–" if overview.left is None else duration(max(round(overview.left), 1) if overview.left else 0)
    times = f"{rate} pages/s   {left} left   {duration(round(overview.elapsed))} elapsed"
    share = f"{min(overview.pages * 100 // expected, 100):3}%" if expected else "  –%"
    # The bar stays empty until the number of pages is known.
    yield line(*_bar(overview.pages, expected or 0, min(width // 4, 40), RUNNING), f" {share}   {times}")


def _pages(overview: Overview) -> str:
    expected = "" if overview.expected is None else f" of {'~' if overview.guessed else ''}{overview.expected:,}"
    return f"{overview.pages:,}{expected}"


def _chosen(accounts: Sequence[AccountView], room: int) -> list[AccountView]:
    """Return the accounts to show in the available lines, by state; failed accounts leave room for the others."""
    if len(accounts) > room:
        room = max(room - 1, 0)  # one line sums up the accounts that are not shown
    order = list(State)
    failed = [account for account in accounts if account.state is State.FAILED]
    others = [account for account in accounts if account.state is not State.FAILED]
    others.sort(key=lambda account: order.index(account.state))
    return [*failed[: max(room - len(others), (room + 1) // 2)], *others][:room]


def _rows(accounts: Sequence[AccountView], width: int, now: datetime) -> Iterator[Text]:
    # Plain lines: a rich table takes four times as long.
    rows = [_cells(account, now) for account in accounts]
    bar = 30 if width >= _WIDE else 10
    name_width = min(max((cell_len(name) for name, *_ in rows), default=0), width * 3 // 10)
    pages_width = max((len(pages) for _, pages, *_ in rows), default=0)
    records_width = max((len(records) for _, _, records, _ in rows), default=0) if width >= _WIDE else 0
    for account, (name, pages, records, what) in zip(accounts, rows, strict=True):
        mark, color = _MARKS[account.state]
        style = MINOR if account.state in {State.DONE, State.WAITING} else ""
        fitted = Text(name, style)
        fitted.truncate(name_width, overflow="ellipsis", pad=True)
        has_bar = account.expected and account.state not in {State.FAILED, State.DONE}
        yield line(
            (mark, color),
            " ",
            fitted,
            " ",
            *(_bar(account.pages, account.expected or 0, bar, color) if has_bar else [" " * bar]),
            " ",
            (pages.rjust(pages_width), style),
            (f" {records:>{records_width}}" if records_width else "", MINOR),
            " ",
            (what, color),
        )


def _cells(account: AccountView, now: datetime) -> tuple[str, str, str, str]:
    """Return the cells of a row: name, pages, records and state."""
    pages = f"{account.pages:,}"
    if account.state is not State.FAILED:
        pages += "/?" if account.expected is None else f"/{account.expected:,}"
    what: str = account.state
    if account.state is State.FAILED:
        what = _failure(account)
    elif account.state is State.QUEUED:
        what = _queued(account, now)
    elif account.state is State.RUNNING:
        what = f"{count(account.running, 'page')} in flight"
    return redact_text(account.name), pages, f"{account.records:,} records", what


def _bar(done: int, expected: int, width: int, style: str) -> tuple[tuple[str, str], tuple[str, str]]:
    full, half = divmod(min(done, expected) * width * 2 // max(expected, 1), 2)
    # The end of the bar is visible without colours.
    return ("━" * full + "╸" * half, style), ("─" * (width - full - half), MINOR)


def _failure(account: AccountView) -> str:
    first, failed = account.failed[0], len(account.failed)
    what = f"failed ({first.resource})" if failed == 1 else f"failed ({failed} of {account.parts})"
    what = "failed" if failed == account.parts else what
    return what if first.error is None else f"{what}: {reason_of(first.error, of_account=True).short}"


def _queued(account: AccountView, now: datetime) -> str:
    return f"queued until {now + timedelta(seconds=account.closed_for):%H:%M:%S}"


class Lines:
    """A display for output that is not a terminal, such as a cron job's mail."""

    every: float = 1.0

    def __init__(
        self, look: Look, write: Callable[[str], object], clock: Callable[[], datetime] = _time_of_day
    ) -> None:
        self._look = look
        self._write = write
        self._clock = clock
        self._events = 0
        self._next = _EVERY  # elapsed seconds at which the next line of totals is due
        self._seen: set[tuple[str, State]] = set()  # accounts and states that already have a line
        self._down: float | None = None
        """Duration of the current outage at the last update. None: no outage."""
        self._has_begun = False

    def draw(self) -> None:
        """Write the changes since the last update."""
        overview = self._look()
        if overview is None:
            return
        if not self._has_begun:
            self._has_begun = True
            accounts, parts = len(overview.accounts), overview.parts - overview.skipped
            again = "resumed: " if overview.resumed else ""
            self.note(f"run {overview.run}, {again}{count(accounts, 'account')}, {count(parts, 'part')} to read")
        for event in (*self._outage(overview), *self._of_accounts(overview)):
            self._events += 1
            if self._events <= _MOST:
                self.note(event)
            elif self._events == _MOST + 1:
                self.note("From here on only totals are shown; failures are listed at the end.")
        if overview.elapsed >= self._next and not overview.ended:
            rate = "" if overview.rate is None else f", {overview.rate:.1f} pages/s"
            left = "" if overview.left is None else f", {duration(max(round(overview.left), 1))} to go"
            done = f"{overview.done:,} of {overview.parts:,} parts done"
            self.note(f"{_pages(overview)} pages, {done}, {overview.failed:,} failed{rate}{left}")
            self._next = overview.elapsed + max(_EVERY, overview.elapsed / 4)

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(f"{self._clock():%H:%M:%S}  {redact_text(text)}")

    def _outage(self, overview: Overview) -> Iterator[str]:
        if overview.outage is not None:
            if self._down is None and isinstance(overview.outage, RequestRejected) and overview.outage_for < _NAMELESS:
                return
            if self._down is None:
                yield f"the API is down: {reason_of(overview.outage).full}; pages wait until it is back"
            self._down = overview.outage_for
        elif self._down is not None:
            yield f"the API is back after {duration(round(self._down) or 1)}"
            self._down = None

    def _of_accounts(self, overview: Overview) -> Iterator[str]:
        few = len(overview.accounts) <= _FEW
        for account in overview.accounts:
            if account.failed and self._is_new(account, State.FAILED):
                yield f"{account.name}: {_failure(account)}"
            if few and account.state is State.DONE and self._is_new(account, State.DONE):
                yield f"{account.name}: done, {count(account.pages, 'page')}, {count(account.records, 'record')}"
            if account.closed_for < _LONG:
                self._seen.discard((account.name, State.QUEUED))
            elif self._is_new(account, State.QUEUED):
                yield f"{account.name}: {_queued(account, self._clock())} by its rate limit"

    def _is_new(self, account: AccountView, state: State) -> bool:
        is_new = (account.name, state) not in self._seen
        self._seen.add((account.name, state))
        return is_new


def say_failed(request: aiohttp.ClientRequest, result: Result, record: AttemptRecord) -> None:
    """Print for --verbose what came back for an attempt that failed, and what follows."""
    if not isinstance(result, LamellaError):
        return
    stopped = result.stopped
    follows = f"next attempt in {duration(record.waited)}" if stopped is None else f"stopped: {stopped.phrase}"
    warn(f"{request.method} {redact_url(request.url)}: {record.status or record.exception}; {follows}")
