"""A run stores each record once, and the next run reads only changes, on any engine."""

from __future__ import annotations

import asyncio
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from tests.dataset.conftest import RESOURCES, SyncTo, expected_of, records_in, until, write_accounts
from tests.dataset.workers import FAILING, NOTHING, UNTIL
from tests.environment import HANGS
from tests.sdk import Tracing

from lamella import dataset, maesn
from lamella.dataset import (
    Commit,
    Dataset,
    DatasetError,
    DatasetProgress,
    Here,
    Outcome,
    Work,
    WorkLost,
    driver,
    sync_shards,
)
from lamella.dataset.work import OnCount
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.sync import TooManyDeparted


def some(many: int = 9) -> list[Account]:
    return [Account(f"key-{number}", records=number * 7 % 40) for number in range(many)]


class Lossy(Here):
    """An engine that loses workers: at the first *losses* shards after so many pages, and notes what it was given."""

    def __init__(self, scratch: Path, losses: int = 0) -> None:
        super().__init__(2, scratch)
        self.losses = losses
        self.works: list[Work] = []

    async def run(self, work: Work, on_count: OnCount | None) -> Outcome:
        self.works.append(work)
        if self.losses:
            self.losses -= 1
            raise WorkLost("a test")
        return await super().run(work, on_count)


async def test_a_dataset_contains_all_records_once_and_unchanged(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(), chances={500: 0.05})
    report = await sync_to(sandbox)
    assert report.done, report
    assert (report.run, report.resumed, report.shards, report.result.parts) == (1, False, 3, 18)
    assert records_in(tmp_path / "out") == expected_of(sandbox)
    assert report.result.records == len(expected_of(sandbox))
    assert dataset.verify(tmp_path / "out") == []
    assert dataset.last_run(tmp_path / "out") == (1, True)


async def test_the_next_run_reads_only_changes(make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path) -> None:
    sandbox = await make_sandbox(accounts=some(4))
    await sync_to(sandbox)
    before = dataset.files(tmp_path / "out")
    sandbox.received.clear()
    report = await sync_to(sandbox, lookback=0.0)
    assert report.done
    assert (report.run, report.result.records) == (2, 0)
    # Each list has a mark but for the empty ones, which are asked for as a whole: one page each.
    assert len(sandbox.received) == report.result.parts
    assert dataset.files(tmp_path / "out") == before


async def test_no_key_is_sent_to_a_worker(make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path) -> None:
    sandbox = await make_sandbox(accounts=some(4))
    engine = Lossy(tmp_path / "scratch")
    await sync_to(sandbox, on=engine)
    sent = pickle.dumps(engine.works)
    assert b"account 3" in sent
    assert b"key-" not in sent
    assert sandbox.api_key.encode() not in sent


async def test_no_key_is_in_the_dataset_or_left_behind(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some(4))
    await sync_to(sandbox)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(b"account 3" in path.read_bytes() for path in written)
    assert not any(b"key-3" in path.read_bytes() for path in written)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


async def test_a_mapping_of_accounts_to_keys_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keys are never sent"):
        await maesn.sync({"north": "k"}, RESOURCES, on=Here(), output=tmp_path / "out")  # type: ignore[call-overload]


async def test_a_shard_whose_worker_is_lost_is_submitted_again(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=some())
    engine = Lossy(tmp_path / "scratch", losses=3)
    report = await sync_to(sandbox, on=engine)
    assert report.done
    assert len(engine.works) == report.shards + 3


async def test_repeatedly_lost_workers_fail_the_shard(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    report = await sync_to(await make_sandbox(accounts=some(1)), on=Lossy(tmp_path / "scratch", losses=99))
    assert not report.done
    assert [why for _, why in report.errors] == ["its workers were lost repeatedly: a test"]


@pytest.mark.slow
async def test_a_cancelled_run_is_continued_by_the_next_one(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=60) for number in range(8)])
    running = asyncio.create_task(sync_to(sandbox))
    await until(lambda: len(sandbox.received) >= 40)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert dataset.last_run(tmp_path / "out") == (1, False)
    assert dataset.verify(tmp_path / "out") == []
    commits = dataset.shards(tmp_path / "out")
    assert any(commit.journal is not None for commit in commits)
    before = len(sandbox.received)
    # The next one may be on another machine, which has nothing but the dataset.
    report = await sync_to(sandbox, on=Here(2, tmp_path / "elsewhere"), resume=True)
    assert report.done, report
    assert (report.run, report.resumed) == (1, True)
    assert records_in(tmp_path / "out") == expected_of(sandbox)
    pages = 8 * 2 * 12
    # Read again is what was under way when it was cancelled: at most the pages of two shards at a time.
    assert before + len(sandbox.received[before:]) <= pages + 2 * 8 * 4


@pytest.mark.slow
async def test_a_new_run_after_a_cancelled_one_has_all_changes(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=60) for number in range(8)])
    running = asyncio.create_task(sync_to(sandbox))
    await until(lambda: len(sandbox.received) >= 100)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with maesn.session(sandbox.api_key, None, sandbox.url) as session:
        for account in sandbox.accounts:
            with maesn.account(account.key):
                await session.post("accounting/contacts", json={"companyName": "Somebody new"})
    report = await sync_to(sandbox)
    assert report.done, report
    assert report.run == 2
    assert records_in(tmp_path / "out") == expected_of(sandbox)
    assert dataset.verify(tmp_path / "out") == []


async def test_a_part_that_fails_is_reported_and_resumed(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=[*some(4), Account("key-9", state="expired")])
    report = await sync_to(sandbox)
    assert not report.done
    assert report.errors == ()
    assert {(account, resource) for account, resource, _ in report.result.failures} == {
        ("account 4", resource) for resource in RESOURCES
    }
    assert all("Unauthorized" in error for *_, error in report.result.failures)
    again = await sync_to(sandbox, resume=True)
    assert (again.run, again.resumed, again.skipped) == (1, True, again.shards - 1)


@pytest.mark.slow
async def test_progress_counts_to_the_end(make_sandbox: MakeSandbox, sync_to: SyncTo) -> None:
    seen: list[DatasetProgress] = []
    report = await sync_to(await make_sandbox(accounts=some()), on_progress=seen.append)
    assert (seen[0].ended, seen[0].shards) == (0, report.shards)
    assert (seen[-1].ended, seen[-1].result) == (report.shards, report.result)


@pytest.mark.slow
async def test_departed_accounts_are_forgotten_even_if_their_shard_is_empty(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=3) for number in range(6)])
    await sync_to(sandbox, shards=32)
    few = write_accounts(tmp_path / "few.csv", sandbox, leave_out=3)
    await sync_to(sandbox, accounts=few, shards=32)
    assert {account for account, *_ in records_in(tmp_path / "out")} == {f"account {number}" for number in range(6)}
    report = await sync_to(sandbox, accounts=few, shards=32, departed="forget")
    assert report.done
    assert {account for account, *_ in records_in(tmp_path / "out")} == {"account 0", "account 1", "account 2"}
    assert dataset.verify(tmp_path / "out") == []


async def test_more_accounts_than_stay_are_not_forgotten(
    make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
) -> None:
    """The accounts of all shards are counted together: in a shard, one of two or the only one may leave."""
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=3) for number in range(7)])
    await sync_to(sandbox)
    half = write_accounts(tmp_path / "half.csv", sandbox, leave_out=3)
    assert (await sync_to(sandbox, accounts=half, departed="forget")).done
    staying = {f"account {number}" for number in range(4)}
    assert {account for account, *_ in records_in(tmp_path / "out")} == staying
    few = write_accounts(tmp_path / "few.csv", sandbox, leave_out=6)
    sandbox.received.clear()
    with pytest.raises(TooManyDeparted, match="records of 3 accounts, more than the 1 that stay"):
        await sync_to(sandbox, accounts=few, departed="forget")
    assert (sandbox.received, dataset.last_run(tmp_path / "out")) == ([], (2, True))
    await sync_to(sandbox, accounts=few, departed="mark")
    assert {account for account, *_ in records_in(tmp_path / "out")} == staying
    assert (await sync_to(sandbox, accounts=few, departed="forget")).done
    assert {account for account, *_ in records_in(tmp_path / "out")} == {"account 0"}
    assert dataset.verify(tmp_path / "out") == []


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"shards": 5}, "shards 4, not 5"),
        ({"suffix": ".parquet"}, r"suffix '\.jsonl', not '\.parquet'"),
        ({"base_url": "http://127.0.0.1:1"}, "batch"),
    ],
)
async def test_a_dataset_keeps_its_settings(
    make_sandbox: MakeSandbox, sync_to: SyncTo, options: dict[str, Any], what: str
) -> None:
    sandbox: Sandbox = await make_sandbox(accounts=some(2))
    await sync_to(sandbox)
    with pytest.raises(DatasetError, match=what):
        await sync_to(sandbox, **options)


async def test_the_shard_spans_are_children_of_the_run_span(tracing: Tracing, tmp_path: Path) -> None:
    made = Dataset.create(tmp_path / "out", batch="b", shards=8)
    here = Here(scratch=tmp_path / "scratch", tracer_provider=tracing.provider)
    await sync_shards(here, made, ["north", "south", "west"], NOTHING, tracer_provider=tracing.provider)
    *shards, run = tracing.exporter.get_finished_spans()
    assert (run.name, dict(run.attributes or {}), run.parent) == ("lamella dataset sync", {"lamella.run": 1}, None)
    assert [span.name for span in shards] == ["lamella shard"] * 3
    assert run.context is not None
    assert {span.parent and (span.parent.trace_id, span.parent.span_id) for span in shards} == {
        (run.context.trace_id, run.context.span_id)
    }


async def test_the_span_of_a_failed_shard_shows_no_credential(tracing: Tracing, tmp_path: Path) -> None:
    made = Dataset.create(tmp_path / "out", batch="b", shards=1)
    here = Here(scratch=tmp_path / "scratch", tracer_provider=tracing.provider)
    report = await sync_shards(here, made, ["north"], FAILING, tracer_provider=tracing.provider)
    assert len(report.errors) == 1
    shard, _ = tracing.spans
    assert (shard.status.status_code, shard.status.description) == (StatusCode.ERROR, "ValueError")
    assert "a-secret" not in shard.to_json()


async def test_a_shard_that_ends_during_a_checkpoint_keeps_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    commit = Dataset.commit

    def slow(self: Dataset, what: Commit) -> Commit:
        written = commit(self, what)
        if what.working is not None:
            loop.call_soon_threadsafe(begun.set)
            assert ended.wait(HANGS)
        return written

    async def let_it_end() -> None:
        for _ in range(50):  # turns of the loop: until the checkpoint is cancelled
            await asyncio.sleep(0)
        ended.set()

    async def until_it_commits() -> None:
        await begun.wait()
        tasks.append(asyncio.create_task(let_it_end()))

    tasks: list[asyncio.Task[None]] = []
    monkeypatch.setattr(Dataset, "commit", slow)
    made = Dataset.create(tmp_path / "out", batch="b")
    options = {"until": until_it_commits}
    here = Here(scratch=tmp_path / "scratch")
    report = await sync_shards(here, made, ["north"], UNTIL, options, checkpoint=0.01, watch=0.01)
    assert report.errors == ()
    assert [commit.run for commit in dataset.shards(tmp_path / "out")] == [1]
    assert dataset.verify(tmp_path / "out") == []


async def test_a_shard_taken_over_just_after_a_checkpoint_keeps_the_journal_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Dataset.create(tmp_path / "out", batch="b")
    check = Dataset._check_last

    def late(self: Dataset, commit: Commit) -> None:
        made.claim(commit.shard, "successor", 2)
        check(self, commit)

    monkeypatch.setattr(Dataset, "_check_last", late)
    options = {"until": asyncio.Event().wait}
    here = Here(scratch=tmp_path / "scratch")
    report = await sync_shards(here, made, ["north"], UNTIL, options, checkpoint=0.01, watch=0.01)
    [(shard, error)] = report.errors
    assert error == "another run has taken it over"
    last = made.last(shard)
    assert (last.holder, last.epoch) == ("successor", 2)
    assert dataset.verify(tmp_path / "out") == []
    assert last.journal is not None


async def test_a_shard_whose_successor_removes_its_files_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Dataset.create(tmp_path / "out", batch="b")
    put = Dataset.put

    def late(self: Dataset, path: Path, *arguments: Any) -> Any:
        made.claim(made.shard_of("north"), "successor", 2)
        path.unlink()
        return put(self, path, *arguments)

    monkeypatch.setattr(Dataset, "put", late)
    report = await sync_shards(Here(scratch=tmp_path / "scratch"), made, ["north"], NOTHING)
    assert [error for _, error in report.errors] == ["another run has taken it over"]


async def test_a_shard_that_is_cancelled_during_its_commit_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    put = Dataset.put

    def slow(self: Dataset, *arguments: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        assert cancelled.wait(60)
        return put(self, *arguments)

    monkeypatch.setattr(Dataset, "put", slow)
    made = Dataset.create(tmp_path / "out", batch="b")
    running = asyncio.create_task(sync_shards(Here(scratch=tmp_path / "scratch"), made, ["north"], NOTHING))
    await begun.wait()
    running.cancel()
    for _ in range(50):  # turns of the loop: until the shard is cancelled
        await asyncio.sleep(0)
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [commit.run for commit in dataset.shards(tmp_path / "out")] == [1]
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


async def test_at_most_twice_as_many_shards_are_submitted_as_there_are_slots(tmp_path: Path) -> None:
    class Counting(Here):
        running = most = 0

        async def run(self, work: Work, on_count: OnCount | None) -> Outcome:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                return await super().run(work, on_count)
            finally:
                self.running -= 1

    engine = Counting(2, tmp_path / "scratch")
    made = Dataset.create(tmp_path / "out", batch="b", shards=8)
    report = await sync_shards(engine, made, [f"account {number}" for number in range(100)], NOTHING)
    assert report.shards == 8
    assert engine.most == 4


async def test_a_worker_that_joins_a_running_sync_gets_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing(Here):
        joined = submitted = 0

        async def slots(self) -> int:
            return self.joined

        async def run(self, work: Work, on_count: OnCount | None) -> Outcome:
            self.submitted += 1
            return await super().run(work, on_count)

    async def until_others_are_submitted() -> None:
        engine.joined = 2
        await until(lambda: engine.submitted == 4)

    monkeypatch.setattr(driver, "_LOOK_EVERY", 0.01)
    engine = Growing(scratch=tmp_path / "scratch")
    made = Dataset.create(tmp_path / "out", batch="b", shards=4)
    names = [f"account {number}" for number in range(40)]
    async with asyncio.timeout(60):
        report = await sync_shards(engine, made, names, UNTIL, {"until": until_others_are_submitted})
    assert (report.shards, report.errors) == (4, ())
