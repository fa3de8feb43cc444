"""Errors of a journal, and what SQLite's errors say about its file."""

from __future__ import annotations

import sqlite3


class JournalError(Exception):
    """A journal cannot be opened, read or written: which one, what is wrong, what to do."""


class JournalLocked(JournalError):
    """Another process has the journal open, or another :class:`Journal` of this one."""


class JournalDamaged(JournalError):
    """The file is not an SQLite file, or is damaged."""


class JournalMismatch(JournalError):
    """A journal of another version or of another batch, or an SQLite file that is not a journal."""


def locked(path: str) -> JournalLocked:
    """Return the error of a journal that is open elsewhere."""
    return JournalLocked(f"{path}: is in use, by another process or another journal of this one; let that end first")


def damaged(path: str, how: str) -> JournalDamaged:
    """Return the error of a file that is not a sound database."""
    what = "is damaged, or was never a journal"
    return JournalDamaged(f"{path}: {what} ({shortened(how)}); restore it from a backup, or choose another path")


def explain(path: str, exc: BaseException, *, otherwise: JournalError | None = None) -> BaseException:
    """Return the JournalError for what *exc* says about the file; *otherwise*, or else *exc*, if it says nothing."""
    failure = otherwise
    match sqlite_code(exc):
        case sqlite3.SQLITE_BUSY:
            failure = locked(path)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            failure = damaged(path, str(exc))
        case sqlite3.SQLITE_FULL:
            failure = JournalError(f"{path}: the disk is full; make room, and start the batch again")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
            failure = JournalError(f"{path}: the file or its folder cannot be read or written ({exc})")
        case sqlite3.SQLITE_AUTH:
            failure = JournalError(f"{path}: a change must not begin or end transactions or savepoints ({exc})")
    if failure is None:
        return exc
    failure.__cause__ = exc
    return failure


def sqlite_code(exc: BaseException) -> int | None:
    """Return the primary code of SQLite's error *exc*, or None if it is another error."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def shortened(text: str) -> str:
    """Return *text*, cut so that it fits in a line."""
    return text if len(text) <= 80 else f"{text[:79]}…"
