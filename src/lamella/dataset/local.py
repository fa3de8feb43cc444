"""The journal of a shard on this machine: left by a killed worker, or copied from the dataset."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

from lamella.batch import Journal, JournalError
from lamella.batch.journal_errors import JournalLocked
from lamella.dataset import state
from lamella.dataset.commits import Commit, Dataset, DatasetError, TakenOver
from lamella.dataset.contents import epoch_of
from lamella.threads import run_to_its_end


class LocalJournal:
    """An open journal and a folder for the temporary files of its shard."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        self.journal = journal
        self.folder = folder
        self.committed = False
        """Whether the dataset has a complete copy, so that the local file is no longer needed."""

    async def copy_to(self, path: Path) -> None:
        """Copy the journal with SQLite's backup, on its own connection: no other one may open the file."""
        await self.journal.read(lambda db: _back_up(db, path))


@asynccontextmanager
async def local_journal(
    scratch: Path, dataset: Dataset, before: Commit, commit: Commit, thread: Executor
) -> AsyncIterator[LocalJournal]:
    """Open the journal of a shard that *commit* has claimed. *before* is the previous commit.

    The file is kept if it may be newer than the copy in the dataset. The next worker on this machine continues with it.
    """
    folder = scratch / dataset.id
    folder.mkdir(mode=0o700, exist_ok=True)
    own = folder / f"{commit.shard:05d}-e{commit.epoch:08d}"
    async with AsyncExitStack() as stack:
        left = sorted(folder.glob(f"{commit.shard:05d}-e*.journal"), reverse=True)
        found = await _newest(left, before, dataset.batch, stack)
        await run_to_its_end(thread, _sweep, folder, own.name)
        own.mkdir(mode=0o700)
        stack.push_async_callback(run_to_its_end, thread, shutil.rmtree, own, ignore_errors=True)
        if found is None:
            path = own.with_suffix(".journal")
            if before.journal is not None:
                wrong = await run_to_its_end(thread, dataset.fetch, before.journal, own / "copy")
                if wrong is not None:
                    raise DatasetError(f"{dataset.place}: {before.journal.name} {wrong}; restore it from a backup")
                (own / "copy").replace(path)
            found = path, await stack.enter_async_context(Journal.open(path, batch=dataset.batch))
        path, journal = found
        local = LocalJournal(journal, own)
        try:
            yield local
        except TakenOver:
            local.committed = True  # by another worker
            raise
        finally:
            await stack.aclose()
            if local.committed:
                path.unlink(missing_ok=True)


async def _newest(paths: list[Path], before: Commit, batch: str, stack: AsyncExitStack) -> tuple[Path, Journal] | None:
    """Open the journal that an earlier worker of the shard has left here, unless the dataset has a newer one.

    Each worker begins with the last copy in the dataset or with a newer journal. So a journal is at least as new as
    that copy if its last worker has not lost the shard before the copy was made.
    """
    oldest = 0 if before.journal is None else epoch_of(before.journal.name)
    for path in paths:
        try:
            async with AsyncExitStack() as opened:
                journal = await opened.enter_async_context(Journal.open(path, batch=batch))
                if (await journal.read(state.look)).epoch >= oldest:
                    stack.push_async_exit(opened.pop_all())
                    return path, journal
        except JournalLocked:
            continue  # that worker is frozen, or has not noticed yet that it has lost its shard
        except JournalError:
            pass
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    return None


def _sweep(folder: Path, own: str) -> None:
    """Remove the temporary files that earlier workers of the shard have left."""
    for path in folder.glob(f"{own.partition('-')[0]}-e*"):
        if path.name < own and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _back_up(db: sqlite3.Connection, path: Path) -> None:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as copy:
        copy.execute("PRAGMA synchronous = OFF")  # a temporary file: the dataset's own copy is synced
        db.backup(copy)
        # Otherwise SQLite creates a -wal file when the copy is opened.
        copy.execute("PRAGMA journal_mode = DELETE")
