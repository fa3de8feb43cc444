"""Compare the stored records of a list with a reading of the whole list."""

from __future__ import annotations

import sqlite3

from lamella.sync.errors import IncompleteList, UnsteadyList
from lamella.sync.nameless import drop_older, is_nameless
from lamella.sync.source import Source
from lamella.sync.stored import absent, count_change, mark_deleted
from lamella.sync.walk import MOST_WALKS, Each, Walk, count_pages


def compare(
    db: sqlite3.Connection, each: Each, walk: Walk, source: Source, *, may_go_on: bool
) -> tuple[IncompleteList | None, tuple[str, ...]]:
    """Mark the stored records that the API no longer has, as far as the walk proves it. Return their ids.

    An error means that the list must be read again: to prove the deletion of other records, or because a record without
    an id may have moved to a page that was already read. If the last page is full, the count may be too low. Then the
    walk continues with the next page, unless that one was empty (*may_go_on* is False).
    """
    met, names = absent(db, each, walk.walk)
    is_exact = walk.is_exact(met)
    gone = {name for name, _ in names if is_nameless(name)} if walk.seen else set()
    deleted = [name for name, last in names if name not in gone and is_exact and walk.is_deleted(last)]
    stored = count_pages(db, each)
    if (deleted or gone) and may_go_on and source.pages.parallel and walk.seen == stored * walk.largest:
        walk.ended, walk.more = False, stored + 1 - (walk.pages or 0)
        return None, ()
    is_sure = is_exact and (walk.pages == 1 or not walk.fresh)
    # Without a proof, several walks in a row must have missed a record without an id before it is dropped.
    older = walk.walk - (0 if is_sure else 1 if walk.total is None else MOST_WALKS - 1)
    if walk.seen and drop_older(db, each, older):
        count_change(db)
        _, names = absent(db, each, walk.walk)
    walk.full, walk.exact = walk.began, walk.walk if is_exact else walk.exact
    walk.deleted += len(deleted)
    walk.unmet = len(names) - len(deleted)
    walk.compared = is_exact and not walk.unmet
    if deleted:
        mark_deleted(db, each, deleted, walk.began or 0)
    is_doubtful = not is_sure and (any(name in gone for name, _ in names) or (walk.equal and walk.fresh))
    is_open = is_exact and walk.unmet and walk.verify
    error = UnsteadyList(source.name, readings=walk.walks)
    return error if (is_open or is_doubtful) and walk.walks < MOST_WALKS else None, tuple(deleted)
