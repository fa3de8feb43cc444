"""One reading of a list: which records it has brought, and whether that is all of them."""

from __future__ import annotations

import json
from hashlib import blake2b

from lamella.maesn.list_errors import RepeatedPage, UnsteadyList
from lamella.maesn.page import Page, greater
from lamella.maesn.record import id_of, updated_of

__all__ = ["Walk", "are_all"]


class Walk:
    """What the pages of one reading have brought so far, and what the API says that there is."""

    def __init__(self, resource: str, first: int) -> None:
        self._resource = resource
        self._first = first
        self._ids: set[str] = set()
        self._contents: set[bytes] = set()
        """Digests of pages with records that have no id."""
        self._seen = 0
        """Different records: by their ids, or each one where it has none."""
        self._old = 0
        """Those of them that were last changed before the first page was read."""
        self._began = 0
        self._first_total: int | None = None
        self.before: int | None = 0 if first == 1 else None
        """How many records are on the pages up to here. None: unknown, since it began in the middle."""
        self.total: int | None = None
        """The greatest number of records that the API has stated."""
        self.total_pages: int | None = None
        """The greatest number of pages that the API has stated."""

    def take(self, page: Page) -> bool:
        """Count a page in. Return False if it only repeats known records, and all are there by the API's count.

        Raises:
            RepeatedPage: It brings no new record, and so might all that follow.
        """
        if page.number == self._first:
            self._began, self._first_total = int(page.answered * 1_000_000), page.total
        self.total = greater(self.total, page.total)
        self.total_pages = greater(self.total_pages, page.total_pages)
        if not page.records:
            return True
        if self._repeats(page):
            if self.total is not None and self._has_all():
                return False
            raise RepeatedPage(self._resource, page.number)
        if self.before is None:
            self.before = (self._first - 1) * len(page.records)
        self.before += len(page.records)
        return True

    def _repeats(self, page: Page) -> bool:
        """Count the records of a page; return whether none of them is new."""
        ids = [id_of(record, self._resource) for record in page.records]
        known = self._ids.intersection(name for name in ids if name is not None)
        for record, name in zip(page.records, ids, strict=True):
            if name is None or name not in known:
                self._seen += 1
                updated = updated_of(record)
                self._old += updated is not None and updated < self._began
        self._ids.update(name for name in ids if name is not None)
        if None not in ids:
            return len(known) == len(set(ids))
        # There may be several equal records without an id: only a page that is equal as a whole is a repeat.
        text = json.dumps(page.records, sort_keys=True, default=str)
        content = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if content in self._contents:
            return True
        self._contents.add(content)
        return False

    def ends_with(self, page: Page) -> bool:
        """Return whether a page is the last one, by its number and by how many records there are."""
        if page.total_pages is None or page.number < page.total_pages:
            return False
        total = self.total if page.total is None else page.total
        return total is None or self.before is None or self.before >= total

    def _has_all(self) -> bool:
        if self._first > 1:
            return self.total is None or (self.before or 0) >= self.total
        return are_all(self._seen, self._old, self._first_total, self.total)

    def check(self) -> None:
        """Check that no records are missing.

        Raises:
            UnsteadyList: There are fewer than the API counts.
        """
        if self._first == 1 and not self._has_all():
            raise UnsteadyList(self._resource, self._seen, self.total, moved=False)


def are_all(seen: int, old: int, first_total: int | None, total: int | None) -> bool:
    """Return whether all records of a list were read that were there when the reading began.

    Args:
        seen: How many different records were read.
        old: Those of them that were last changed before the reading began.
        first_total: How many there were, as the first page said. None means that it did not say.
        total: The most that any page said.
    """
    return total is None or seen >= total or (first_total is not None and old >= first_total)
