"""Check that an output replaces no file that it must not."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

_HEAD: Final = 72
"""Bytes of an SQLite file up to the end of its application_id, which identifies a journal."""
_TABLES: Final = (
    "SELECT count(*), total(name = 'records' AND sql LIKE '%account%resource%id%record%')"
    " FROM sqlite_master WHERE type = 'table'"
)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise OSError if *path* is a journal, a database of another program, or an SQLite file with its newest changes in
    a file beside it.

    SQLite would apply those changes to the new file.
    """
    target = os.path.realpath(path)
    for beside in (f"{target}-wal", f"{target}-journal"):
        if os.path.exists(beside):
            raise OSError(errno.EBUSY, f"it is in use, or was when a process was killed: there is {beside}", str(path))
    # Do not open it before: closing a journal that this process has open would release its locks. Such a journal has a
    # -wal.
    with suppress(FileNotFoundError), open(target, "rb") as file:
        head = file.read(_HEAD)
        if not head.startswith(b"SQLite format 3\0"):
            return
        if head.endswith(b"laml"):
            raise OSError(errno.EEXIST, "it is a journal of lamella; choose another path", str(path))
        if _is_foreign(Path(target)):
            raise OSError(errno.EEXIST, "it is a database with other tables; choose another path", str(path))


def _is_foreign(path: Path) -> bool:
    """Return whether an SQLite file has tables, but not that of an output. False if it cannot be read."""
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as db,
    ):
        tables, ours = db.execute(_TABLES).fetchone()
        return bool(tables and not ours)
    return False
