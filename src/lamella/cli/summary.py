"""What is told at the end of a sync: the numbers, the failures by cause, where the records are, how to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lamella.cli.causes import Cause, grouped, reason_of
from lamella.cli.counting import Total
from lamella.cli.overview import has_failed
from lamella.cli.report import titled
from lamella.cli.sync import Synced
from lamella.cli.sync_json import state_of
from lamella.cli.words import count, duration, plain, some
from lamella.errors import TransportError
from lamella.maesn import Part

if TYPE_CHECKING:
    from lamella.cli.kept import KeptTraces

__all__ = ["causes", "dry_run", "no_answer", "remarks", "totals", "where_it_is"]

_MOST_PARTS: Final = 40
"""How many lines a plan may have; what is beyond is counted."""
_MOST_NAMES: Final = 5


def causes(parts: Sequence[Part], secrets: Sequence[str] = ()) -> tuple[Cause, ...]:
    """The parts that failed, by cause. None of *secrets* is in it."""
    return grouped(
        (part.account, reason_of(part.error, secrets, of_account=True))
        for part in parts
        if part.error is not None and has_failed(part)
    )


def no_answer(parts: Sequence[Part]) -> str:
    """Why parts failed without an answer, in words: the most frequent cause. Empty: none did."""
    found = Counter(
        reason_of(part.error).full for part in parts if has_failed(part) and isinstance(part.error, TransportError)
    )
    return found.most_common(1)[0][0] if found else ""


def totals(synced: Synced, kept: KeptTraces | None = None) -> tuple[Total, ...]:
    """The numbers; how often was sent what, as far as *kept* has counted it."""
    return tuple(_totals(synced, kept))


def _totals(synced: Synced, kept: KeptTraces | None) -> Iterator[Total]:
    parts = synced.parts
    of_account: dict[str, list[str]] = {}
    for part in parts:
        of_account.setdefault(part.account, []).append(state_of(part))
    states = [state_of(part) for part in parts]
    yield Total("run", str(synced.run), "resumed" if synced.resumed else "")
    yield Total("accounts", f"{len(of_account):,}", _in_words([_worst(own) for own in of_account.values()]))
    yield Total("parts", f"{len(parts):,}", _in_words(states))
    yield Total("pages", f"{sum(part.pages for part in parts):,}", "stored")
    yield Total("records", f"{sum(part.records for part in parts):,}", "new or changed")
    if kept is not None:
        yield Total("sends", f"{kept.sends:,}", f"for {count(kept.calls, 'call')}")
        yield Total("retries", f"{kept.after.total():,}")
        for cause, many in sorted(kept.after.items(), key=lambda item: (-item[1], item[0])):
            yield Total(f"after {cause}", f"{many:,}", nested=True)
        if kept.waited:
            yield Total("waits", duration(kept.waited), "between sends, in sum")
    yield Total("time", duration(synced.took))


def _worst(states: Sequence[str]) -> str:
    """How an account has ended, by how its parts have."""
    return next(state for state in ("failed", "open", "done", "skipped") if state in states)


def _in_words(states: Sequence[str]) -> str:
    names = {"done": "done", "skipped": "done before", "failed": "failed", "open": "not ended"}
    return ", ".join(f"{states.count(state):,} {name}" for state, name in names.items() if state in states)


def remarks(parts: Sequence[Part]) -> tuple[str, ...]:
    """What is to be known of the records beside the failures, each a sentence: what is missing, what was dropped."""
    return tuple(_remarks(parts))


def _remarks(parts: Sequence[Part]) -> Iterator[str]:
    open_ = sum(not part.done for part in parts)
    if open_:
        yield f"Records are missing: {open_:,} of {count(len(parts), 'part')} {'is' if open_ == 1 else 'are'} not done."
    gaps = [part for part in parts if part.gap]
    if gaps:
        since = some(sorted({str(part.since) for part in gaps}), 1)
        yield (
            f"Records that were last changed before {plain(since)} were not read, of {count(len(gaps), 'part')}: "
            "a sync without --since reads them."
        )
    dropped = list(dict.fromkeys(plain(part.account) for part in parts if part.dropped))
    if dropped:
        names = some(dropped, _MOST_NAMES)
        yield f"What was stored of {names} was dropped: company_id or environment_name has changed."


def where_it_is(output: Path | None, journal: Path | None, parts: Sequence[Part], *, ended: bool) -> RenderableType:
    """Where the records are, and what is missing there.

    Args:
        output: None: there is no output.
        journal: None: it does not stay.
        parts: What was to be synced.
        ended: Whether the sync has come to its end, so that the output was written.
    """
    has_all = ended and all(part.done and not part.gap for part in parts)
    lines = []
    if output is not None:
        what = "has all records" if has_all else "has what was read" if ended else "was not written"
        lines.append(f"{plain(str(output))} {what}.")
    if journal is not None:
        what = "all records; the next sync reads only what is new" if has_all else "what was read"
        lines.append(f"The journal {plain(str(journal))} has {what}.")
    return titled("Output", *map(Text, (*lines, *remarks(parts))))


def dry_run(parts: Sequence[Part]) -> RenderableType:
    """What a sync would read."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for part in parts[:_MOST_PARTS]:
        what = f"since {part.since}" if part.since else "everything"
        if part.skipped:
            what = "nothing: done already"
        elif part.dropped:
            what += "; what is stored will be dropped, since company_id or environment_name has changed"
        elif part.pages:
            what += f", but for {count(part.pages, 'page')} that {'is' if part.pages == 1 else 'are'} stored"
        table.add_row(Text(plain(part.account)), Text(part.resource), Text(what))
    more = len(parts) - _MOST_PARTS
    lines = [Text(f"… and {more:,} more")] if more > 0 else []
    return titled(f"{count(len(parts), 'part')}, and nothing was sent", table, *lines)
