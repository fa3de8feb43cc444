from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
from tests.environment import HANGS

from lamella.batch.journal import Counts, Journal, end_of
from lamella.batch.journal_errors import JournalDamaged, JournalError, JournalLocked, JournalMismatch
from lamella.testing import run_virtual

BATCH = "a batch"

_T = TypeVar("_T")
Change = Callable[[sqlite3.Connection], Any]


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """As asyncio.run, which would take away the loop that pytest-asyncio keeps between the tests."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal.open(path, batch=BATCH) as journal:
        await journal.commit(lambda db: db.execute("CREATE TABLE effects (key TEXT PRIMARY KEY)"))
        yield journal


async def effects(journal: Journal) -> set[str]:
    return await journal.read(lambda db: {key for (key,) in db.execute("SELECT key FROM effects")})


def effect(key: str) -> Change:
    return lambda db: db.execute("INSERT INTO effects VALUES (?)", (key,))


async def trace(journal: Journal) -> list[str]:
    """All statements that SQLite carries out from now on."""
    seen: list[str] = []
    await journal.read(lambda db: db.set_trace_callback(seen.append))
    return seen


def commits(seen: list[str]) -> int:
    return sum(statement.startswith("COMMIT") for statement in seen)


# Ends


async def test_a_journal_keeps_outcomes_between_runs(path: Path) -> None:
    async with Journal.open(path, batch=BATCH) as journal:
        await journal.end("done", result='{"id": 1}')
        await journal.end("empty")
        await journal.end("failed", error="refused")
    async with Journal.open(str(path), batch=BATCH) as journal:
        assert await journal.counts() == Counts(done=2, failed=1)
        assert [await journal.is_done(key) for key in ("done", "empty", "failed", "new")] == [True, True, False, False]
        assert [row async for row in journal.results()] == [("done", '{"id": 1}'), ("empty", None)]
        assert [row async for row in journal.failures()] == [("failed", "refused")]


async def test_a_later_outcome_replaces_an_earlier_one_but_no_success(journal: Journal) -> None:
    await journal.end("a", error="first")
    await journal.end("a", error="second")
    assert [row async for row in journal.failures()] == [("a", "second")]
    await journal.end("a", result="1")
    await journal.end("a", error="third")
    assert [row async for row in journal.failures()] == []
    await journal.end("a", result="2")
    assert [row async for row in journal.results()] == [("a", "2")]
    assert await journal.counts() == Counts(done=1, failed=0)


async def test_an_empty_error_counts_as_an_error(journal: Journal) -> None:
    await journal.end("a", error="")
    assert await journal.counts() == Counts(done=0, failed=1)


async def test_keys_are_any_text(journal: Journal) -> None:
    keys = {"", " ", "1", "01", "a\x00b", "a", "A", "ä", "a\u0308", "'; DROP TABLE lamella_items; --"}
    for key in keys:
        await journal.end(key)
    assert await journal.ended([*keys, "b", "a\x00"]) == keys


async def test_a_journal_rejects_contradictory_outcomes(journal: Journal) -> None:
    with pytest.raises(ValueError, match="'a' must have a result or an error, got both"):
        await journal.end("a", result="1", error="refused")
    with pytest.raises(TypeError, match="must be a str, got 1"):
        await journal.end(1)  # type: ignore[arg-type]
    assert await journal.counts() == Counts(0, 0)


async def test_an_idempotency_key_is_stable_in_a_journal_and_differs_between_journals(tmp_path: Path) -> None:
    """Also if the other is of a batch of the same name: what was written once is not written by that one otherwise."""
    keys = ["a", "b", "", "ä", "a\x00b"]
    first, again, other = tmp_path / "first", tmp_path / "first", tmp_path / "other"
    made = []
    for path in (first, again, other):
        async with Journal.open(path, batch=BATCH) as journal:
            made.append([journal.idempotency_key(key) for key in keys])
            with pytest.raises(TypeError, match="must be a str, got b'a'"):
                journal.idempotency_key(b"a")  # type: ignore[arg-type]
    assert made[0] == made[1]
    assert len({*made[0], *made[2]}) == 2 * len(keys)
    assert [str(UUID(key)) for key in made[0]] == made[0]


async def test_many_keys_can_be_looked_up_at_once(journal: Journal) -> None:
    ended = {str(number) for number in range(0, 25_000, 2_500)}
    await asyncio.gather(*(journal.end(key) for key in ended))
    await journal.end("1", error="refused")
    assert await journal.ended(str(number) for number in range(25_000)) == ended
    assert await journal.ended([]) == set()


async def test_many_failures_come_in_pages_and_in_order(journal: Journal) -> None:
    keys = [str(number) for number in range(1_100)]
    await asyncio.gather(*(journal.end(key, error=f"refused {key}") for key in keys))
    await journal.end("7")
    longest = 0

    def widest(db: sqlite3.Connection) -> None:
        db.row_factory = count_rows

    def count_rows(_: sqlite3.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal longest
        longest += 1
        return row

    await journal.read(widest)
    rows = journal.failures()
    assert await anext(rows) == ("0", "refused 0")
    assert longest == 500
    assert [key async for key, _ in rows] == [key for key in keys if key not in {"0", "7"}]


@pytest.mark.slow
async def test_failures_can_change_while_they_are_read(journal: Journal) -> None:
    keys = [str(number) for number in range(1_100)]
    await asyncio.gather(*(journal.end(key, error="refused") for key in keys))
    retried = []
    async for key, _ in journal.failures():
        retried.append(key)
        await journal.end(key, **({"error": "again"} if int(key) % 2 else {}))
    assert retried == keys
    assert await journal.counts() == Counts(done=550, failed=550)


# Changes


async def test_concurrent_changes_share_a_transaction(journal: Journal) -> None:
    seen = await trace(journal)
    values = await asyncio.gather(*(journal.commit(lambda _, number=number: number) for number in range(100)))  # type: ignore[misc]
    assert values == list(range(100))
    assert commits(seen) == 1
    await asyncio.gather(*(journal.end(str(number)) for number in range(100)))
    assert commits(seen) == 2
    assert await journal.counts() == Counts(100, 0)


async def test_changes_during_a_write_share_the_next_transaction(journal: Journal) -> None:
    seen = await trace(journal)
    entered, leave = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        entered.set()
        assert leave.wait(HANGS)

    first = asyncio.create_task(journal.commit(slow))
    await asyncio.to_thread(entered.wait, 10)
    others = [asyncio.create_task(journal.end("a"))]
    await asyncio.sleep(0)
    others.append(asyncio.create_task(journal.end("b")))
    await asyncio.sleep(0)
    assert commits(seen) == 0
    leave.set()
    await asyncio.gather(first, *others)
    assert commits(seen) == 2


async def test_sequential_changes_are_each_on_disk(journal: Journal) -> None:
    seen = await trace(journal)
    for number in range(5):
        await journal.end(str(number))
        assert commits(seen) == number + 1


async def test_a_power_failure_loses_no_commit(journal: Journal) -> None:
    def setting(name: str) -> Callable[[sqlite3.Connection], Any]:
        return lambda db: db.execute(f"PRAGMA {name}").fetchone()[0]

    assert await journal.read(setting("journal_mode")) == "wal"
    assert await journal.read(setting("synchronous")) == 2  # FULL


async def test_a_change_that_raises_undoes_only_itself(journal: Journal) -> None:
    def fails(db: sqlite3.Connection) -> None:
        effect("half")(db)
        end_of(db, "half")
        raise LookupError("no")

    def insists(db: sqlite3.Connection) -> None:
        effect("late")(db)
        effect("before")(db)

    outcomes = await asyncio.gather(
        journal.commit(effect("before")),
        journal.commit(fails),
        journal.commit(insists),
        journal.commit(effect("after")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes[1:3]] == [LookupError, sqlite3.IntegrityError]
    assert await effects(journal) == {"before", "after"}
    assert await journal.counts() == Counts(0, 0)


def within_savepoint(db: sqlite3.Connection) -> None:
    db.execute("SAVEPOINT mine")


def with_block(db: sqlite3.Connection) -> None:
    with db:
        db.execute("INSERT INTO effects VALUES ('block')")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "meddle",
    [
        lambda db: db.commit(),
        lambda db: db.rollback(),
        lambda db: db.execute("COMMIT"),
        lambda db: db.execute("ROLLBACK"),
        lambda db: db.execute("BEGIN IMMEDIATE"),
        lambda db: db.executescript("INSERT INTO effects VALUES ('script');"),
        within_savepoint,
        with_block,
    ],
)
async def test_a_change_cannot_control_the_transaction(journal: Journal, meddle: Change) -> None:
    def change(db: sqlite3.Connection) -> None:
        effect("half")(db)
        meddle(db)

    outcomes = await asyncio.gather(
        journal.commit(effect("before")),
        journal.commit(change),
        journal.commit(effect("after")),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], JournalError)
    assert "must not begin or end transactions or savepoints" in str(outcomes[1])
    assert await effects(journal) == {"before", "after"}


async def test_all_changes_fail_if_sqlite_rolls_back_the_whole_transaction(journal: Journal) -> None:
    await journal.commit(effect("there"))

    def asked_for(db: sqlite3.Connection) -> None:
        db.execute("INSERT OR ROLLBACK INTO effects VALUES ('there')")

    def unnoticed(db: sqlite3.Connection) -> None:
        with pytest.raises(sqlite3.IntegrityError):
            asked_for(db)

    for change in (asked_for, unnoticed):
        outcomes = await asyncio.gather(
            journal.commit(effect("before")), journal.commit(change), journal.end("after"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [JournalError] * 3
        assert len({id(outcome) for outcome in outcomes}) == 3
        assert await effects(journal) == {"there"}
        assert await journal.counts() == Counts(0, 0)
    await journal.commit(effect("later"))
    assert await effects(journal) == {"there", "later"}


async def test_a_transaction_that_cannot_be_committed_leaves_nothing(journal: Journal) -> None:
    await journal.read(lambda db: db.execute("PRAGMA foreign_keys = ON").fetchall())
    await journal.commit(
        lambda db: db.execute("CREATE TABLE parts (part TEXT REFERENCES effects DEFERRABLE INITIALLY DEFERRED)")
    )
    outcomes = await asyncio.gather(
        journal.commit(effect("a")),
        journal.commit(lambda db: db.execute("INSERT INTO parts VALUES ('of nothing')")),
        return_exceptions=True,
    )
    assert [str(outcome).partition(": ")[2] for outcome in outcomes] == [
        "nothing was written (FOREIGN KEY constraint failed)"
    ] * 2
    assert await effects(journal) == set()
    await journal.commit(effect("b"))
    assert await effects(journal) == {"b"}


async def test_exceptions_that_no_future_takes_are_raised_as_well(journal: Journal) -> None:
    def nothing(db: sqlite3.Connection) -> object:
        return next(db.execute("SELECT key FROM effects"))

    async with asyncio.timeout(10):
        for call in (journal.read, journal.commit):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await call(nothing)
        await journal.commit(effect("a"))
    assert await effects(journal) == {"a"}


async def test_a_cursor_does_not_leave_its_thread_open(path: Path) -> None:
    async with Journal.open(path, batch=BATCH) as journal:
        await journal.end("a")
        cursors = [
            await call(lambda db: db.execute("SELECT * FROM lamella_items")) for call in (journal.read, journal.commit)
        ]
    assert os.listdir(path.parent) == [path.name]
    async with Journal.open(path, batch=BATCH) as journal:
        assert await journal.is_done("a")
    del cursors


async def test_a_read_cannot_write(journal: Journal) -> None:
    with pytest.raises(JournalError, match=r"the query of read\(\) tried to write; use commit\(\) for that"):
        await journal.read(effect("a"))
    await journal.commit(effect("b"))
    assert await effects(journal) == {"b"}


# Cancellation


async def test_a_change_cancelled_before_it_is_sent_is_not_made(journal: Journal) -> None:
    tasks = [asyncio.create_task(journal.commit(effect(key))) for key in "abc"]
    asyncio.get_running_loop().call_soon(tasks[1].cancel)  # when all have asked, before that is sent
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert await effects(journal) == {"a", "c"}


async def test_a_change_cancelled_while_it_runs_is_completed(journal: Journal) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        effect("b")(db)
        entered.set()
        assert leave.wait(HANGS)
        end_of(db, "b")

    tasks = [asyncio.create_task(journal.commit(change)) for change in (effect("a"), slow, effect("c"))]
    await asyncio.to_thread(entered.wait, 10)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    leave.set()
    await asyncio.gather(tasks[0], tasks[2])
    assert await effects(journal) == {"a", "b", "c"}
    assert await journal.is_done("b")


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_opening_releases_the_journal(path: Path, turns: int) -> None:
    async def work() -> None:
        async with Journal.open(path, batch=BATCH) as journal:
            await journal.end("a")
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [name for name in os.listdir(path.parent) if name != path.name] == []
    async with Journal.open(path, batch=BATCH) as journal:
        await journal.counts()


async def test_closing_completes_despite_cancellation(path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        end_of(db, "a")
        entered.set()
        assert leave.wait(HANGS)

    async def work() -> None:
        async with Journal.open(path, batch=BATCH) as journal:
            changes.append(asyncio.create_task(journal.commit(slow)))
            await asyncio.to_thread(entered.wait, 10)
            changes.append(asyncio.create_task(journal.end("b")))
            await asyncio.sleep(0)
            closes.set()

    changes: list[asyncio.Task[None]] = []
    closes = asyncio.Event()
    task = asyncio.create_task(work())
    await closes.wait()
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*changes)
    async with Journal.open(path, batch=BATCH) as journal:
        assert await journal.ended("ab") == {"a", "b"}


# The file


async def test_requested_changes_are_written_before_closing(path: Path) -> None:
    async with Journal.open(path, batch=BATCH) as journal:
        tasks = [asyncio.create_task(journal.end(str(number))) for number in range(10)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert os.listdir(path.parent) == [path.name]
    for thread in threading.enumerate():
        if thread.name.startswith("lamella-journal"):
            thread.join(HANGS)
            assert not thread.is_alive()
    for use in (journal.end("a"), journal.counts(), journal.ended(["a"])):
        with pytest.raises(JournalError, match="journal is closed"):
            await use
    async with Journal.open(path, batch=BATCH) as journal:
        assert await journal.counts() == Counts(10, 0)


async def test_an_error_inside_the_context_is_raised_and_changes_are_kept(path: Path) -> None:
    async def work() -> None:
        async with Journal.open(path, batch=BATCH) as journal:
            await journal.end("a")
            raise LookupError

    with pytest.raises(LookupError):
        await work()
    async with Journal.open(path, batch=BATCH) as journal:
        assert await journal.is_done("a")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o277])
async def test_only_the_owner_can_read_a_journal(path: Path, mask: int) -> None:
    with umask(mask):
        async with Journal.open(path, batch=BATCH) as journal:
            await journal.end("a")
            beside = {name: (path.parent / name).stat().st_mode & 0o777 for name in os.listdir(path.parent)}
    assert beside == {"journal": 0o600, "journal-wal": 0o600}


@pytest.mark.parametrize("name", ["a b", "a?mode=memory", "a#b", "50%", "%41", "ä", ":memory:"])
async def test_special_characters_in_a_path_are_literal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Journal.open(name, batch=BATCH) as journal:
        await journal.end("a")
    assert os.listdir(tmp_path) == [name]


async def test_a_link_is_resolved_to_its_target(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(path)
    async with Journal.open(link, batch=BATCH):
        with pytest.raises(JournalLocked):
            await opens(path)
    assert os.listdir(link.parent) == [link.name]
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", path.name]


async def opens(path: Path, batch: str = BATCH) -> None:
    async with Journal.open(path, batch=batch) as journal:
        await journal.counts()


async def test_the_folder_of_a_journal_must_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "no" / "journal", tmp_path / "file" / "journal"):
        with pytest.raises(JournalError, match="its folder must exist") as caught:
            await opens(path)
        assert str(path) in str(caught.value)
    with pytest.raises(JournalError, match="is not a file"):
        await opens(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def powerless() -> Iterator[Path]:
    """A folder of somebody else's, for a process that is not root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield folder
        if not os.getuid():
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o777), (0o444, 0o555), (0o666, 0o555), (0o000, 0o777)])
def test_an_unwritable_journal_file_is_reported(powerless: Path, file_mode: int, folder_mode: int) -> None:
    path = powerless / "journal"
    run(opens(path))
    before = path.read_bytes()
    path.chmod(file_mode)
    powerless.chmod(folder_mode)
    if not os.getuid():
        os.seteuid(65534)
    with pytest.raises(JournalError, match="cannot be read or written"):
        run(opens(path))
    if not os.getuid():
        os.seteuid(0)
    path.chmod(0o600)
    assert path.read_bytes() == before
    assert os.listdir(powerless) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of the size of a file")
def test_a_disk_without_space_for_the_file_shm_is_reported_as_full(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "journal"
    run(opens(path))
    Path(f"{path}-wal").touch()  # as after a kill
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # -shm takes 32 KiB
    try:
        with pytest.raises(JournalError, match="the disk is full"):
            run(opens(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run(opens(path))


async def test_a_full_disk_is_reported(journal: Journal) -> None:
    await journal.end("a")
    await journal.read(lambda db: db.execute("PRAGMA max_page_count = 1").fetchone())  # as large as it is, no larger
    outcomes = await asyncio.gather(
        journal.end("b"), journal.end("c", result="x" * 100_000), journal.end("d"), return_exceptions=True
    )
    failed = [outcome for outcome in outcomes if outcome is not None]
    assert failed
    assert outcomes[1] in failed
    for outcome in failed:
        assert isinstance(outcome, JournalError)
        assert "the disk is full" in str(outcome)
        assert isinstance(outcome.__cause__, sqlite3.OperationalError)
    kept = {key for key, outcome in zip("bcd", outcomes, strict=True) if outcome is None}
    assert await journal.ended("abcd") == {"a"} | kept
    await journal.read(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
    await journal.end("c", result="x" * 100_000)
    assert await journal.ended("ac") == {"a", "c"}


# Files that are refused


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def sqlite_file(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


async def fill(path: Path, batch: str = BATCH) -> None:
    async with Journal.open(path, batch=batch) as journal:
        await asyncio.gather(*(journal.end(f"item {number}", result="x" * 200) for number in range(500)))


def text(path: Path) -> None:
    path.write_text("not a journal\n" * 1000)


def tiny(path: Path) -> None:
    path.write_text("x")


def foreign(path: Path) -> None:
    sqlite_file(path, "CREATE TABLE mine (a)", "INSERT INTO mine VALUES (1)")


def foreign_with_an_id(path: Path) -> None:
    sqlite_file(path, "PRAGMA application_id = 7")


def foreign_in_wal_mode(path: Path) -> None:
    sqlite_file(path, "PRAGMA journal_mode = WAL", "CREATE TABLE mine (a)")


def other_batch(path: Path) -> None:
    run(fill(path, batch="another"))


def older(path: Path) -> None:
    run(fill(path))
    sqlite_file(path, "PRAGMA user_version = 0")


def newer(path: Path) -> None:
    run(fill(path))
    sqlite_file(path, "PRAGMA user_version = 2")


def half(path: Path) -> None:
    run(fill(path))
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    run(fill(path))
    flip(path)


def flip(path: Path) -> None:
    """Damage a page with items: the last but one, which a later change leaves as it is."""
    content = bytearray(path.read_bytes())
    [size] = struct.unpack_from(">H", content, 16)  # of a page
    start = (len(content) // size - 2) * size
    for at in range(start, start + 200):
        content[at] ^= 0xFF
    path.write_bytes(content)


def headless(path: Path) -> None:
    run(fill(path))
    content = path.read_bytes()
    path.write_bytes(bytes(100) + content[100:])


def emptied(path: Path) -> None:
    path.touch()
    path.with_name(path.name + "-wal").write_bytes(b"the newest")


def without_tables(path: Path) -> None:
    run(fill(path))
    sqlite_file(path, "DROP TABLE lamella_batch")


def without_a_batch(path: Path) -> None:
    run(fill(path))
    sqlite_file(path, "DELETE FROM lamella_batch")


def without_an_id(path: Path) -> None:
    run(fill(path))
    sqlite_file(path, "UPDATE lamella_batch SET id = 'mine'")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (text, JournalDamaged, "damaged, or was never a journal .*not a database"),
        (tiny, JournalDamaged, "damaged, or was never a journal .*not a database: 1 bytes"),
        (foreign, JournalMismatch, "is an SQLite file but not a lamella journal"),
        (foreign_with_an_id, JournalMismatch, "is an SQLite file but not a lamella journal"),
        (foreign_in_wal_mode, JournalMismatch, "is an SQLite file but not a lamella journal"),
        (other_batch, JournalMismatch, "another batch: another, not a batch; .*choose another path"),
        (older, JournalMismatch, "journal version 0, but this lamella supports version 1"),
        (newer, JournalMismatch, "journal version 2, but this lamella supports version 1"),
        (half, JournalDamaged, "damaged"),
        (flipped, JournalDamaged, "damaged"),
        (headless, JournalDamaged, "damaged"),
        (emptied, JournalDamaged, "it is empty, and journal-wal beside it is not"),
        (without_tables, JournalDamaged, "no such table"),
        (without_a_batch, JournalDamaged, "the name of its batch is missing"),
        (without_an_id, JournalDamaged, "the id of its batch is invalid"),
    ],
)
def test_a_rejected_file_is_unchanged(
    path: Path, make: Callable[[Path], None], kind: type[JournalError], says: str
) -> None:
    make(path)
    before, touched = files(path.parent), path.stat().st_mtime_ns
    with pytest.raises(kind, match=says) as caught:
        run(opens(path))
    assert type(caught.value) is kind
    assert str(path) in str(caught.value)
    assert (files(path.parent), path.stat().st_mtime_ns) == (before, touched)


@pytest.mark.parametrize("changed", [True, False])
def test_a_file_changed_while_it_is_checked_is_reported_as_in_use(
    path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    def looks(*_: object) -> None:
        if changed:
            path.with_name("journal-wal").touch()
        raise JournalDamaged("it does not look sound")

    run(fill(path))
    monkeypatch.setattr("lamella.batch.journal_file._check_database", looks)
    with pytest.raises(JournalLocked if changed else JournalDamaged):
        run(opens(path))


@pytest.mark.parametrize("content", ["nothing", "no tables"])
def test_a_run_begins_without_existing_state(path: Path, content: str) -> None:
    path.touch(mode=0o640)
    if content == "no tables":  # as whoever was killed when it had just begun has left it
        sqlite_file(path, "PRAGMA journal_mode = WAL")
        assert path.stat().st_size
    run(opens(path))
    with pytest.raises(JournalMismatch):
        run(opens(path, "another"))
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == [path.name]


async def test_long_batch_names_are_shown_at_their_difference(path: Path) -> None:
    begun = f'{{"settings": "{"x" * 500}", "limit": 100, "more": "{"y" * 500}"}}'
    await opens(path, begun)
    await opens(path, begun)
    with pytest.raises(JournalMismatch) as caught:
        await opens(path, begun.replace("100", "200"))
    message = str(caught.value)
    assert '…xxxxxxxx", "limit": 100, "more": "' in message
    assert '…xxxxxxxx", "limit": 200, "more": "' in message
    assert len(message) < 500 + len(str(path))


async def test_one_process_cannot_open_a_journal_twice(journal: Journal, path: Path) -> None:
    # By its stat alone: to read the file here would give up the locks that this process has on it.
    await journal.end("a")
    before, beside = os.stat(path), sorted(os.listdir(path.parent))
    for _ in range(2):
        began = time.perf_counter()
        with pytest.raises(JournalLocked, match=re.escape(f"{path}: is in use by another process or another journal")):
            await opens(path)
        assert time.perf_counter() - began < 2
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert sorted(os.listdir(path.parent)) == beside == ["journal", "journal-wal"]
    await journal.end("b")
    assert await journal.counts() == Counts(2, 0)


async def test_opening_waits_for_readers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamella.batch.journal_file._PATIENCE", 10)  # so that a slow machine does not decide
    await opens(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM lamella_batch").fetchall()
    task = asyncio.create_task(opens(path))
    await asyncio.sleep(0.05)
    assert not task.done()
    other.close()
    await task
    assert os.listdir(path.parent) == [path.name]


async def test_only_one_of_many_concurrent_openers_gets_the_journal(path: Path) -> None:
    await _one_of_many(path)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("turn", range(10))
async def test_one_of_many_that_wait_for_a_reader_gets_the_journal(path: Path, turn: int) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM sqlite_master").fetchall()
    asyncio.get_running_loop().call_later(0.05, other.close)
    await _one_of_many(path)


async def _one_of_many(path: Path) -> None:
    opened: list[Journal] = []
    refused = 0
    over = asyncio.Event()

    async def contend() -> None:
        nonlocal refused
        try:
            async with Journal.open(path, batch=BATCH) as journal:
                opened.append(journal)
                await journal.end("a")
                await over.wait()
        except JournalLocked:
            refused += 1
            if refused == 7:
                over.set()

    async with asyncio.timeout(30):
        await asyncio.gather(*(contend() for _ in range(8)))
    assert len(opened) == 1
    assert os.listdir(path.parent) == [path.name]


# Virtual time


def test_a_journal_works_on_virtual_time(path: Path) -> None:
    async def main() -> tuple[Counts, float]:
        async with Journal.open(path, batch=BATCH) as journal:

            async def work(number: int) -> None:
                await asyncio.sleep(3600 * (number % 3))
                async with asyncio.timeout(60):
                    await journal.end(str(number))

            await asyncio.gather(*(work(number) for number in range(30)))
            return await journal.counts(), asyncio.get_running_loop().time()

    counts, elapsed = run_virtual(main())
    assert counts == Counts(30, 0)
    assert elapsed == pytest.approx(7200, abs=30)


# Other processes, and how they end


class Child:
    """A process that carries out what journal_child.py tells, one order after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = 0
        self.told: list[str] = []
        """What it has been told is on disk."""

    def starts(self, path: Path, name: str, items: int = 0, then: str = "die") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\t{name}\t{items}\t{then}\n")
        self._process.stdin.flush()
        self.told = []
        line = self._line()
        assert line.startswith("pid ")
        self.pid = int(line.removeprefix("pid "))

    def tells(self, keys: int) -> None:
        """Wait until it was told that so many are on disk."""
        while len(self.told) < keys:
            self.told.append(self._line())

    def waits(self) -> None:
        while (line := self._line()) != "waiting":
            self.told.append(line)

    def is_killed(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.is_gone()

    def is_gone(self) -> None:
        while (line := self._line()) != "gone":
            self.told.append(line)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it has ended"
        return line.rstrip("\n")


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    script = Path(__file__).with_name("journal_child.py")
    with subprocess.Popen(  # noqa: S603
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Child(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(HANGS) == 0


def number_of(key: str) -> int:
    return int(key.rpartition("-")[2])


def recorded(path: Path) -> set[str]:
    """What has ended by the journal at *path*, which is looked through from end to end on the way."""

    async def look() -> tuple[set[str], set[str], set[str]]:
        async with Journal.open(path, batch=BATCH) as journal:
            await journal.commit(lambda db: db.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY)"))
            done = {key async for key, result in journal.results() if result == f"{key} " * 20}
            failed = {key async for key, error in journal.failures() if error == "refused"}
            assert await journal.counts() == Counts(len(done), len(failed))
            assert await journal.ended(done | failed) == done
            return done, failed, await effects(journal)

    done, failed, written = run(look())
    assert all(number_of(key) % 7 for key in done)
    assert not any(number_of(key) % 7 for key in failed)
    assert done | failed == written
    assert os.listdir(path.parent) == [path.name]
    return done | failed


@pytest.mark.slow
def test_a_kill_at_any_time_loses_no_committed_change(tmp_path: Path, child: Child) -> None:
    moments = random.Random(20)
    for number in range(30):
        # Each file lives through five of them.
        path = tmp_path / str(number // 5) / "journal"
        path.parent.mkdir(exist_ok=True)
        before = recorded(path) if path.exists() else set()
        child.starts(path, name=f"round-{number}")
        child.tells(moments.choice([0, 0, 0, 1, 2, 20, 300]))
        time.sleep(moments.uniform(0, 0.008))
        child.is_killed()
        if path.exists():
            assert recorded(path) >= before.union(child.told)
        else:
            assert not child.told


def test_a_leftover_wal_is_applied(path: Path, child: Child) -> None:
    child.starts(path, name="a", items=200, then="die")
    child.is_gone()
    assert len(child.told) == 200
    assert path.with_name("journal-wal").stat().st_size > 0
    assert recorded(path) == set(child.told)


def test_leftovers_of_a_crashed_tool_are_removed(path: Path, child: Child) -> None:
    child.starts(path, name="a", items=20, then="die")
    child.is_gone()
    path.with_name("journal-shm").write_bytes(b"stale" * 10_000)
    assert recorded(path) == set(child.told)


def test_a_truncated_wal_contains_only_whole_changes(tmp_path: Path, child: Child) -> None:
    """As after a power cut before the disk had all of it."""
    left = tmp_path / "left" / "journal"
    left.parent.mkdir()
    child.starts(left, name="a", items=200, then="die")
    child.is_gone()
    content, wal = left.read_bytes(), left.with_name("journal-wal").read_bytes()
    lengths = random.Random(21)
    kept: list[set[str]] = []
    for length in sorted([*(lengths.randrange(len(wal)) for _ in range(25)), len(wal)]):
        path = tmp_path / str(length) / "journal"
        path.parent.mkdir()
        path.write_bytes(content)
        path.with_name("journal-wal").write_bytes(wal[:length])
        kept.append(recorded(path))
    assert all(earlier <= later for earlier, later in pairwise(kept))
    assert kept[-1] == set(child.told)
    assert len({len(each) for each in kept}) > 5


@pytest.mark.sampled(1)
@pytest.mark.parametrize("case", ["another batch", "another version", "damaged"])
def test_a_leftover_wal_is_unchanged_if_opening_is_rejected(path: Path, child: Child, case: str) -> None:
    run(fill(path))
    child.starts(path, name="a", items=50, then="die")
    child.is_gone()
    kind: type[JournalError] = JournalMismatch
    if case == "another version":
        keep_wal(path, "PRAGMA user_version = 9")
    if case == "damaged":
        kind = JournalDamaged
        flip(path)
    before = files(path.parent)
    assert before["journal-wal"]
    with pytest.raises(kind):
        run(opens(path, "another" if case == "another batch" else BATCH))
    assert files(path.parent) == before


def keep_wal(path: Path, statement: str) -> None:
    """Carry out *statement*, and leave its -wal, and no -shm, as a crash would."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(statement)
    left = files(path.parent)
    db.close()
    for name in ("journal", "journal-wal"):
        (path.parent / name).write_bytes(left[name])


def test_a_journal_open_in_another_process_is_locked(path: Path, child: Child) -> None:
    child.starts(path, name="a", items=20, then="wait")
    child.waits()
    before = files(path.parent)
    for batch in (BATCH, "another"):
        with pytest.raises(JournalLocked, match="is in use"):
            run(opens(path, batch))
    assert files(path.parent) == before
    assert sorted(before) == ["journal", "journal-wal"]
    child.is_killed()
    assert recorded(path) == set(child.told)
