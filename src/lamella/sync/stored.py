"""The records that a sync keeps in its journal, what they were made of, and which of them the API no longer has."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, Literal

from lamella.sync import nameless
from lamella.sync.decode import Record, Records
from lamella.sync.errors import BadRecord

# The names of a list would be in each row of its records twice, in the table and in its index.
_LISTS: Final = (
    """CREATE TABLE IF NOT EXISTS sync_lists (number INTEGER PRIMARY KEY, account TEXT NOT NULL, resource TEXT NOT NULL,
    UNIQUE (account, resource))""",
    # `walk` is the one in which it was read last, `updated` what the record itself says, in microseconds since the
    # epoch. With rowid: a record goes to the end of the table, so that pages are full. The text is last: what is in
    # front of it can be read without it.
    """CREATE TABLE IF NOT EXISTS sync_texts (list INTEGER NOT NULL, id TEXT NOT NULL, updated INTEGER,
    walk INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (list, id))""",
    """CREATE VIEW IF NOT EXISTS sync_records AS SELECT account, resource, id, updated, record, walk
    FROM sync_lists JOIN sync_texts ON list = number""",
)
TABLES: Final = (
    # What the records depend on, of an account (resource is empty) and of a list.
    """CREATE TABLE IF NOT EXISTS sync_made (account TEXT NOT NULL, resource TEXT NOT NULL, made TEXT NOT NULL,
    PRIMARY KEY (account, resource))""",
    # Records that the API no longer has, and since when that is known, in microseconds since the epoch.
    """CREATE TABLE IF NOT EXISTS sync_deleted (account TEXT NOT NULL, resource TEXT NOT NULL, id TEXT NOT NULL,
    deleted INTEGER NOT NULL, PRIMARY KEY (account, resource, id)) WITHOUT ROWID""",
    # Accounts that are no longer synced, whose records count as deleted.
    "CREATE TABLE IF NOT EXISTS sync_departed (account TEXT PRIMARY KEY, departed INTEGER NOT NULL)",
    nameless.TABLE,
    # One row: it counts the changes of the records.
    "CREATE TABLE IF NOT EXISTS sync_version (version INTEGER NOT NULL)",
    # Each output: the version that it was written from, and its file as it was then.
    "CREATE TABLE IF NOT EXISTS sync_outputs (path TEXT PRIMARY KEY, version INTEGER NOT NULL, stamp TEXT NOT NULL)",
)

_OF_LISTS: Final = ("sync_deleted", "sync_parts", "sync_pages", "sync_contents")
"""The tables with rows of a list, beside its records."""

Departed = Literal["keep", "mark", "forget"]
"""What becomes of the records of an account that is no longer synced."""


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
    fresh: int = 0
    """Those of them that were not stored, or marked as deleted."""
    missing: list[str] = field(default_factory=list)
    """The ids of records that were not stored, though they were last changed before the mark."""
    moved: Record | None = None
    """One that this walk had read before, with another content."""
    doubtful: list[Record] = field(default_factory=list)
    """Those that were read with two contents. Which one is right is not known."""
    bad: list[BadRecord] = field(default_factory=list)
    """Those with the id of another record on the page."""


def put(
    db: sqlite3.Connection,
    each: tuple[str, str],
    records: Records,
    *,
    walk: int,
    page: str,
    began: int,
    mark: int | None = None,
) -> Put:
    """Store the records of a page, and return what they were.

    Args:
        db: The journal.
        each: The account and the resource.
        records: All of the page.
        walk: The number of the walk.
        page: What messages call the page.
        began: When the walk began, in microseconds since the epoch.
        mark: All records that were last changed before it should be stored. None: nothing is known of that.
    """
    number = _number_of(db, each)
    names = set(records.ids)
    deleted = _take_back(db, each, names)
    if walk == 1 and mark is None and not deleted and len(names) == len(records):
        result = _put_first(db, number, records, began)
        if result is not None:
            return result
    return _put_again(db, number, records, deleted, walk, page, began, mark)


def _put_first(db: sqlite3.Connection, number: int, records: Records, began: int) -> Put | None:
    """Store the records of a page of a first walk; None: nothing is stored, since some of them are there."""
    many = len(records)
    if not many:
        return Put()
    [last] = db.execute("SELECT coalesce(max(rowid), 0) FROM sync_texts").fetchone()
    rows = zip(repeat(number, many), records.ids, records.updated, repeat(1, many), records.texts, strict=True)
    if db.executemany("INSERT INTO sync_texts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows).rowcount != many:
        db.execute("DELETE FROM sync_texts WHERE rowid > ?", (last,))
        return None
    count_change(db)
    old = sum(date is not None and date < began for date in records.updated)
    return Put(changed=many, seen=many, old=old, undated=records.updated.count(None), fresh=many)


def _put_again(  # noqa: PLR0917 - as put() was called
    db: sqlite3.Connection,
    number: int,
    records: Records,
    deleted: Collection[str],
    walk: int,
    page: str,
    began: int,
    mark: int | None,
) -> Put:
    """Store the records of a page of which some are there."""
    found: dict[str, tuple[int | None, str, int]] = {}
    names = records.ids
    for start in range(0, len(names), 500):  # SQLite takes only so many variables
        some = names[start : start + 500]
        sql = f"id IN ({', '.join('?' * len(some))})"
        rows = db.execute(f"SELECT id, updated, record, walk FROM sync_texts WHERE list = ? AND {sql}", (number, *some))  # noqa: S608
        found |= {name: row for name, *row in rows}
    result, here, kept = Put(changed=len(deleted)), dict[str, Record](), []
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
            result.fresh += last == -1 or record.id in deleted
            if last == -1 and other is None and mark is not None and (record.updated or mark) < mark:
                result.missing.append(record.id)
        else:
            if record.updated is not None and before is not None and record.updated < before:
                continue  # pages are read concurrently: this one is the older
            if text != record.text:
                result.moved = result.moved or record
                result.doubtful.append(record)
        here[record.id] = record
        result.changed += text != record.text and record.id not in deleted
        kept.append((number, record.id, record.updated, walk, record.text))
    db.executemany(
        "INSERT INTO sync_texts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET updated = excluded.updated, record = excluded.record, walk = excluded.walk",
        kept,
    )
    if result.changed:
        count_change(db)
    return result


def _number_of(db: sqlite3.Connection, each: tuple[str, str]) -> int:
    """Return the number of a list in the journal; it gets one if it has none."""
    sql = "SELECT number FROM sync_lists WHERE account = ? AND resource = ?"
    row = db.execute(sql, each).fetchone()
    if row is None:
        db.execute("INSERT INTO sync_lists (account, resource) VALUES (?, ?)", each)
        row = db.execute(sql, each).fetchone()
    return int(row[0])


def _take_back(db: sqlite3.Connection, each: tuple[str, str], names: Collection[str]) -> set[str]:
    """Remove the marks of records that the API has again; return which they were."""
    where = "account = ? AND resource = ?"
    if not db.execute(f"SELECT 1 FROM sync_deleted WHERE {where} LIMIT 1", each).fetchone():  # noqa: S608 - our own
        return set()
    one = f"DELETE FROM sync_deleted WHERE {where} AND id = ?"  # noqa: S608 - as above
    return {name for name in names if db.execute(one, (*each, name)).rowcount}


def absent(db: sqlite3.Connection, each: tuple[str, str], walk: int) -> tuple[int, list[tuple[str, int]]]:
    """Return how many records a walk has read, and those that it has not, and are not marked: id, and last walk."""
    of_list = "FROM sync_records r WHERE account = ? AND resource = ?"
    all_of, met = db.execute(f"SELECT count(*), total(walk = ?) {of_list}", (walk, *each)).fetchone()
    if all_of == met:
        return all_of, []
    rows = db.execute(
        f"SELECT id, walk {of_list} AND walk != ? AND NOT EXISTS (SELECT 1 FROM sync_deleted d"  # noqa: S608
        " WHERE d.account = r.account AND d.resource = r.resource AND d.id = r.id)",
        (*each, walk),
    )
    return int(met), rows.fetchall()


def mark_deleted(db: sqlite3.Connection, each: tuple[str, str], names: Sequence[str], moment: int) -> None:
    """Mark records that the API no longer has."""
    db.executemany("INSERT OR IGNORE INTO sync_deleted VALUES (?, ?, ?, ?)", [(*each, name, moment) for name in names])
    count_change(db)


def departed(db: sqlite3.Connection, accounts: Collection[str], *, unmarked: bool = False) -> list[str]:
    """Return the accounts that the journal has records of beside *accounts*; with *unmarked*, those without a mark."""
    if not has_table(db, "sync_parts"):
        return []
    names = [name for (name,) in db.execute("SELECT DISTINCT account FROM sync_parts ORDER BY account")]
    marked: set[str] = set()
    if unmarked and has_table(db, "sync_departed"):
        marked = {name for (name,) in db.execute("SELECT account FROM sync_departed")}
    return [name for name in names if name not in accounts and name not in marked]


def settle_departed(db: sqlite3.Connection, accounts: Collection[str], how: Departed, moment: int) -> None:
    """Keep, mark or forget the records of accounts that the journal has beside *accounts*, which have come back."""
    gone = [(name,) for name in departed(db, accounts)]
    back = [(name,) for name in accounts]
    changed = db.executemany("DELETE FROM sync_departed WHERE account = ?", back).rowcount
    if how == "mark" and gone:
        marks = [(name, moment) for (name,) in gone]
        changed += db.executemany("INSERT OR IGNORE INTO sync_departed VALUES (?, ?)", marks).rowcount
    elif how == "forget" and gone:
        _drop_records(db, [(name, "") for (name,) in gone])
        for table in (*_OF_LISTS, "sync_lists", "sync_made", "sync_departed"):
            db.executemany(f"DELETE FROM {table} WHERE account = ?", gone)  # noqa: S608 - our own names
        changed += len(gone)
    if changed > 0:
        count_change(db)


def drop(db: sqlite3.Connection, keys: Collection[tuple[str, str]]) -> None:
    """Drop all that is stored of these lists; of a whole account, where the resource is empty."""
    _drop_records(db, keys)
    for table in _OF_LISTS:
        db.executemany(f"DELETE FROM {table} WHERE account = ? AND ? IN ('', resource)", keys)  # noqa: S608 - as above
    if keys:
        count_change(db)


def _drop_records(db: sqlite3.Connection, keys: Collection[tuple[str, str]]) -> None:
    lists = "SELECT number FROM sync_lists WHERE account = ? AND ? IN ('', resource)"
    db.executemany(f"DELETE FROM sync_texts WHERE list IN ({lists})", keys)  # noqa: S608 - our own names


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
    """Create the tables, and take over the records of a journal by an earlier lamella.

    The marks of the earliest one count for nothing: all is read again.
    """
    if has_table(db, "maesn_records") and not has_table(db, "sync_records"):
        db.execute("ALTER TABLE maesn_records RENAME TO sync_records")
        db.execute("UPDATE sync_records SET walk = 0")
        for name in ("parts", "walks", "pages", "books"):
            db.execute(f"DROP TABLE IF EXISTS maesn_{name}")
    is_old = is_to_adopt(db)
    if is_old:
        db.execute("ALTER TABLE sync_records RENAME TO sync_old")
    for table in (*_LISTS, *TABLES):
        db.execute(table)
    if is_old:
        db.execute("INSERT INTO sync_lists (account, resource) SELECT DISTINCT account, resource FROM sync_old")
        db.execute(
            "INSERT INTO sync_texts SELECT number, id, updated, walk, record FROM sync_old"
            " JOIN sync_lists USING (account, resource) ORDER BY sync_old.rowid"
        )
        db.execute("DROP TABLE sync_old")


def is_to_adopt(db: sqlite3.Connection) -> bool:
    """Return whether each record of the journal has the names of its list."""
    row = db.execute("SELECT type FROM sqlite_master WHERE name = 'sync_records'").fetchone()
    return row is not None and row[0] == "table"


def has_table(db: sqlite3.Connection, table: str) -> bool:
    """Return whether there is a *table*."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None
