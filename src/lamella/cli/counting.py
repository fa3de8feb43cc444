"""The numbers of the demo, counted once for whatever shows them: the screen and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lamella.cli.causes import Cause, grouped, reason_of
from lamella.cli.traces import number, text, traces
from lamella.cli.words import count, duration
from lamella.telemetry.names import ERROR_TYPE, WAIT

if TYPE_CHECKING:
    from lamella.cli.demo import Result

__all__ = ["Total", "causes", "totals"]


@dataclass(frozen=True, slots=True)
class Total:
    """A number with its name. ``nested``: it is a part of the one before it."""

    name: str
    value: str
    note: str = ""
    nested: bool = False


def totals(result: Result) -> tuple[Total, ...]:
    """How many calls ended well, and what it took: sends, retries by cause, waits."""
    return tuple(_totals(result))


def _totals(result: Result) -> Iterator[Total]:
    found = traces(result.spans)
    retries = [event for trace in found for event in trace.retries]
    waits = sorted(number(event, WAIT) for event in retries)
    after = Counter(text(event, ERROR_TYPE) for event in retries)
    sends = sum(len(trace.sends) for trace in found)
    well = sum(end.error is None and end.other is None for end in result.ended)
    calls = len(result.planned)

    yield Total("calls", str(calls), f"for {count(result.settings.accounts, 'account')}")
    yield Total("ended well", str(well), f"{well / calls:.0%}")
    yield Total("failed", str(calls - well), "below, by cause")
    yield Total("sends", str(sends), f"{sends / calls:.2f} a call; the sandbox received {len(result.received)}")
    yield Total("retries", str(len(retries)))
    for cause, many in sorted(after.items(), key=lambda item: (-item[1], item[0])):
        yield Total(f"after {cause}", str(many), nested=True)
    if waits:
        yield Total("waits", duration(sum(waits)), "in sum, of all calls")
        yield Total("median", duration(median(waits)), nested=True)
        yield Total("longest", duration(waits[-1]), nested=True)
    yield Total("time", duration(result.took))


def causes(result: Result) -> tuple[Cause, ...]:
    """The calls that failed, by cause: the most frequent first."""
    return grouped(("", reason_of(end.error)) for end in result.ended if end.error is not None)
