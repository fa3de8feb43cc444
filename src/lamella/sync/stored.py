"""The records in the journal of a sync, their identities, and the marks of deleted records."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, Literal

from lamella.sync import nameless
from lamella.sync.decode import Record, Records
from lamella.sync.errors import BadRecord, TooManyDeparted

# Without this table, each record would contain the names of its list twice, in the table and in the index.
_LISTS: Final = (
    """CREATE TABLE IF NOT EXISTS sync_lists (number INTEGER PRIMARY KEY, account TEXT NOT NULL, resource TEXT NOT NULL,
    UNIQUE (account, resource))""",
    # `walk` is the last walk that read the record. `updated` is the date in the record, in microseconds since the
    # epoch. With rowid, records are added at the end of the table, so that pages are full. The text is last, so that
    # the other columns can be read without it.
    """CREATE TABLE IF NOT EXISTS sync_texts (list INTEGER NOT NULL, id TEXT NOT NULL, updated INTEGER,
    walk INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (list, id))""",
    """CREATE VIEW IF NOT EXISTS sync_records AS SELECT account, resource, id, updated, record, walk
    FROM sync_lists JOIN sync_texts ON list = number""",
)
TABLES: Final = (
    # The identity of the records of an account (resource is empty) or of a list.
    """CREATE TABLE IF NOT EXISTS sync_made (account TEXT NOT NULL, resource TEXT NOT NULL, made TEXT NOT NULL,
    PRIMARY KEY (account, resource))""",
    # Deleted records, and since when the deletion is known, in microseconds since the epoch.
    """CREATE TABLE IF NOT EXISTS sync_deleted (account TEXT NOT NULL, resource TEXT NOT NULL, id TEXT NOT NULL,
    deleted INTEGER NOT NULL, PRIMARY KEY (account, resource, id)) WITHOUT ROWID""",
    # Accounts that are no longer synced, whose records count as deleted.
    "CREATE TABLE IF NOT EXISTS sync_departed (account TEXT PRIMARY KEY, departed INTEGER NOT NULL)",
    nameless.TABLE,
    # One row, which counts the changes of the records.
    "CREATE TABLE IF NOT EXISTS sync_version (version INTEGER NOT NULL)",
    # For each output: the version of the records in it, and the state of its file.
    "CREATE TABLE IF NOT EXISTS sync_outputs (path TEXT PRIMARY KEY, version INTEGER NOT NULL, stamp TEXT NOT NULL)",
)

_OF_LISTS: Final = ("sync_deleted", "sync_parts", "sync_pages", "sync_contents")
"""The other tables with rows for a list."""

Departed = Literal["keep", "mark", "forget"]
"""What to do with the records of an account that is no longer synced."""


@dataclass(slots=True)
class Put:
    """Counts of the records of a page."""

    changed: int = 0
    """Records that were new or changed."""
    seen: int = 0
    """Records that this walk had not read before. A record that is twice on the page counts twice, as at the API."""
    old: int = 0
    """Records of `seen` that existed before the walk began, as far as known."""
    undated: int = 0
    """Records of `seen` without a date of change that were not stored before."""
    fresh: int = 0
    """Records of `seen` that were not stored, or were marked as deleted."""
    missing: list[str] = field(default_factory=list)
    """The ids of records that were not stored although they were last changed before the mark."""
    moved: Record | None = None
    """A record that this walk had already read with different content."""
    doubtful: list[Record] = field(default_factory=list)
    """Records that were read with two different contents. Which one is right is unknown."""
    bad: list[BadRecord] = field(default_factory=list)
    """Records with the id of another record on the page."""


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
    """Store the records of a page and return their counts.

    Args:
        db: The journal.
        each: The account and the resource.
        records: All records of the page.
        walk: The number of the walk.
        page: The name of the page in messages.
        began: When the walk began, in microseconds since the epoch.
        mark: All records that were last changed before it should already be stored. None: unknown.
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
    """Store the records of a page of the first walk. None: nothing was stored, since some of them already exist."""
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
    """Store the records of a page, some of which may already be stored."""
    found: dict[str, tuple[int | None, str, int]] = {}
    names = records.ids
    for start in range(0, len(names), 500):  # SQLite limits the number of variables
        some = names[start : start + 500]
        sql = f"id IN ({', '.join('?' * len(some))})"
        rows = db.execute(f"SELECT id, updated, record, walk FROM sync_texts WHERE list = ? AND {sql}", (number, *some))  # noqa: S608
        found |= {name: row for name, *row in rows}
    result, here, kept = Put(changed=len(deleted)), dict[str, Record](), []
    for record in records:
        before, text, last = found.get(record.id, (None, None, -1))
        other = here.get(record.id)
        if other is not None and other.text != record.text:
            again = f"has the same id {record.id!r} as record {other.position}, but differs from it"
            result.bad.append(BadRecord(f"record {record.position} on {page} {again}"))
            result.doubtful.append(record)
        if last != walk:
            result.seen += 1
            is_old = last != -1 or (record.updated is not None and record.updated < began)
            result.old += is_old
            result.undated += not is_old and record.updated is None
            result.fresh += last == -1 or record.id in deleted
            if last == -1 and other is None and mark is not None and (record.updated or mark) < mark:
                result.missing.append(record.id)
        else:
            if record.updated is not None and before is not None and record.updated < before:
                continue  # pages are read concurrently, and this version is older
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
    """Return the number of a list in the journal. Assign one if it has none."""
    sql = "SELECT number FROM sync_lists WHERE account = ? AND resource = ?"
    row = db.execute(sql, each).fetchone()
    if row is None:
        db.execute("INSERT INTO sync_lists (account, resource) VALUES (?, ?)", each)
        row = db.execute(sql, each).fetchone()
    return int(row[0])


def _take_back(db: sqlite3.Connection, each: tuple[str, str], names: Collection[str]) -> set[str]:
    """Remove the deletion marks of records that the API has again. Return their ids."""
    where = "account = ? AND resource = ?"
    if not db.execute(f"SELECT 1 FROM sync_deleted WHERE {where} LIMIT 1", each).fetchone():  # noqa: S608 - our own
        return set()
    one = f"DELETE FROM sync_deleted WHERE {where} AND id = ?"  # noqa: S608 - as above
    return {name for name in names if db.execute(one, (*each, name)).rowcount}


def absent(db: sqlite3.Connection, each: tuple[str, str], walk: int) -> tuple[int, list[tuple[str, int]]]:
    """Return how many records a walk has read, and id and last walk of each unmarked record that it has not read."""
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
    """Return the accounts in the journal that are not in *accounts*. *unmarked* leaves out those with a mark."""
    if not has_table(db, "sync_parts"):
        return []
    names = db.execute("SELECT DISTINCT account FROM sync_parts ORDER BY account")
    left_out = marked(db) if unmarked else ()
    return [name for (name,) in names if name not in accounts and name not in left_out]


def marked(db: sqlite3.Connection) -> set[str]:
    """Return the departed accounts whose records are marked as deleted."""
    rows = db.execute("SELECT account FROM sync_departed") if has_table(db, "sync_departed") else ()
    return {name for (name,) in rows}


def check_departed(db: sqlite3.Connection, accounts: Collection[str], how: Departed) -> None:
    """Raise TooManyDeparted if *how* is to forget more accounts of the journal than stay."""
    if how == "forget":
        check_forgotten(departed(db, ()), marked(db), accounts)


def check_forgotten(known: Collection[str], marked: Collection[str], accounts: Collection[str]) -> None:
    """Raise TooManyDeparted if more accounts would be forgotten than stay: *accounts* may be cut off.

    Forgetting cannot be undone. Marking can, and shows that the accounts have left.

    Args:
        known: The accounts with records.
        marked: Those of them that are marked as departed. They may be forgotten.
        accounts: The accounts of the run. The others would be forgotten.
    """
    gone = [name for name in known if name not in accounts]
    forgotten, stay = sum(name not in marked for name in gone), len(known) - len(gone)
    if forgotten > stay:
        raise TooManyDeparted(forgotten, stay)


def not_read(db: sqlite3.Connection, accounts: Collection[str], resources: Collection[str]) -> list[str]:
    """Return the resources of *accounts* with records in the journal that are not in *resources*."""
    rows = db.execute(
        "SELECT resource, account FROM sync_lists WHERE EXISTS (SELECT 1 FROM sync_texts WHERE list = number)"
        " ORDER BY resource"
    )
    return list(dict.fromkeys(name for name, account in rows if name not in resources and account in accounts))


def settle_departed(db: sqlite3.Connection, accounts: Collection[str], how: Departed, moment: int) -> None:
    """Keep, mark or forget the records of accounts that are not in *accounts*. Remove the marks of *accounts*."""
    gone = [(name,) for name in departed(db, accounts)]
    changed = db.executemany("DELETE FROM sync_departed WHERE account = ?", ((name,) for name in accounts)).rowcount
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
    """Drop everything stored for these lists, or for the whole account if the resource is empty."""
    _drop_records(db, keys)
    for table in _OF_LISTS:
        db.executemany(f"DELETE FROM {table} WHERE account = ? AND ? IN ('', resource)", keys)  # noqa: S608 - as above
    if keys:
        count_change(db)


def _drop_records(db: sqlite3.Connection, keys: Collection[tuple[str, str]]) -> None:
    lists = "SELECT number FROM sync_lists WHERE account = ? AND ? IN ('', resource)"
    db.executemany(f"DELETE FROM sync_texts WHERE list IN ({lists})", keys)  # noqa: S608 - our own names


def count_change(db: sqlite3.Connection) -> None:
    """Record that the records have changed, so that each output is out of date."""
    if not db.execute("UPDATE sync_version SET version = version + 1").rowcount:
        db.execute("INSERT INTO sync_version VALUES (1)")


def of_others(db: sqlite3.Connection, made: Iterable[tuple[str, str, str]]) -> set[tuple[str, str]]:
    """Return those of *made* whose stored records have another identity, as account and resource.

    An unknown identity counts as equal.
    """
    if not has_table(db, "sync_made"):
        return set()
    is_other = "SELECT 1 FROM sync_made WHERE account = ? AND resource = ? AND made != ?"
    return {each[:2] for each in made if db.execute(is_other, each).fetchone()}


def adopt(db: sqlite3.Connection) -> None:
    """Create the tables, and convert the records of a journal of an earlier lamella version.

    The marks of the earliest version are ignored, so all lists are read again.
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
    """Return whether the journal has the old format, in which each record contains the names of its list."""
    row = db.execute("SELECT type FROM sqlite_master WHERE name = 'sync_records'").fetchone()
    return row is not None and row[0] == "table"


def has_table(db: sqlite3.Connection, table: str) -> bool:
    """Return whether *table* exists."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None
