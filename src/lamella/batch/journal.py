"""What has become of each item of a batch, in an SQLite file that a `kill -9` at any moment does no harm.

Three promises, and what each rests on:

- What :meth:`Journal.commit` has returned is on disk (WAL, ``synchronous=FULL``), and a change is there whole or not
  at all. Changes that come together go in one transaction, so that they share its one wait for the disk.
- One journal at a time has the file (``locking_mode=EXCLUSIVE``: locks of the operating system, which end with their
  process, however that ends).
- A file that is refused is not touched: it is looked at through a connection that cannot write.

While a journal is open, leave its file alone in this process: to POSIX, whoever closes a file, be it only a copy that
was read, gives up all locks that the process has on it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar
from uuid import UUID, uuid4, uuid5

from lamella.threads import run_to_its_end

__all__ = [
    "Counts",
    "Journal",
    "JournalDamaged",
    "JournalError",
    "JournalLocked",
    "JournalMismatch",
    "end_of",
]

_T = TypeVar("_T")

_APPLICATION: Final = 0x6C616D6C  # "laml": how `file` and we know such a file (SQLite's application_id)
_VERSION: Final = 1  # of the tables below (SQLite's user_version)

# A table with rowid: without one, results of a kilobyte would make it twice as large and three times as slow.
_TABLES: Final = (
    "CREATE TABLE lamella_batch (batch TEXT NOT NULL, id TEXT NOT NULL)",
    "CREATE TABLE lamella_items (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, error TEXT, result TEXT)",
    "CREATE INDEX lamella_failures ON lamella_items (number) WHERE error IS NOT NULL",
)
_END: Final = (
    "INSERT INTO lamella_items (key, error, result) VALUES (?, ?, ?)"
    " ON CONFLICT (key) DO UPDATE SET error = excluded.error, result = excluded.result"
    " WHERE excluded.error IS NULL OR lamella_items.error IS NOT NULL"
)

# Written like nobody else writes them: a statement of a change with the same text would come from the cache, unasked.
_BEGIN: Final = "BEGIN IMMEDIATE /* group */"
_COMMIT: Final = "COMMIT /* group */"
_ROLLBACK: Final = "ROLLBACK /* group */"

_PATIENCE: Final = 0.2  # seconds: as long as another may need to look at the file, too short to wait for a batch
_PAGE: Final = 500  # rows that are read at once
_CHUNK: Final = 10_000  # keys that are looked up at once: some 50 ms, so that commits get their turn in between

_SMALLEST: Final = 512  # bytes: SQLite's smallest page. What has a single byte is empty to SQLite, and written over

_TOUCHING: Final = threading.Lock()


class JournalError(Exception):
    """A journal that cannot be opened, read or written: which one, what is wrong, what to do."""


class JournalLocked(JournalError):
    """Another process has the journal open, or another :class:`Journal` of this one."""


class JournalDamaged(JournalError):
    """The file is not an SQLite file, or not a sound one."""


class JournalMismatch(JournalError):
    """A journal of another version or of another batch, or an SQLite file that is no journal."""


class Counts(NamedTuple):
    """How many items have ended."""

    done: int
    failed: int


def end_of(db: sqlite3.Connection, key: str, *, result: str | None = None, error: str | None = None) -> None:
    """Record the end of an item inside a change, so that it and what else the change writes are one transaction.

    A later end replaces an earlier one, but a failure never replaces a done.

    Args:
        db: What :meth:`Journal.commit` has given the change.
        key: Which item.
        result: What came out of it, any text. None: nothing that is worth keeping.
        error: Why it failed. None: it is done.

    Raises:
        TypeError: *key* is not a str.
        ValueError: There are both a result and an error.
    """
    _checked(key)
    if result is not None and error is not None:
        raise ValueError(f"item {key!r} has ended with a result or with an error, not with both")
    db.execute(_END, (key, error, result))


def _checked(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key of an item must be a str, not {key!r}")
    return key


class Journal:
    """The journal of one batch; :meth:`open` opens it. It belongs to the event loop that it was opened on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lamella-journal")
        self._db: _Connection | None = None
        """None: not open yet, or no more."""
        self._id: UUID
        self._asked: list[tuple[_Change, asyncio.Future[Any]]] = []
        self._sending = False

    def __repr__(self) -> str:
        return f"<Journal {self._path!r}>"

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | os.PathLike[str], *, batch: str) -> AsyncIterator[Self]:
        """Open the journal at *path*, or begin one where there is no file, or an empty one.

        A file that it makes can be read by its owner alone (mode 0600). To read through what the file holds takes
        about a second a gigabyte. At the end of the context all that was asked for is written, and no file is left
        beside the journal.

        Args:
            path: The file; its folder must exist.
            batch: What identifies the batch, any text: a journal is opened again with the same text only.

        Raises:
            JournalLocked: It is open elsewhere. This and all that follow leave the file as it was.
            JournalMismatch: It is of another batch, of another version, or no journal.
            JournalDamaged: The file is not sound, or no SQLite file.
            JournalError: There can be no such file, or it cannot be read or written.
        """
        journal = cls(os.fspath(path))
        try:
            await run_to_its_end(journal._thread, journal._open, batch)
            yield journal
        finally:
            await journal._close()

    async def commit(self, change: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run *change* in the journal's thread, inside a transaction; return what it returns once that is on disk.

        Changes that are asked for at the same time share a transaction. One that raises undoes its own part, and
        raises here; the others do not notice. A change may make and use tables of its own (their names must not
        begin with ``lamella_``); it must not begin or end transactions or savepoints, and should be quick.

        When the caller is cancelled meanwhile, the change is carried out whole or not at all.

        Raises:
            JournalError: It could not be written (a full disk, say), the change meddled with the transaction, or the
                journal is closed. Nothing of the change is kept. Where one makes SQLite undo the whole transaction
                (``ON CONFLICT ROLLBACK``, a deferred foreign key), all that were in it end so.
            Exception: Whatever *change* raises.
        """
        self._opened()
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._asked.append((change, answer))
        if not self._sending:
            # Not at once: whatever else is ready to run now may ask too, and goes along.
            self._sending = True
            self._loop.call_soon(self._send)
        value: _T = _unpacked(await answer)
        return value

    async def read(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run *query* in the journal's thread, and return what it returns: rows, not a cursor.

        Raises:
            JournalError: It could not be read, *query* tried to write, or the journal is closed.
            Exception: Whatever *query* raises.
        """
        value: _T = _unpacked(await self._loop.run_in_executor(self._thread, _read, self._opened(), self._path, query))
        return value

    async def end(self, key: str, *, result: str | None = None, error: str | None = None) -> None:
        """Record the end of an item, as :func:`end_of` has it, in a change of its own."""
        await self.commit(lambda db: end_of(db, key, result=result, error=error))

    async def is_done(self, key: str) -> bool:
        """Whether the item has ended well."""
        return bool(await self.ended((key,)))

    async def ended(self, keys: Iterable[str]) -> set[str]:
        """Those of *keys* whose items have ended well; some 5 µs a key."""
        done: set[str] = set()
        rest = iter(keys)
        while chunk := list(islice(rest, _CHUNK)):
            done.update(await self.read(lambda db, chunk=chunk: _done(db, chunk)))  # type: ignore[misc]
        return done

    def idempotency_key(self, key: str) -> str:
        """An ``Idempotency-Key`` for the write of an item: the same each time, and in no other journal.

        It is made of *key* and of a random id that is on disk before the first item is sent. So a write that is made
        again after a `kill -9` has the key that it had, and in another journal, be it of a batch of the same name, none
        has it. Where an item is written in several requests, each needs a *key* of its own.

        Raises:
            TypeError: *key* is not a str.
        """
        return str(uuid5(self._id, _checked(key)))

    async def counts(self) -> Counts:
        """How many items are done, and how many have failed and are not done since."""
        return await self.read(_counts)

    async def failures(self) -> AsyncIterator[tuple[str, str]]:
        """Key and error of each item that has failed, in the order in which they first ended.

        It reads as it goes, and holds back nobody: of the items that end meanwhile it tells some and others not.
        """
        async for key, error in self._rows("error", "error IS NOT NULL"):
            yield key, error

    async def results(self) -> AsyncIterator[tuple[str, str | None]]:
        """Key and result of each item that is done, in the order in which they first ended; else as `failures`."""
        async for key, result in self._rows("result", "error IS NULL"):
            yield key, result

    async def _rows(self, column: str, condition: str) -> AsyncIterator[tuple[str, Any]]:
        sql = (
            f"SELECT number, key, {column} FROM lamella_items"  # noqa: S608 - our own two words, above
            f" WHERE {condition} AND number > ? ORDER BY number LIMIT {_PAGE}"
        )
        last = 0
        while rows := await self.read(lambda db, last=last: db.execute(sql, (last,)).fetchall()):  # type: ignore[misc]
            for _, key, value in rows:
                yield key, value
            last = rows[-1][0]

    def _opened(self) -> _Connection:
        if self._db is None:
            raise JournalError(f"{self._path}: the journal is closed")
        return self._db

    def _open(self, batch: str) -> None:
        self._path = os.path.realpath(self._path)  # SQLite puts its files beside the file, and not beside a link to it
        self._db, self._id = _open(self._path, batch)

    def _send(self) -> None:
        """Send what has gathered to the thread; when that is written, what has gathered by then."""
        asked = [(change, answer) for change, answer in self._asked if not answer.done()]
        self._asked = []
        self._sending = bool(asked)
        if asked:
            changes, answers = [change for change, _ in asked], [answer for _, answer in asked]
            sent = self._loop.run_in_executor(self._thread, _write, self._opened(), self._path, changes)
            sent.add_done_callback(lambda sent: self._written(answers, sent))

    def _written(self, answers: list[asyncio.Future[Any]], sent: asyncio.Future[list[Any]]) -> None:
        # Whatever went wrong there, nobody is left waiting.
        failure = sent.exception()
        outcomes = sent.result() if failure is None else [_Raised(failure)] * len(answers)
        for answer, outcome in zip(answers, outcomes, strict=True):
            if not answer.done():  # cancelled meanwhile
                answer.set_result(outcome)
        self._send()

    async def _close(self) -> None:
        self._send()
        db, self._db = self._db, None
        try:
            if db is not None:
                await run_to_its_end(self._thread, db.close)  # it comes after all that was sent before
        finally:
            self._thread.shutdown(wait=False)


# What follows runs in the journal's thread.

_Change = Callable[[sqlite3.Connection], Any]


class _Raised(NamedTuple):
    """An outcome that is an exception: a future would refuse a StopIteration, and complain of one nobody fetched."""

    error: BaseException


def _unpacked(outcome: Any) -> Any:
    if isinstance(outcome, _Raised):
        raise outcome.error
    return outcome


class _Connection(sqlite3.Connection):
    """A connection whose transactions begin and end where the journal says, and nowhere else."""

    ours = False

    def control(self, sql: str) -> None:
        self.ours = True
        try:
            self.execute(sql)
        finally:
            self.ours = False

    def allows(self, action: int, *_: object) -> int:
        controls = action in {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT}
        return sqlite3.SQLITE_DENY if controls and not self.ours else sqlite3.SQLITE_OK


class _Undone(Exception):
    """SQLite has rolled back the whole transaction by itself, as it does where the disk is full."""


def _write(db: _Connection, path: str, changes: list[_Change]) -> list[Any]:
    """Make the *changes* in one transaction; return their outcomes once it is on disk."""
    outcomes: list[Any] = []
    try:
        db.control(_BEGIN)
        for change in changes:
            outcomes.append(_outcome(db, path, change))  # noqa: PERF401 - those so far are wanted below
        db.control(_COMMIT)
    except (sqlite3.Error, _Undone) as exc:
        if db.in_transaction:
            db.control(_ROLLBACK)
        outcomes += [None] * (len(changes) - len(outcomes))
        return [outcome if isinstance(outcome, _Raised) else _Raised(_lost(path, exc)) for outcome in outcomes]
    return outcomes


def _outcome(db: _Connection, path: str, change: _Change) -> Any:
    db.control("SAVEPOINT lamella_change")
    try:
        value = change(db)
    except BaseException as exc:
        if not db.in_transaction:
            raise _Undone from exc
        db.control("ROLLBACK TO lamella_change")
        value = _Raised(_told(path, exc))
    db.control("RELEASE lamella_change")
    return _fetched(value)


def _read(db: _Connection, path: str, query: Callable[[sqlite3.Connection], Any]) -> Any:
    db.execute("PRAGMA query_only = ON")
    try:
        return _fetched(query(db))
    except BaseException as exc:  # noqa: BLE001 - as above
        if _code(exc) == sqlite3.SQLITE_READONLY:
            failure = JournalError(f"{path}: read() was given a query that writes; commit() is for that")
            failure.__cause__ = exc
            return _Raised(failure)
        return _Raised(_told(path, exc))
    finally:
        db.execute("PRAGMA query_only = OFF")


def _fetched(value: Any) -> Any:
    # A cursor that lives on would keep the file open and locked; `lambda db: db.execute(...)` returns one to nobody.
    if isinstance(value, sqlite3.Cursor):
        value.close()
    return value


def _done(db: sqlite3.Connection, keys: list[str]) -> list[str]:
    sql = "SELECT 1 FROM lamella_items WHERE key = ? AND error IS NULL"
    return [key for key in keys if db.execute(sql, (key,)).fetchone()]


def _counts(db: sqlite3.Connection) -> Counts:
    [ended] = db.execute("SELECT count(*) FROM lamella_items").fetchone()
    [failed] = db.execute("SELECT count(*) FROM lamella_items WHERE error IS NOT NULL").fetchone()
    return Counts(ended - failed, failed)


def _open(path: str, batch: str) -> tuple[_Connection, UUID]:
    try:
        _touch(path)
        _look(path, batch)
        return _take(path, batch)
    except sqlite3.Error as exc:
        failure = _told(path, exc)
        raise _damaged(path, str(exc)) if failure is exc else failure from exc
    except OSError as exc:
        raise JournalError(f"{path}: cannot be opened ({exc.strerror}); its folder must exist and be ours") from exc


def _touch(path: str) -> None:
    """Make an empty file, where there is none, that its owner alone may read; what SQLite puts beside it is alike."""
    with _TOUCHING:  # to close it gives up the locks that this process has on it: nobody may take one before
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return
        os.chmod(path, 0o600)  # what the umask has taken away


def _look(path: str, batch: str) -> None:
    """Raise unless a sound journal of *batch* is there, or nothing yet. It changes nothing, whatever it finds."""
    before = _stamp(path)
    try:
        _looked(path, batch)
    except (JournalError, sqlite3.Error):
        if _stamp(path) != before:  # no wonder that it did not look sound
            raise _locked(path) from None
        raise


def _stamp(path: str) -> tuple[object, ...]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, os.path.exists(path + "-wal")


def _looked(path: str, batch: str) -> None:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{path}: is not a file; choose another path")
    wal, shm = Path(path + "-wal"), Path(path + "-shm")
    if not found.st_size:
        if wal.exists() and wal.stat().st_size:
            raise _damaged(path, f"it is empty, and {wal.name} beside it is not")
    elif found.st_size < _SMALLEST:
        raise _damaged(path, f"file is not a database: {found.st_size} bytes")
    elif not wal.exists():
        # Then nobody is at work on it who would have to be asked for a lock, and SQLite need put nothing beside it.
        _sound(path, "mode=ro&immutable=1", batch)
    else:
        # It is in use, or was when its process was killed: the newest is in the -wal alone.
        alone = not shm.exists()
        try:
            _sound(path, "mode=ro", batch)
        finally:
            if alone:  # SQLite has made the -shm for this look; who cannot write does not take it away
                shm.unlink(missing_ok=True)


def _sound(path: str, how: str, batch: str) -> None:
    with closing(_connect(path, how, timeout=0)) as db:
        if _check(db, path, batch):
            [verdict] = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _damaged(path, verdict)


def _check(db: sqlite3.Connection, path: str, batch: str) -> UUID | None:
    """Raise unless it is a journal of *batch*; return its id. None: nothing is there yet."""
    [application] = db.execute("PRAGMA application_id").fetchone()
    [version] = db.execute("PRAGMA user_version").fetchone()
    if not application and not version and not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return None  # whoever began it was killed in between
    if application != _APPLICATION:
        raise JournalMismatch(f"{path}: is an SQLite file, but not a journal of lamella's; choose another path")
    if version != _VERSION:
        raise JournalMismatch(
            f"{path}: is a journal of version {version}, and this lamella's are of version {_VERSION};"
            " end the batch with the lamella that began it, or choose another path"
        )
    begun, identity = db.execute("SELECT batch, id FROM lamella_batch").fetchone() or (None, None)
    if not isinstance(begun, str) or not isinstance(identity, str):
        raise _damaged(path, "it does not tell of which batch it is")
    if begun != batch:
        theirs, ours = _difference(begun, batch)
        raise JournalMismatch(
            f"{path}: is the journal of another batch: of {theirs}, and this one is {ours};"
            " start the batch as it was begun, or choose another path"
        )
    try:
        return UUID(identity)
    except ValueError:
        raise _damaged(path, "the id of its batch is none") from None


def _take(path: str, batch: str) -> tuple[_Connection, UUID]:
    """Open it to write, and for us alone; make a journal of it, where nothing is there yet."""
    db = _connect(path, "mode=rw", timeout=_PATIENCE)
    try:
        # EXCLUSIVE before the first access: SQLite then keeps the lock, and needs no -shm.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        identity = _check(db, path, batch)  # again: since the look others may have been at it
        db.execute("ROLLBACK")
        [mode] = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalError(f"{path}: SQLite cannot write a WAL there; choose a path on a local disk")
        # NORMAL would lose commits, whole ones, when the power fails. FULL costs one fsync a group, not one an item.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")  # macOS: else fsync does not wait for the disk
        if identity is None:
            identity = _begin(db, batch)
        Path(path + "-shm").unlink(missing_ok=True)  # of some tool that crashed: nobody else is here now
        db.set_authorizer(db.allows)
    except BaseException:
        db.close()
        raise
    return db, identity


def _begin(db: sqlite3.Connection, batch: str) -> UUID:
    """Make it a journal, at once: whoever is killed in between leaves an empty database. Return its id."""
    identity = uuid4()
    db.execute("BEGIN")
    for table in _TABLES:
        db.execute(table)
    db.execute("INSERT INTO lamella_batch VALUES (?, ?)", (batch, str(identity)))
    db.execute(f"PRAGMA application_id = {_APPLICATION}")
    db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")
    return identity


def _connect(path: str, how: str, *, timeout: float) -> _Connection:
    uri = f"{Path(path).as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, factory=_Connection)


def _lost(path: str, exc: Exception) -> BaseException:
    """What to raise where SQLite would not do what the journal asked for, and not what a change did."""
    exc = exc.__cause__ if isinstance(exc, _Undone) and isinstance(exc.__cause__, Exception) else exc
    failure = _told(path, exc)
    if failure is exc:
        failure = JournalError(f"{path}: nothing was written ({exc})")
        failure.__cause__ = exc
    return failure


def _told(path: str, exc: BaseException) -> BaseException:
    """*exc* itself, or what it says of the file."""
    failure: JournalError
    code = _code(exc)
    if code == sqlite3.SQLITE_BUSY:
        failure = _locked(path)
    elif code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        failure = _damaged(path, str(exc))
    elif code == sqlite3.SQLITE_FULL:
        failure = JournalError(f"{path}: the disk is full; make room, and start the batch again")
    elif code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR}:
        failure = JournalError(f"{path}: the file or its folder cannot be read or written ({exc})")
    elif code == sqlite3.SQLITE_AUTH:
        failure = JournalError(f"{path}: a change must not begin or end transactions or savepoints ({exc})")
    else:
        return exc
    failure.__cause__ = exc
    return failure


def _code(exc: BaseException) -> int | None:
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # the rest of an extended code tells where it happened


def _locked(path: str) -> JournalLocked:
    return JournalLocked(f"{path}: is in use, by another process or another journal of this one; let that end first")


def _damaged(path: str, how: str) -> JournalDamaged:
    what = "is damaged, or was never a journal"
    return JournalDamaged(f"{path}: {what} ({_shortened(how)}); restore it from a backup, or choose another path")


def _difference(one: str, other: str) -> tuple[str, str]:
    """Both, as far as they fit in a line: what is alike at the beginning of both gives way to where they differ."""
    alike = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, alike - 20)
    shown = [_shortened(text[start:]) for text in (one, other)]
    first, second = (("…" if start else "") + text for text in shown)
    return first, second


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
