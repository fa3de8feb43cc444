"""The records that a sync keeps in its journal, and what they were made of."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lamella.sync.decode import Record
from lamella.sync.errors import BadRecord

# `walk` is the one in which it was read last, `updated` what the record itself says, in microseconds since the epoch.
TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS sync_records (account TEXT NOT NULL, resource TEXT NOT NULL, id TEXT NOT NULL,
    updated INTEGER, record TEXT NOT NULL, walk INTEGER NOT NULL, PRIMARY KEY (account, resource, id))""",
    # What the records depend on, of an account (resource is empty) and of a list.
    """CREATE TABLE IF NOT EXISTS sync_made (account TEXT NOT NULL, resource TEXT NOT NULL, made TEXT NOT NULL,
    PRIMARY KEY (account, resource))""",
    # One row: it counts the changes of the records.
    "CREATE TABLE IF NOT EXISTS sync_version (version INTEGER NOT NULL)",
    # Each output: the version that it was written from, and its file as it was then.
    "CREATE TABLE IF NOT EXISTS sync_outputs (path TEXT PRIMARY KEY, version INTEGER NOT NULL, stamp TEXT NOT NULL)",
)


@dataclass(slots=True)
class Put:
    """What the records of a page were."""

    changed: int = 0
    """New, or not as they were."""
    seen: int = 0
    """Not read by this walk before. One that is twice on the page counts twice, as the API counts it."""
    old: int = 0
    """Those of them that were there before the walk began, as far as known."""
    undated: int = 0
    """Those of them that do not say when they were changed, and are not known from before."""
    moved: Record | None = None
    """One that this walk had read before, with another content."""
    doubtful: list[Record] = field(default_factory=list)
    """Those that were read with two contents. Which one is right is not known."""
    bad: list[BadRecord] = field(default_factory=list)
    """Those with the id of another record on the page."""


def put(
    db: sqlite3.Connection,
    each: tuple[str, str],
    records: Sequence[Record],
    *,
    walk: int,
    page: str,
    began: int,
) -> Put:
    """Store the records of a page, and return what they were.

    Args:
        db: The journal.
        each: The account and the resource.
        records: All of the page.
        walk: The number of the walk.
        page: What messages call the page.
        began: When the walk began, in microseconds since the epoch.
    """
    found: dict[str, tuple[int | None, str, int]] = {}
    names = [record.id for record in records]
    for start in range(0, len(names), 500):  # SQLite takes only so many variables
        some = names[start : start + 500]
        sql = f"id IN ({', '.join('?' * len(some))})"
        rows = db.execute(
            f"SELECT id, updated, record, walk FROM sync_records WHERE account = ? AND resource = ? AND {sql}",  # noqa: S608
            (*each, *some),
        )
        found |= {name: row for name, *row in rows}
    result, here, kept = Put(), dict[str, Record](), []
    for record in records:
        before, text, last = found.get(record.id, (None, None, -1))
        other = here.get(record.id)
        if other is not None and other.text != record.text:
            again = f"has the id {record.id!r} of record {other.position}, and differs"
            result.bad.append(BadRecord(f"record {record.position} on {page} {again}"))
            result.doubtful.append(record)
        if last != walk or other is not None:
            result.seen += 1
            is_old = last not in {-1, walk} or (record.updated is not None and record.updated < began)
            result.old += is_old
            result.undated += not is_old and record.updated is None
        else:
            if record.updated is not None and before is not None and record.updated < before:
                continue  # pages are read concurrently: this one is the older
            if text != record.text:
                result.moved = result.moved or record
                result.doubtful.append(record)
        here[record.id] = record
        result.changed += text != record.text
        kept.append((*each, record.id, record.updated, record.text, walk))
    db.executemany(
        "INSERT INTO sync_records VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET updated = excluded.updated, record = excluded.record, walk = excluded.walk",
        kept,
    )
    if result.changed:
        count_change(db)
    return result


def count_change(db: sqlite3.Connection) -> None:
    """Note that the records have changed, so that each output is out of date."""
    if not db.execute("UPDATE sync_version SET version = version + 1").rowcount:
        db.execute("INSERT INTO sync_version VALUES (1)")


def of_others(db: sqlite3.Connection, made: Mapping[tuple[str, str], str]) -> set[tuple[str, str]]:
    """Return the keys of *made* whose records were made of something else. Where that is unknown, they were not."""
    if not has_table(db, "sync_made"):
        return set()
    before = {(account, resource): of for account, resource, of in db.execute("SELECT * FROM sync_made")}
    return {key for key, of in made.items() if before.get(key, of) != of}


def adopt(db: sqlite3.Connection) -> None:
    """Take over the records of a journal by an earlier lamella. Its marks count for nothing: all is read again."""
    if has_table(db, "maesn_records") and not has_table(db, "sync_records"):
        db.execute("ALTER TABLE maesn_records RENAME TO sync_records")
        db.execute("UPDATE sync_records SET walk = 0")
        for name in ("parts", "walks", "pages", "books"):
            db.execute(f"DROP TABLE IF EXISTS maesn_{name}")


def has_table(db: sqlite3.Connection, table: str) -> bool:
    """Return whether there is a *table*."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None
