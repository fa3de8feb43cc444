"""The journals that workers leave on a machine: the next worker there continues with the newest one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lamella.dataset import Commit, Dataset, state
from lamella.dataset.contents import name_of
from lamella.dataset.local import LocalJournal, local_journal

SHARD = 3


class Machine:
    """A machine with a scratch folder and workers that are killed unless their journal is committed."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        folder.mkdir()
        self.folder = folder
        self.dataset = dataset

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[tuple[Commit, LocalJournal]]:
        before, claimed = self.dataset.claim(SHARD, "a worker", 1)
        with ThreadPoolExecutor(1) as thread:
            async with local_journal(self.folder, self.dataset, before, claimed, thread) as local:
                await local.journal.commit(partial(state.take, epoch=claimed.epoch))
                yield claimed, local

    async def read_pages(self, *pages: str, copy: bool = False) -> None:
        """Read pages, copy the journal to the dataset or not, and end without a last commit."""
        async with self.worker() as (commit, local):
            for page in pages:
                await local.journal.end(page)
            if copy:
                await local.copy_to(local.folder / "journal")
                name = name_of("", commit, "e" * 16, ".journal")
                self.dataset.commit(replace(commit, journal=self.dataset.put(local.folder / "journal", name)))

    async def known(self, *pages: str) -> set[str]:
        """Return which of the pages the next worker need not read again."""
        async with self.worker() as (_, local):
            return await local.journal.ended(pages)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.create(tmp_path / "out", batch="b")


@pytest.fixture
def machine(tmp_path: Path, dataset: Dataset) -> Machine:
    return Machine(tmp_path / "machine", dataset)


async def test_the_next_worker_continues_with_the_journal_of_a_killed_one(machine: Machine) -> None:
    await machine.read_pages("1", "2")
    assert await machine.known("1", "2", "3") == {"1", "2"}


async def test_a_worker_killed_after_its_claim_loses_no_pages_of_the_one_before(machine: Machine) -> None:
    await machine.read_pages("1", copy=True)
    await machine.read_pages("2")
    machine.dataset.claim(SHARD, "killed before it has opened the journal", 1)
    assert await machine.known("1", "2", "3") == {"1", "2"}


async def test_a_journal_older_than_the_copy_is_not_used(machine: Machine, tmp_path: Path, dataset: Dataset) -> None:
    other = Machine(tmp_path / "other", dataset)
    await machine.read_pages("1", copy=True)
    await machine.read_pages("2")
    await other.read_pages("3", copy=True)
    assert await machine.known("1", "2", "3") == {"1", "3"}
    assert machine.files() == ["00003-e00000004.journal"]


async def test_a_slow_worker_leaves_the_files_of_its_successor(machine: Machine, dataset: Dataset) -> None:
    before, slow = dataset.claim(SHARD, "slow", 1)
    async with machine.worker() as (_, successor):
        with ThreadPoolExecutor(1) as thread:
            async with local_journal(machine.folder, dataset, before, slow, thread):
                assert successor.folder.is_dir()


async def test_a_locked_journal_is_left_to_its_worker(machine: Machine) -> None:
    await machine.read_pages("1", copy=True)
    async with machine.worker() as (_, frozen):
        await frozen.journal.end("2")
        assert await machine.known("1", "2") == {"1"}


@pytest.mark.parametrize("copy", [True, False])
async def test_a_damaged_journal_is_removed_with_the_files_beside_it(machine: Machine, *, copy: bool) -> None:
    await machine.read_pages("1", copy=copy)
    [path] = machine.folder.rglob("*.journal")
    path.write_bytes(b"")
    path.with_name(f"{path.name}-wal").write_bytes(b"the log of another file")
    assert await machine.known("1") == ({"1"} if copy else set())
    assert machine.files() == ["00003-e00000002.journal"]
