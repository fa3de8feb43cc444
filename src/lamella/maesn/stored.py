"""The records that a sync keeps in its journal, and whose books they are."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from lamella.maesn.record import id_names, id_of

__all__ = ["TABLES", "Books", "checked_id", "compact", "has_table", "of_other_books", "put"]

_BETWEEN_SPACE: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^" \t\n\r]++')
"""What is left of JSON without the white space between its tokens: strings, and whatever is neither."""

# `walk` is the one in which it was read last, `updated` what the record itself says, in microseconds since the epoch.
TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS maesn_records (account TEXT NOT NULL, resource TEXT NOT NULL, id TEXT NOT NULL,
    updated INTEGER, record TEXT NOT NULL, walk INTEGER NOT NULL, PRIMARY KEY (account, resource, id))""",
    "CREATE TABLE IF NOT EXISTS maesn_books (account TEXT PRIMARY KEY, company TEXT, environment TEXT)",
)


class Books(NamedTuple):
    """Whose books an account's records are. None means that the API is not asked for any in particular."""

    company_id: str | None
    environment_name: str | None


def put(
    db: sqlite3.Connection, key: tuple[str, str, str], walk: int, text: str, updated: int | None
) -> tuple[bool, bool, bool]:
    """Store a record.

    Returns whether it is new or has changed, whether it has changed since this walk read it, and whether this walk
    had not read it before.
    """
    found = db.execute(
        "SELECT updated, record, walk FROM maesn_records WHERE account = ? AND resource = ? AND id = ?", key
    ).fetchone()
    if found is None:
        db.execute("INSERT INTO maesn_records VALUES (?, ?, ?, ?, ?, ?)", (*key, updated, text, walk))
        return True, False, True
    before, kept, last = found
    if last == walk and updated is not None and before is not None and updated < before:
        return False, False, False  # pages are read concurrently: this one is the older
    db.execute(
        "UPDATE maesn_records SET updated = ?, record = ?, walk = ? WHERE account = ? AND resource = ? AND id = ?",
        (updated, text, walk, *key),
    )
    return text != kept, text != kept and last == walk, last != walk


def checked_id(record: Any, resource: str) -> str:
    """Return the id of a record, or raise ValueError."""
    name = id_of(record, resource)
    if name is None:
        names = id_names(resource)
        raise ValueError(
            f"a record of {resource} has neither {names[0]!r} nor {names[1]!r}, so that it cannot be told apart"
        )
    return name


def compact(text: str) -> str:
    """Return the JSON *text* without the white space between its tokens; every other character stays."""
    # SQLite cannot hold half of a surrogate pair, unless it is escaped.
    return "".join(_BETWEEN_SPACE.findall(text)).encode("utf-8", "backslashreplace").decode()


def of_other_books(db: sqlite3.Connection, books: Mapping[str, Books]) -> set[str]:
    """Return the accounts whose stored records are of other books. Where that is unknown, they are of the same."""
    if not has_table(db, "maesn_books"):
        return set()
    before = {name: Books(*of) for name, *of in db.execute("SELECT account, company, environment FROM maesn_books")}
    return {name for name, of in books.items() if before.get(name, of) != of}


def has_table(db: sqlite3.Connection, table: str) -> bool:
    """Return whether there is a *table*."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None
