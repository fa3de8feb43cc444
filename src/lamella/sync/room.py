"""Limit the pages in flight so that few of them wait for the journal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

_BYTES: Final = 2 * 2**20
"""The records that may wait for the journal, as JSON. Pages that arrive together may exceed it for a moment."""
_FIRST: Final = 16
"""Pages in flight at the beginning, when the size of a page is not known."""
_FEWEST: Final = 4
_SMALL: Final = 16
"""If as many pages as are in flight take at most this part of the bytes, their number grows faster."""
_FASTER: Final = 8
PATIENCE: Final = 1.0
"""Seconds after which more pages begin although none has ended: most of them may wait for a rate limit."""


class Room:
    """The number of pages that may be in flight.

    A page takes memory from its answer until it is stored. So the number depends on the bytes that are held, not on the
    pages that wait for a slow API or a rate limit. It grows while few are held, and shrinks in proportion when too many
    are, as when the API answers faster than the records can be stored.

    Args:
        at_most: Maximum number of pages.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self.number: int = min(_FIRST, at_most)
        self._held = 0
        self._most = 0
        """The most bytes held since the pages below were counted."""
        self._largest = 0
        self._stored = 0
        self._moved = anyio.current_time()
        """When a page was last stored, or the number grew without one."""

    def admits(self, running: int) -> bool:
        """Return whether another page may begin.

        At the maximum, the batch limits the pages. It takes some ahead, of accounts that have enough pages in flight.
        """
        return running < self.number or self.number == self._at_most

    @contextmanager
    def holding(self, size: int, running: int) -> Iterator[None]:
        """Hold a page that has arrived until it is stored or has failed.

        Args:
            size: The size of its records.
            running: The number of pages in flight.
        """
        self._held += size
        self._most = max(self._most, self._held)
        self._largest = max(self._largest, size)
        if self._held > _BYTES:
            self._set(min(self.number, running * _BYTES // self._held))
        try:
            yield
        finally:
            self._held -= size
            self._moved = anyio.current_time()
            # Unless about as many were in flight, nothing is known of more.
            if self._most <= _BYTES // 2 and 2 * running >= self.number:
                is_small = self.number * self._largest * _SMALL <= _BYTES
                self._set(self.number + (_FASTER if is_small else 1))
            self._stored += 1
            if self._stored >= self.number:
                self._stored, self._most = 0, self._held

    def grow_if_idle(self) -> None:
        """Increase the number if no page was stored lately although few are held."""
        now = anyio.current_time()
        if now >= self._moved + PATIENCE and self._held <= _BYTES // 2:
            self._moved = now
            self._set(self.number + max(self.number // 2, 1))

    def _set(self, number: int) -> None:
        self.number = max(min(number, self._at_most), min(_FEWEST, self._at_most))
