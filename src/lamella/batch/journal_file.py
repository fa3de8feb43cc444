"""Open the file of a journal for one process, and leave it unchanged if it is not a journal of the batch."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from lamella.batch.journal_errors import JournalError, JournalMismatch, damaged, explain, locked, shortened
from lamella.batch.transactions import Connection

_APPLICATION: Final = 0x6C616D6C
"""SQLite's application_id of a journal: "laml"."""
_VERSION: Final = 1
"""The version of the tables below: SQLite's user_version."""

# WITHOUT ROWID would make a table with results of 1 kB twice as large and three times as slow.
_TABLES: Final = (
    "CREATE TABLE lamella_batch (batch TEXT NOT NULL, id TEXT NOT NULL)",
    "CREATE TABLE lamella_items (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, error TEXT, result TEXT)",
    "CREATE INDEX lamella_failures ON lamella_items (number) WHERE error IS NOT NULL",
)
_PATIENCE: Final = 0.2
"""Seconds to wait for a lock: longer than another process needs to check the file, shorter than a batch."""
_PAUSE: Final = 0.02
"""Maximum seconds between two attempts to lock the file."""
_PAGE_SIZE: Final = 32_768
"""Bytes per page of a new file. A page of 4,096, SQLite's default, holds three records of 1.1 KB and wastes a fifth."""
_SMALLEST: Final = 512
"""SQLite's smallest page in bytes. SQLite treats a one-byte file as empty and overwrites it."""
_CREATING: Final = threading.Lock()


@contextmanager
def opened(path: str | os.PathLike[str], batch: str) -> Iterator[Connection]:
    """Open the journal of *batch* for writing, or create it, and lock it until the end of the block.

    Raises JournalError if it cannot be opened; the file is then unchanged.
    """
    path = os.path.realpath(path)  # SQLite puts its files beside the target of a link
    try:
        _create(path)
        _check_unchanged(path, batch)
        db = _take(path, batch)
    except sqlite3.Error as exc:
        raise explain(path, exc, otherwise=damaged(path, str(exc))) from exc
    except OSError as exc:
        raise JournalError(f"{path}: cannot be opened ({exc.strerror}); its folder must exist and be writable") from exc
    with closing(db):
        yield db


def _create(path: str) -> None:
    """Create an empty file with mode 0600 if there is none. SQLite gives its other files the same mode."""
    with _CREATING:  # closing the file releases all locks of this process on it, so no other thread may hold one
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return
        os.chmod(path, 0o600)  # the umask may have removed bits


def _check_unchanged(path: str, batch: str) -> None:
    """Raise unless the file is empty or a sound journal of *batch*; change nothing."""
    before = _stamp(path)
    try:
        _check_file(path, batch)
    except (JournalError, sqlite3.Error):
        if _stamp(path) != before:  # another process wrote to it meanwhile
            raise locked(path) from None
        raise


def _stamp(path: str) -> tuple[object, ...]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, os.path.exists(path + "-wal")


def _check_file(path: str, batch: str) -> None:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{path}: is not a file; choose another path")
    wal, shm = Path(path + "-wal"), Path(path + "-shm")
    if not found.st_size:
        if wal.exists() and wal.stat().st_size:
            raise damaged(path, f"it is empty, and {wal.name} beside it is not")
    elif found.st_size < _SMALLEST:
        raise damaged(path, f"file is not a database: {found.st_size} bytes")
    elif not wal.exists():
        # No process has the file open: no lock is needed, and SQLite creates no files beside it.
        _check_database(path, "mode=ro&immutable=1", batch)
    else:
        # A process has the file open or was killed: the newest changes are only in the -wal.
        is_ours = not shm.exists()
        try:
            _check_database(path, "mode=ro", batch)
        finally:
            if is_ours:  # SQLite has created the -shm; a read-only connection does not remove it
                shm.unlink(missing_ok=True)


def _check_database(path: str, how: str, batch: str) -> None:
    with closing(_connect(path, how, timeout=0)) as db:
        if _batch_id(db, batch):
            [verdict] = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise damaged(path, verdict)


def _batch_id(db: Connection, batch: str) -> UUID | None:
    """Return the id of the journal; None if it has no tables yet. Raises JournalError if it is not one of *batch*."""
    [application] = db.execute("PRAGMA application_id").fetchone()
    [version] = db.execute("PRAGMA user_version").fetchone()
    if not application and not version and not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return None  # the process that created it was killed
    if application != _APPLICATION:
        raise JournalMismatch(f"{db.path}: is an SQLite file but not a lamella journal; choose another path")
    if version != _VERSION:
        raise JournalMismatch(
            f"{db.path}: has journal version {version}, but this lamella supports version {_VERSION};"
            " finish the batch with the lamella version that began it, or choose another path"
        )
    begun, batch_id = db.execute("SELECT batch, id FROM lamella_batch").fetchone() or (None, None)
    if not isinstance(begun, str) or not isinstance(batch_id, str):
        raise damaged(db.path, "the name of its batch is missing")
    if begun != batch:
        theirs, ours = _difference(begun, batch)
        raise JournalMismatch(
            f"{db.path}: belongs to another batch: {theirs}, not {ours};"
            " start the batch as before, or choose another path"
        )
    try:
        return UUID(batch_id)
    except ValueError:
        raise damaged(db.path, "the id of its batch is invalid") from None


def _take(path: str, batch: str) -> Connection:
    """Open the file for writing, lock it, and create the tables if there are none."""
    ends = time.monotonic() + _PATIENCE
    while True:
        try:
            return _lock(path, batch)
        except sqlite3.OperationalError as exc:
            is_busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= ends:
                raise
        # SQLite would keep a shared lock while it waits, so all who begin at the same moment would be refused.
        time.sleep(random.uniform(0.0, _PAUSE))


def _lock(path: str, batch: str) -> Connection:
    db = _connect(path, "mode=rw", timeout=0)
    try:
        # Before the first access, like the lock; it affects only an empty file.
        db.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
        # EXCLUSIVE before the first access makes SQLite keep the lock and need no -shm.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        batch_id = _batch_id(db, batch)  # again: another process may have changed it since
        db.execute("ROLLBACK")
        [mode] = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalError(f"{path}: SQLite cannot write a WAL here; choose a path on a local disk")
        # NORMAL would lose commits in a power failure. FULL costs one fsync per group, not per item.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")  # macOS: otherwise fsync does not wait for the disk
        db.batch_id = batch_id or _begin(db, batch)
        Path(path + "-shm").unlink(missing_ok=True)  # left by another tool: no other process has it open
        db.set_authorizer(db.authorize)
    except BaseException:
        db.close()
        raise
    return db


def _begin(db: Connection, batch: str) -> UUID:
    """Create the tables in one transaction and return the new id."""
    batch_id = uuid4()
    db.execute("BEGIN")
    for table in _TABLES:
        db.execute(table)
    db.execute("INSERT INTO lamella_batch VALUES (?, ?)", (batch, str(batch_id)))
    db.execute(f"PRAGMA application_id = {_APPLICATION}")
    db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")
    return batch_id


def _connect(path: str, how: str, *, timeout: float) -> Connection:
    uri = f"{Path(path).as_uri()}?{how}"
    db = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, factory=Connection)
    db.path = path
    return db


def _difference(one: str, other: str) -> tuple[str, str]:
    """Return both texts from shortly before their first difference, truncated to fit in a line."""
    start = max(0, len(os.path.commonprefix([one, other])) - 20)  # noqa: RUF071 - of texts, which are no paths
    before = "…" if start else ""
    return before + shortened(one[start:]), before + shortened(other[start:])
