"""The run state of a shard, stored in its journal. The functions run in the journal's thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lamella.sync.stored import Departed, has_table, settle_departed

# One row. `before` is the number of the last sync when the run began: a higher number means that its sync has begun.
_TABLE = """CREATE TABLE IF NOT EXISTS shard_state (one INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
run INTEGER NOT NULL, before INTEGER NOT NULL, ended INTEGER NOT NULL, result TEXT NOT NULL)"""


class State(NamedTuple):
    """The last use of a journal."""

    epoch: int = 0
    """The epoch of the last worker."""
    run: int = 0
    ended: bool = True
    unfinished: bool = False
    """Whether the sync of that run has begun but not ended."""
    result: Mapping[str, Any] = {}


def look(db: sqlite3.Connection) -> State:
    """Return the state of a journal."""
    if not has_table(db, "shard_state"):
        return State()
    row = db.execute("SELECT epoch, run, before, ended, result FROM shard_state").fetchone()
    if row is None:
        return State()
    epoch, run, before, ended, result = row
    return State(epoch, run, bool(ended), not ended and _last_run(db) > before, json.loads(result))


def take(db: sqlite3.Connection, epoch: int) -> State:
    """Record that the worker of this epoch has the journal. Return the previous state."""
    db.execute(_TABLE)
    found = look(db)
    db.execute("INSERT OR IGNORE INTO shard_state VALUES (1, 0, 0, 0, 1, '{}')")
    db.execute("UPDATE shard_state SET epoch = ?", (epoch,))
    return found


def begin(db: sqlite3.Connection, run: int, *, resume: bool = False) -> None:
    """Record the start of a run. With *resume*, it continues the last sync of the journal."""
    last = _last_run(db)
    before = max(last - 1, 0) if resume else last
    db.execute("UPDATE shard_state SET run = ?, before = ?, ended = 0, result = '{}'", (run, before))


def end(db: sqlite3.Connection, run: int, result: Mapping[str, Any]) -> None:
    """Record that a run has read everything."""
    db.execute("UPDATE shard_state SET run = ?, ended = 1, result = ?", (run, json.dumps(result)))


def settle(db: sqlite3.Connection, accounts: Collection[str], how: Departed, moment: int) -> None:
    """Keep, mark or forget the records of accounts that are not in *accounts*."""
    if has_table(db, "sync_departed"):
        settle_departed(db, accounts, how, moment)


def version_of(db: sqlite3.Connection) -> int:
    """Return the version of the records in the journal."""
    row = db.execute("SELECT version FROM sync_version").fetchone() if has_table(db, "sync_version") else None
    return 0 if row is None else int(row[0])


def _last_run(db: sqlite3.Connection) -> int:
    if not has_table(db, "sync_parts"):
        return 0
    [last] = db.execute("SELECT max(run) FROM sync_parts").fetchone()
    return last or 0
