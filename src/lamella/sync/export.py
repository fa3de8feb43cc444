"""Write all records of a journal to one file atomically."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from lamella import whole_file
from lamella.batch import Journal
from lamella.sync.decode import text_of
from lamella.sync.errors import SchemaMismatch
from lamella.sync.stored import adopt, has_table, is_to_adopt
from lamella.sync.tables import NO_TABLES, Misfits, Table, check_tables
from lamella.sync.target import check_target
from lamella.sync.typed import Empty, OnMisfit, files_beside, names_of_empty, parquet_tables, sqlite_tables, stale
from lamella.threads import run_to_its_end

_ROWS: Final = 1000
"""Maximum number of records per read: a few milliseconds, so that commits can run in between."""
_PAGE_SIZE: Final = 4_000_000
"""Maximum characters of records per read, and so in memory, unless a single record is larger."""
_GROUP_SIZE: Final = 32_000_000
"""Bytes of records in a row group of Parquet, which is also kept in memory."""

_LISTS: Final = (
    "SELECT number, account, resource FROM sync_lists WHERE (account, resource) >= (?, ?) ORDER BY account, resource"
)
_LIST: Final = "SELECT id, record, NULL FROM sync_texts WHERE list = ? AND id > ? ORDER BY id LIMIT ?"
_MARKED_LIST: Final = (
    "SELECT r.id, record, coalesce(deleted, departed) FROM sync_texts r LEFT JOIN sync_deleted d"
    " ON d.account = :account AND d.resource = :resource AND d.id = r.id"
    " LEFT JOIN sync_departed a ON a.account = :account WHERE list = :list AND r.id > :after ORDER BY r.id LIMIT :most"
)

_COLUMNS: Final = ("account", "resource", "id", "record", "deleted")
_Row = tuple[str, str, str, str, str | None]  # account, resource, id, record, deleted

_BEFORE_ALL: Final = ("", "", "", "", None)  # no account has an empty name

_Write = Callable[[list[_Row]], object]


class _Wanted(NamedTuple):
    """The content of a file."""

    tables: Mapping[str, Table]
    on_misfit: OnMisfit
    empty: Empty


_Format = Callable[[Path, _Wanted], AbstractContextManager[_Write]]


def check_output(path: str | os.PathLike[str], tables: Mapping[str, Table] = NO_TABLES) -> None:
    """Check early that :func:`export` can write *path*, so that no work is lost.

    Raises:
        ValueError: Its suffix is not a known format, or the format has no tables although there are some.
        ModuleNotFoundError: It is Parquet, and pyarrow is missing.
        OSError: It cannot be written, is a journal, or an SQLite file that is in use or has other tables.
    """
    check_tables(tables)
    writing = _format_of(path)
    if tables and writing is _jsonl:
        raise ValueError(f"typed tables need an output in .sqlite, .sqlite3, .db or .parquet, not {os.fspath(path)!r}")
    for each in (path, *(files_beside(Path(path), tables).values() if writing is _parquet else ())):
        whole_file.check(each)
        check_target(each)


async def export(
    journal: Journal,
    path: str | os.PathLike[str],
    tables: Mapping[str, Table] = NO_TABLES,
    on_misfit: OnMisfit | None = None,
) -> int:
    """Write all records of *journal* to a file, and return how many there are.

    They are sorted by account, resource and id, each record as the JSON text that the API sent. The suffix names the
    format:

    - ``.jsonl``, ``.ndjson``: an object a line, ``{"account": …, "resource": …, "id": …, "record": {…}}``.
    - ``.sqlite``, ``.sqlite3``, ``.db``: a table ``records``, and a view of it for each resource (``invoices``, …).
    - ``.parquet``: columns of strings. It needs pyarrow: ``pip install 'lamella[parquet]'``.

    ``deleted`` is the time since when a record is known to be deleted at the API (ISO 8601): a column of tables, and a
    field of JSON lines for deleted records only. The views omit deleted records.

    With *tables*, the records of these resources are also written in typed columns, without the deleted ones. In SQLite
    a table replaces the view, and each child has a table such as ``invoices_lineItems``. Beside ``out.parquet`` they
    are files such as ``out.invoices.parquet`` and ``out.invoices_lineItems.parquet``.

    A reader sees the old file or the new one, never a part. If the export fails or is cancelled, the old file stays.
    Only the owner can read a new file (mode 0600). A file that replaces another one gets its mode. The export does not
    block commits: records that are stored meanwhile may or may not be in the file.

    Args:
        journal: A journal that :func:`lamella.sync.run` has filled. If nothing is stored, the file is empty.
        path: The file; its folder must exist.
        tables: The typed columns by resource.
        on_misfit: Called in a thread with each value that does not fit. None: raise SchemaMismatch at the end.

    Raises:
        ValueError: The suffix names no format, or one that has no tables, and there are some.
        SchemaMismatch: A value does not fit its column. The file is complete.
        ModuleNotFoundError: It is Parquet, and pyarrow is missing.
        OSError: It cannot be written (for example, the disk is full), is a journal, or an SQLite file that is in use or
            has other tables.
        lamella.batch.JournalError: The journal cannot be read.
    """
    misfits = Misfits()
    if tables:
        check_output(path, tables)
    count = await _export(journal, path, tables, on_misfit or misfits.take, {})
    if misfits.count:
        raise SchemaMismatch(misfits.count, misfits.first)
    return count


async def _export(
    journal: Journal,
    path: str | os.PathLike[str],
    tables: Mapping[str, Table],
    on_misfit: OnMisfit,
    empty: Empty,
) -> int:
    thread = ThreadPoolExecutor(1, thread_name_prefix="lamella-export")
    file, count = ExitStack(), 0
    try:
        await run_to_its_end(thread, check_target, path)
        if await journal.read(is_to_adopt):
            await journal.commit(adopt)
        rows = await journal.read(partial(_read, after=_BEFORE_ALL))
        wanted = _Wanted(tables, on_misfit, empty)
        write = await run_to_its_end(thread, file.enter_context, _file(path, wanted))
        while rows:
            await run_to_its_end(thread, write, rows)
            count += len(rows)
            rows = await journal.read(partial(_read, after=rows[-1]))
        await run_to_its_end(thread, file.close)
    except BaseException as exc:
        await run_to_its_end(thread, file.__exit__, type(exc), exc, exc.__traceback__)
        raise
    finally:
        thread.shutdown(wait=False)
    return count


async def export_changes(
    journal: Journal, path: str | os.PathLike[str], tables: Mapping[str, Table] = NO_TABLES
) -> Misfits:
    """Write all records of *journal* with :func:`export` unless the file is up to date. Return the misfits."""
    misfits = Misfits(stale=stale(path, tables))
    target = os.path.realpath(path)  # noqa: ASYNC240 - a look
    version, *written = await journal.read(partial(_versions, target=os.fsencode(target)))
    if written == [version, _stamp(target, tables)]:
        return misfits
    empty: Empty = {}
    await _export(journal, path, tables, misfits.take, empty)
    misfits.empty = await journal.read(partial(names_of_empty, tables=tables, empty=empty))
    # Misfits are reported in each run until they are fixed.
    row = os.fsencode(target), version, "" if misfits.count or misfits.empty else _stamp(target, tables)
    await journal.commit(lambda db: db.execute("INSERT OR REPLACE INTO sync_outputs VALUES (?, ?, ?)", row))
    return misfits


def _versions(db: sqlite3.Connection, target: bytes) -> tuple[int | str, ...]:
    """Return the version of the records, and the version and stamp of the output if it was written."""
    [version] = db.execute("SELECT version FROM sync_version").fetchone() or (0,)
    return version, *(db.execute("SELECT version, stamp FROM sync_outputs WHERE path = ?", (target,)).fetchone() or ())


def _stamp(path: str, tables: Mapping[str, Table]) -> str:
    """Return a text that differs after a file or the requested tables have changed."""
    beside = files_beside(Path(path), tables).values() if path.lower().endswith(".parquet") else ()
    stamps = []
    with suppress(OSError):
        for each in (path, *beside):
            found = os.stat(each)
            stamps.append(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}")
        return " ".join([*stamps, *([repr(sorted(tables.items()))] if tables else [])])
    return ""


def _format_of(path: str | os.PathLike[str]) -> _Format:
    suffix = Path(path).suffix.lower()
    writing = _FORMATS.get(suffix)
    if writing is None:
        *most, last = _FORMATS
        raise ValueError(f"the output must end in {', '.join(most)} or {last}, not {os.fspath(path)!r}")
    if writing is _parquet and find_spec("pyarrow") is None:
        raise ModuleNotFoundError("pyarrow is missing: pip install 'lamella[parquet]'", name="pyarrow")
    return writing


def _read(db: sqlite3.Connection, after: _Row) -> list[_Row]:
    """Return the next records, up to the size of a page, but at least one if any are left."""
    rows: list[_Row] = []
    size = 0
    if not has_table(db, "sync_texts"):
        return rows
    account, resource, last, *_ = after
    with closing(db.execute(_LISTS, (account, resource))) as found:
        for number, *each in found:
            with closing(_list(db, number, each, last if each == [account, resource] else "", _ROWS - len(rows))) as of:
                for name, record, mark in of:
                    rows.append((*each, name, record, None if mark is None else text_of(mark)))
                    size += len(record)
                    if size >= _PAGE_SIZE:
                        return rows
            if len(rows) == _ROWS:
                break
    return rows


def _list(db: sqlite3.Connection, number: int, each: Sequence[str], after: str, most: int) -> sqlite3.Cursor:
    """Return the next records of a list: id, text, and the time of the deletion mark."""
    is_marked = (
        "SELECT 1 FROM sync_deleted WHERE account = ? AND resource = ?"
        " UNION ALL SELECT 1 FROM sync_departed WHERE account = ? LIMIT 1"
    )
    account, resource = each
    if db.execute(is_marked, (account, resource, account)).fetchone() is None:
        return db.execute(_LIST, (number, after, most))
    wanted = {"account": account, "resource": resource, "list": number, "after": after, "most": most}
    return db.execute(_MARKED_LIST, wanted)


# The functions below run in the thread of the export.


@contextmanager
def _file(path: str | os.PathLike[str], wanted: _Wanted) -> Iterator[_Write]:
    """Yield a function that writes rows to a new file. At the end the file replaces *path*."""
    writing = _format_of(path)
    with whole_file.replacing(path, mode=whole_file.PRIVATE) as temporary:
        check_target(path)
        with _beside(path, wanted, writing) as more, writing(temporary, wanted) as write:
            yield write if more is None else lambda rows: (write(rows), more(rows))
        check_target(path)  # again: another process may have opened it in the meantime


def _beside(path: str | os.PathLike[str], wanted: _Wanted, writing: _Format) -> AbstractContextManager[_Write | None]:
    """Open the files beside *path* for the tables."""
    if writing is not _parquet or not wanted.tables:
        return nullcontext()
    return parquet_tables(Path(path), wanted.tables, wanted.on_misfit, wanted.empty)


@contextmanager
def _jsonl(path: Path, _: _Wanted) -> Iterator[_Write]:
    with path.open("wb") as file:
        yield lambda rows: file.write(_lines(rows).encode())


_quoted = json.encoder.encode_basestring

_BREAKS: Final = {char: json.dumps(char)[1:-1] for char in "\x85\u2028\u2029"}
"""Characters that some readers, such as str.splitlines, treat as line ends, and their JSON escapes."""


def _lines(rows: list[_Row]) -> str:
    lines, last, head = [], None, ""
    for account, resource, name, record, mark in rows:
        if last != (account, resource):
            last, head = (account, resource), f'{{"account":{_quoted(account)},"resource":{_quoted(resource)},"id":'
        deleted = "" if mark is None else f'"deleted":"{mark}",'
        lines.append(f'{head}{_quoted(name)},{deleted}"record":{record}}}\n')
    text = "".join(lines)
    if not text.isascii():
        for char, escape in _BREAKS.items():
            text = text.replace(char, escape)
    return text


# With rowid, like the journal's table of items. The index also sorts a resource's records by account and id.
_TABLE: Final = (
    "CREATE TABLE records (account TEXT NOT NULL, resource TEXT NOT NULL, id TEXT NOT NULL, record TEXT NOT NULL,"
    " deleted TEXT, PRIMARY KEY (account, resource, id))"
)
_INDEX: Final = "CREATE INDEX records_by_resource ON records (resource)"


@contextmanager
def _sqlite(path: Path, wanted: _Wanted) -> Iterator[_Write]:
    # No other process uses the file, and it is deleted on failure. So it needs no locks, no journal and no fsync.
    with closing(sqlite3.connect(f"{path.as_uri()}?nolock=1", uri=True, isolation_level=None)) as db:
        with _sqlite_errors():
            db.execute("PRAGMA journal_mode = OFF")
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN")
            db.execute(_TABLE)
            db.execute(_INDEX)
            fill = sqlite_tables(db, wanted.tables, wanted.on_misfit, wanted.empty) if wanted.tables else None

        @_sqlite_errors()
        def write(rows: list[_Row]) -> None:
            db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", rows)
            if fill is not None:
                fill(rows)

        yield write
        with _sqlite_errors():
            _make_views(db)
            db.execute("COMMIT")


def _make_views(db: sqlite3.Connection) -> None:
    """Create a view for each resource that is a plain word, unless the name is taken. SQLite ignores case."""
    for (resource,) in db.execute("SELECT DISTINCT resource FROM records ORDER BY resource").fetchall():
        taken = db.execute("SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE", (resource,)).fetchone()
        if not taken and resource.isascii() and resource.isalnum():
            db.execute(
                f'CREATE VIEW "{resource}" AS SELECT account, id, record FROM records'  # noqa: S608 - a plain word
                f" WHERE resource = '{resource}' AND deleted IS NULL"
            )


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    """Raise SQLite's errors as OSError. A full disk is the only system error that they identify."""
    try:
        yield
    except sqlite3.Error as exc:
        full = getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, str(exc)) from exc


@contextmanager
def _parquet(path: Path, wanted: _Wanted) -> Iterator[_Write]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema([pa.field(name, pa.string(), nullable=name == "deleted") for name in _COLUMNS])
    held: list[pa.RecordBatch] = []
    is_empty = True

    def write(rows: list[_Row]) -> None:
        arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        held.append(pa.record_batch(arrays, schema=schema))
        if sum(batch.nbytes for batch in held) >= _GROUP_SIZE:
            write_group()

    def write_group() -> None:
        nonlocal is_empty
        writer.write_table(pa.Table.from_batches(held, schema))
        held.clear()
        is_empty = False

    # Use Python's file object, since its errors are clearer than pyarrow's.
    with (
        path.open("wb") as file,
        ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=["account", "resource", "deleted"],  # pyright: ignore[reportArgumentType] - pyarrow has no types
            write_statistics=["account", "resource", "id"],  # pyright: ignore[reportArgumentType]
        ) as writer,
    ):
        yield write
        if held or is_empty:  # some readers need at least one group
            write_group()


_FORMATS: Final[dict[str, _Format]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".sqlite": _sqlite,
    ".sqlite3": _sqlite,
    ".db": _sqlite,
    ".parquet": _parquet,
}
