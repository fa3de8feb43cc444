"""Check names and values of headers: the arguments of ``HeaderAuth`` and ``Tokens``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Final

_NOT_IN_A_NAME: Final = re.compile(r"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_BAD_VALUE: Final = re.compile(r"[\r\n\0]")


def fault_of_name(name: object) -> str | None:
    """Return why *name* is not a valid header name (RFC 9110, section 5.1), without showing it; None if it is valid."""
    if not isinstance(name, str):
        return f"must be a string, got {type(name).__name__}"
    if not name:
        return "is empty"
    bad = _NOT_IN_A_NAME.search(name)
    return None if bad is None else f"contains {bad.group()!r}, which is not allowed in a header name"


def checked(name: str, answer: object) -> str | None:
    """Return *answer* of a function for the header *name*, checked by `check_value`. None: omit the header."""
    return None if answer is None else check_value(name, answer)


def check_value(name: str, value: object) -> str:
    """Return *value* for the header *name*, or raise ValueError if it is not allowed in a header."""
    fault = fault_of(value)
    if fault is None and isinstance(value, str):
        return value
    del value  # a traceback would show it
    raise ValueError(f"the value of {name} {fault}")


def fault_of(value: object) -> str | None:
    """Return why *value* is not allowed in a header, without showing it; None if it is allowed."""
    if not isinstance(value, str):
        return f"must be a string, got {type(value).__name__}"
    if not value.strip():
        return "is empty"
    if not value.isprintable() and (bad := _BAD_VALUE.search(value)):
        return f"contains {bad.group()!r}, which is not allowed in a header"
    return None


def takes_request(function: Callable[..., Any]) -> bool:
    """Return whether *function* takes the request, that is, has a parameter without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False  # a builtin without a signature
    return any(
        each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        for each in parameters
    )
