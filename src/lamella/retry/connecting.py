"""A block whose calls do not try again to connect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_ONCE: Final[ContextVar[bool]] = ContextVar("lamella_connects_once", default=False)


@contextmanager
def connecting_once() -> Iterator[None]:
    """End each call made inside with its first attempt that finds no connection, for a caller that decides itself."""
    token = _ONCE.set(True)
    try:
        yield
    finally:
        _ONCE.reset(token)


def connects_once() -> bool:
    """Return whether a call made here is inside of :func:`connecting_once`."""
    return _ONCE.get()
