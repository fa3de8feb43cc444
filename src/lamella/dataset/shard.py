"""Run one shard: take it over, sync its accounts and commit the result."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from secrets import token_hex
from typing import Final

import anyio
from opentelemetry import propagate

from lamella.batch import JournalError
from lamella.dataset import state
from lamella.dataset.commits import Commit, Dataset, File, TakenOver
from lamella.dataset.contents import RECORDS, marks_of, name_of
from lamella.dataset.local import LocalJournal, local_journal
from lamella.dataset.process import Process
from lamella.dataset.work import Count, OnCount, Outcome, Read, Result, Work, named
from lamella.sync import Progress, Report, export
from lamella.sync.stored import marked
from lamella.sync.tables import Misfits
from lamella.sync.typed import files_beside
from lamella.telemetry.names import RUN, SHARD, SHARD_SPAN
from lamella.threads import run_to_its_end, to_its_end

_COUNT_EVERY: Final = 1.0
"""Seconds between two counts."""
_COPYING: Final = 20
"""Copying the journal takes at most one in this many seconds, whatever its size."""


async def run_shard(
    process: Process,
    work: Work,
    on_count: OnCount | None = None,
    on_read: Callable[[], object] | None = None,
) -> Outcome:
    """Run *work* and return its outcome. It ends in one commit, so any process may safely repeat it at any time.

    On cancellation, the journal is committed, so that another worker continues from there.

    Args:
        process: The resources that the shards of this process share.
        work: The shard.
        on_count: Called about once a second with the progress.
        on_read: Called when everything is read and only the commit is left: another shard may start.

    Raises:
        DatasetError: The dataset cannot be read, or is damaged.
        JournalError: The journal of the shard cannot be written.
        OSError: A file cannot be read or written.
        Exception: The function of *work* has failed with this exception.
    """
    place = work.dataset, work.shard
    await process.instead_of(place)
    thread = ThreadPoolExecutor(1, thread_name_prefix="lamella-dataset")
    try:
        parent = propagate.extract(work.trace)
        about = {RUN: work.run, SHARD: work.shard}
        with process.tracing.around(SHARD_SPAN, about, parent):
            return await _run(process, work, thread, on_count, on_read)
    except TakenOver:
        return Outcome(work.shard, "taken over")
    finally:
        thread.shutdown(wait=False)
        process.ended(place)


async def _run(
    process: Process,
    work: Work,
    thread: ThreadPoolExecutor,
    on_count: OnCount | None,
    on_read: Callable[[], object] | None,
) -> Outcome:
    dataset = await run_to_its_end(thread, Dataset.open, work.dataset)
    last = await run_to_its_end(thread, dataset.last, work.shard)
    if last.run == work.run and not work.resume:
        return Outcome(work.shard, "done", Result.of_json(last.result))  # its worker was lost after the commit
    before, claimed = await run_to_its_end(thread, dataset.claim, work.shard, _holder(), work.run)
    try:
        async with local_journal(process.scratch, dataset, before, claimed, thread) as local:
            holding = _Holding(dataset, claimed, local, thread)
            result = await _sync(process, work, holding, on_count)
            if on_read is not None:
                on_read()
            # A cancelled worker commits what it has read, as in _sync.
            result = await to_its_end(asyncio.create_task(holding.finish(work, result)))
    except (OSError, JournalError):
        # A successor on this machine removes the files of the workers before it.
        if (await run_to_its_end(thread, dataset.last, work.shard)).epoch > claimed.epoch:
            return Outcome(work.shard, "taken over")
        raise
    return Outcome(work.shard, "done", result)


class _Holding:
    """A shard that this worker holds: its journal, and the last commit."""

    def __init__(self, dataset: Dataset, claimed: Commit, local: LocalJournal, thread: ThreadPoolExecutor) -> None:
        self.journal = local.journal
        self.commit = claimed
        self._dataset = dataset
        self._local = local
        self._thread = thread

    async def check(self) -> None:
        """Raise TakenOver if another worker has the shard."""
        await run_to_its_end(self._thread, self._dataset.check_holder, self.commit)

    async def copy_journal(self) -> None:
        """Commit a copy of the journal. The files and marks of the dataset do not change."""
        await self._replace(replace(self.commit, journal=await self._back_up()))

    async def finish(self, work: Work, result: Result) -> Result:
        """Commit the records, the journal and its marks, in one step."""
        old, tables = self.commit, repr(sorted(work.tables.items()))
        version, marks, departed = await self.journal.read(
            lambda db: (state.version_of(db), marks_of(db), tuple(sorted(marked(db))))
        )
        is_current = bool(old.files) and (old.version, old.tables) == (version, tables)
        if is_current and await run_to_its_end(self._thread, self._dataset.has, old.files):
            files, misfits = old.files, int(old.result.get("misfits", 0))
        else:
            files, misfits = await self._export(work)
        result = replace(result, misfits=misfits)
        await self._replace(
            replace(
                old,
                run=work.run,
                working=None,
                files=files,
                journal=await self._back_up(),
                version=version,
                tables=tables,
                marks=marks,
                departed=departed,
                result=asdict(result),
            )
        )
        self._local.committed = True
        return result

    async def interrupt(self) -> None:
        """Commit the current journal, so that another worker can continue."""
        await self.copy_journal()
        self._local.committed = True

    async def _export(self, work: Work) -> tuple[Mapping[str, tuple[File, ...]], int]:
        """Write all records to new data files. Return the files and the number of values that do not fit the tables."""
        misfits, suffix, token = Misfits(), self._dataset.suffix, token_hex(8)
        path = self._local.folder / f"data{suffix}"
        rows = await export(self.journal, path, work.tables, misfits.take)
        beside = files_beside(path, work.tables) if suffix == ".parquet" else {}
        files = {}
        for table, each in ({RECORDS: path} | beside).items():
            if rows:  # some readers reject an empty file
                name = name_of(table, self.commit, token, suffix)
                count = rows if table == RECORDS else None
                files[table] = (await run_to_its_end(self._thread, self._dataset.put, each, name, count),)
            each.unlink()
        return files, misfits.count

    async def _back_up(self) -> File:
        path = self._local.folder / "journal"
        await self._local.copy_to(path)
        name = name_of("", self.commit, token_hex(8), ".journal")
        return await run_to_its_end(self._thread, self._dataset.put, path, name)

    async def _replace(self, commit: Commit) -> None:
        """Commit, and remove the obsolete copy of the journal.

        On TakenOver nothing is removed: the successor may have taken over this commit with its files.
        """
        old, storage = self.commit.journal, self._dataset.storage

        def write() -> None:  # a cancelled caller does not get its result
            self.commit = self._dataset.commit(commit)

        try:
            await run_to_its_end(self._thread, write)
        finally:
            if old is not None and old != self.commit.journal:
                await run_to_its_end(self._thread, storage.remove, old.name)


async def _sync(process: Process, work: Work, holding: _Holding, on_count: OnCount | None) -> Result:
    """Sync until everything is read. Copy the journal periodically."""
    journal = holding.journal
    found = await journal.commit(partial(state.take, epoch=holding.commit.epoch))
    if found.ended and found.run == work.run and found.run > holding.commit.run:
        return Result.of_json(found.result)  # its worker was lost after the last page
    try:
        result = Result()
        if found.unfinished or work.resume:
            # First end the sync of a lost worker. If it belongs to an earlier run, then read the changes since.
            if not found.unfinished:
                await journal.commit(partial(state.begin, run=work.run, resume=True))
            result = await _pass(process, work, holding, on_count, resume=True)
        if not (work.resume or (found.unfinished and found.run == work.run)):
            await journal.commit(partial(state.begin, run=work.run))
            result = result.then(await _pass(process, work, holding, on_count, resume=False))
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True), suppress(TakenOver):
            await holding.interrupt()
        raise
    await journal.commit(partial(state.end, run=work.run, result=asdict(result)))
    return result


async def _pass(process: Process, work: Work, holding: _Holding, on_count: OnCount | None, *, resume: bool) -> Result:
    if work.departed != "keep":  # otherwise the sync does the same
        moment = int(time.time() * 1_000_000)
        # The run has checked how many accounts are forgotten. The sync would count only those of this shard.
        await holding.journal.commit(lambda db: state.settle(db, work.accounts, work.departed, moment))
    if not work.accounts:
        return Result()
    read: Read = named(work.call)
    count = _counter(work.shard, on_count)

    async def reading() -> Report:
        return await read(process, work, holding.journal, resume=resume, on_progress=count)

    tasks: tuple[asyncio.Task[Report], asyncio.Task[None]] = (
        asyncio.create_task(reading()),
        asyncio.create_task(_guard(work, holding)),
    )
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            tasks[1].result()  # it has failed
    finally:
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)
    return Result.of(tasks[0].result())


async def _guard(work: Work, holding: _Holding) -> None:
    """Copy the journal periodically. Raise TakenOver if another worker has taken over the shard."""
    due = time.monotonic() + work.checkpoint
    while True:
        await asyncio.sleep(min(work.watch, work.checkpoint))
        began = time.monotonic()
        if began < due:
            await holding.check()
            continue
        await holding.copy_journal()
        ended = time.monotonic()
        due = ended + max(work.checkpoint, _COPYING * (ended - began))


def _counter(shard: int, on_count: OnCount | None) -> Callable[[Progress], object]:
    """Return a function that reports the progress of a shard as counts, at most once per _COUNT_EVERY seconds."""
    last = 0.0

    def count(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if on_count is not None and now - last >= _COUNT_EVERY:
            last = now
            parts = progress.parts.values()
            on_count(
                Count(
                    shard,
                    len(parts),
                    sum(part.done for part in parts),
                    sum(part.error is not None for part in parts),
                    sum(part.pages for part in parts),
                    sum(part.records for part in parts),
                )
            )

    return count


def _holder() -> str:
    # Unique: after a lost response, the content of a commit shows whether this worker or another one has written it.
    return f"{socket.gethostname()} {os.getpid()} {token_hex(4)}"
