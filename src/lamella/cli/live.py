"""A sync on a terminal while it goes on: never wider or taller than that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from lamella.cli.causes import reason_of
from lamella.cli.overview import AccountView, Overview, State
from lamella.cli.words import count, duration, plain

__all__ = ["Screen", "on_screen"]

_MARKS: Final = {
    State.FAILED: ("✗", "red"),
    State.QUEUED: ("‖", "yellow"),
    State.RUNNING: ("▸", "cyan"),
    State.WAITING: ("·", "dim"),
    State.DONE: ("✓", "green"),
}
_WIDE: Final = 120
"""Columns from which on there is room for more."""


class Screen:
    """What is shown, made anew each time it is drawn.

    Args:
        look: How the sync stands. None: it has not begun.
        clock: The time of day.
    """

    def __init__(
        self, look: Callable[[], Overview | None], clock: Callable[[], datetime] = lambda: datetime.now().astimezone()
    ) -> None:
        self._look = look
        self._clock = clock
        self.note = ""
        """What is to be told besides. Empty: nothing."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        overview = self._look()
        if overview is None:
            yield _line("Opening the journal …")
            return
        # A line stays free, for the cursor.
        yield from self._lines(overview, options.max_width, console.size.height - 1)[: max(console.size.height - 1, 1)]

    def _lines(self, overview: Overview, width: int, height: int) -> list[Text]:
        lines = [*_totals(overview, width)]
        if overview.outage is not None:
            lines.append(_outage(overview))
        if self.note:
            lines.append(_line((self.note, "bold")))
        elif overview.ended:
            read = f"{count(overview.failed, 'part')} failed" if overview.failed else "Everything is read"
            lines.append(_line((f"{read}, and the output is being written …", "bold")))
        lines.append(Text())
        shown = _chosen(overview.accounts, max(height - len(lines), 0))
        lines += _rows(shown, width, self._clock())
        rest = Counter(account.state for account in overview.accounts)
        rest.subtract(account.state for account in shown)
        if rest.total():
            states = ", ".join(f"{many:,} {state}" for state in State if (many := rest[state]))
            lines.append(_line((f"… and {rest.total():,} more: {states}" if shown else states, "dim")))
        return lines


class _OnScreen:
    every = 0.25

    def __init__(self, screen: Screen, live: Live) -> None:
        self._screen = screen
        self.draw = live.refresh

    def note(self, text: str) -> None:
        self._screen.note = text
        self.draw()


@contextmanager
def on_screen(console: Console, look: Callable[[], Overview | None]) -> Iterator[_OnScreen]:
    """Show it until the end of the block, however that ends."""
    screen = Screen(look)
    # No thread draws it: what is looked at changes in this one.
    with Live(screen, console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield _OnScreen(screen, live)


def _totals(overview: Overview, width: int) -> Iterator[Text]:
    expected, pages = overview.expected, f"{overview.pages:,}"
    if expected is not None:
        pages += f" of {'~' if overview.guessed else ''}{expected:,}"
    failed = f"{overview.failed:,} failed"
    yield _line(
        f"{pages} pages   {overview.done:,} of {overview.parts:,} parts done   ",
        (failed, "bold red") if overview.failed else (failed, "dim"),
        f"   {overview.records:,} records",
    )
    rate = "–" if overview.rate is None else f"{overview.rate:.1f}"
    left = "–" if overview.left is None else duration(max(round(overview.left), 1) if overview.left else 0)
    text = f"{rate} pages/s   {left} to go   {duration(round(overview.elapsed))} so far"
    share = f"{min(overview.pages * 100 // expected, 100):3}%" if expected else "  –%"
    # Until somebody knows how much it is, the bar is empty.
    yield _line(*_bar(overview.pages, expected or 0, min(width // 4, 40), "cyan"), f" {share}   {text}")


def _outage(overview: Overview) -> Text:
    reason = "" if overview.outage is None else reason_of(overview.outage).full
    since = f" for {duration(round(overview.outage_for))}" if round(overview.outage_for) else ""
    return _line((f"OUTAGE{since}: {reason}. ", "bold red"), "The pages wait until it is over.")


def _chosen(accounts: Sequence[AccountView], room: int) -> list[AccountView]:
    """The accounts for so many lines, the most interesting first; failures leave room for what is going on."""
    if len(accounts) > room:
        room = max(room - 1, 0)  # one line is for those that are not shown
    by_state: dict[State, list[AccountView]] = {state: [] for state in State}
    for account in accounts:
        by_state[account.state].append(account)
    others = len(accounts) - len(by_state[State.FAILED])
    failed = by_state[State.FAILED][: max(room - others, (room + 1) // 2)]
    rest = [account for state, some in by_state.items() if state is not State.FAILED for account in some]
    return [*failed, *rest][:room]


def _rows(accounts: Sequence[AccountView], width: int, now: datetime) -> Iterator[Text]:
    # As lines and not as a table of rich's, which takes four times as long.
    rows = [_cells(account, now) for account in accounts]
    bar = 30 if width >= _WIDE else 10
    name = min(max((cell_len(row.name) for row in rows), default=0), width * 3 // 10)
    pages = max((len(row.pages) for row in rows), default=0)
    records = max((len(row.records) for row in rows), default=0) if width >= _WIDE else 0
    for row in rows:
        mark, style = row.mark
        expected = row.account.expected or 0
        yield _line(
            (mark, style),
            " ",
            (_fitted(row.name, name), row.style),
            " ",
            *(_bar(row.account.pages, expected, bar, style) if row.has_bar else [" " * bar]),
            " ",
            (row.pages.rjust(pages), row.style),
            (f" {row.records:>{records}}" if records else "", "dim"),
            " ",
            (row.told, style),
        )


def _fitted(text: str, cells: int) -> str:
    """*text* in so many columns of the terminal."""
    return set_cell_size(text, cells) if cell_len(text) <= cells else f"{set_cell_size(text, cells - 1)}…"


def _bar(done: int, expected: int, width: int, style: str) -> tuple[tuple[str, str], tuple[str, str]]:
    full, half = divmod(min(done, expected) * width * 2 // max(expected, 1), 2)
    # Without colours, too, one sees where it ends.
    return ("━" * full + "╸" * half, style), ("─" * (width - full - half), "dim")


class _Cells(NamedTuple):
    """What a line says."""

    account: AccountView
    mark: tuple[str, str]
    name: str
    style: str
    has_bar: bool
    pages: str
    records: str
    told: str


def _cells(account: AccountView, now: datetime) -> _Cells:
    expected, state = account.expected, account.state
    return _Cells(
        account,
        _MARKS[state],
        plain(account.name),
        "dim" if state in {State.DONE, State.WAITING} else "",
        bool(expected) and state not in {State.FAILED, State.DONE},
        f"{account.pages:,}" + ("" if state is State.FAILED else "/?" if expected is None else f"/{expected:,}"),
        f"{account.records:,} records",
        _told(account, now),
    )


def _told(account: AccountView, now: datetime) -> str:
    match account.state:
        case State.FAILED:
            return _why(account)
        case State.QUEUED:
            until = now + timedelta(seconds=account.closed_for)
            return f"queued until {until:%H:%M:%S}"
        case State.RUNNING:
            return f"{count(account.running, 'page')} under way"
        case state:
            return state.value


def _why(account: AccountView) -> str:
    first = account.failed[0]
    what = "failed" if len(account.failed) == account.parts else f"failed ({first.resource})"
    if len(account.failed) not in {1, account.parts}:
        what = f"failed ({len(account.failed)} of {account.parts})"
    return what if first.error is None else f"{what}: {reason_of(first.error, of_account=True).short}"


def _line(*parts: str | tuple[str, str]) -> Text:
    """A line that is cut at the edge of the screen rather than broken."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
