"""Check arguments. Each error names the argument, the value and the allowed values."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from operator import index
from typing import Any


def check_options(function: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError if *function* lacks one of the *options*; *known* are all names of its options."""
    names = list(known)
    if all(option in names for option in options):
        return
    from difflib import get_close_matches  # only for the message

    for option in options:
        if option not in names:
            close = get_close_matches(option, names, 1)
            meant = f", did you mean {close[0]!r}? Options" if close else "; there are"
            raise TypeError(f"{function}() has no option {option!r}{meant}: {', '.join(names)}")


def check_kind(name: str, value: object, kind: Any, allowed: str) -> None:
    """Raise ValueError unless *value* is an instance of *kind*, a class or a union; *allowed* describes it in words.

    The message does not show strings, because they may be credentials.
    """
    if not isinstance(value, kind):
        shown = repr(value) if isinstance(value, int | float | None) else type(value).__name__
        raise ValueError(f"{name} must be {allowed}, got {shown}")  # noqa: TRY004 - like every other bad value


def check_seconds(name: str, seconds: object, *, zero: bool = False) -> None:
    """Raise ValueError unless *seconds* is a finite number greater than 0, or with *zero* 0 or more."""
    check_number(name, seconds, 0, above=not zero, kind="a finite number of seconds")


def check_number(name: str, number: object, least: int, *, above: bool = False, kind: str = "a finite number") -> None:
    """Raise ValueError unless *number* is finite and at least *least*, or with *above* greater than that."""
    valid = isinstance(number, int | float) and not isinstance(number, bool) and isfinite(number)
    if not valid or number < least or (above and number == least):  # type: ignore[operator]
        allowed = f"{kind} greater than {least}" if above else f"{kind}, {least} or more"
        raise ValueError(f"{name} must be {allowed}, got {number!r}")


def check_whole(name: str, number: object, least: int | None = 1, most: int | None = None) -> None:
    """Raise ValueError unless *number* is a whole number from *least* to *most*; None means no bound."""
    valid = not isinstance(number, bool) and hasattr(number, "__index__")
    if valid and (least is None or index(number) >= least) and (most is None or index(number) <= most):  # type: ignore[arg-type]
        return
    bounds = "" if least is None else f", {least} or more" if most is None else f" from {least} to {most}"
    raise ValueError(f"{name} must be a whole number{bounds}, got {number!r}")
