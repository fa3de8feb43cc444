"""A journal beside a dict that does the same: whatever is done, also a kill, both say the same."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.examples import examples

from lamella.batch import Counts, Journal, JournalError, JournalLocked, JournalMismatch, end_of

_T = TypeVar("_T")

KEYS = st.sampled_from(["a", "b", "c", "ä", "", "a\0b", "'; DROP TABLE lamella_items; --", "x" * 3000])
TEXTS = st.none() | st.sampled_from(["", "one", "two", "ü\n\0", "y" * 5000])
ENDS = st.tuples(KEYS, st.booleans(), TEXTS)
BATCH = "a batch"


class Refused(Exception):
    """What a change raises, so that nothing of it is kept."""


class JournalMachine(RuleBasedStateMachine):
    """`done` and `failed` are what a journal has to say of the items; `order` is in which they first ended."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lamella-fuzz-"))
        self.path = self.folder / "journal"
        self.runner = asyncio.Runner()
        self.opened = AsyncExitStack()
        self.journal: Journal | None = None
        self.done: dict[str, str | None] = {}
        self.failed: dict[str, str] = {}
        self.order: list[str] = []
        self.identity = ""

    def teardown(self) -> None:
        self.run(self.opened.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(work)

    async def _open(self) -> Journal:
        return await self.opened.enter_async_context(Journal.open(self.path, batch=BATCH))

    def ask(self) -> Journal:
        assert self.journal is not None
        return self.journal

    def note(self, key: str, well: bool, text: str | None) -> None:
        if key not in self.order:
            self.order.append(key)
        if well:
            self.failed.pop(key, None)
            self.done[key] = text
        elif key not in self.done:
            self.failed[key] = text or ""

    @initialize()
    def begin(self) -> None:
        self.journal = self.run(self._open())
        self.identity = self.journal.idempotency_key("one")

    @rule(end=ENDS)
    def one_ends(self, end: tuple[str, bool, str | None]) -> None:
        key, well, text = end
        if well:
            self.run(self.ask().end(key, result=text))
        else:
            self.run(self.ask().end(key, error=text or ""))
        self.note(*end)

    @rule(ends=st.lists(st.tuples(ENDS, st.booleans()), min_size=2, max_size=8))
    def many_end_together(self, ends: list[tuple[tuple[str, bool, str | None], bool]]) -> None:
        """They share a transaction; one that raises undoes its own part alone."""

        def change(db: sqlite3.Connection, end: tuple[str, bool, str | None], refused: bool) -> None:
            key, well, text = end
            end_of(db, key, result=text if well else None, error=None if well else text or "")
            if refused:
                raise Refused

        async def main() -> list[object]:
            journal = self.ask()
            return await asyncio.gather(
                *(journal.commit(lambda db, each=each: change(db, *each)) for each in ends),  # type: ignore[misc]
                return_exceptions=True,
            )

        for (end, refused), outcome in zip(ends, self.run(main()), strict=True):
            assert isinstance(outcome, Refused) if refused else outcome is None
            if not refused:
                self.note(*end)

    @rule(end=ENDS, sql=st.sampled_from(["COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT x", "RELEASE lamella_change"]))
    def a_change_meddles(self, end: tuple[str, bool, str | None], sql: str) -> None:
        def change(db: sqlite3.Connection) -> None:
            end_of(db, end[0], error="meddled")
            db.execute(sql)

        with pytest.raises(JournalError):
            self.run(self.ask().commit(change))

    @rule(end=ENDS)
    def the_caller_is_cancelled(self, end: tuple[str, bool, str | None]) -> None:
        """Its change is there whole or not at all."""
        key, well, text = end

        async def main() -> bool:
            journal = self.ask()
            work = journal.end(key, result=text) if well else journal.end(key, error=text or "")
            task = asyncio.ensure_future(work)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            [row] = await journal.read(
                lambda db: db.execute(
                    "SELECT count(*) FROM lamella_items WHERE key = ? AND error IS ? AND result IS ?",
                    (key, None if well else text or "", text if well else None),
                ).fetchall()
            )
            return bool(row[0])

        if self.run(main()):
            self.note(*end)

    @rule()
    def it_is_opened_anew(self) -> None:
        async def main() -> Journal:
            await self.opened.aclose()
            assert [path.name for path in self.folder.iterdir()] == ["journal"]
            return await self._open()

        self.journal = self.run(main())

    @rule()
    def nobody_else_may_open_it(self) -> None:
        async def main() -> None:
            async with Journal.open(self.path, batch=BATCH):
                pass

        with pytest.raises(JournalLocked):
            self.run(main())

    @rule()
    def another_batch_is_told(self) -> None:
        async def main() -> Journal:
            await self.opened.aclose()
            before = self.path.read_bytes()
            with pytest.raises(JournalMismatch):
                async with Journal.open(self.path, batch="another"):
                    pass
            assert self.path.read_bytes() == before
            return await self._open()

        self.journal = self.run(main())

    @rule(torn=st.integers(0, 40))
    def it_is_killed(self, torn: int) -> None:
        """What is on disk now is what a process that begins anew finds: all of it, though the end may be torn."""
        copy = self.folder / "copy"
        # By a process of its own: to close a file here would give up the locks on it.
        wal = self.path.with_name("journal-wal")
        for source, target in ((self.path, copy), (wal, copy.with_name("copy-wal"))):
            if source.exists():
                _copy(source, target)
        if torn and copy.with_name("copy-wal").exists():
            with copy.with_name("copy-wal").open("ab") as file:
                file.write(b"\xa5" * torn)  # what had been begun

        async def main() -> None:
            async with Journal.open(copy, batch=BATCH) as journal:
                await self.compare(journal)

        self.run(main())
        copy.unlink()

    async def compare(self, journal: Journal) -> None:
        assert await journal.counts() == Counts(len(self.done), len(self.failed))
        assert [pair async for pair in journal.failures()] == [
            (key, self.failed[key]) for key in self.order if key in self.failed
        ]
        assert [pair async for pair in journal.results()] == [
            (key, self.done[key]) for key in self.order if key in self.done
        ]
        assert await journal.ended([*self.order, "never"]) == set(self.done)
        assert journal.idempotency_key("one") == self.identity

    @invariant()
    def both_say_the_same(self) -> None:
        if self.journal is not None:
            self.run(self.compare(self.journal))


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", str(source), str(target)], check=True)  # noqa: S603, S607 - files of our own


TestJournal = JournalMachine.TestCase
TestJournal.settings = examples(20, stateful_step_count=20)
