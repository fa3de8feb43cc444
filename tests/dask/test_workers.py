"""Every record once, whatever becomes of the workers, the driver and the scheduler. All are real processes."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.dask import hooks
from tests.dask.cluster import Cluster, until
from tests.dataset.conftest import RESOURCES, SyncTo, expected_of, records_in, write_accounts

from lamella import dataset
from lamella.dataset import Dataset, sync_shards
from lamella.dataset.on_dask import OnDask
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox

QUICK = {"shards": 8, "watch": 0.2, "checkpoint": 1.0}


def some(many: int = 12, records: int = 40) -> list[Account]:
    return [Account(f"key-{number}", records=records) for number in range(many)]


def pages_of(sandbox: Sandbox) -> int:
    return sum(max(1, -(-(account.records or 0) // 5)) for account in sandbox.accounts) * len(RESOURCES)


@asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        yield client


def whole(sandbox: Sandbox, place: Path) -> None:
    """Check that the dataset is sound, and has what the API has."""
    assert dataset.verify(place) == []
    assert records_in(place) == expected_of(sandbox)


async def test_nightly_runs_work_with_two_and_three_workers(
    make_sandbox: MakeSandbox, cluster: Cluster, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(), chances={500: 0.02})
    sent: list[bytes] = []
    cluster.add(2)
    async with client_of(cluster) as client:
        await client.wait_for_workers(2)
        running = asyncio.create_task(sync_to(sandbox, on=client, shards=8))
        while not running.done():
            sent += await client.run_on_scheduler(_specs_of_tasks)
            await asyncio.sleep(0.05)
        report = running.result()
        assert report.done, report
        whole(sandbox, tmp_path / "out")
        assert len({commit.holder for commit in dataset.shards(tmp_path / "out")}) == report.shards
        assert len({commit.holder.split()[1] for commit in dataset.shards(tmp_path / "out")}) == 2
        assert b"account 3" in b"".join(sent)
        assert b"key-" not in b"".join(sent)
        assert sandbox.api_key.encode() not in b"".join(sent)
        before = dataset.files(tmp_path / "out")
        sandbox.received.clear()
        cluster.add(1)
        await client.wait_for_workers(3)
        again = await sync_to(sandbox, on=client, shards=8, lookback=0.0)
        assert again.done
        assert (again.run, again.result.records) == (2, 0)
        asked = [each for each in sandbox.received if each.outcome == 200]
        assert len(asked) == again.result.parts
        assert dataset.files(tmp_path / "out") == before


async def test_each_worker_creates_one_session_and_closes_it(
    make_sandbox: MakeSandbox, cluster: Cluster, sync_to: SyncTo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMELLA_TEST_NOTES", str(tmp_path / "notes"))
    sandbox = await make_sandbox(accounts=some(6, 10))
    cluster.set("LAMELLA_TEST_NOTES", str(tmp_path / "notes"))
    cluster.add(1)
    async with client_of(cluster) as client:
        report = await sync_to(sandbox, on=client, shards=6, session="tests.dask.noting:session")
    assert report.done, report
    assert report.shards > 2
    assert (tmp_path / "notes").read_text().splitlines() == ["lamella-shards opens", "lamella-shards closes"]


async def test_a_client_with_its_own_thread_works(
    make_sandbox: MakeSandbox, cluster: Cluster, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(4, 10))
    cluster.add(1)
    seen: list[Any] = []
    client = await asyncio.to_thread(lambda: Client(cluster.address, set_as_default=False))
    try:
        report = await sync_to(sandbox, on=client, on_progress=seen.append)
    finally:
        await asyncio.to_thread(client.close)
    assert report.done, report
    whole(sandbox, tmp_path / "out")
    assert seen[-1].ended == report.shards


async def test_a_worker_that_freezes_loses_its_shard_and_cannot_win_it_back(
    make_sandbox: MakeSandbox, cluster: Cluster, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(6, 80), latency=0.01)
    [frozen] = cluster.add()
    async with client_of(cluster) as client:
        running = asyncio.create_task(sync_to(sandbox, on=client, at_once_per_account=1, **{**QUICK, "shards": 1}))
        await until(lambda: len(sandbox.received) >= 60)
        [address] = await client.nthreads()
        cluster.freeze(frozen)
        await client.run_on_scheduler(_give_up, address)
        [successor] = cluster.add()
        report = await running
    assert report.done, report
    [won] = dataset.shards(tmp_path / "out")
    assert (won.epoch, won.holder.split()[1]) == (2, str(successor.pid))
    whole(sandbox, tmp_path / "out")
    cluster.thaw(frozen)
    await cluster.ended(frozen)  # the scheduler does not know it any more
    assert dataset.shards(tmp_path / "out") == [won]
    whole(sandbox, tmp_path / "out")


async def test_a_worker_that_freezes_before_its_commit_loses_to_its_successor(
    make_sandbox: MakeSandbox, cluster: Cluster, sync_to: SyncTo, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    cluster.set(hooks.FREEZE, str(notes))
    sandbox = await make_sandbox(accounts=some(4, 10))
    [frozen] = cluster.add()
    async with client_of(cluster) as client:
        running = asyncio.create_task(sync_to(sandbox, on=client, **{**QUICK, "shards": 1}))
        await until(notes.exists)  # it has read everything, and written its files
        [address] = await client.nthreads()
        await client.run_on_scheduler(_give_up, address)
        [successor] = cluster.add()
        report = await running
    assert report.done, report
    [won] = dataset.shards(tmp_path / "out")
    assert (won.epoch, won.holder.split()[1]) == (2, str(successor.pid))
    cluster.thaw(frozen)
    await cluster.ended(frozen)
    assert "another worker has taken over shard 0 (epoch 1)" in notes.read_text()
    assert dataset.shards(tmp_path / "out") == [won]
    whole(sandbox, tmp_path / "out")  # the marks also


async def test_a_blocked_shard_blocks_neither_its_worker_nor_the_scheduler(cluster: Cluster, tmp_path: Path) -> None:
    cluster.set(hooks.SPANS, str(tmp_path / "spans"))
    cluster.add()
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = Dataset.create(tmp_path / "out", batch="b", shards=6)
    names = [f"account {number}" for number in range(60)]
    async with client_of(cluster) as client:
        await client.wait_for_workers(1)
        options = {"folder": str(tmp_path)}
        syncing = sync_shards(OnDask(client), made, names, hooks.BLOCKING, options, tracer_provider=provider)
        running = asyncio.create_task(syncing)
        await until(lambda: list(tmp_path.glob("blocked-*")))
        # What sends the heartbeats answers, and two shards are submitted for the one thread.
        assert len(await client.run(os.getpid)) == 1
        assert len(await client.run_on_scheduler(_specs_of_tasks)) == 2
        (tmp_path / "go").touch()
        report = await running
        assert (report.shards, report.errors) == (6, ())
        assert await client.run_on_scheduler(_specs_of_tasks) == []
        assert list((await client.run(_results_on)).values()) == [0]
    [run] = exporter.get_finished_spans()
    assert run.context is not None
    shards = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    assert [span["name"] for span in shards] == ["lamella shard"] * 6
    assert {span["context"]["trace_id"] for span in shards} == {f"0x{run.context.trace_id:032x}"}
    assert {span["parent_id"] for span in shards} == {f"0x{run.context.span_id:016x}"}


async def test_a_worker_reads_its_next_shard_while_it_commits_the_last(cluster: Cluster, tmp_path: Path) -> None:
    go, held = tmp_path / "go", tmp_path / "held"
    go.touch()
    cluster.set(hooks.HOLD, str(held))
    cluster.add()
    made = Dataset.create(tmp_path / "out", batch="b", shards=6)
    names = [f"account {number}" for number in range(60)]
    async with client_of(cluster) as client:
        syncing = sync_shards(OnDask(client), made, names, hooks.BLOCKING, {"folder": str(tmp_path)})
        running = asyncio.create_task(syncing)
        await until(lambda: len(list(tmp_path.glob("blocked-*"))) == 2)  # read by its one thread, and none committed
        held.touch()
        report = await running
    assert (report.shards, report.errors) == (6, ())
    assert [commit.run for commit in dataset.shards(tmp_path / "out")] == [1] * 6


async def test_the_shards_of_a_killed_driver_end_gracefully(
    make_sandbox: MakeSandbox, cluster: Cluster, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(8, 60), latency=0.01)
    cluster.add(2)
    driver = _driver(cluster, sandbox, tmp_path)
    await until(lambda: len(sandbox.received) >= 50)
    driver.kill()
    driver.wait()
    # All that was read is in the dataset, and nothing is left on the machine.
    await until(lambda: not [path for path in (tmp_path / "cluster").rglob("*.journal*") if path.is_file()])
    assert any(commit.working == 1 and commit.journal is not None for commit in dataset.shards(tmp_path / "out"))
    assert len(sandbox.received) < pages_of(sandbox)


async def test_ctrl_c_does_not_wait_for_a_frozen_worker(
    make_sandbox: MakeSandbox, cluster: Cluster, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(8, 60), latency=0.01)
    frozen, _ = cluster.add(2)
    driver = _driver(cluster, sandbox, tmp_path)
    await until(lambda: len(sandbox.received) >= 50)
    cluster.freeze(frozen)
    driver.send_signal(signal.SIGINT)
    assert await cluster.ended(driver, 60.0) == 130


async def test_ctrl_c_ends_the_shards_gracefully(
    make_sandbox: MakeSandbox, cluster: Cluster, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(8, 60), latency=0.01)
    cluster.add(2)
    driver = _driver(cluster, sandbox, tmp_path)
    await until(lambda: len(sandbox.received) >= 50)
    driver.send_signal(signal.SIGINT)
    assert await cluster.ended(driver) == 130
    asked = len(sandbox.received)
    # All that was read is in the dataset, and nothing is left on the machine.
    made = Dataset.open(tmp_path / "out")
    assert any(commit.working == 1 and commit.journal is not None for commit in made.all_last())
    assert [path for path in (tmp_path / "cluster").rglob("*.journal*") if path.is_file()] == []
    async with client_of(cluster) as client:
        report = await sync_to(sandbox, on=client, resume=True, **QUICK)
    assert report.done, report
    whole(sandbox, tmp_path / "out")
    assert len(sandbox.received) - pages_of(sandbox) <= 2 * 8
    assert asked >= 50


def _driver(cluster: Cluster, sandbox: Sandbox, folder: Path) -> subprocess.Popen[bytes]:
    """Start a driver as a process of its own."""
    accounts = write_accounts(folder / "accounts.csv", sandbox)
    return cluster.run("tests.dask.driver", str(accounts), str(folder / "out"), sandbox.url)


async def _give_up(address: str, dask_scheduler: Any) -> None:
    """Do what the scheduler does with a worker from which it has not heard for too long; it runs there."""
    await dask_scheduler.remove_worker(address, stimulus_id="test")


def _results_on(dask_worker: Any) -> int:
    """Return how many results a worker keeps for the scheduler."""
    return len(dask_worker.data)


def _specs_of_tasks(dask_scheduler: Any) -> list[bytes]:
    """Return what the scheduler has of each task; it runs there."""
    return [pickle.dumps(task.run_spec) for task in dask_scheduler.tasks.values() if task.run_spec is not None]
