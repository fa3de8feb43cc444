"""The outcome of each item of a batch, in an SQLite file that survives a `kill -9` at any moment.

Three guarantees, and how each is kept:

- When :meth:`Journal.commit` returns, the whole change is on disk (WAL, ``synchronous=FULL``). Concurrent changes share
  a transaction and its single fsync.
- One journal at a time has the file open (``locking_mode=EXCLUSIVE``: a lock of the operating system).
- A rejected file stays unchanged: it is checked through a read-only connection.

While a journal is open, do not open its file in this process: closing it would release the lock (POSIX).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, Self, TypeVar
from uuid import uuid5

from lamella.batch.journal_errors import JournalError
from lamella.batch.journal_file import opened
from lamella.batch.transactions import Change, Connection, Result, read, write
from lamella.threads import run_to_its_end

_T = TypeVar("_T")

_END: Final = (
    "INSERT INTO lamella_items (key, error, result) VALUES (?, ?, ?)"
    " ON CONFLICT (key) DO UPDATE SET error = excluded.error, result = excluded.result"
    " WHERE excluded.error IS NULL OR lamella_items.error IS NOT NULL"
)
_COUNTS: Final = (
    "SELECT (SELECT count(*) FROM lamella_items), (SELECT count(*) FROM lamella_items WHERE error IS NOT NULL)"
)
_PAGE: Final = 500
"""Rows per read."""
_CHUNK: Final = 10_000
"""Keys per look-up: about 50 ms, so that commits can run in between."""


class Counts(NamedTuple):
    """The number of ended items."""

    done: int
    failed: int


def end_of(db: sqlite3.Connection, key: str, *, result: str | None = None, error: str | None = None) -> None:
    """Record the end of an item inside a change, in one transaction with the change's other writes.

    A later end replaces an earlier one, but a failure never replaces a success.

    Args:
        db: The connection that :meth:`Journal.commit` passes to the change.
        key: Identifies the item.
        result: The item's result, any text. None means no result.
        error: Why the item failed. None means that it is done.

    Raises:
        TypeError: *key* is not a str.
        ValueError: Both *result* and *error* are given.
    """
    _check_key(key)
    if result is not None and error is not None:
        raise ValueError(f"item {key!r} must have a result or an error, got both")
    db.execute(_END, (key, error, result))


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"the key of an item must be a str, got {key!r}")


class Journal:
    """The journal of one batch, opened with :meth:`open` and bound to the event loop on which it was opened."""

    def __init__(self, thread: Executor, db: Connection) -> None:
        self._thread = thread
        self._db = db
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._changes: list[tuple[Change, asyncio.Future[Result]]] = []
        self._writing = False

    def __repr__(self) -> str:
        return f"<Journal {self._db.path!r}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | os.PathLike[str], *, batch: str) -> AsyncIterator[Self]:
        """Open the journal at *path*, or create it if the file is missing or empty.

        Only the owner can read a new file (mode 0600). Opening reads the whole file, about a second per gigabyte. At
        the end of the context all changes are written, and no other file is left beside the journal.

        Args:
            path: The file; its folder must exist.
            batch: Identifies the batch, any text. A journal can only be reopened with the same text.

        Raises:
            JournalLocked: The journal is open elsewhere. This and all errors below leave the file unchanged.
            JournalMismatch: The file belongs to another batch or version, or is not a journal.
            JournalDamaged: The file is damaged, or not an SQLite file.
            JournalError: The file cannot be created, read or written.
        """
        thread, file = ThreadPoolExecutor(1, thread_name_prefix="lamella-journal"), ExitStack()
        try:
            journal = cls(thread, await run_to_its_end(thread, file.enter_context, opened(path, batch)))
            try:
                yield journal
            finally:
                journal._write()
                journal._closed = True
        finally:
            try:
                await run_to_its_end(thread, file.close)  # after all changes above
            finally:
                thread.shutdown(wait=False)

    async def commit(self, change: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run *change* in a transaction in the journal's thread, and return its result once it is on disk.

        Concurrent changes share a transaction. A change that raises is rolled back and its exception is raised here;
        the others are not affected. A change may create and use its own tables (names must not begin with
        ``lamella_``). It must not begin or end transactions or savepoints, and should be quick. If the caller is
        cancelled, the change is either applied completely or rolled back.

        Raises:
            JournalError: The change could not be written (for example, the disk is full), it tried to control the
                transaction, or the journal is closed. Nothing of the change is kept. If a change makes SQLite roll back
                the whole transaction (``ON CONFLICT ROLLBACK``, a deferred foreign key), all changes in it fail.
            Exception: Any exception of *change*.
        """
        self._check_open()
        result: asyncio.Future[Result] = self._loop.create_future()
        self._changes.append((change, result))
        if not self._writing:
            self._writing = True
            self._loop.call_soon(self._write)  # later, so that other ready tasks can add their changes
        value: _T = _value(await result)
        return value

    async def read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run *query* in the journal's thread and return its result: rows, not a cursor.

        Raises:
            JournalError: The file cannot be read, *query* tried to write, or the journal is closed.
            Exception: Any exception of *query*.
        """
        self._check_open()
        value: _T = _value(await self._loop.run_in_executor(self._thread, read, self._db, query))
        return value

    async def end(self, key: str, *, result: str | None = None, error: str | None = None) -> None:
        """Record the end of an item with :func:`end_of` in a separate change."""
        await self.commit(lambda db: end_of(db, key, result=result, error=error))

    async def is_done(self, key: str) -> bool:
        """Return whether the item is done."""
        return bool(await self.ended((key,)))

    async def ended(self, keys: Iterable[str]) -> set[str]:
        """Return the *keys* whose items are done. Takes about 5 µs per key."""
        done: set[str] = set()
        rest = iter(keys)
        while chunk := list(islice(rest, _CHUNK)):
            done.update(await self.read(partial(_done, keys=chunk)))
        return done

    def idempotency_key(self, key: str) -> str:
        """Return an ``Idempotency-Key`` for the write of an item: always the same in one journal, different in others.

        It is derived from *key* and the journal's random id, which is on disk before the first item is sent. If an item
        takes several requests, give each its own *key*.

        Raises:
            TypeError: *key* is not a str.
        """
        _check_key(key)
        return str(uuid5(self._db.batch_id, key))

    async def counts(self) -> Counts:
        """Return how many items are done, and how many failed and have not been done since."""
        ended, failed = await self.read(lambda db: db.execute(_COUNTS).fetchone())
        return Counts(ended - failed, failed)

    async def failures(self) -> AsyncIterator[tuple[str, str]]:
        """Yield key and error of each failed item, in the order in which they first ended.

        Rows are read on demand without blocking commits, so items that end meanwhile may or may not be included.
        """
        async for key, error in self._rows("error", "error IS NOT NULL"):
            yield key, error

    async def results(self) -> AsyncIterator[tuple[str, str | None]]:
        """Yield key and result of each completed item, in the same way as :meth:`failures`."""
        async for key, result in self._rows("result", "error IS NULL"):
            yield key, result

    async def _rows(self, column: str, condition: str) -> AsyncIterator[tuple[str, Any]]:
        sql = (
            f"SELECT number, key, {column} FROM lamella_items"  # noqa: S608 - our own two words, above
            f" WHERE {condition} AND number > ? ORDER BY number LIMIT {_PAGE}"
        )
        last = 0
        while rows := await self.read(partial(_fetch, sql=sql, after=last)):
            for _, key, value in rows:
                yield key, value
            last = rows[-1][0]

    def _check_open(self) -> None:
        if self._closed:
            raise JournalError(f"{self._db.path}: the journal is closed")

    def _write(self) -> None:
        """Write the waiting changes in the thread, then those that have arrived meanwhile."""
        waiting = [(change, result) for change, result in self._changes if not result.done()]
        self._changes = []
        self._writing = bool(waiting)
        if waiting:
            changes, results = zip(*waiting, strict=True)
            written = self._loop.run_in_executor(self._thread, write, self._db, changes)
            written.add_done_callback(partial(self._written, results))

    def _written(self, results: Iterable[asyncio.Future[Result]], written: asyncio.Future[list[Result]]) -> None:
        failure = written.exception()
        for number, result in enumerate(results):
            if not result.done():  # its caller was cancelled
                result.set_result((None, failure) if failure is not None else written.result()[number])
        self._write()


def _value(result: Result) -> Any:
    value, error = result
    if error is not None:
        raise error
    return value


# The following functions run in the journal's thread.


def _done(db: sqlite3.Connection, keys: list[str]) -> list[str]:
    sql = "SELECT 1 FROM lamella_items WHERE key = ? AND error IS NULL"
    return [key for key in keys if db.execute(sql, (key,)).fetchone()]


def _fetch(db: sqlite3.Connection, sql: str, after: int) -> list[Any]:
    return db.execute(sql, (after,)).fetchall()
