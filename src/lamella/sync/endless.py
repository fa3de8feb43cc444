"""Notice a list that never ends, because the API ignores which page is requested."""

from __future__ import annotations

import sqlite3

from lamella.sync.decode import Records
from lamella.sync.lists import MOST_EMPTY
from lamella.sync.page import MOST_PAGES, Page, may_be_endless
from lamella.sync.source import Source
from lamella.sync.walk import Each, Walk


def is_endless(walk: Walk, page: Page, records: Records) -> bool:
    """Return whether a list may have no end: it has records after many pages, and no count includes them."""
    return may_be_endless(page, walk.read, walk.pages, walk.total, is_nameless=bool(records.nameless))


def is_stuck(db: sqlite3.Connection, each: Each, walk: Walk, page: Page, source: Source) -> bool:
    """Return whether a page without a new record, or of a long list, does not continue the list.

    Equal records without an id may still be different ones.
    """
    if source.pages.parallel:
        return walk.honours == 0 or page.number >= MOST_PAGES
    if not walk.equals:
        return page.number >= MOST_PAGES
    sql = "SELECT 1 FROM sync_pages WHERE account = ? AND resource = ? AND token = ? AND page < ?"
    is_loop = page.token is not None and db.execute(sql, (*each, page.token, page.number)).fetchone()
    return bool(is_loop) or (walk.equals > MOST_EMPTY and walk.read >= (walk.total or 0))
