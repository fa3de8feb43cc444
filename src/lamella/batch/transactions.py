"""Changes of a journal that share a transaction. It runs in the journal's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

from lamella.batch.journal_errors import JournalError, explain, sqlite_code

Change = Callable[[sqlite3.Connection], Any]
Result = tuple[Any, BaseException | None]
"""What a change returned or raised. A future would take no StopIteration, and would log an unread exception."""

# The comments make these texts unique: a change's own statement of the same text would come from the cache, where the
# authorizer is not asked.
_BEGIN: Final = "BEGIN IMMEDIATE /* group */"
_COMMIT: Final = "COMMIT /* group */"
_ROLLBACK: Final = "ROLLBACK /* group */"


class Connection(sqlite3.Connection):
    """The connection of a journal; only :meth:`control` begins and ends transactions."""

    path: str
    batch_id: UUID
    _controlling = False

    def control(self, sql: str) -> None:
        """Execute a statement that begins or ends a transaction or a savepoint."""
        self._controlling = True
        try:
            self.execute(sql)
        finally:
            self._controlling = False

    def authorize(self, action: int, *_: object) -> int:
        """Deny changes what :meth:`control` does; an SQLite authorizer."""
        controls = action in {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT}
        return sqlite3.SQLITE_DENY if controls and not self._controlling else sqlite3.SQLITE_OK


def write(db: Connection, changes: Sequence[Change]) -> list[Result]:
    """Make *changes* in one transaction; return their results once it is on disk."""
    results: list[Result] = []
    try:
        db.control(_BEGIN)
        for change in changes:
            results.append(_apply(db, change))  # noqa: PERF401 - those so far are needed below
        db.control(_COMMIT)
    except BaseException as exc:  # noqa: BLE001 - each caller gets it
        if db.in_transaction:
            db.control(_ROLLBACK)
        errors = [error for _, error in results] + [None] * (len(changes) - len(results))
        return [(None, error or _not_written(db, exc)) for error in errors]
    return results


def _apply(db: Connection, change: Change) -> Result:
    db.control("SAVEPOINT lamella_change")
    result: Result
    try:
        result = _closed(change(db)), None
    except BaseException as exc:
        if not db.in_transaction:  # SQLite has rolled back all of it, for example because the disk is full
            raise
        db.control("ROLLBACK TO lamella_change")
        result = None, explain(db.path, exc)
    db.control("RELEASE lamella_change")
    return result


def _not_written(db: Connection, exc: BaseException) -> BaseException:
    return explain(db.path, exc, otherwise=JournalError(f"{db.path}: nothing was written ({exc})"))


def read(db: Connection, query: Change) -> Result:
    """Run *query*, which cannot write."""
    db.execute("PRAGMA query_only = ON")
    try:
        return _closed(query(db)), None
    except BaseException as exc:  # noqa: BLE001 - the caller gets it
        if sqlite_code(exc) == sqlite3.SQLITE_READONLY:
            failure = JournalError(f"{db.path}: read() was given a query that writes; commit() is for that")
            failure.__cause__ = exc
            return None, failure
        return None, explain(db.path, exc)
    finally:
        db.execute("PRAGMA query_only = OFF")


def _closed(value: Any) -> Any:
    """Return *value*; a cursor is closed, since it would keep the file open and locked."""
    if isinstance(value, sqlite3.Cursor):
        value.close()
    return value
