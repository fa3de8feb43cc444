"""How each item of a batch has ended, in an SQLite file that survives a `kill -9` at any moment.

Three promises, and what each rests on:

- When :meth:`Journal.commit` returns, the change is on disk as a whole (WAL, ``synchronous=FULL``). Changes made at the
  same time share a transaction, and so its one wait for the disk.
- One journal at a time has the file open (``locking_mode=EXCLUSIVE``: a lock of the operating system).
- A file that is refused is unchanged: it is checked through a connection that cannot write.

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
"""Rows that are read at once."""
_CHUNK: Final = 10_000
"""Keys that are looked up at once: about 50 ms, so that commits come in between."""


class Counts(NamedTuple):
    """How many items have ended."""

    done: int
    failed: int


def end_of(db: sqlite3.Connection, key: str, *, result: str | None = None, error: str | None = None) -> None:
    """Record the end of an item inside a change, in one transaction with what else the change writes.

    A later end replaces an earlier one, but a failure never replaces a success.

    Args:
        db: The connection that :meth:`Journal.commit` passes to the change.
        key: Identifies the item.
        result: The item's result, any text. None: nothing worth keeping.
        error: Why it failed. None: it is done.

    Raises:
        TypeError: *key* is not a str.
        ValueError: There are both a result and an error.
    """
    _check_key(key)
    if result is not None and error is not None:
        raise ValueError(f"item {key!r} has ended with a result or with an error, not with both")
    db.execute(_END, (key, error, result))


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise TypeError(f"the key of an item must be a str, not {key!r}")


class Journal:
    """The journal of one batch; :meth:`open` opens it. It belongs to the event loop that it was opened on."""

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
        """Open the journal at *path*, or create one if there is no file, or an empty one.

        A new file can be read by its owner only (mode 0600). Opening reads the whole file, which takes about a second
        a gigabyte. At the end of the context all changes are written, and no file is left beside the journal.

        Args:
            path: The file; its folder must exist.
            batch: Identifies the batch, any text: a journal can be opened again with the same text only.

        Raises:
            JournalLocked: It is open elsewhere. This and all errors below leave the file unchanged.
            JournalMismatch: It is of another batch or another version, or not a journal.
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
        """Run *change* in the journal's thread, inside a transaction; return what it returns once that is on disk.

        Changes that are made at the same time share a transaction. One that raises is undone, and raises here; the
        others are not affected. A change may create and use tables of its own (their names must not begin with
        ``lamella_``); it must not begin or end transactions or savepoints, and should be quick. If the caller is
        cancelled, the change is carried out whole or not at all.

        Raises:
            JournalError: It could not be written (a full disk, say), the change tried to control the transaction, or
                the journal is closed. Nothing of the change is kept. If one makes SQLite undo the whole transaction
                (``ON CONFLICT ROLLBACK``, a deferred foreign key), all changes in it end so.
            Exception: Whatever *change* raises.
        """
        self._check_open()
        result: asyncio.Future[Result] = self._loop.create_future()
        self._changes.append((change, result))
        if not self._writing:
            self._writing = True
            self._loop.call_soon(self._write)  # not now, so that other tasks that are ready can add their changes
        value: _T = _value(await result)
        return value

    async def read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run *query* in the journal's thread, and return what it returns: rows, not a cursor.

        Raises:
            JournalError: It could not be read, *query* tried to write, or the journal is closed.
            Exception: Whatever *query* raises.
        """
        self._check_open()
        value: _T = _value(await self._loop.run_in_executor(self._thread, read, self._db, query))
        return value

    async def end(self, key: str, *, result: str | None = None, error: str | None = None) -> None:
        """Record the end of an item by :func:`end_of`, in a change of its own."""
        await self.commit(lambda db: end_of(db, key, result=result, error=error))

    async def is_done(self, key: str) -> bool:
        """Return whether the item is done."""
        return bool(await self.ended((key,)))

    async def ended(self, keys: Iterable[str]) -> set[str]:
        """Return those of *keys* whose items are done; takes about 5 µs a key."""
        done: set[str] = set()
        rest = iter(keys)
        while chunk := list(islice(rest, _CHUNK)):
            done.update(await self.read(partial(_done, keys=chunk)))
        return done

    def idempotency_key(self, key: str) -> str:
        """Return an ``Idempotency-Key`` for the write of an item: the same each time, and different in each journal.

        It is made of *key* and of the journal's random id, which is on disk before the first item is sent. Where an
        item is written in several requests, each needs a *key* of its own.

        Raises:
            TypeError: *key* is not a str.
        """
        _check_key(key)
        return str(uuid5(self._db.batch_id, key))

    async def counts(self) -> Counts:
        """Return how many items are done, and how many have failed and are not done since."""
        ended, failed = await self.read(lambda db: db.execute(_COUNTS).fetchone())
        return Counts(ended - failed, failed)

    async def failures(self) -> AsyncIterator[tuple[str, str]]:
        """Yield key and error of each item that has failed, in the order in which they first ended.

        Rows are read as they are asked for, without holding up commits: of the items that end meanwhile some are
        among them and others not.
        """
        async for key, error in self._rows("error", "error IS NOT NULL"):
            yield key, error

    async def results(self) -> AsyncIterator[tuple[str, str | None]]:
        """Yield key and result of each item that is done, in the same way as :meth:`failures`."""
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
        """Have the thread write the waiting changes; once they are written, those that wait by then."""
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
