"""Values in words: durations, numbers, and text that came from somewhere else."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.redaction import redact_text

__all__ = ["between", "count", "duration", "plain", "some"]


def duration(seconds: float) -> str:
    """*seconds* for people: ``"41 ms"``, ``"1.5 s"``, ``"1 min 6 s"``."""
    if not seconds:
        return "0 s"
    if round(seconds, 3) < 1:
        return f"{round(seconds * 1000, 1 if seconds < 0.01 else None):g} ms"
    if round(seconds, 1) < 60:
        return f"{round(seconds, 2 if seconds < 10 else 1):g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def between(low: float, high: float) -> str:
    """A range of seconds, or one duration where both ends look the same."""
    shortest, longest = duration(low), duration(high)
    return shortest if shortest == longest else f"{shortest} – {longest}"


def count(number: int, thing: str) -> str:
    """``"1 call"``, ``"2 calls"``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def some(names: Sequence[str], most: int) -> str:
    """``"Ada, Bob and 7 more"``: not more than *most* of the *names*."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def plain(text: str) -> str:
    """Somebody else's *text*, fit for one line on a terminal: nothing in it can move the cursor."""
    return redact_text(text)
