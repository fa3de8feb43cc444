"""Write changes of a journal that share a transaction. Runs in the journal's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

from lamella.batch.journal_errors import JournalError, explain, sqlite_code

Change = Callable[[sqlite3.Connection], Any]
Result = tuple[Any, BaseException | None]
"""The result or exception of a change. A future rejects StopIteration and logs unread exceptions."""

# The SQL comments make these texts unique: a change's own statement with the same text would come from the statement
# cache, which bypasses the authorizer.
_BEGIN: Final = "BEGIN IMMEDIATE /* group */"
_COMMIT: Final = "COMMIT /* group */"
_ROLLBACK: Final = "ROLLBACK /* group */"


class Connection(sqlite3.Connection):
    """The connection of a journal. Only :meth:`control` begins and ends transactions."""

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
        """Deny changes the statements of :meth:`control`; an SQLite authorizer."""
        controls = action in {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT}
        return sqlite3.SQLITE_DENY if controls and not self._controlling else sqlite3.SQLITE_OK


def write(db: Connection, changes: Sequence[Change]) -> list[Result]:
    """Apply *changes* in one transaction; return their results once it is on disk."""
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
        if not db.in_transaction:  # SQLite has rolled back the transaction, for example because the disk is full
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
            failure = JournalError(f"{db.path}: the query of read() tried to write; use commit() for that")
            failure.__cause__ = exc
            return None, failure
        return None, explain(db.path, exc)
    finally:
        db.execute("PRAGMA query_only = OFF")


def _closed(value: Any) -> Any:
    """Return *value*, closing it if it is a cursor, which would keep the file open and locked."""
    if isinstance(value, sqlite3.Cursor):
        value.close()
    return value
