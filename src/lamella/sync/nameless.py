"""Records without an id: their content identifies them. Each is stored as many times as it occurs in the list."""

from __future__ import annotations

import sqlite3
from collections import Counter
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Final

from lamella.sync.decode import Records

TABLE: Final = (
    # The pages with such records that a walk has read, identified by content.
    """CREATE TABLE IF NOT EXISTS sync_contents (account TEXT NOT NULL, resource TEXT NOT NULL, content TEXT NOT NULL,
    walk INTEGER NOT NULL, PRIMARY KEY (account, resource, content)) WITHOUT ROWID"""
)
_NAMES: Final = "content:" + "[0-9a-f]" * 32 + ":*"


def repeats(db: sqlite3.Connection, each: tuple[str, str], records: Records, walk: int) -> bool:
    """Return whether a page with such records is completely equal to an earlier page of the walk."""
    if not records.nameless:
        return False
    content = blake2b("\n".join(records.texts).encode(), digest_size=16).hexdigest()
    row = db.execute(
        "SELECT walk FROM sync_contents WHERE account = ? AND resource = ? AND content = ?", (*each, content)
    )
    if row.fetchone() == (walk,):
        return True
    db.execute("INSERT OR REPLACE INTO sync_contents VALUES (?, ?, ?, ?)", (*each, content, walk))
    return False


def numbered(db: sqlite3.Connection, each: tuple[str, str], records: Records, walk: int) -> tuple[Records, bool]:
    """Return the records of a page with an id for each: its content and its number among equal records of the walk.

    Also return whether any of these is equal to a record on another page: it may be the same one, which has moved.
    """
    if not records.nameless:
        return records, False
    sql = (
        "SELECT count(*) FROM sync_records WHERE account = ? AND resource = ? AND id >= ? || ':' AND id < ? || ';'"
        " AND walk = ?"
    )
    times = Counter(
        {
            name: db.execute(sql, (*each, name, name, walk)).fetchone()[0]
            for name in {record.id for record in records if record.nameless}
        }
    )
    found, again = [], any(times.values())
    for record in records:
        if record.nameless:
            times[record.id] += 1
            record = record._replace(id=f"{record.id}:{times[record.id]}")  # noqa: PLW2901 - the same record
        found.append(record)
    return Records.of(found), again


def is_nameless(name: str) -> bool:
    """Return whether *name* is the id of such a record."""
    return fnmatchcase(name, _NAMES)


def drop_older(db: sqlite3.Connection, each: tuple[str, str], walk: int) -> int:
    """Drop such records that were last read before a walk: they were changed or deleted. Return how many."""
    where = f"account = ? AND resource = ? AND id GLOB '{_NAMES}'"
    list_of = "list = (SELECT number FROM sync_lists WHERE account = ? AND resource = ?)"
    sql = f"DELETE FROM sync_texts WHERE {list_of} AND id GLOB '{_NAMES}' AND walk < ?"  # noqa: S608 - our own names
    dropped = db.execute(sql, (*each, walk)).rowcount
    if dropped:
        rest = f"DELETE FROM sync_deleted WHERE {where} AND NOT EXISTS (SELECT 1 FROM sync_records r WHERE"  # noqa: S608
        db.execute(
            f"{rest} r.account = sync_deleted.account AND r.resource = sync_deleted.resource"
            " AND r.id = sync_deleted.id)",
            each,
        )
    return dropped
