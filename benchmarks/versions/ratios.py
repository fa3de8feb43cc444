"""Compute the ratio of both sides' figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from statistics import median
from typing import NamedTuple

from benchmarks.costs.samples import figure

__all__ = ["BASE", "HEAD", "THIS", "Ratio", "Round", "compare", "exceeded", "limits", "line", "order", "summary"]

THIS, BASE = "this", "base"
HEAD = f"{'':15}{'this':>10}{'base':>10}  {'':12}{'ratio':>6}  {'half of the rounds':20}all rounds"


class Round(NamedTuple):
    """One round of a scenario: what is typical for each side, and the ratio of the two."""

    this: float
    base: float
    ratio: float


class Ratio(NamedTuple):
    """All rounds of a scenario. Half of their ratios are from `low` to `high`, all from `least` to `most`."""

    this: float
    base: float
    ratio: float
    low: float
    high: float
    least: float
    most: float


def order(number: int) -> tuple[str, str]:
    """Return which side goes first in turn *number*: A B, B A, A B, … so that a drift of the machine cancels out."""
    return (BASE, THIS) if number % 2 else (THIS, BASE)


def compare(this: Sequence[float], base: Sequence[float]) -> Round:
    """Return the result of one round.

    Only turns that were taken next to each other are compared: the machine was equally busy for them.
    """
    ratios = [ours / theirs for ours, theirs in zip(this, base, strict=True)]
    return Round(median(this), median(base), median(ratios))


def summary(rounds: Sequence[Round]) -> Ratio:
    """Return the medians of all rounds, and how far their ratios spread."""
    ratios = [each.ratio for each in rounds]
    spread = figure(ratios)
    return Ratio(
        median(each.this for each in rounds),
        median(each.base for each in rounds),
        spread["median"],
        spread["low"],
        spread["high"],
        min(ratios),
        max(ratios),
    )


def line(row: str, unit: str, found: Ratio) -> str:
    """Return a line of the table whose first line is `HEAD`."""
    half = f"{found.low:.3f} to {found.high:.3f}"
    every = f"{found.least:.3f} to {found.most:.3f}"
    return f"{row:15}{found.this:10,.1f}{found.base:10,.1f}  {unit:12}{found.ratio:6.3f}  {half:20}{every}"


def limits(texts: Iterable[str], rows: Iterable[str]) -> dict[str, float]:
    """Read limits such as `pure=1.05`.

    Raises:
        ValueError: A text has another form, or names none of *rows*.
    """
    known = list(rows)
    found = {}
    for text in texts:
        row, _, number = text.partition("=")
        if row not in known:
            raise ValueError(f"a limit must begin with one of {', '.join(known)}; got {text!r}")
        try:
            found[row] = float(number)
        except ValueError:
            found[row] = 0.0
        if not 0 < found[row] < inf:
            raise ValueError(f"a limit must have the form {row}=1.05, got {text!r}")
    return found


def exceeded(found: Mapping[str, Ratio], allowed: Mapping[str, float]) -> list[str]:
    """Return a message for each ratio that is above its limit."""
    return [
        f"{row}: the ratio must be at most {limit:g}, got {found[row].ratio:.3f}"
        for row, limit in allowed.items()
        if found[row].ratio > limit
    ]
