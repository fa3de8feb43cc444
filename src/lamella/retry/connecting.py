"""A block whose calls do not retry failed connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_ONCE: Final[ContextVar[bool]] = ContextVar("lamella_connects_once", default=False)


@contextmanager
def connecting_once() -> Iterator[None]:
    """End each call made inside at the first failed connection, for callers that decide about retries themselves."""
    token = _ONCE.set(True)
    try:
        yield
    finally:
        _ONCE.reset(token)


def connects_once() -> bool:
    """Return whether the current code is inside :func:`connecting_once`."""
    return _ONCE.get()
