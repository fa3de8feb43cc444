"""The records of a journal as a file, in each format: what is in it, and that it is there whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest
from tests.cancelling import cancelled_at
from tests.environment import HANGS

from lamella.batch import Journal
from lamella.sync import Page, Source
from lamella.sync.decode import record_of
from lamella.sync.export import check_output, export
from lamella.sync.marks import Ask, Wanted, begin, store
from lamella.sync.progress import part_of
from lamella.sync.stored import adopt

MODULE = sys.modules[export.__module__]  # its name in the package is that of the function

BATCH = "a sync"
Row = tuple[str, str, str, str]

every_format = pytest.mark.parametrize("suffix", [".jsonl", ".sqlite", ".parquet"])


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with Journal.open(tmp_path / "journal", batch=BATCH) as journal:
        yield journal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where nothing is but what is exported."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_ROWS", 4)


async def keep(journal: Journal, rows: Iterable[Row]) -> None:
    """Put *rows* in the place of what the journal holds."""

    def change(db: sqlite3.Connection) -> None:
        adopt(db)
        db.execute("DELETE FROM sync_texts")
        db.execute("DELETE FROM sync_lists")
        for row in rows:
            _insert(db, row)

    await journal.commit(change)


def some(records: int, size: int = 0) -> list[Row]:
    """So many records, in order, each with so long a text in it."""
    return [("Müller", "invoices", f"{number:06}", compact({"text": "x" * size})) for number in range(records)]


def kept(path: Path) -> list[Row]:
    """What a reader of the file finds, who fails if that is not sound."""
    if path.suffix == ".jsonl":
        text = path.read_text(encoding="utf-8")
        assert not text or text.endswith("\n")
        found = map(json.loads, text.splitlines())
        return [(row["account"], row["resource"], row["id"], compact(row["record"])) for row in found]
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return db.execute("SELECT account, resource, id, record FROM records ORDER BY rowid").fetchall()
    with pq.ParquetFile(path) as file:  # pq.read_table opens it twice: that could be the old one and then the new one
        rows = [tuple(row.values()) for row in file.read().to_pylist()]
    assert {deleted for *_, deleted in rows} <= {None}
    return [(account, resource, name, record) for account, resource, name, record, _ in rows]


def compact(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


# What is in it


@every_format
async def test_export_sorts_records_by_account_resource_and_id(journal: Journal, folder: Path, suffix: str) -> None:
    rows = [
        (account, resource, str(number), compact({"id": number, "of": account}))
        for number in range(100)
        for resource in ("invoices", "Bills", "contacts")
        for account in ("b", "Ä", "a", "a b")
    ]
    await keep(journal, rows)
    assert await export(journal, folder / f"out{suffix}") == len(rows)
    assert kept(folder / f"out{suffix}") == sorted(rows)
    assert os.listdir(folder) == [f"out{suffix}"]


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.db", "a.sqlite3", "a.b.Parquet"])
async def test_the_suffix_determines_the_format(journal: Journal, folder: Path, name: str) -> None:
    await export(journal, str(folder / name))
    head = (folder / name).read_bytes()[:6]
    assert head == {"a.JSONL": b"", "a.ndjson": b"", "a.b.Parquet": b"PAR1\x15\x04"}.get(name, b"SQLite")


@every_format
async def test_export_without_a_sync_writes_an_empty_file(journal: Journal, folder: Path, suffix: str) -> None:
    path = folder / f"out{suffix}"
    assert await export(journal, path) == 0
    assert kept(path) == []
    await keep(journal, [])
    assert await export(journal, path) == 0
    assert kept(path) == []


@every_format
async def test_export_writes_what_a_sync_stores(journal: Journal, folder: Path, suffix: str) -> None:
    wanted, source = Wanted("Müller", "invoices"), Source("invoices", id="invoiceId")
    records = [{"invoiceId": f"{number}", "text": "\ud83d halved", "total": 0.1} for number in range(3)]

    def change(db: sqlite3.Connection) -> None:
        begin(db, [wanted], Ask({"invoices": source}, ["Müller"]), part_of)
        page = Page(1, 1, [record_of(json.dumps(record).encode(), source) for record in records])
        store(db, wanted, 1, page, source)

    await journal.commit(change)
    path = folder / f"out{suffix}"
    assert await export(journal, path) == 3
    assert [(*row[:3], json.loads(row[3])) for row in kept(path)] == [
        ("Müller", "invoices", record["invoiceId"], record) for record in records
    ]


HOSTILE = [
    '{"half a pair":"\\ud800","two":"\\udfff\\ud800"}',
    '{"zero":"a\\u0000b","newline":"\\r\\n"}',
    '{"line\u2028end":"a\u2028b\u2029c\x85d","ende":"\\u2028"}',
    '{"huge":123456789012345678901234567890.123456789e-400,"1e999":1e999,"long":' + "9" * 5000 + "}",
    '{"big":"' + "ä" * 5_000_000 + '"}',
    '{"quotes":"\\"\'\\\\","emoji":"😀","bom":"\ufeff"}',
    "{}",
]


@pytest.mark.sampled(1)
@every_format
async def test_export_writes_unusual_records_unchanged(journal: Journal, folder: Path, suffix: str) -> None:
    names = ["a", "a\x00b", "a\x00c", 'a"\\', "a\u2028\x85b", "😀", "\ufeff"]
    rows = sorted((name, "invoices", name, record) for name, record in zip(names, HOSTILE, strict=True))
    await keep(journal, rows)
    path = folder / f"out{suffix}"
    await export(journal, path)
    if suffix != ".jsonl":
        assert kept(path) == rows
        return
    # Each is on one line, for who ends lines at "\n" and for who ends them where Unicode does; and it is as it was.
    lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    assert lines == path.read_text(encoding="utf-8").splitlines()
    for line, row in zip(lines, rows, strict=True):
        found = json.loads(line, parse_int=str, parse_float=str)
        assert found.pop("record") == json.loads(row[3], parse_int=str, parse_float=str)
        assert tuple(found.values()) == row[:3]


async def test_a_line_of_jsonl_has_the_documented_form(journal: Journal, folder: Path) -> None:
    await keep(journal, [("Müller & Söhne", "invoices", "1", '{"total":1.10, "note":"über"}')])
    for name in ("one.jsonl", "two.jsonl"):
        await export(journal, folder / name)
        assert (folder / name).read_bytes() == (
            '{"account":"Müller & Söhne","resource":"invoices","id":"1","record":{"total":1.10, "note":"über"}}\n'
        ).encode()


async def test_sqlite_has_a_view_for_each_resource(journal: Journal, folder: Path) -> None:
    resources = ["Bills", "bills", 'a"b', "a'b", "invoices", "order", "records", "sqlite_x"]
    await keep(journal, [("a", name, "1", f'"{number}"') for number, name in enumerate(resources)])
    path = folder / "out.db"
    await export(journal, path)
    with closing(sqlite3.connect(path)) as db:
        views = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'view'")}
        assert views == {"Bills", "invoices", "order"}
        assert db.execute("SELECT * FROM bills").fetchall() == [("a", "1", '"0"')]
        assert len(db.execute("SELECT * FROM records").fetchall()) == len(resources)
        plan = str(db.execute("EXPLAIN QUERY PLAN SELECT record FROM invoices ORDER BY account, id").fetchall())
        assert "records_by_resource" in plan
        with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE.*records.account, records.resource, records.id"):
            db.execute("INSERT INTO records VALUES ('a', 'bills', '1', '{}', NULL)")
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("name", ["out.db", "out.jsonl"])
async def test_a_database_of_another_program_is_not_replaced(journal: Journal, folder: Path, name: str) -> None:
    path = folder / name
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE customers (id)")
        db.commit()
    before = path.read_bytes()
    with pytest.raises(OSError, match="it is a database with other tables; choose another path"):
        check_output(path)
    with pytest.raises(OSError, match="it is a database with other tables"):
        await export(journal, path)
    assert path.read_bytes() == before


async def test_a_database_without_tables_and_an_output_with_more_of_them_are_replaced(
    journal: Journal, folder: Path
) -> None:
    path = folder / "out.db"
    for change in ("PRAGMA user_version = 1", "CREATE TABLE more (id)"):
        with closing(sqlite3.connect(path)) as db:
            db.execute(change)
            db.commit()
        await export(journal, path)


async def test_parquet_row_groups_are_limited_in_size(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_GROUP_SIZE", 500_000)
    await keep(journal, some(2500, size=500))
    path = folder / "out.parquet"
    await export(journal, path)
    with pq.ParquetFile(path) as file:
        assert [(field.name, str(field.type), field.nullable) for field in file.schema_arrow] == [
            (name, "string", name == "deleted") for name in ("account", "resource", "id", "record", "deleted")
        ]
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [1000, 1000, 500]
    assert {group.column(3).compression for group in groups} == {"ZSTD"}
    assert groups[1].column(2).statistics.min == "001000"
    await keep(journal, [])
    await export(journal, path)
    with pq.ParquetFile(path) as file:
        assert (file.num_row_groups, file.metadata.num_rows) == (1, 0)  # pyarrow 18 cannot read a file of no groups


# How it is read


def count_pages(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each read gives from now on."""
    counts: list[int] = []

    async def read(self: Journal, query: Callable[[sqlite3.Connection], Any], read: Any = Journal.read) -> Any:
        found = await read(self, query)
        if isinstance(found, list):
            counts.append(len(found))
        return found

    monkeypatch.setattr(Journal, "read", read)
    return counts


@pytest.mark.slow
async def test_export_reads_a_few_records_at_a_time(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_pages(journal, monkeypatch)
    await keep(journal, some(2500))
    await export(journal, folder / "out.jsonl")
    assert counts == [1000, 1000, 500, 0]
    counts.clear()
    await keep(journal, some(5, size=3_000_000))
    await export(journal, folder / "out.jsonl")
    assert counts == [2, 2, 1, 0]


async def test_each_read_continues_where_the_last_one_ended(journal: Journal) -> None:
    await keep(journal, some(5))

    def plan(db: sqlite3.Connection) -> str:
        marked = {"account": "a", "resource": "b", "list": 1, "after": "c", "most": 5}
        plans: list[tuple[str, Any]] = [
            (MODULE._LISTS, ("a", "b")),
            (MODULE._LIST, (1, "c", 5)),
            (MODULE._MARKED_LIST, marked),
        ]
        return str([db.execute(f"EXPLAIN QUERY PLAN {sql}", given).fetchall() for sql, given in plans])

    found = await journal.read(plan)
    assert "SEARCH" in found
    assert "SCAN" not in found
    assert "TEMP B-TREE" not in found


@every_format
async def test_export_does_not_block_the_event_loop(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        entered.set()
        assert leave.wait(HANGS)

    monkeypatch.setattr(os, "fsync", slow)
    exporting = asyncio.create_task(export(journal, folder / f"out{suffix}"))
    assert await asyncio.to_thread(entered.wait, HANGS)
    assert await journal.read(lambda _: 1) == 1
    leave.set()
    await exporting


async def test_records_can_be_stored_during_an_export(journal: Journal, folder: Path, small_pages: None) -> None:
    rows = some(100)
    await keep(journal, rows[::2])
    exporting = asyncio.create_task(export(journal, folder / "out.sqlite"))
    for row in rows[1::2]:
        await journal.commit(partial(_insert, row=row))
    await exporting
    found = kept(folder / "out.sqlite")
    assert set(rows[::2]) <= set(found) <= set(rows)
    assert found == sorted(found)


def _insert(db: sqlite3.Connection, row: Row) -> None:
    account, resource, name, record = row
    db.execute("INSERT OR IGNORE INTO sync_lists (account, resource) VALUES (?, ?)", (account, resource))
    sql = "INSERT INTO sync_texts SELECT number, ?, NULL, 1, ? FROM sync_lists WHERE account = ? AND resource = ?"
    db.execute(sql, (name, record, account, resource))


# Where it is written


@pytest.mark.parametrize("name", ["out.csv", "out", "jsonl", ".parquet", "out.jsonl.gz", "out.db-wal"])
async def test_an_unknown_suffix_is_rejected(journal: Journal, folder: Path, name: str) -> None:
    said = f"must end in .jsonl, .ndjson, .sqlite, .sqlite3, .db or .parquet, not {str(folder / name)!r}"
    why = f"{re.escape(said)}$"
    with pytest.raises(ValueError, match=why):
        check_output(folder / name)
    with pytest.raises(ValueError, match=why):
        await export(journal, folder / name)
    assert os.listdir(folder) == []


async def test_without_pyarrow(journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    why = r"pyarrow is missing: pip install 'lamella\[parquet\]'"
    with pytest.raises(ModuleNotFoundError, match=why):
        check_output(folder / "out.parquet")
    with pytest.raises(ModuleNotFoundError, match=why):
        await export(journal, folder / "out.parquet")
    assert os.listdir(folder) == []
    check_output(folder / "out.db")


@every_format
async def test_check_output_changes_nothing(folder: Path, suffix: str) -> None:
    path = folder / f"out{suffix}"
    check_output(path)
    assert os.listdir(folder) == []
    path.write_text("old")
    check_output(str(path))
    assert path.read_text() == "old"
    assert os.listdir(folder) == [path.name]
    with pytest.raises(FileNotFoundError):
        check_output(folder / "no" / path.name)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        check_output(path)


@every_format
async def test_only_the_owner_can_read_the_output(journal: Journal, folder: Path, suffix: str) -> None:
    path = folder / f"out{suffix}"
    await export(journal, path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    await export(journal, path)
    assert path.stat().st_mode & 0o777 == 0o644


@every_format
async def test_export_never_replaces_a_journal(tmp_path: Path, suffix: str) -> None:
    """Not its own, whose locks it keeps, and not another, be it closed."""
    path = tmp_path / f"kept{suffix}"
    link = tmp_path / f"link{suffix}"
    link.symlink_to(path)
    async with Journal.open(path, batch=BATCH) as journal:
        for target in (path, link):
            with pytest.raises(OSError, match=r"it is in use, or was when a process was killed: there is .*-wal"):
                check_output(target)
            with pytest.raises(OSError, match="it is in use"):
                await export(journal, target)
        assert not locked_by_nobody(path)
    async with Journal.open(tmp_path / "another", batch=BATCH) as journal:
        with pytest.raises(OSError, match="it is a journal of lamella; choose another path") as raised:
            check_output(link)
        assert raised.value.filename == str(link)
        with pytest.raises(OSError, match="it is a journal"):
            await export(journal, link)
    async with Journal.open(path, batch=BATCH):
        pass
    assert sorted(os.listdir(tmp_path)) == ["another", path.name, link.name]


def locked_by_nobody(path: Path) -> bool:
    """Whether another process could use an SQLite file."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM sqlite_master')"
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)  # noqa: S603
    assert not run.returncode or "database is locked" in run.stderr
    return not run.returncode


@pytest.mark.parametrize("beside", ["out.db-wal", "out.db-journal"])
async def test_export_does_not_replace_a_database_in_use(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    """Its newest changes are beside it; also where somebody begins to use it as we write."""
    path = folder / "out.db"
    await export(journal, path)
    before = path.read_bytes()
    await keep(journal, some(1))
    (folder / beside).touch()
    counts = count_pages(journal, monkeypatch)
    with pytest.raises(OSError, match=f"there is .*{beside}"):
        await export(journal, path)
    assert counts == []  # it was not begun
    (folder / beside).unlink()
    monkeypatch.setattr(MODULE, "_make_views", lambda _: (folder / beside).touch())
    with pytest.raises(OSError, match=f"there is .*{beside}"):
        await export(journal, path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(folder)) == ["out.db", beside]


# Whole or not at all


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let any file become larger, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.sampled(1)
@every_format
async def test_a_partial_write_keeps_the_old_file(journal: Journal, folder: Path, suffix: str) -> None:
    path = folder / f"out{suffix}"
    path.write_text("old")
    await keep(journal, [(*row[:3], json.dumps(os.urandom(500).hex())) for row in some(2000)])
    with largest_file(100_000), pytest.raises(OSError, match=r"File too large|disk I/O error") as raised:
        await export(journal, path)
    assert raised.value.errno in {errno.EFBIG, errno.EIO}
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(folder) == [path.name]


async def test_a_full_disk_is_reported_for_sqlite(
    journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_INDEX", "PRAGMA max_page_count = 5")
    await keep(journal, some(100, size=1000))
    with pytest.raises(OSError, match=re.escape(f"database or disk is full: {str(folder / 'out.db')!r}")) as raised:
        await export(journal, folder / "out.db")
    assert raised.value.errno == errno.ENOSPC
    assert os.listdir(folder) == []


@every_format
async def test_an_unreadable_record_is_reported(journal: Journal, folder: Path, suffix: str) -> None:
    """It is not the output that is wrong."""
    await keep(journal, some(5))
    await journal.commit(
        lambda db: db.execute("UPDATE sync_texts SET record = CAST(x'ff' AS TEXT) WHERE id > '000002'")
    )
    with pytest.raises(sqlite3.OperationalError, match="Could not decode"):
        await export(journal, folder / f"out{suffix}")
    assert os.listdir(folder) == []


@pytest.mark.sampled(1)
@every_format
async def test_export_can_be_cancelled_at_any_await(
    journal: Journal, folder: Path, small_pages: None, suffix: str
) -> None:
    path = folder / f"out{suffix}"
    rows = some(10)
    await keep(journal, rows[:1])
    await export(journal, path)
    await keep(journal, rows)
    step = 0
    outcomes: list[int] = []
    while not outcomes or outcomes[-1] != 10:
        step += 1
        task = asyncio.create_task(_cancelled_at(step, journal, path))
        await asyncio.wait([task])
        if not task.cancelled():
            await task
        outcomes.append(len(kept(path)))
        assert os.listdir(folder) == [path.name]
        assert task.cancelled() or outcomes[-1] == 10
        for thread in threading.enumerate():
            if "export" in thread.name:  # nobody has to wait for that, but it must not live on
                thread.join(HANGS)
                assert not thread.is_alive()
    assert outcomes == [1] * (len(outcomes) - 1) + [10]
    assert len(outcomes) > 6


async def _cancelled_at(step: int, journal: Journal, path: Path) -> None:
    was, _ = await cancelled_at(step, export(journal, path))
    assert not was


@pytest.fixture
def write_slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """A line is being written when the first is set, and until the second is."""
    entered, leave = threading.Event(), threading.Event()

    def lines(rows: object) -> str:
        entered.set()
        assert leave.wait(HANGS)
        return "{}"

    monkeypatch.setattr(MODULE, "_lines", lines)
    return entered, leave


async def some_turns_of_the_loop() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_repeated_cancellations_leave_nothing_behind(
    journal: Journal, folder: Path, write_slowly: tuple[threading.Event, threading.Event]
) -> None:
    entered, leave = write_slowly
    await keep(journal, some(1))
    exporting = asyncio.create_task(export(journal, folder / "out.jsonl"))
    assert await asyncio.to_thread(entered.wait, HANGS)
    for _ in range(5):
        exporting.cancel()
        await some_turns_of_the_loop()
    assert not exporting.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await exporting
    assert os.listdir(folder) == []


async def test_export_can_be_cancelled_by_a_scope(
    journal: Journal,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_slowly: tuple[threading.Event, threading.Event],
) -> None:
    """Which would cancel whatever waits again and again."""
    entered, leave = write_slowly
    waits = 0

    async def wait(*arguments: Any, wait: Any = asyncio.wait) -> Any:
        nonlocal waits
        waits += 1
        return await wait(*arguments)

    async def cancel() -> None:
        assert await asyncio.to_thread(entered.wait, HANGS)
        monkeypatch.setattr(asyncio, "wait", wait)
        scope.cancel()
        await some_turns_of_the_loop()
        leave.set()

    await keep(journal, some(1))
    with anyio.CancelScope() as scope:
        cancelling = asyncio.create_task(cancel())
        await export(journal, folder / "out.jsonl")
    assert scope.cancelled_caught
    assert os.listdir(folder) == []
    assert waits < 5
    await cancelling


KILLED = """
import asyncio, os, signal, sys
from lamella.batch import Journal
from lamella.sync.export import export

async def main(journal, output, page):
    async with Journal.open(journal, batch="a sync") as journal:
        async def read(self, query, read=Journal.read):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return await read(self, query)

        Journal.read = read
        await export(journal, output)

left = int(sys.argv[3])
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@every_format
async def test_a_killed_export_keeps_the_old_file(tmp_path: Path, folder: Path, suffix: str) -> None:
    path = folder / f"out{suffix}"
    rows = some(3000, size=300)
    async with Journal.open(tmp_path / "journal", batch=BATCH) as journal:
        await keep(journal, rows[:1])
        await export(journal, path)
        await keep(journal, rows)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, tmp_path / "journal", path, "3", stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (-signal.SIGKILL, b"")
    assert kept(path) == rows[:1]
    assert len(os.listdir(folder)) == 2
    async with Journal.open(tmp_path / "journal", batch=BATCH) as journal:
        assert await export(journal, path) == 3000
    assert kept(path) == rows
    assert os.listdir(folder) == [path.name]


@pytest.mark.slow
@every_format
async def test_a_repeated_reader_always_sees_a_complete_file(journal: Journal, folder: Path, suffix: str) -> None:
    path = folder / f"out{suffix}"
    look: Callable[[Path], object] = Path.read_bytes if suffix == ".jsonl" else kept
    rows, versions, turns = some(500, size=500), [], 0
    for version in (rows, rows[:200]):
        await keep(journal, version)
        await export(journal, path)
        versions.append(look(path))

    def look_again_and_again() -> None:
        looks = 0
        while looks < 50 or turns < 10:
            looks += 1
            assert look(path) in versions

    looking = asyncio.create_task(asyncio.to_thread(look_again_and_again))
    while not looking.done():
        turns += 1
        await keep(journal, rows[: 500 if turns % 2 else 200])
        await export(journal, path)
    await looking


@pytest.mark.sampled(1)
@every_format
async def test_two_exports_can_run_concurrently(journal: Journal, folder: Path, small_pages: None, suffix: str) -> None:
    path = folder / f"out{suffix}"
    rows = some(50)
    await keep(journal, rows)
    assert await asyncio.gather(*(export(journal, path) for _ in range(5))) == [50] * 5
    assert kept(path) == rows
    assert os.listdir(folder) == [path.name]


# How large the journal is


@pytest.mark.slow
@pytest.mark.parametrize("size", [900, 1_100])
async def test_a_journal_is_only_slightly_larger_than_its_records(tmp_path: Path, size: int) -> None:
    """Whatever their size: pages that hold few of them waste much."""
    rows = [(account, "invoices", f"{account}-{n}", "x" * size) for n in range(150) for account in map(str, range(100))]
    async with Journal.open(tmp_path / "journal", batch=BATCH) as journal:
        await keep(journal, rows)
    assert (tmp_path / "journal").stat().st_size <= 1.15 * len(rows) * size
