"""Errors of a journal, and their mapping from SQLite's errors."""

from __future__ import annotations

import sqlite3


class JournalError(Exception):
    """A journal cannot be opened, read or written. The message names the file, the problem and the remedy."""


class JournalLocked(JournalError):
    """The journal is open in another process, or in another :class:`Journal` of this process."""


class JournalDamaged(JournalError):
    """The file is not an SQLite file, or is damaged."""


class JournalMismatch(JournalError):
    """The file is a journal of another version or batch, or an SQLite file that is not a journal."""


def locked(path: str) -> JournalLocked:
    """Return the error for a journal that is open elsewhere."""
    return JournalLocked(f"{path}: is in use by another process or another journal of this process; wait for it to end")


def damaged(path: str, how: str) -> JournalDamaged:
    """Return the error for a file that is not a valid database."""
    what = "is damaged, or was never a journal"
    return JournalDamaged(f"{path}: {what} ({shortened(how)}); restore it from a backup, or choose another path")


def explain(path: str, exc: BaseException, *, otherwise: JournalError | None = None) -> BaseException:
    """Return the JournalError that *exc* implies; if it implies none, return *otherwise* or *exc*."""
    failure = otherwise
    match sqlite_code(exc):
        case sqlite3.SQLITE_BUSY:
            failure = locked(path)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            failure = damaged(path, str(exc))
        case sqlite3.SQLITE_FULL:
            failure = JournalError(f"{path}: the disk is full; free some space and start the batch again")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
            failure = JournalError(f"{path}: the file or its folder cannot be read or written ({exc})")
        case sqlite3.SQLITE_AUTH:
            failure = JournalError(f"{path}: a change must not begin or end transactions or savepoints ({exc})")
    if failure is None:
        return exc
    failure.__cause__ = exc
    return failure


def sqlite_code(exc: BaseException) -> int | None:
    """Return the primary code of the SQLite error *exc*, or None for another exception."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:  # no space for the file -shm, which is needed after a kill
        return sqlite3.SQLITE_FULL
    return None if code is None else code & 0xFF


def shortened(text: str) -> str:
    """Return *text*, truncated to fit in a line."""
    return text if len(text) <= 80 else f"{text[:79]}…"
